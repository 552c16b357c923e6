//! The section `[cloudstack]`. Without a `url` attachd does not call CloudStack.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;
use toml::de::DeValue;

use super::places::is_unseen;
use super::text::{Setting, TomlSection, text_of};
use crate::cloud::{ApiUrl, CloudSettings, ProxyUrl, SecretFile, judge_authorities, judge_secret_file};

/// The longest time limit of a call, in seconds.
const LONGEST: u32 = 3600;

/// The section as it is written: each key may be missing.
#[derive(Default)]
struct Written {
    url: Option<ApiUrl>,
    key_file: Option<PathBuf>,
    secret_file: Option<PathBuf>,
    ca: Option<PathBuf>,
    proxy: Option<ProxyUrl>,
    insecure: bool,
    timeout_seconds: Option<u32>,
}

/// Reads the section. `None`: it has no `url`, or a `url` that is refused.
pub(super) fn read(section: &mut TomlSection<'_, '_>) -> Option<CloudSettings> {
    let mut written = Written::default();
    let url_at = section.set("url", &mut written.url);
    let others = [
        section.set("key_file", &mut written.key_file),
        section.set("secret_file", &mut written.secret_file),
        section.set("ca", &mut written.ca),
        section.set("proxy", &mut written.proxy),
        section.set("insecure", &mut written.insecure),
        section.set("timeout_seconds", &mut written.timeout_seconds),
    ];
    if url_at.is_none()
        && let Some(at) = others.into_iter().flatten().min()
    {
        section.complain(Some(at), "url is missing: without it the other keys have no effect");
    }
    let [.., insecure_at, timeout_at] = others;
    let mut settings = CloudSettings::new(written.url?);
    settings.key_file = written.key_file.map_or(settings.key_file, SecretFile::Named);
    settings.secret_file = written.secret_file.map_or(settings.secret_file, SecretFile::Named);
    (settings.ca, settings.proxy, settings.insecure) = (written.ca, written.proxy, written.insecure);
    if let Some(seconds) = written.timeout_seconds {
        settings.timeout = Duration::from_secs(seconds.into());
        if !(1..=LONGEST).contains(&seconds) {
            section.complain(timeout_at, &format!("timeout_seconds: takes a number from 1 to {LONGEST}"));
        }
    }
    let is_tls = settings.url.as_url().scheme() == "https";
    if settings.is_in_the_clear() && !settings.insecure {
        let message = "url: http:// to another host shows the key and all answers to everybody on the way, and lets them \
                       change the answers: use https://, or set insecure = true";
        section.complain(url_at, message);
    }
    if is_tls && settings.insecure {
        let message =
            "insecure: it allows http:// only, and url is https://; for a certificate of your own authority set ca";
        section.complain(insecure_at, message);
    }
    Some(settings)
}

/// Returns the files that cannot be used, each with its key and a message.
pub(super) fn unusable_files(settings: &CloudSettings) -> Vec<(&'static str, String)> {
    let secrets = [("key_file", &settings.key_file), ("secret_file", &settings.secret_file)];
    let secrets = secrets.into_iter().filter_map(|(key, file)| match file {
        SecretFile::Named(path) => Some((key, path.as_path(), judge_secret_file(path))),
        // systemd makes the credentials when attachd starts.
        SecretFile::Credential(_) => None,
    });
    let ca = settings.ca.as_deref().map(|path| ("ca", path, judge_authorities(path)));
    let unusable = secrets.chain(ca).filter_map(|(key, path, judged)| {
        let why = judged.err().filter(|_| !is_unseen(path))?;
        Some((key, format!("[cloudstack] {key}: {why}")))
    });
    unusable.collect()
}

impl Setting for ApiUrl {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value)?.parse().map_err(|error| format!("{error}"))
    }
}

impl Setting for ProxyUrl {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value)?.parse().map_err(|error| format!("{error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parsed, problems};
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    const URL: &str = "[cloudstack]\nurl = \"https://cloud.example.com\"\n";

    #[test]
    fn without_the_section_there_is_no_client_and_with_a_url_there_is_one() {
        assert_eq!(parsed("").unwrap().cloudstack, None);
        assert_eq!(parsed("[cloudstack]").unwrap().cloudstack, None);
        let settings = parsed(URL).unwrap().cloudstack.unwrap();
        assert_eq!(settings.url.to_string(), "https://cloud.example.com/client/api");
        assert_eq!(settings.key_file, SecretFile::Credential("cloudstack-key"));
        assert_eq!(settings.secret_file, SecretFile::Credential("cloudstack-secret"));
        assert_eq!(settings.timeout, Duration::from_mins(1));
        let whole = format!(
            "{URL}key_file = \"/k\"\nsecret_file = \"/s\"\nca = \"/ca\"\nproxy = \"http://proxy:3128\"\ntimeout_seconds = 5"
        );
        let settings = parsed(&whole).unwrap().cloudstack.unwrap();
        assert_eq!(settings.secret_file, SecretFile::Named("/s".into()));
        assert_eq!((settings.ca, settings.timeout), (Some("/ca".into()), Duration::from_secs(5)));
    }

    #[test]
    fn what_could_give_a_secret_away_is_refused_where_it_stands_and_not_repeated() {
        for (text, at, why) in [
            ("url = \"https://me:hunter2@cloud.example.com\"", "(2, 7)", "user or a password"),
            ("url = \"https://x\"\nproxy = \"http://me:hunter2@proxy\"", "(3, 9)", "user or a password"),
            ("url = \"http://cloud.example.com\"", "(2, 7)", "insecure = true"),
            ("url = \"ftp://x\"", "(2, 7)", "only http:// and https://"),
            ("url = \"\"", "(2, 7)", "no address"),
            ("url = 7", "(2, 7)", "takes text"),
            ("url = \"https://x\"\ninsecure = true", "(3, 12)", "set ca"),
            ("url = \"https://x\"\ntimeout_seconds = 0", "(3, 19)", "from 1 to 3600"),
            ("url = \"https://x\"\nkey_file = \"k\"", "(3, 12)", "begins with /"),
            ("insecure = true", "(2, 12)", "url is missing"),
            ("url = \"https://x\"\nsecret = \"hunter2\"", "(3, 1)", "has no key \"secret\""),
        ] {
            let told = problems(&format!("[cloudstack]\n{text}\n"));
            assert_eq!(told.len(), 1, "{text}: {told:?}");
            assert!(told[0].contains(at) && told[0].contains(why) && !told[0].contains("hunter2"), "{text}: {told:?}");
        }
        for fine in
            ["http://127.0.0.1:8080", "http://localhost:8080", "http://cloud.example.com\"\ninsecure = true #\""]
        {
            assert_eq!(problems(&format!("[cloudstack]\nurl = \"{fine}\"\n")), Vec::<String>::new());
        }
    }

    #[test]
    fn the_own_vm_is_an_id_of_cloudstacks_where_cloudstack_is_called() {
        assert!(parsed("[host]\nvm_id = \"x\"").is_ok(), "for intents alone any text will do");
        let told = problems(&format!("{URL}[host]\nvm_id = \"x\"\n"));
        assert!(told[0].starts_with("Some((4, 9)) [host] vm_id: \"x\" is not a VM id"), "{told:?}");
        assert!(parsed(&format!("{URL}[host]\nvm_id = \"0d2f6d8e-58a3-4d20-9f3c-3c1f2a7d0c11\"\n")).is_ok());
    }

    #[test]
    fn files_that_cannot_be_used_are_named_by_their_keys() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for (name, text, mode) in [("key", "k", 0o600), ("secret", "hunter2", 0o644), ("ca", "no certificate", 0o644)] {
            fs::write(at(name), text).unwrap();
            fs::set_permissions(at(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        let mut settings = parsed(URL).unwrap().cloudstack.unwrap();
        assert_eq!(unusable_files(&settings), [], "the control: credentials come with the start");
        settings.key_file = SecretFile::Named(at("key"));
        settings.secret_file = SecretFile::Named(at("secret"));
        settings.ca = Some(at("ca"));
        let told = unusable_files(&settings);
        assert_eq!(told.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["secret_file", "ca"]);
        assert!(told[0].1.contains("chmod 0640") && !told[0].1.contains("hunter2"), "{told:?}");
        settings.key_file = SecretFile::Named(at("none"));
        assert!(unusable_files(&settings)[0].1.contains("No such file"));
        settings.key_file = SecretFile::Named("/run/credentials/attachd.service/other".into());
        assert_eq!(unusable_files(&settings).len(), 2);
    }
}

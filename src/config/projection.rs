//! The section `[projection]`. Without `urls` the rows go into the store's own file alone.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::DeValue;

use super::places::is_unseen;
use super::text::{Setting, TomlSection};
use crate::projection::{DatabaseSettings, DatabaseUrl, Unusable, check, password};

/// The longest names that MariaDB has: of a database and of a user.
const NAME: (usize, usize) = (64, 128);

/// Reads the section. `None`: it has no `urls`, or `urls` that are refused.
pub(super) fn read(section: &mut TomlSection<'_, '_>) -> Option<DatabaseSettings> {
    let mut urls: Option<Vec<DatabaseUrl>> = None;
    let (mut user, mut database) = (None::<String>, None::<String>);
    let (mut password_file, mut tls_ca) = (None::<PathBuf>, None::<PathBuf>);
    let urls_at = section.set("urls", &mut urls);
    let user_at = section.set("user", &mut user);
    let password_at = section.set("password_file", &mut password_file);
    let ca_at = section.set("tls_ca", &mut tls_ca);
    let database_at = section.set("database", &mut database);
    if urls_at.is_none()
        && let Some(at) = [user_at, password_at, ca_at, database_at].into_iter().flatten().min()
    {
        section.complain(Some(at), "urls is missing: without it the other keys have no effect");
    }
    for (key, name, longest, at) in [("user", &user, NAME.1, user_at), ("database", &database, NAME.0, database_at)] {
        if let Some(name) = name
            && (name.is_empty() || name.chars().count() > longest || name.chars().any(char::is_control))
        {
            section.complain(at, &format!("{key}: takes a name of 1 to {longest} characters"));
        }
    }
    let mut urls = urls?.into_iter();
    let (server, others) = (urls.next()?, urls.next());
    if others.is_some() {
        section.complain(urls_at, "urls: takes one address; several are not supported yet");
    }
    if server.socket().is_some() && tls_ca.is_some() {
        section.complain(ca_at, "tls_ca: a Unix socket has no TLS: leave it out");
    }
    let default = DatabaseSettings::new(server);
    Some(DatabaseSettings {
        user: user.unwrap_or(default.user),
        database: database.unwrap_or(default.database),
        password_file,
        tls_ca,
        server: default.server,
    })
}

/// Returns the files that cannot be used, each with its key and a message.
pub(super) fn unusable_files(settings: &DatabaseSettings) -> Vec<(&'static str, String)> {
    let password_file = settings.password_file.as_deref().map(|path| ("password_file", path, password(path).map(drop)));
    let ca = settings.tls_ca.as_deref().map(|path| {
        let read = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()));
        ("tls_ca", path, read.and_then(|pem| certificate(&pem).map_err(|why| format!("{}: {why}", path.display()))))
    });
    let unusable = password_file.into_iter().chain(ca).filter_map(|(key, path, judged)| {
        let why = judged.err().filter(|_| !is_unseen(path))?;
        Some((key, format!("[projection] {key}: {why}")))
    });
    unusable.collect()
}

/// Asks the database whether rows could be written into it. A database that cannot be reached is no mistake of the
/// configuration: then the answer is a note.
pub(super) fn judge(settings: &DatabaseSettings) -> Result<Option<String>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("[projection] the database cannot be asked: {error}"))?;
    match runtime.block_on(check(settings)) {
        Ok(()) => Ok(None),
        Err(Unusable::Wrong(why)) => Err(format!("[projection] {why}")),
        Err(Unusable::Away(why)) => Ok(Some(format!("[projection] was not checked: {why}"))),
    }
}

fn certificate(pem: &[u8]) -> Result<(), &'static str> {
    let none = "it has no certificate in PEM in it";
    openssl::x509::X509::from_pem(pem).map(drop).map_err(|_| none)
}

impl Setting for Vec<DatabaseUrl> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let wrong = || "takes a list of one address, like [\"mysql:///run/mysqld/mysqld.sock\"]".to_owned();
        let list = value.get_ref().as_array().filter(|list| !list.is_empty()).ok_or_else(wrong)?;
        let url = |url: &Spanned<DeValue<'_>>| {
            url.get_ref().as_str().ok_or_else(wrong)?.parse::<DatabaseUrl>().map_err(|error| error.to_string())
        };
        list.iter().map(url).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parsed, problems};
    use super::*;

    #[test]
    fn without_urls_there_is_no_database_and_with_one_it_has_the_predecessors_name() {
        assert_eq!(parsed("").unwrap().projection, None, "the control");
        let of = |text: &str| parsed(&format!("[projection]\n{text}")).unwrap().projection.unwrap();
        let database = of("urls = [\"mysql:///run/mysqld/mysqld.sock\"]");
        assert_eq!((&*database.user, &*database.database), ("attachd", "migratekit_oma"));
        assert_eq!(database.password_file, None);
        let other = of(
            "urls = [\"mysql://192.0.2.7\"]\nuser = \"u\"\ndatabase = \"d\"\npassword_file = \"/p\"\ntls_ca = \"/ca\"",
        );
        assert_eq!((&*other.user, &*other.database, other.is_tls()), ("u", "d", true));
    }

    #[test]
    fn each_mistake_says_what_would_be_right_and_shows_no_password() {
        for (text, why) in [
            ("user = \"x\"", "urls is missing"),
            ("urls = []", "a list of one address"),
            ("urls = \"mysql://localhost\"", "a list of one address"),
            ("urls = [7]", "a list of one address"),
            ("urls = [\"mysql://u:hunter2@localhost\"]", "leave them out and set user and password_file"),
            ("urls = [\"mysql://10.0.0.1\", \"mysql://10.0.0.2\"]", "takes one address"),
            ("urls = [\"mysql:///s\"]\ntls_ca = \"/ca\"", "a Unix socket has no TLS"),
            ("urls = [\"mysql:///s\"]\ndatabase = \"\"", "1 to 64 characters"),
            ("urls = [\"mysql:///s\"]\nuser = \"\"", "1 to 128 characters"),
            ("urls = [\"mysql:///s\"]\npassword = \"hunter2\"", "has no key \"password\""),
            ("urls = [\"mysql:///s\"]\npassword_file = \"x\"", "a path that begins with /"),
        ] {
            let told = problems(&format!("[projection]\n{text}"));
            assert!(told.len() == 1 && told[0].contains(why) && !told[0].contains("hunter2"), "{text}: {told:?}");
        }
    }

    #[test]
    fn a_password_that_everybody_can_read_and_an_authority_that_is_none_are_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let [password, ca] = ["password", "ca"].map(|name| dir.path().join(name));
        std::fs::write(&password, "hunter2").unwrap();
        std::fs::write(&ca, "hunter2").unwrap();
        std::fs::set_permissions(&password, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut settings = DatabaseSettings::new("mysql://10.0.0.1".parse().unwrap());
        assert_eq!(unusable_files(&settings), [], "the control");
        (settings.password_file, settings.tls_ca) = (Some(password), Some(ca));
        let told = unusable_files(&settings);
        assert_eq!(told.iter().map(|(key, _)| *key).collect::<Vec<_>>(), ["password_file", "tls_ca"]);
        assert!(told[0].1.contains("every user may use it") && told[1].1.contains("no certificate"), "{told:?}");
        assert!(!format!("{told:?}").contains("hunter2"));
    }
}

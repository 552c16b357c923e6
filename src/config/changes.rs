//! Compares two configurations: which keys differ, and when each change takes effect. Pure.

use super::Settings;
use crate::cloud::CloudSettings;
use crate::projection::DatabaseSettings;

/// The keys whose values differ, as `[section] key`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// The keys that take effect at a reload.
    pub at_once: Vec<&'static str>,
    /// The keys that take effect when attachd is restarted.
    pub at_restart: Vec<&'static str>,
}

impl Changes {
    pub(super) fn at_once(&mut self, key: &'static str, differs: bool) {
        self.at_once.extend(differs.then_some(key));
    }

    pub(super) fn restart(&mut self, key: &'static str, differs: bool) {
        self.at_restart.extend(differs.then_some(key));
    }

    /// Compares the settings in use with new ones. Each section destructures all its fields, so that no field can be
    /// forgotten.
    pub fn between(old: &Settings, new: &Settings) -> Self {
        let Settings { api, store, device, export, helper, host, cloudstack, projection, history, limits } = old;
        let mut changes = Self::default();
        api.compare(&new.api, &mut changes);
        store.compare(&new.store, &mut changes);
        device.compare(&new.device, &mut changes);
        export.compare(&new.export, &mut changes);
        helper.compare(&new.helper, &mut changes);
        host.compare(&new.host, &mut changes);
        compare_cloudstack(cloudstack.as_ref(), new.cloudstack.as_ref(), &mut changes);
        compare_projection(projection.as_ref(), new.projection.as_ref(), &mut changes);
        history.compare(&new.history, &mut changes);
        limits.compare(new.limits, &mut changes);
        changes
    }
}

/// Compares the settings in use with new ones. Whether there is a client at all is decided at the start.
fn compare_cloudstack(old: Option<&CloudSettings>, new: Option<&CloudSettings>, changes: &mut Changes) {
    let (Some(old), Some(new)) = (old, new) else {
        return changes.restart("[cloudstack] url", old.is_some() != new.is_some());
    };
    let CloudSettings { url, key_file, secret_file, ca, proxy, insecure, timeout } = old;
    changes.at_once("[cloudstack] url", *url != new.url);
    changes.at_once("[cloudstack] key_file", *key_file != new.key_file);
    changes.at_once("[cloudstack] secret_file", *secret_file != new.secret_file);
    changes.at_once("[cloudstack] ca", *ca != new.ca);
    changes.at_once("[cloudstack] proxy", *proxy != new.proxy);
    changes.at_once("[cloudstack] insecure", *insecure != new.insecure);
    changes.at_once("[cloudstack] timeout_seconds", *timeout != new.timeout);
}

/// A target is begun at the start.
fn compare_projection(old: Option<&DatabaseSettings>, new: Option<&DatabaseSettings>, changes: &mut Changes) {
    let (Some(old), Some(new)) = (old, new) else {
        return changes.restart("[projection] urls", old.is_some() != new.is_some());
    };
    let DatabaseSettings { server, user, password_file, tls_ca, database } = old;
    changes.restart("[projection] urls", *server != new.server);
    changes.restart("[projection] user", *user != new.user);
    changes.restart("[projection] password_file", *password_file != new.password_file);
    changes.restart("[projection] tls_ca", *tls_ca != new.tls_ca);
    changes.restart("[projection] database", *database != new.database);
}

impl Settings {
    /// Returns these settings with all new values that take effect at a reload.
    #[must_use]
    pub fn reloaded(&self, new: &Self) -> Self {
        let mut reloaded = self.clone();
        reloaded.host = new.host.clone();
        if self.cloudstack.is_some() && new.cloudstack.is_some() {
            reloaded.cloudstack.clone_from(&new.cloudstack);
        }
        reloaded.history = new.history.clone();
        reloaded.limits = new.limits;
        reloaded.export.tls.clone_from(&new.export.tls);
        reloaded.export.insecure = new.export.insecure;
        reloaded
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::parsed;
    use super::super::{HostFacts, parse};
    use super::*;

    /// Each key of the configuration with a value other than its default: section, line, reported name, and whether
    /// it takes effect at a reload.
    const OTHERS: [(&str, &str, &str, bool); 27] = [
        ("api", "socket = \"/run/x\"", "[api] socket", false),
        ("api", "tcp = \"127.0.0.1:8090\"", "[api] tcp", false),
        ("api", "tcp_uids = [7]", "[api] tcp_uids", false),
        ("api", "tls_certificate = \"/c\"\ntoken_file = \"/t\"", "[api] tls_certificate", false),
        ("store", "path = \"/x/db\"", "[store] path", false),
        ("store", "claims = \"/x/claims\"", "[store] claims", false),
        ("device", "schemes = [\"loop\"]", "[device] schemes", false),
        ("device", "nbd_group = \"x\"", "[device] nbd_group", false),
        ("device", "host_disks = \"/x/disks\"", "[device] host_disks", false),
        ("export", "folder = \"/x/exports\"", "[export] folder", false),
        ("export", "listen = \"127.0.0.1:7\"", "[export] listen", false),
        ("export", "pid_file = \"/x/pid\"", "[export] pid_file", false),
        ("export", "insecure = true", "[export] insecure", true),
        ("export", "tls_ca = \"/ca\"", "[export] tls_ca", true),
        ("export", "tls_psk_file = \"/keys\"", "[export] tls_psk_file", true),
        ("export", "tls_ca = \"/a\"\ntls_certificate = \"/c\"\ntls_key = \"/k\"", "[export] tls_ca", true),
        ("export", "tls_ca = \"/ca\"\ntls_name = \"x\"", "[export] tls_ca", true),
        ("export", "tls_psk_file = \"/k\"\ntls_psk_identity = \"x\"", "[export] tls_psk_file", true),
        ("export", "backend = \"nbd-server\"\nnbd_server_version = \"3.26.1\"", "[export] backend", false),
        ("helper", "socket = \"/run/x\"", "[helper] socket", false),
        ("host", "vm_id = \"x\"", "[host] vm_id", true),
        ("cloudstack", "url = \"https://x\"", "[cloudstack] url", false),
        ("projection", "urls = [\"mysql:///s\"]", "[projection] urls", false),
        ("history", "days = 7", "[history] days", true),
        ("limits", "intents = 7", "[limits] intents", true),
        ("limits", "intents_per_user = 7", "[limits] intents_per_user", true),
        ("limits", "intents = 7\nintents_per_user = 8", "[limits] intents", true),
    ];

    #[test]
    fn every_key_that_differs_is_named_and_takes_effect_at_the_reported_time() {
        let old = Settings::default();
        assert_eq!(Changes::between(&old, &parsed("").unwrap()), Changes::default(), "the control: nothing differs");
        for (section, line, key, at_once) in OTHERS {
            let new = parsed(&format!("[{section}]\n{line}")).unwrap();
            let changes = Changes::between(&old, &new);
            let (named, other) =
                if at_once { (&changes.at_once, &changes.at_restart) } else { (&changes.at_restart, &changes.at_once) };
            assert!(named.contains(&key) && other.is_empty(), "{line}: {changes:?}");
            let left = Changes::between(&old.reloaded(&new), &new);
            assert_eq!((left.at_once.len(), left.at_restart), (0, changes.at_restart), "{line}");
        }
    }

    #[test]
    fn another_cloudstack_takes_effect_at_once_and_a_first_or_no_cloudstack_at_a_restart() {
        let with = |more: &str| parsed(&format!("[cloudstack]\n{more}")).unwrap();
        let between = |old: &Settings, new: &Settings| {
            let left = Changes::between(&old.reloaded(new), new);
            let changes = Changes::between(old, new);
            assert_eq!((left.at_once.len(), left.at_restart), (0, changes.at_restart.clone()));
            (changes.at_once, changes.at_restart)
        };
        let old = with("url = \"https://x\"");
        for (more, key) in [
            ("key_file = \"/k\"", "key_file"),
            ("secret_file = \"/s\"", "secret_file"),
            ("ca = \"/ca\"", "ca"),
            ("proxy = \"http://p\"", "proxy"),
            ("timeout_seconds = 7", "timeout_seconds"),
        ] {
            let (at_once, at_restart) = between(&old, &with(&format!("url = \"https://x\"\n{more}")));
            assert_eq!((at_once, at_restart.len()), (vec![&*format!("[cloudstack] {key}")], 0));
        }
        let plain = with("url = \"http://x\"\ninsecure = true");
        assert_eq!(between(&old, &plain).0, ["[cloudstack] url", "[cloudstack] insecure"]);
        assert_eq!(between(&old, &Settings::default()), (vec![], vec!["[cloudstack] url"]));
    }

    #[test]
    fn a_change_of_nbd_servers_mode_is_named_by_its_key() {
        let with = |more: &str| {
            let nbd_server = "[export]\nbackend = \"nbd-server\"\nnbd_server_version = \"3.26.1\"";
            parse(&format!("{nbd_server}\n{more}"), HostFacts::default).unwrap()
        };
        let named = |old: &str, new: &str| Changes::between(&with(old), &with(new)).at_restart;
        let [socket, signal] = ["mode = \"socket\"", "mode = \"signal\""];
        assert_eq!(named(signal, signal), Vec::<&str>::new(), "the control");
        assert!(named(socket, signal).contains(&"[export] mode"));
        assert_eq!(named(signal, &format!("{signal}\nmain_file = \"/x\"")), ["[export] main_file"]);
    }
}

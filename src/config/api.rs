//! The section `[api]`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use super::changes::Changes;
use super::places::is_unseen;
use super::text::TomlSection;
use crate::remote::{RemoteFiles, RemoteKeys};

/// The settings of the API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiSettings {
    /// `socket`: the path of the API's Unix socket.
    pub socket: PathBuf,
    /// `tcp`: the address of the TCP listener; `None`: attachd opens none.
    pub tcp: Option<SocketAddr>,
    /// `tcp_uids`: users who may use the TCP listener, beside root and the group `attachd`.
    pub tcp_uids: Vec<u32>,
    /// TLS and a token, for an address that other hosts can reach.
    pub remote: Option<RemoteFiles>,
}

/// The way out for an address that is refused.
const NEEDS: &str = "an address that other hosts can reach needs tls_certificate (and tls_key, if the key is in a file \
                     of its own) and token_file";

impl Default for ApiSettings {
    fn default() -> Self {
        Self { socket: "/run/attachd/attachd.sock".into(), tcp: None, tcp_uids: Vec::new(), remote: None }
    }
}

impl ApiSettings {
    pub(super) fn read(&mut self, section: &mut TomlSection<'_, '_>) {
        let (mut certificate, mut key, mut token) = (None::<PathBuf>, None::<PathBuf>, None::<PathBuf>);
        section.set("socket", &mut self.socket);
        let tcp_at = section.set("tcp", &mut self.tcp);
        section.set("tcp_uids", &mut self.tcp_uids);
        let certificate_at = section.set("tls_certificate", &mut certificate);
        let others = [certificate_at, section.set("tls_key", &mut key), section.set("token_file", &mut token)];
        let first = others.into_iter().flatten().min();
        self.remote = match (certificate, token) {
            (Some(certificate), Some(token)) => {
                Some(RemoteFiles { key: key.unwrap_or_else(|| certificate.clone()), certificate, token })
            }
            _ => None,
        };
        let reachable = self.tcp.is_some_and(|address| !is_loopback(address.ip()));
        if self.remote.is_none() && first.is_some() {
            section.complain(first, &format!("tls_certificate and token_file are set together: {NEEDS}"));
        } else if self.remote.is_none() && reachable {
            section.complain(tcp_at, &format!("tcp: {NEEDS}; or take 127.0.0.1, which only this host can reach"));
        } else if self.tcp.is_some() && !reachable && first.is_some() {
            let message = "tls_certificate and token_file have no effect: tcp is an address that only this host can \
                           reach, and there callers are known by their user. Take them out, or change tcp";
            section.complain(first, message);
        }
    }

    pub(super) fn compare(&self, new: &Self, changes: &mut Changes) {
        let Self { socket, tcp, tcp_uids, remote } = self;
        changes.restart("[api] socket", *socket != new.socket);
        changes.restart("[api] tcp", *tcp != new.tcp);
        changes.restart("[api] tcp_uids", *tcp_uids != new.tcp_uids);
        changes.restart("[api] tls_certificate", *remote != new.remote);
    }
}

/// Returns the file that cannot be used, with its key and a message.
pub(super) fn unusable_file(settings: &ApiSettings) -> Option<(&'static str, String)> {
    let error = RemoteKeys::load(settings.remote.as_ref()?).err()?;
    (!is_unseen(&error.path)).then(|| (error.key, format!("[api] {}: {error}", error.key)))
}

/// Returns whether only this host can reach the address.
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{parsed, problems};
    use super::*;

    const REMOTE: &str = "tls_certificate = \"/c\"\ntoken_file = \"/t\"\n";

    #[test]
    fn tcp_is_off_unless_an_address_is_given() {
        assert_eq!(parsed("").unwrap().api.tcp, None);
        let api = parsed("[api]\ntcp = \"127.0.0.1:8090\"\ntcp_uids = [33, 1000]").unwrap().api;
        assert_eq!((api.tcp, api.tcp_uids), (Some("127.0.0.1:8090".parse().unwrap()), vec![33, 1000]));
    }

    #[test]
    fn an_address_that_other_hosts_can_reach_needs_tls_and_a_token() {
        for address in ["0.0.0.0:8090", "192.0.2.1:8090", "[::]:8090", "[::ffff:192.0.2.1]:8090"] {
            let told = problems(&format!("[api]\ntcp = \"{address}\"\n"));
            assert!(told.len() == 1 && told[0].starts_with("Some((2, 7))"), "{told:?}");
            assert!(told[0].contains("tls_certificate") && told[0].contains("token_file"), "{told:?}");
            let api = parsed(&format!("[api]\ntcp = \"{address}\"\n{REMOTE}")).unwrap().api;
            assert_eq!(api.remote.unwrap().key, PathBuf::from("/c"), "one file has both");
        }
        for local in ["127.0.0.1:8090", "127.9.9.9:1", "[::1]:8090", "[::ffff:127.0.0.1]:8090"] {
            assert!(parsed(&format!("[api]\ntcp = \"{local}\"\n")).is_ok(), "{local}");
        }
    }

    #[test]
    fn keys_without_effect_and_values_of_another_kind_are_refused_where_they_stand() {
        for (text, at, why) in [
            (format!("tcp = \"127.0.0.1:1\"\n{REMOTE}"), "(3, 19)", "no effect"),
            ("tls_key = \"/k\"".to_owned(), "(2, 11)", "set together"),
            ("tcp = \"0.0.0.0:1\"\ntoken_file = \"/t\"".to_owned(), "(3, 14)", "set together"),
            ("tcp = \"localhost:1\"".to_owned(), "(2, 7)", "takes an address"),
            ("tcp = 8090".to_owned(), "(2, 7)", "takes text"),
            ("tcp_uids = 7".to_owned(), "(2, 12)", "takes a list of whole numbers"),
            ("tcp_uids = [\"www-data\"]".to_owned(), "(2, 12)", "takes a list of whole numbers"),
            ("tcp_uids = [-1]".to_owned(), "(2, 12)", "takes a list of whole numbers"),
        ] {
            let told = problems(&format!("[api]\n{text}\n"));
            assert!(told.len() == 1 && told[0].contains(at) && told[0].contains(why), "{text}: {told:?}");
        }
    }
}

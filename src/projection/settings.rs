//! Which MariaDB the rows are written to, as the configuration says it.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// MariaDB's port.
const PORT: u16 = 3306;

/// The database of the predecessor.
const DATABASE: &str = "migratekit_oma";

/// The user in MariaDB.
const USER: &str = "attachd";

/// The longest path of a Unix socket, in bytes.
const SOCKET_PATH: usize = 107;

/// A database in MariaDB, and how attachd gets into it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseSettings {
    /// Where MariaDB listens.
    pub server: DatabaseUrl,
    /// The user in MariaDB.
    pub user: String,
    /// The file with the password. `None`: there is no password, because MariaDB knows the user by the socket.
    pub password_file: Option<PathBuf>,
    /// The only authority whose certificates are accepted. `None`: the system's authorities.
    pub tls_ca: Option<PathBuf>,
    /// The database.
    pub database: String,
}

impl DatabaseSettings {
    /// Returns the default settings for this server.
    pub fn new(server: DatabaseUrl) -> Self {
        Self { server, user: USER.to_owned(), password_file: None, tls_ca: None, database: DATABASE.to_owned() }
    }

    /// Returns whether the connection uses TLS: always to another host, on this host only with an authority.
    pub fn is_tls(&self) -> bool {
        self.tls_ca.is_some() || !self.server.is_local()
    }
}

impl fmt::Display for DatabaseSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {}", self.database, self.server)
    }
}

/// Where MariaDB listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    /// At this Unix socket.
    Socket(PathBuf),
    /// At this address and port.
    Tcp(IpAddr, u16),
}

/// The text is no such address. The message does not repeat it, because it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; it takes an address like \"mysql:///run/mysqld/mysqld.sock\" (this host's Unix socket) or \"mysql://192.0.2.7:3306\""
)]
pub struct BadDatabaseUrl(&'static str);

impl DatabaseUrl {
    /// Returns whether the server is on this host.
    pub fn is_local(&self) -> bool {
        match self {
            Self::Socket(_) => true,
            Self::Tcp(address, _) => address.is_loopback(),
        }
    }

    /// Returns the path of the Unix socket.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Socket(path) => Some(path),
            Self::Tcp(..) => None,
        }
    }
}

impl FromStr for DatabaseUrl {
    type Err = BadDatabaseUrl;

    fn from_str(text: &str) -> Result<Self, BadDatabaseUrl> {
        if text.contains('@') {
            return Err(BadDatabaseUrl(
                "there is a user or a password in it, which everybody could read here: leave them out and set user and \
                 password_file",
            ));
        }
        let rest = text.strip_prefix("mysql://").ok_or(BadDatabaseUrl("it does not begin with mysql://"))?;
        if rest.contains(['?', '#', '%']) || rest.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(BadDatabaseUrl("it has options or special characters in it"));
        }
        let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if host.is_empty() {
            let is_path = path.len() > 1 && !path.ends_with('/') && !path.split('/').any(|part| part == "..");
            if !is_path || path.len() > SOCKET_PATH {
                return Err(BadDatabaseUrl("there is neither a host nor the path of a socket in it"));
            }
            return Ok(Self::Socket(path.into()));
        }
        if path.len() > 1 {
            return Err(BadDatabaseUrl("there is a path after the host: the name of the database goes into database"));
        }
        let number = |port: &str| port.parse().map_err(|_| BadDatabaseUrl("its port is no number"));
        let (host, port) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
            Some((host, "")) => (host, PORT),
            Some((host, port)) => (host, number(port.strip_prefix(':').unwrap_or_default())?),
            None => match host.split_once(':') {
                Some((host, port)) => (host, number(port)?),
                None => (host, PORT),
            },
        };
        if host == "localhost" {
            return Ok(Self::Tcp(Ipv4Addr::LOCALHOST.into(), port));
        }
        // Asking for a name can block for long.
        let address = host.parse().map_err(|_| BadDatabaseUrl("its host is no address in numbers"))?;
        Ok(Self::Tcp(address, port))
    }
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => write!(f, "mysql://{}", path.display()),
            Self::Tcp(IpAddr::V4(address), port) => write!(f, "mysql://{address}:{port}"),
            Self::Tcp(IpAddr::V6(address), port) => write!(f, "mysql://[{address}]:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_socket_or_an_address_is_accepted() {
        for (text, shown) in [
            ("mysql:///run/mysqld/mysqld.sock", "mysql:///run/mysqld/mysqld.sock"),
            ("mysql://localhost", "mysql://127.0.0.1:3306"),
            ("mysql://192.0.2.7:3307/", "mysql://192.0.2.7:3307"),
            ("mysql://[2001:db8::7]", "mysql://[2001:db8::7]:3306"),
            ("mysql://[::1]:3307", "mysql://[::1]:3307"),
        ] {
            assert_eq!(text.parse::<DatabaseUrl>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_an_address_may_not_have_is_refused_without_repeating_it() {
        for (wrong, why) in [
            ("mysql://oma_user:hunter2@127.0.0.1", "password"),
            ("mysql://hunter2@127.0.0.1", "user"),
            ("oma_user:hunter2@tcp(localhost:3306)/migratekit_oma", "password"),
            ("postgres://hunter2", "begin with mysql"),
            ("mysql://127.0.0.1/hunter2", "goes into database"),
            ("mysql://127.0.0.1?password=hunter2", "options"),
            ("mysql://hunter2.example.org", "no address in numbers"),
            ("mysql://127.0.0.1:hunter2", "port"),
            ("mysql://", "neither"),
            ("mysql:///run/../hunter2", "neither"),
            ("mysql:///run/mysqld/", "neither"),
        ] {
            let told = wrong.parse::<DatabaseUrl>().unwrap_err().to_string();
            assert!(told.contains(why) && !told.contains("hunter2"), "{wrong}: {told}");
        }
    }

    #[test]
    fn only_this_very_host_is_reached_without_tls() {
        let is_tls = |text: &str| DatabaseSettings::new(text.parse().unwrap()).is_tls();
        for own in ["mysql:///run/mysqld/mysqld.sock", "mysql://localhost", "mysql://[::1]", "mysql://127.9.9.9"] {
            assert!(!is_tls(own), "{own}");
        }
        for other in ["mysql://10.0.0.1", "mysql://[::2]"] {
            assert!(is_tls(other), "{other}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>(), rest in "[a-z0-9:/\\[\\].]{0,30}") {
            let _ = text.parse::<DatabaseUrl>();
            let _ = format!("mysql://{rest}").parse::<DatabaseUrl>();
        }
    }
}

//! How CloudStack is reached, as the configuration says it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use reqwest::Url;

/// How long a call may take unless told otherwise.
const TIMEOUT: Duration = Duration::from_mins(1);

/// The path of CloudStack's API, if the address has none.
const API_PATH: &str = "/client/api";

/// Where systemd puts the unit's credentials, for processes that it did not start.
const CREDENTIALS: &str = "/run/credentials/attachd.service";

/// Which CloudStack is called, and with which keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloudSettings {
    /// Its API.
    pub url: ApiUrl,
    /// The file with the key.
    pub key_file: SecretFile,
    /// The file with the secret.
    pub secret_file: SecretFile,
    /// The only authority whose certificates are accepted; `None`: the system's authorities.
    pub ca: Option<PathBuf>,
    /// The HTTP proxy.
    pub proxy: Option<ProxyUrl>,
    /// Allows `http://` to another host.
    pub insecure: bool,
    /// How long a call may take.
    pub timeout: Duration,
}

impl CloudSettings {
    /// Returns the default settings for this CloudStack.
    pub fn new(url: ApiUrl) -> Self {
        Self {
            url,
            key_file: SecretFile::Credential("cloudstack-key"),
            secret_file: SecretFile::Credential("cloudstack-secret"),
            ca: None,
            proxy: None,
            insecure: false,
            timeout: TIMEOUT,
        }
    }

    /// Returns whether calls go to another host without TLS, where others can read and change them.
    pub fn is_in_the_clear(&self) -> bool {
        self.url.0.scheme() == "http" && !self.url.is_loopback()
    }
}

/// A file that holds a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretFile {
    /// This one.
    Named(PathBuf),
    /// The credential of this name, which systemd gives to the service.
    Credential(&'static str),
}

impl SecretFile {
    /// Where it is.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Named(path) => path.clone(),
            Self::Credential(name) => credential(name),
        }
    }
}

/// Where a credential of the service is.
pub(super) fn credential(name: &str) -> PathBuf {
    std::env::var_os("CREDENTIALS_DIRECTORY").map_or_else(|| CREDENTIALS.into(), PathBuf::from).join(name)
}

/// The address of CloudStack's API: `https` or `http`, with no user and no password in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiUrl(Url);

/// The address of an HTTP proxy, with no user and no password in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

/// The text is no such address. The message does not repeat it, because it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadUrl(String);

impl ApiUrl {
    /// As a client needs it.
    pub fn as_url(&self) -> &Url {
        &self.0
    }

    /// Returns whether the address is this host's loopback address.
    pub fn is_loopback(&self) -> bool {
        let host = self.0.host_str().unwrap_or_default();
        let address: Option<IpAddr> = host.trim_matches(['[', ']']).parse().ok();
        address.map_or(host == "localhost", |address| address.is_loopback())
    }
}

impl FromStr for ApiUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let mut url = plain(text, "https://cloud.example.com/client/api")?;
        if url.path() == "/" {
            url.set_path(API_PATH);
        }
        Ok(Self(url))
    }
}

impl ProxyUrl {
    /// As a client needs it.
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for ProxyUrl {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let url = plain(text, "http://proxy.example.com:3128")?;
        if url.path() == "/" { Ok(Self(url)) } else { Err(BadUrl("a proxy's address ends with its port".to_owned())) }
    }
}

fn plain(text: &str, example: &str) -> Result<Url, BadUrl> {
    let bad = |why: &str| BadUrl(format!("{why}; it takes an address like {example:?}"));
    let url = Url::parse(text).map_err(|error| bad(&format!("it is no address: {error}")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(bad("only http:// and https:// are known"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(bad("there is a user or a password in it, which everybody could read here: leave them out"));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err(bad("it goes on after its path, with ? or #"));
    }
    Ok(url)
}

impl fmt::Display for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for ApiUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_address_is_completed_and_what_it_may_not_have_is_refused_without_repeating_it() {
        let shown = |text: &str| text.parse::<ApiUrl>().map(|url| url.to_string());
        assert_eq!(shown("https://cloud.example.com").as_deref(), Ok("https://cloud.example.com/client/api"));
        assert_eq!(shown("https://cloud.example.com/api"), Ok("https://cloud.example.com/api".to_owned()));
        for (wrong, why) in [
            ("https://admin:hunter2@cloud.example.com", "password"),
            ("https://hunter2@cloud.example.com", "user"),
            ("ftp://cloud.example.com/hunter2", "only http"),
            ("cloud.example.com/hunter2", "no address"),
            ("https://", "no address"),
            ("https://cloud.example.com/client/api?secret=hunter2", "after its path"),
            ("https://cloud.example.com/#hunter2", "after its path"),
            ("", "no address"),
        ] {
            let error = wrong.parse::<ApiUrl>().unwrap_err().to_string();
            assert!(error.contains(why) && !error.contains("hunter2"), "{wrong}: {error}");
        }
        assert!("http://proxy:3128".parse::<ProxyUrl>().is_ok());
        assert!("http://proxy:3128/x".parse::<ProxyUrl>().is_err());
    }

    #[test]
    fn only_this_very_host_is_reached_in_the_clear() {
        let clear = |text: &str| CloudSettings::new(text.parse().unwrap()).is_in_the_clear();
        for own in
            ["http://127.0.0.1:8080", "http://127.9.9.9/client/api", "http://[::1]:8080", "http://localhost:8080"]
        {
            assert!(!clear(own), "{own}");
        }
        for other in ["http://10.0.0.1", "http://localhost.example.com", "http://[::2]", "http://127.0.0.1.example.com"]
        {
            assert!(clear(other), "{other}");
        }
        assert!(!clear("https://10.0.0.1"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in any::<String>()) {
            let _ = text.parse::<ApiUrl>();
            let _ = text.parse::<ProxyUrl>();
        }
    }
}

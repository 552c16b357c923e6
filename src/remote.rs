//! TLS and a token, for callers of the API from other hosts. The files are read again when they have changed.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::sha::sha256;
use openssl::ssl::{Ssl, SslAcceptor, SslMethod};
use openssl::x509::X509;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_openssl::SslStream;

use crate::place::{secret_file, small_file_of_root};
use crate::stamp::Stamp;

/// The size limit of a file.
const SIZE: u64 = 1 << 20;

/// The fewest characters of a token; fewer could be guessed.
const TOKEN: usize = 16;

/// The files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteFiles {
    /// `tls_certificate`: the certificate with its chain, in PEM.
    pub certificate: PathBuf,
    /// `tls_key`: its key, in PEM; by default in the file of the certificate.
    pub key: PathBuf,
    /// `token_file`: the file with the token that callers send.
    pub token: PathBuf,
}

/// A file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{why}")]
pub struct RemoteError {
    /// The key of `[api]` that names the file.
    pub key: &'static str,
    /// The file.
    pub path: PathBuf,
    why: String,
}

/// The files as they are now; a clone is cheap and shares the state.
#[derive(Clone)]
pub(crate) struct Remote {
    files: RemoteFiles,
    state: Arc<Mutex<State>>,
}

struct State {
    /// The stamps of the files just before they were read.
    stamps: [Option<Stamp>; 3],
    keys: Arc<RemoteKeys>,
    /// Why changed files cannot be used.
    trouble: Option<String>,
}

/// What was read from the files.
pub(crate) struct RemoteKeys {
    acceptor: SslAcceptor,
    token: Token,
    /// The names in the certificate.
    names: Vec<String>,
}

/// A token, of which only a digest is kept.
struct Token([u8; 32]);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl RemoteFiles {
    fn stamps(&self) -> [Option<Stamp>; 3] {
        [&self.certificate, &self.key, &self.token].map(|path| Stamp::of(path))
    }
}

impl Remote {
    /// Reads the files.
    pub(crate) fn new(files: RemoteFiles) -> Result<Self, RemoteError> {
        // The stamps are taken first, so that a write in between changes them again.
        let stamps = files.stamps();
        let keys = Arc::new(RemoteKeys::load(&files)?);
        Ok(Self { files, state: Arc::new(Mutex::new(State { stamps, keys, trouble: None })) })
    }

    /// Returns the keys for a connection now. Changed files that cannot be used leave the last ones in use.
    pub(crate) fn current(&self) -> Arc<RemoteKeys> {
        let stamps = self.files.stamps();
        let mut state = self.lock();
        if stamps != state.stamps {
            match RemoteKeys::load(&self.files) {
                Ok(keys) => {
                    tracing::info!("the TLS files or the token of the API have changed and were read again");
                    *state = State { stamps, keys: Arc::new(keys), trouble: None };
                }
                // Perhaps one of the files is not replaced yet: the next connection reads them again.
                Err(error) => {
                    let why = error.to_string();
                    if state.trouble.as_ref() != Some(&why) {
                        tracing::warn!("changed files of the API cannot be used, so the old ones stay in use: {why}");
                    }
                    state.trouble = Some(why);
                }
            }
        }
        Arc::clone(&state.keys)
    }

    /// Returns why changed files cannot be used.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.current();
        self.lock().trouble.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RemoteKeys {
    /// Reads the files; an error names the first that cannot be used.
    pub(crate) fn load(files: &RemoteFiles) -> Result<Self, RemoteError> {
        let RemoteFiles { certificate, key, token } = files;
        let chain = in_file("tls_certificate", certificate, chain)?;
        let private = in_file("tls_key", key, |path| {
            // An empty passphrase: for an encrypted key OpenSSL would ask at a terminal, and there is none.
            PKey::private_key_from_pem_callback(&secret_file(path, SIZE)?, |_| Ok(0))
                .map_err(|error| format!("{}: {error}", path.display()))
        })?;
        let acceptor = in_file("tls_key", key, |path| {
            acceptor(&chain, &private)
                .map_err(|error| format!("{}: it does not fit the certificate: {error}", path.display()))
        })?;
        let token = in_file("token_file", token, read_token)?;
        let names = chain.first().map(names_of).unwrap_or_default();
        Ok(Self { acceptor, token, names })
    }

    /// Does the TLS handshake.
    pub(crate) async fn accept<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: S) -> Result<SslStream<S>, NotTls> {
        let plain = |error: &dyn fmt::Display| NotTls { is_http: error.to_string().contains("http request") };
        let session = Ssl::new(self.acceptor.context()).map_err(|error| plain(&error))?;
        let mut stream = SslStream::new(session, stream).map_err(|error| plain(&error))?;
        Pin::new(&mut stream).accept().await.map_err(|error| plain(&error))?;
        Ok(stream)
    }

    /// Returns whether this is the token. How long that takes tells nothing about it.
    pub(crate) fn is_token(&self, told: &[u8]) -> bool {
        openssl::memcmp::eq(&sha256(told), &self.token.0)
    }

    /// Returns whether the certificate is for this host name.
    pub(crate) fn is_named(&self, host: &str) -> bool {
        let host = host.strip_suffix('.').unwrap_or(host);
        self.names.iter().any(|name| match name.strip_prefix("*.") {
            Some(domain) => host.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(domain)),
            None => name.eq_ignore_ascii_case(host),
        })
    }
}

/// A handshake that failed.
pub(crate) struct NotTls {
    /// The client has sent HTTP in the clear.
    pub(crate) is_http: bool,
}

fn in_file<T>(key: &'static str, path: &Path, read: impl FnOnce(&Path) -> Result<T, String>) -> Result<T, RemoteError> {
    read(path).map_err(|why| RemoteError { key, path: path.to_owned(), why })
}

fn chain(path: &Path) -> Result<Vec<X509>, String> {
    let bytes = small_file_of_root(path, SIZE).map_err(|error| format!("{}: {error}", path.display()))?;
    match X509::stack_from_pem(&bytes) {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        _ => Err(format!("{}: there is no certificate in it", path.display())),
    }
}

fn acceptor(chain: &[X509], key: &PKey<openssl::pkey::Private>) -> Result<SslAcceptor, ErrorStack> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    let mut certificates = chain.iter();
    if let Some(own) = certificates.next() {
        acceptor.set_certificate(own)?;
    }
    for between in certificates {
        acceptor.add_extra_chain_cert(between.clone())?;
    }
    acceptor.set_private_key(key)?;
    acceptor.check_private_key()?;
    Ok(acceptor.build())
}

fn names_of(certificate: &X509) -> Vec<String> {
    let names = certificate.subject_alt_names();
    names.iter().flatten().filter_map(|name| name.dnsname().map(str::to_owned)).collect()
}

/// Reads a token: one line of visible characters. No error repeats it.
fn read_token(path: &Path) -> Result<Token, String> {
    let bytes = secret_file(path, SIZE)?;
    let token = bytes.trim_ascii();
    if token.len() >= TOKEN && token.iter().all(u8::is_ascii_graphic) {
        return Ok(Token(sha256(token)));
    }
    Err(format!(
        "{}: a token is one line of {TOKEN} visible characters or more (`openssl rand -hex 32` makes one)",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    fn token(text: &str, mode: u32) -> Result<Token, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        read_token(&path)
    }

    #[test]
    fn a_token_is_one_long_line_in_a_file_that_only_attachd_can_read_and_is_never_shown() {
        let text = "0123456789abcdef";
        let read = token(&format!("{text}\n"), 0o640).unwrap();
        assert_eq!(read.0, sha256(text.as_bytes()));
        assert!(!format!("{read:?}").contains("0123"));
        for (bad, mode, why) in [
            (text, 0o644, "chmod 0640"),
            ("0123456789abcde", 0o600, "16 visible"),
            ("0123456789 abcdef", 0o600, "16 visible"),
            ("0123456789abcdef\nsecond", 0o600, "16 visible"),
            ("", 0o600, "16 visible"),
        ] {
            let told = token(bad, mode).unwrap_err();
            assert!(told.contains(why) && !told.contains("0123456789"), "{told}");
        }
    }

    #[test]
    fn a_host_is_named_exactly_or_by_one_wildcard_label() {
        let names = ["api.example.com", "*.cloud.example"].map(str::to_owned).to_vec();
        let acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap().build();
        let keys = RemoteKeys { acceptor, token: Token([0; 32]), names };
        for host in ["api.example.com", "API.example.com.", "a.cloud.example"] {
            assert!(keys.is_named(host), "{host}");
        }
        for host in ["example.com", "x.api.example.com", "a.b.cloud.example", "cloud.example", ""] {
            assert!(!keys.is_named(host), "{host}");
        }
        assert!(!keys.is_token(b""));
    }
}

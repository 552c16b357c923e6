//! TLS towards the NBD server, for a server that other hosts can reach: by certificates, or by a pre-shared key.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::X509VerifyResult;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::blocking::blocking;
use crate::place::small_file_of_root;
use crate::stamp::Stamp;

/// The size limit of a file; a bundle of all public authorities fits.
const SIZE: u64 = 4 << 20;

/// How the two sides of a TLS connection authenticate each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TlsSettings {
    /// By certificates.
    Certificates(TlsFiles),
    /// By a pre-shared key.
    Key(TlsKey),
}

/// The pre-shared key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsKey {
    /// The key file with lines `name:key`, in the NBD server's format.
    pub file: PathBuf,
    /// The name of attachd's key; `None`: the file has only one key.
    pub identity: Option<String>,
}

/// The certificates; all files are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authority that signed the server's certificate.
    pub ca: PathBuf,
    /// attachd's own certificate and key, for a server that verifies its clients.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The name in the server's certificate; `None`: the server's address.
    pub name: Option<String>,
}

/// A file that cannot be used, and the reason.
#[derive(Debug, thiserror::Error)]
#[error("TLS towards the NBD server: {path}: {why}", path = path.display())]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

impl TlsError {
    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// TLS as configured, or none. The files are read again when they have changed. A clone is cheap and shares the
/// state.
#[derive(Clone)]
pub struct Tls {
    address: IpAddr,
    state: Arc<Mutex<TlsState>>,
}

#[derive(Default)]
struct TlsState {
    /// `None`: no TLS.
    wanted: Option<Configured>,
    /// Why changed files could not be read.
    trouble: Option<String>,
}

#[derive(Clone)]
struct Configured {
    settings: TlsSettings,
    /// The stamps of the files just before they were read.
    stamps: Vec<Option<Stamp>>,
    ready: Ready,
}

impl TlsSettings {
    fn files(&self) -> Vec<&Path> {
        match self {
            Self::Key(key) => vec![&key.file],
            Self::Certificates(files) => {
                let identity = files.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
                std::iter::once(&files.ca).chain(identity).map(PathBuf::as_path).collect()
            }
        }
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.files().into_iter().map(Stamp::of).collect()
    }
}

impl Tls {
    /// Reads the files. `address` must be in the server's certificate, unless the settings give another name.
    pub fn new(settings: Option<TlsSettings>, address: IpAddr) -> Result<Self, TlsError> {
        let tls = Self { address, state: Arc::default() };
        tls.change(settings)?;
        Ok(tls)
    }

    /// No TLS, until [`Self::change`] is called.
    pub fn none() -> Self {
        Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), state: Arc::default() }
    }

    /// Uses other settings and reads the files in any case. After an error nothing has changed.
    pub fn change(&self, settings: Option<TlsSettings>) -> Result<(), TlsError> {
        let wanted = settings.map(|settings| self.read(settings)).transpose()?;
        *self.lock() = TlsState { wanted, trouble: None };
        Ok(())
    }

    fn read(&self, settings: TlsSettings) -> Result<Configured, TlsError> {
        // The stamps are taken first, so that a write in between changes them again.
        let stamps = settings.stamps();
        let ready = Ready::load(&settings, self.address)?;
        Ok(Configured { settings, stamps, ready })
    }

    /// Returns why changed files cannot be used. Until they can, the files as last read stay in use.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    /// Returns the TLS context for a handshake now; `None`: no TLS.
    pub(super) async fn current(&self) -> Option<Ready> {
        let last = self.lock().wanted.as_ref()?.ready.clone();
        let this = self.clone();
        // If no thread is available to check the files, the last context is used.
        blocking(move || this.fresh()).await.unwrap_or(Some(last))
    }

    /// Returns the context, after reading the files again if they have changed.
    fn fresh(&self) -> Option<Ready> {
        let wanted = self.lock().wanted.clone()?;
        if wanted.settings.stamps() == wanted.stamps {
            self.lock().trouble = None;
            return Some(wanted.ready);
        }
        let read = self.read(wanted.settings.clone());
        let mut state = self.lock();
        // The settings have changed in the meantime.
        if state.wanted.as_ref().is_none_or(|now| now.settings != wanted.settings) {
            return state.wanted.as_ref().map(|now| now.ready.clone());
        }
        match read {
            Ok(new) => {
                tracing::info!("the TLS files for the NBD server have changed and were read again");
                let ready = new.ready.clone();
                *state = TlsState { wanted: Some(new), trouble: None };
                Some(ready)
            }
            // Perhaps one of the files is not replaced yet: the next handshake reads them again.
            Err(error) => {
                let why = error.to_string();
                if state.trouble.as_ref() != Some(&why) {
                    tracing::warn!("changed TLS files cannot be used, so the old ones stay in use: {why}");
                }
                state.trouble = Some(why);
                Some(wanted.ready)
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, TlsState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A loaded TLS context. Cheap to clone.
#[derive(Clone)]
pub(super) struct Ready {
    context: SslContext,
    proof: Proof,
}

/// What the server must prove.
#[derive(Clone)]
enum Proof {
    /// A certificate for this address.
    Address(IpAddr),
    /// A certificate for this name.
    Host(String),
    /// Possession of the key with this name.
    Key(String),
}

impl Ready {
    fn load(settings: &TlsSettings, address: IpAddr) -> Result<Self, TlsError> {
        match settings {
            TlsSettings::Certificates(files) => {
                let proof = files.name.clone().map_or(Proof::Address(address), Proof::Host);
                Ok(Self { context: with_certificates(files)?, proof })
            }
            TlsSettings::Key(key) => with_key(key),
        }
    }

    /// Does the TLS handshake on a connection on which the server has agreed to TLS. The error is a reason in words.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, String> {
        let mut stream = self.session(stream).map_err(|error| error.to_string())?;
        let Err(error) = Pin::new(&mut stream).connect().await else { return Ok(stream) };
        Err(match (&self.proof, stream.ssl().verify_result()) {
            (Proof::Key(_), why) if why != X509VerifyResult::OK => "it shows a certificate and not the key".to_owned(),
            // nbdkit gives no more detail.
            (Proof::Key(name), _) => format!("it does not agree to the key of {name}; has it the same? ({error})"),
            (_, X509VerifyResult::OK) => error.to_string(),
            (_, why) => format!("its certificate is not believed: {}", why.error_string()),
        })
    }

    fn session(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, ErrorStack> {
        let mut session = openssl::ssl::Ssl::new(&self.context)?;
        match &self.proof {
            Proof::Address(address) => session.param_mut().set_ip(*address)?,
            Proof::Host(name) => {
                session.set_hostname(name)?;
                session.param_mut().set_host(name)?;
            }
            Proof::Key(_) => {}
        }
        SslStream::new(session, stream)
    }
}

/// Makes a context that trusts no authority. OpenSSL's default would trust the system's authorities.
fn trusting_nobody() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_verify(SslVerifyMode::PEER);
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    Ok(context)
}

fn with_certificates(files: &TlsFiles) -> Result<SslContext, TlsError> {
    let ca = &files.ca;
    let mut context = trusting_nobody().map_err(|error| failed(ca, error))?;
    for authority in certificates(ca)? {
        context.cert_store_mut().add_cert(authority).map_err(|error| failed(ca, error))?;
    }
    if let Some((certificate, key)) = &files.identity {
        let mut chain = certificates(certificate)?.into_iter();
        if let Some(own) = chain.next() {
            context.set_certificate(&own).map_err(|error| failed(certificate, error))?;
        }
        for between in chain {
            context.add_extra_chain_cert(between).map_err(|error| failed(certificate, error))?;
        }
        // An empty passphrase: for an encrypted key OpenSSL would ask at a terminal, and there is none.
        let private = PKey::private_key_from_pem_callback(&read(key)?, |_| Ok(0));
        let private = private.map_err(|error| failed(key, error))?;
        context.set_private_key(&private).map_err(|error| failed(key, error))?;
        context.check_private_key().map_err(|_| failed(key, "it is not the key of the certificate"))?;
    }
    Ok(context.build())
}

/// Makes a context with a key and no authority, so only a server that has the key is accepted.
fn with_key(settings: &TlsKey) -> Result<Ready, TlsError> {
    let file = &settings.file;
    let text = String::from_utf8(read(file)?).map_err(|_| failed(file, "it is not text"))?;
    let (identity, key) = find_key(&text, settings.identity.as_deref()).map_err(|why| failed(file, why))?;
    let proof = Proof::Key(identity.clone());
    let build = || {
        let mut context = trusting_nobody()?;
        // Before TLS 1.3 most key exchanges with a pre-shared key have no forward secrecy. Every nbdkit with
        // pre-shared keys supports 1.3.
        context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        context.set_psk_client_callback(move |_, _, name, secret| {
            // The name ends with a zero byte, the key has a length. OpenSSL refuses what does not fit.
            let (Some(name), Some(secret)) = (name.get_mut(..=identity.len()), secret.get_mut(..key.len())) else {
                return Ok(0);
            };
            name[..identity.len()].copy_from_slice(identity.as_bytes());
            name[identity.len()] = 0;
            secret.copy_from_slice(&key);
            Ok(key.len())
        });
        Ok(Ready { context: context.build(), proof })
    };
    build().map_err(|error: ErrorStack| failed(file, error))
}

/// Finds the key with this name, or the only key if no name is given. The file has the server's format: lines
/// `name:key`, the key in hexadecimal (made by `psktool`). No error message repeats the file's content.
fn find_key(text: &str, identity: Option<&str>) -> Result<(String, Vec<u8>), String> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let keys: Option<Vec<(&str, &str)>> = lines.map(|line| line.rsplit_once(':')).collect();
    let mut keys = keys.ok_or("a line is not `name:key`")?;
    keys.retain(|(name, _)| identity.is_none_or(|identity| *name == identity));
    let (name, key) = match (&keys[..], identity) {
        ([key], _) => *key,
        ([], Some(identity)) => return Err(format!("it has no key of {identity}")),
        ([], None) => return Err("it has no key".to_owned()),
        _ => return Err("it has several keys: tls_psk_identity says which".to_owned()),
    };
    let odd = || format!("the key of {name} is not an even number of hexadecimal digits, 32 or more");
    let digits: Option<Vec<u32>> = key.chars().map(|digit| digit.to_digit(16)).collect();
    let digits = digits.filter(|digits| digits.len() >= 32 && digits.len().is_multiple_of(2)).ok_or_else(odd)?;
    let bytes = digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap_or_default());
    Ok((name.to_owned(), bytes.collect()))
}

fn certificates(path: &Path) -> Result<Vec<X509>, TlsError> {
    let all = X509::stack_from_pem(&read(path)?).map_err(|error| failed(path, error))?;
    if all.is_empty() { Err(failed(path, "there is no certificate in it")) } else { Ok(all) }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    small_file_of_root(path, SIZE).map_err(|error| failed(path, error))
}

fn failed(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError { path: path.to_owned(), why: why.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn a_key_is_found_by_its_name_or_by_being_the_only_one() {
        let one = format!("# made by psktool\n\nattachd:{KEY}\n");
        let bytes = (0..16).map(|n| n * 0x11).collect::<Vec<u8>>();
        assert_eq!(find_key(&one, None), Ok(("attachd".into(), bytes.clone())));
        let two = format!("tunnel:{}\n{one}", KEY.repeat(2));
        assert_eq!(find_key(&two, Some("attachd")), Ok(("attachd".into(), bytes)));
        assert!(find_key(&two, None).unwrap_err().contains("several"));
        assert!(find_key(&two, Some("x")).unwrap_err().contains("no key of x"));
        assert!(find_key("", None).is_err());
    }

    #[test]
    fn a_file_of_another_format_is_refused_and_the_error_does_not_quote_it() {
        for bad in [KEY.to_owned(), format!("a:{KEY}0"), format!("a:{}", &KEY[2..]), format!("a:{}g{}", &KEY[2..], 'x')]
        {
            let why = find_key(&bad, None).unwrap_err();
            assert!(!why.contains(&KEY[2..8]), "{why}");
        }
    }
}

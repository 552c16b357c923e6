//! TLS towards the NBD server, for a server that listens where other hosts can reach it: by certificates, or by a key
//! that both sides have.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;

use openssl::error::ErrorStack;
use openssl::pkey::PKey;
use openssl::ssl::{SslContext, SslContextBuilder, SslMethod, SslVerifyMode, SslVersion};
use openssl::x509::X509;
use openssl::x509::X509VerifyResult;
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use crate::config::{TlsFiles, TlsKey, TlsSettings};
use crate::place::small_file_of_root;

/// How large a file may be: every authority there is fits.
const SIZE: u64 = 4 << 20;

/// The files cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS towards the NBD server: {path}: {why}", path = path.display())]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

/// Ready to talk TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    context: SslContext,
    proof: Proof,
}

/// What the server must show.
#[derive(Clone)]
enum Proof {
    /// A certificate of this address.
    Address(IpAddr),
    /// A certificate of this name.
    Host(String),
    /// That it has the key of this name.
    Key(String),
}

impl Tls {
    /// Reads the files. `address` is what the server's certificate names unless another name is given.
    pub fn load(settings: &TlsSettings, address: IpAddr) -> Result<Self, TlsError> {
        match settings {
            TlsSettings::Certificates(files) => {
                let proof = files.name.clone().map_or(Proof::Address(address), Proof::Host);
                Ok(Self { context: with_certificates(files)?, proof })
            }
            TlsSettings::Key(key) => with_key(key),
        }
    }

    /// The TLS handshake on a connection on which the server has agreed to it. An error says why in words.
    pub(super) async fn connect(&self, stream: TcpStream) -> Result<SslStream<TcpStream>, String> {
        let mut stream = self.session(stream).map_err(|error| error.to_string())?;
        let Err(error) = Pin::new(&mut stream).connect().await else { return Ok(stream) };
        Err(match (&self.proof, stream.ssl().verify_result()) {
            (Proof::Key(_), why) if why != X509VerifyResult::OK => "it shows a certificate and not the key".to_owned(),
            // nbdkit says no more than this.
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

/// A context that believes nobody: unlike OpenSSL's own default it knows no authority of the system's.
fn believing_nobody() -> Result<SslContextBuilder, ErrorStack> {
    let mut context = SslContext::builder(SslMethod::tls_client())?;
    context.set_verify(SslVerifyMode::PEER);
    context.set_min_proto_version(Some(SslVersion::TLS1_2))?;
    Ok(context)
}

fn with_certificates(files: &TlsFiles) -> Result<SslContext, TlsError> {
    let ca = &files.ca;
    let mut context = believing_nobody().map_err(|error| failed(ca, error))?;
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
        // An encrypted key would be asked for at a terminal that is not there.
        let private = PKey::private_key_from_pem_callback(&read(key)?, |_| Ok(0));
        let private = private.map_err(|error| failed(key, error))?;
        context.set_private_key(&private).map_err(|error| failed(key, error))?;
        context.check_private_key().map_err(|_| failed(key, "it is not the key of the certificate"))?;
    }
    Ok(context.build())
}

/// With a key and no authority, nothing but a server that has the key gets through.
fn with_key(settings: &TlsKey) -> Result<Tls, TlsError> {
    let file = &settings.file;
    let text = String::from_utf8(read(file)?).map_err(|_| failed(file, "it is not text"))?;
    let (identity, key) = find_key(&text, settings.identity.as_deref()).map_err(|why| failed(file, why))?;
    let proof = Proof::Key(identity.clone());
    let build = || {
        let mut context = believing_nobody()?;
        // Before 1.3 most ways with a key have no forward secrecy; every nbdkit that knows keys knows 1.3.
        context.set_min_proto_version(Some(SslVersion::TLS1_3))?;
        context.set_psk_client_callback(move |_, _, name, secret| {
            // The name ends with a zero, the key has a length; what does not fit is refused by the library.
            let (Some(name), Some(secret)) = (name.get_mut(..=identity.len()), secret.get_mut(..key.len())) else {
                return Ok(0);
            };
            name[..identity.len()].copy_from_slice(identity.as_bytes());
            name[identity.len()] = 0;
            secret.copy_from_slice(&key);
            Ok(key.len())
        });
        Ok(Tls { context: context.build(), proof })
    };
    build().map_err(|error: ErrorStack| failed(file, error))
}

/// The one key of that name, or of whatever name when there is but one. The file is the server's own kind: lines
/// `name:key`, the key in hexadecimal (`psktool` makes them). No message repeats what is in it.
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
    fn a_file_that_is_not_of_its_kind_is_refused_without_telling_what_is_in_it() {
        for bad in [KEY.to_owned(), format!("a:{KEY}0"), format!("a:{}", &KEY[2..]), format!("a:{}g{}", &KEY[2..], 'x')]
        {
            let why = find_key(&bad, None).unwrap_err();
            assert!(!why.contains(&KEY[2..8]), "{why}");
        }
    }
}

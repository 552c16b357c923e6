//! TLS towards the NBD server, for a server that listens where other hosts can reach it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::config::TlsFiles;

/// The certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("TLS towards the NBD server: {path}: {why}", path = path.display())]
pub struct TlsError {
    path: PathBuf,
    why: String,
}

/// Ready to talk TLS. Cheap to clone.
#[derive(Clone)]
pub struct Tls {
    connector: TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    /// Reads the files. `address` is what the server's certificate names unless another name is given.
    pub fn load(files: &TlsFiles, address: std::net::IpAddr) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(&files.ca)? {
            roots.add(certificate).map_err(|error| failed(&files.ca, error))?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots);
        let config = match &files.identity {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                let private = PrivateKeyDer::from_pem_file(key).map_err(|error| failed(key, error))?;
                let chain = certificates(certificate)?;
                config.with_client_auth_cert(chain, private).map_err(|error| failed(certificate, error))?
            }
        };
        let name = match &files.name {
            None => ServerName::from(address),
            Some(name) => ServerName::try_from(name.clone()).map_err(|error| failed(Path::new(name), error))?,
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), name })
    }

    /// The TLS handshake on a connection on which the server has agreed to it.
    pub(super) async fn connect(&self, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector.connect(self.name.clone(), stream).await
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    read.map_err(|error| failed(path, error))
}

fn failed(path: &Path, why: impl std::fmt::Display) -> TlsError {
    TlsError { path: path.to_owned(), why: why.to_string() }
}

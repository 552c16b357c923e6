//! A certificate authority with certificates for a server and a client, to test TLS. Made by `openssl`.

use anyhow::{Context, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A folder with `ca-cert.pem`, and `server-` and `client-` `cert.pem` and `key.pem`, the names that nbdkit and
/// libnbd use.
#[derive(Debug)]
pub struct Certificates(PathBuf);

impl Certificates {
    /// Makes the folder and its files, for a server with this address.
    pub fn make(folder: &Path, address: &str) -> Result<Certificates> {
        fs::create_dir_all(folder)?;
        let all = Certificates(folder.to_owned());
        all.openssl(
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca-key.pem -out ca-cert.pem",
        )?;
        all.signed("server", &format!("subjectAltName=IP:{address}"))?;
        all.signed("client", "extendedKeyUsage=clientAuth")?;
        Ok(all)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a file in the folder.
    pub fn file(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn signed(&self, who: &str, extension: &str) -> Result<()> {
        fs::write(self.0.join("extension"), format!("{extension}\n"))?;
        self.openssl(&format!("req -newkey rsa:2048 -nodes -subj /CN={who} -keyout {who}-key.pem -out {who}.csr"))?;
        let sign = "x509 -req -days 2 -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -extfile extension";
        self.openssl(&format!("{sign} -in {who}.csr -out {who}-cert.pem"))
    }

    fn openssl(&self, arguments: &str) -> Result<()> {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(&self.0).output();
        let output = output.context("running openssl (package openssl)")?;
        ensure!(output.status.success(), "openssl {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

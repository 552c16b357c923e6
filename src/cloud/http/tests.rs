//! TLS: whose certificates are believed.

use super::*;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::PathBuf;
use std::thread;

use lab::Certificates;
use openssl::ssl::{SslAcceptor, SslFiletype, SslMethod};

/// A server on the loopback address with a certificate of that authority. Every connection whose handshake succeeds gets an
/// answer.
fn server(certificates: &Certificates) -> String {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server()).unwrap();
    acceptor.set_private_key_file(certificates.file("server-key.pem"), SslFiletype::PEM).unwrap();
    acceptor.set_certificate_chain_file(certificates.file("server-cert.pem")).unwrap();
    let acceptor = acceptor.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = acceptor.accept(stream.unwrap()) else { continue };
            let mut got = Vec::new();
            let mut piece = [0; 1024];
            while !got.ends_with(b"the body") {
                let count = stream.read(&mut piece).unwrap();
                got.extend_from_slice(&piece[..count]);
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}");
        }
    });
    url
}

fn by(url: &str, ca: Option<PathBuf>) -> Http {
    let mut settings = CloudSettings::new(url.parse().unwrap());
    settings.ca = ca;
    Http::new(settings)
}

fn not_believed(result: &Result<Raw, Failed>) -> bool {
    matches!(result, Err(Failed::NotSent(why)) if why.contains("certificate verify failed"))
}

#[tokio::test]
async fn only_certificates_of_the_named_authority_are_believed_and_a_new_one_is_read_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let [ours, theirs] =
        ["ours", "theirs"].map(|name| Certificates::make(&dir.path().join(name), "127.0.0.1").unwrap());
    let url = server(&ours);
    let post = async |http: &Http| http.post("the body".to_owned()).await;

    let ca = dir.path().join("ca.pem");
    fs::copy(ours.file("ca-cert.pem"), &ca).unwrap();
    let http = by(&url, Some(ca.clone()));
    assert_eq!(post(&http).await.unwrap().body, b"{}", "the control");
    fs::copy(theirs.file("ca-cert.pem"), &ca).unwrap();
    assert!(not_believed(&post(&http).await), "another authority");
    fs::write(&ca, "no certificate").unwrap();
    assert!(matches!(post(&http).await, Err(Failed::NotAble(why)) if why.contains("[cloudstack] ca")));
    fs::copy(ours.file("ca-cert.pem"), &ca).unwrap();
    assert!(post(&http).await.is_ok(), "it heals by itself");
    assert!(not_believed(&post(&by(&url, None)).await), "the system's authorities have not signed it");
}

/// The certificate is of the address, and is shown for a name.
#[tokio::test]
async fn a_certificate_of_another_name_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let ours = Certificates::make(&dir.path().join("ours"), "127.0.0.1").unwrap();
    let url = server(&ours).replace("127.0.0.1", "localhost");
    let http = by(&url, Some(ours.file("ca-cert.pem").into()));
    assert!(not_believed(&http.post("the body".to_owned()).await));
}

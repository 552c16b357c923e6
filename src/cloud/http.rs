//! Sends one POST, once, on a connection of its own, with limits on time and size.

use std::error::Error;
use std::io;
use std::iter;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{CONTENT_TYPE, DATE, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Certificate, Proxy, Response, redirect, retry, tls};
use tokio::net::UdpSocket;

use super::answer::{Raw, moment};
use super::resolve::Resolver;
use super::settings::CloudSettings;
use crate::blocking::blocking;
use crate::place::small_file_of_root;
use crate::stamp::Stamp;

/// The size limit of an answer; the volumes of a VM take some hundred kilobytes at most.
const SIZE: usize = 4 << 20;

/// The size limit of the file with the authorities.
const CA_SIZE: u64 = 4 << 20;

/// The time limit to connect, with the TLS handshake.
const CONNECT: Duration = Duration::from_secs(10);

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failed {
    /// Nothing was sent: something on this host cannot be used, for example a file.
    NotAble(String),
    /// Nothing was sent: there was no connection.
    NotSent(String),
    /// Nothing was sent: the service manager does not allow this service to connect there.
    KeptIn(String),
    /// It was sent, and the connection ended or the answer is too long.
    Broke(String),
    /// It was sent, and the time is over.
    TimedOut(String),
}

/// Makes the requests. The HTTP client is made for the first request, and again when the file of the authority has changed.
pub(super) struct Http {
    settings: CloudSettings,
    resolver: Resolver,
    client: Mutex<Option<(Option<Stamp>, reqwest::Client)>>,
}

impl Http {
    pub(super) fn new(settings: CloudSettings) -> Self {
        Self { settings, resolver: Resolver::default(), client: Mutex::default() }
    }

    /// Sends the body and waits for the answer, whatever its status.
    pub(super) async fn post(&self, body: String) -> Result<Raw, Failed> {
        let client = self.client().await.map_err(Failed::NotAble)?;
        let request = client.post(self.settings.url.as_url().clone()).body(body);
        let sent = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").send().await;
        match sent {
            Ok(response) => self.read(response).await,
            Err(error) => Err(self.explained(&error).await),
        }
    }

    async fn read(&self, mut response: Response) -> Result<Raw, Failed> {
        let header = |name: HeaderName| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let mut raw = Raw {
            status: response.status().as_u16(),
            date: header(DATE).as_deref().and_then(moment),
            retry_after: header(RETRY_AFTER),
            location: header(LOCATION),
            body: Vec::new(),
        };
        loop {
            match response.chunk().await {
                Ok(Some(piece)) if raw.body.len() + piece.len() <= SIZE => raw.body.extend_from_slice(&piece),
                Ok(Some(_)) => return Err(Failed::Broke(format!("the answer is longer than {SIZE} bytes"))),
                Ok(None) => return Ok(raw),
                Err(error) => return Err(self.explained(&error).await),
            }
        }
    }

    async fn client(&self) -> Result<reqwest::Client, String> {
        let (settings, last) = (self.settings.clone(), self.lock().clone());
        let resolver = self.resolver.clone();
        let made = blocking(move || {
            let stamp = settings.ca.as_deref().and_then(Stamp::of);
            let client = match last {
                Some((then, client)) if then == stamp => client,
                _ => make(&settings, resolver)?,
            };
            Ok::<_, String>((stamp, client))
        });
        let (stamp, client) = made.await.map_err(|error| error.to_string())??;
        *self.lock() = Some((stamp, client.clone()));
        Ok(client)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<(Option<Stamp>, reqwest::Client)>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Describes a failed request. The text names the address, and nothing of what was sent.
    async fn explained(&self, error: &reqwest::Error) -> Failed {
        let causes = || iter::successors(error.source(), |error| (*error).source());
        let last = causes().last().map_or_else(|| error.to_string(), ToString::to_string);
        let (to, by) = self.way();
        if !error.is_connect() {
            return if error.is_timeout() {
                Failed::TimedOut(format!("{to} gave no answer within {} s", self.settings.timeout.as_secs()))
            } else {
                Failed::Broke(format!("the connection to {to} ended before the answer was complete: {last}"))
            };
        }
        let io = causes().find_map(|cause| cause.downcast_ref::<io::Error>());
        let forbidden = io.is_some_and(|io| io.kind() == io::ErrorKind::PermissionDenied);
        if forbidden || (error.is_timeout() && self.is_kept_in().await) {
            return Failed::KeptIn(format!(
                "attachd.service may not connect to {to}: let it, by a drop-in with IPAddressAllow= \
                 (/usr/share/attachd/cloudstack.conf is an example)"
            ));
        }
        if error.is_dns() {
            return Failed::NotSent(format!(
                "the name of {to}{by} is not found ({last}); attachd.service may ask only name servers on this host unless a \
                 drop-in allows others (/usr/share/attachd/cloudstack.conf)"
            ));
        }
        let why = if error.is_timeout() { "no connection within the time".to_owned() } else { last };
        Failed::NotSent(format!("{to}{by}: {why}"))
    }

    /// Returns where the connection goes, as text.
    fn way(&self) -> (String, &'static str) {
        let url = self.settings.proxy.as_ref().map_or(self.settings.url.as_url(), |proxy| proxy.as_url());
        let to = format!("{}:{}", url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        (to, if self.settings.proxy.is_some() { " (the proxy)" } else { "" })
    }

    /// Returns whether this host itself drops packets to that address, as `IPAddressDeny=` makes it do. The kernel does not
    /// report that to a TCP connection, which only times out, but it does report it to whoever sends a datagram.
    async fn is_kept_in(&self) -> bool {
        let url = self.settings.proxy.as_ref().map_or(self.settings.url.as_url(), |proxy| proxy.as_url());
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default().unwrap_or_default());
        let Ok(addresses) = self.resolver.look_up(host, port).await else { return false };
        for address in addresses {
            if matches!(datagram(address).await, Err(error) if error.kind() == io::ErrorKind::PermissionDenied) {
                return true;
            }
        }
        false
    }
}

async fn datagram(to: SocketAddr) -> io::Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    socket.send(&[]).await.map(drop)
}

fn make(settings: &CloudSettings, resolver: Resolver) -> Result<reqwest::Client, String> {
    let mut client = reqwest::Client::builder()
        .timeout(settings.timeout)
        .connect_timeout(CONNECT.min(settings.timeout / 2))
        // Each call has its own connection: an idle one would wake the daemon, and the server may close it just when it is used.
        .pool_max_idle_per_host(0)
        .tcp_keepalive(None)
        // Only the caller knows whether a call may be repeated.
        .retry(retry::never())
        .redirect(redirect::Policy::none())
        .referer(false)
        .no_proxy()
        .tls_version_min(tls::Version::TLS_1_2)
        .dns_resolver(resolver);
    if let Some(proxy) = &settings.proxy {
        client = client.proxy(Proxy::all(proxy.as_url().clone()).map_err(|error| error.to_string())?);
    }
    if let Some(ca) = &settings.ca {
        let failed = |why: &dyn std::fmt::Display| format!("[cloudstack] ca, {}: {why}", ca.display());
        let pem = small_file_of_root(ca, CA_SIZE).map_err(|error| failed(&error))?;
        client = client.tls_certs_only(authorities(&pem).map_err(|why| failed(&why))?);
    } else if settings.url.as_url().scheme() == "http" {
        // No certificate is checked, so the system's authorities are not read.
        client = client.tls_certs_only([]);
    }
    client.build().map_err(|error| {
        let last = iter::successors(error.source(), |error| (*error).source()).last();
        last.map_or_else(|| error.to_string(), ToString::to_string)
    })
}

/// Returns whether the file has certificates of authorities; if not, why.
pub fn judge_authorities(path: &Path) -> Result<(), String> {
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let pem = small_file_of_root(path, CA_SIZE).map_err(|error| failed(&error))?;
    authorities(&pem).map(drop).map_err(|why| failed(&why))
}

/// Reads the certificates of a PEM file; one at least.
fn authorities(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let all = Certificate::from_pem_bundle(pem).map_err(|error| error.to_string())?;
    if all.is_empty() { Err("there is no certificate in it".to_owned()) } else { Ok(all) }
}

#[cfg(test)]
mod tests;

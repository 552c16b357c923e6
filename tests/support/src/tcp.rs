//! Callers of the API over TCP, each as a user of this host.

use crate::api::{Reply, read_reply};
use crate::people;
use anyhow::{Context, Result};
use rustix::fs::OFlags;
use serde_json::Value;
use std::io::{BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::Duration;

/// The time limit of a request.
const LIMIT: Duration = Duration::from_secs(30);

/// A user who calls the API at an address.
#[derive(Debug, Clone, Copy)]
pub struct TcpCaller {
    address: SocketAddr,
    uid: u32,
}

impl TcpCaller {
    /// A user at an address.
    pub fn new(address: SocketAddr, uid: u32) -> TcpCaller {
        TcpCaller { address, uid }
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, &[], None)
    }

    /// POST with a JSON body and without Content-Type.
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.request("POST", path, &[], Some(&body.to_string()))
    }

    /// Sends a request as today's callers do, with these headers in addition; a `Host` replaces the usual one.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Option<&str>) -> Result<Reply> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            request.push_str(&format!("Host: localhost:{}\r\n", self.address.port()));
        }
        for (name, value) in headers {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        match body {
            Some(body) => request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len())),
            None => request.push_str("\r\n"),
        }
        self.send(request.as_bytes())
    }

    /// Sends these bytes on a new connection and reads one answer.
    pub fn send(&self, request: &[u8]) -> Result<Reply> {
        let mut stream = self.connect()?;
        // A server may answer and close before it has read anything; its answer still counts.
        match stream.write_all(request) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => return Err(error).context("sending"),
            _ => {}
        }
        read_reply(&mut BufReader::new(stream)).with_context(|| String::from_utf8_lossy(request).into_owned())
    }

    /// Opens a connection.
    pub fn connect(&self) -> Result<TcpStream> {
        self.connections(1)?.pop().context("one connection")
    }

    /// Opens this many connections, one right after the other.
    pub fn connections(&self, count: usize) -> Result<Vec<TcpStream>> {
        let connect = || -> Result<TcpStream> {
            let stream = TcpStream::connect(self.address).with_context(|| format!("connecting to {}", self.address))?;
            stream.set_read_timeout(Some(LIMIT))?;
            stream.set_write_timeout(Some(LIMIT))?;
            Ok(stream)
        };
        self.as_user(|| (0..count).map(|_| connect()).collect())
    }

    /// Opens a connection from this port.
    pub fn connect_from(&self, port: u16) -> Result<TcpStream> {
        use rustix::net::{AddressFamily, SocketType, bind, connect, socket, sockopt::set_socket_reuseaddr};
        self.as_user(|| {
            let client: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            set_socket_reuseaddr(&client, true)?;
            bind(&client, &SocketAddr::new(self.address.ip(), port)).context("binding the port")?;
            connect(&client, &self.address).context("connecting from the port")?;
            rustix::fs::fcntl_setfl(&client, OFlags::empty())?;
            let stream = TcpStream::from(client);
            stream.set_read_timeout(Some(LIMIT))?;
            Ok(stream)
        })
    }

    /// Opens a connection whose kernel takes as little as possible of an answer that is not read.
    pub fn connect_narrow(&self) -> Result<TcpStream> {
        use rustix::net::{AddressFamily, SocketType, connect, socket, sockopt::set_socket_recv_buffer_size};
        self.as_user(|| {
            let client: OwnedFd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
            set_socket_recv_buffer_size(&client, 4096)?;
            connect(&client, &self.address).context("connecting")?;
            Ok(TcpStream::from(client))
        })
    }

    /// A connection is of the user whose thread makes it, and one thread can change its user.
    fn as_user<T: Send>(&self, connect: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let connected = scope.spawn(|| people::become_user(self.uid).and_then(|()| connect())).join();
            connected.map_err(|_| anyhow::anyhow!("the thread that connects has panicked"))?
        })
    }
}

/// Closes a connection with a reset: what was sent stays readable, and the addresses are free at once.
pub fn reset(stream: TcpStream) -> Result<()> {
    Ok(rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?)
}

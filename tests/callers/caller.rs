//! HTTP as the callers speak it: Go's client, which keeps its connection and opens another one when the server has closed it.

use std::io::{BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Reply, api};
use rustix::net::{RecvFlags, recv};
use serde_json::Value;

/// Where attachd listens.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Socket(PathBuf),
    Port(SocketAddr),
}

/// A connection of either kind.
trait Stream: Read + Write + Send {
    /// Whether the other side has closed it.
    fn is_closed(&self) -> bool;
    fn limit(&self, limit: Option<Duration>) -> std::io::Result<()>;
}

macro_rules! stream {
    ($($kind:ty),*) => {$(
        impl Stream for $kind {
            fn is_closed(&self) -> bool {
                let mut byte = [0_u8; 1];
                let looked = recv(self.as_fd(), &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
                !matches!(looked, Err(rustix::io::Errno::AGAIN))
            }

            fn limit(&self, limit: Option<Duration>) -> std::io::Result<()> {
                self.set_read_timeout(limit)
            }
        }
    )*};
}

stream!(UnixStream, TcpStream);

/// One caller's connection.
pub(crate) struct Caller {
    place: Place,
    kept: Option<BufReader<Box<dyn Stream>>>,
}

impl Caller {
    pub(crate) fn of(place: &Place) -> Self {
        Self { place: place.clone(), kept: None }
    }

    /// One request and its answer. `None` as the limit: it waits as long as it takes.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Option<Duration>,
    ) -> Result<Reply> {
        let kept = self.kept.take().filter(|kept| !kept.get_ref().is_closed());
        let is_kept = kept.is_some();
        let connection = kept.map_or_else(|| self.connect(), Ok)?;
        let request = written(method, path, body);
        match self.ask(connection, &request, limit) {
            // What changes nothing is asked once more, should the server have closed a kept connection meanwhile.
            Err(_) if is_kept && method == "GET" => self.ask(self.connect()?, &request, limit),
            answer => answer,
        }
        .with_context(|| format!("{method} {path}"))
    }

    fn ask(
        &mut self,
        mut connection: BufReader<Box<dyn Stream>>,
        request: &str,
        limit: Option<Duration>,
    ) -> Result<Reply> {
        connection.get_ref().limit(limit)?;
        connection.get_mut().write_all(request.as_bytes())?;
        let reply = api::read_reply(&mut connection)?;
        if reply.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.kept = Some(connection);
        }
        Ok(reply)
    }

    fn connect(&self) -> Result<BufReader<Box<dyn Stream>>> {
        let stream: Box<dyn Stream> = match &self.place {
            Place::Socket(path) => Box::new(UnixStream::connect(path)?),
            Place::Port(address) => Box::new(TcpStream::connect(address)?),
        };
        Ok(BufReader::new(stream))
    }
}

/// A request as Go writes it.
fn written(method: &str, path: &str, body: Option<&Value>) -> String {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost:8090\r\nUser-Agent: Go-http-client/1.1\r\n");
    match body {
        Some(body) => {
            let body = body.to_string();
            let length = body.len();
            format!("{head}Content-Length: {length}\r\nContent-Type: application/json\r\n\r\n{body}")
        }
        None if method == "POST" => format!("{head}Content-Length: 0\r\n\r\n"),
        None => format!("{head}\r\n"),
    }
}

//! HTTP as the callers speak it: Go's client, which keeps its connection and opens another one when the server has closed it.

use std::io::{BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Reply, api};
use rustix::net::{RecvFlags, recv};
use serde_json::Value;

/// The address of the predecessor. A lab has a network of its own, so it is free.
pub(crate) const PORT: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8090);

/// Whether the other side has closed a connection on which nothing is awaited.
fn is_closed(stream: &TcpStream) -> bool {
    let mut byte = [0_u8; 1];
    let looked = recv(stream, &mut byte[..], RecvFlags::PEEK | RecvFlags::DONTWAIT);
    !matches!(looked, Err(rustix::io::Errno::AGAIN))
}

/// One caller's connection.
#[derive(Default)]
pub(crate) struct Caller {
    kept: Option<BufReader<TcpStream>>,
}

impl Caller {
    /// One request and its answer. `None` as the limit: it waits as long as it takes.
    pub(crate) fn request(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&Value>,
        limit: Option<Duration>,
    ) -> Result<Reply> {
        let kept = self.kept.take().filter(|kept| !is_closed(kept.get_ref()));
        let is_kept = kept.is_some();
        let connection = kept.map_or_else(connect, Ok)?;
        let request = written(method, path, body);
        match self.ask(connection, &request, limit) {
            // What changes nothing is asked once more, should the server have closed a kept connection meanwhile.
            Err(_) if is_kept && method == "GET" => self.ask(connect()?, &request, limit),
            answer => answer,
        }
        .with_context(|| format!("{method} {path}"))
    }

    fn ask(&mut self, mut connection: BufReader<TcpStream>, request: &str, limit: Option<Duration>) -> Result<Reply> {
        connection.get_ref().set_read_timeout(limit)?;
        connection.get_mut().write_all(request.as_bytes())?;
        let reply = api::read_reply(&mut connection)?;
        if reply.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.kept = Some(connection);
        }
        Ok(reply)
    }
}

fn connect() -> Result<BufReader<TcpStream>> {
    Ok(BufReader::new(TcpStream::connect(PORT)?))
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

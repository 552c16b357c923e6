//! A small blocking HTTP/1.1 client over attachd's Unix socket, with one connection per request.

use crate::disk::Disk;
use crate::restart::Lives;
use crate::sse::Events;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The time limit of a request. It is longer than any answer may take, except long-polling ones, which have their
/// own.
const LIMIT: Duration = Duration::from_secs(30);

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// Header lines as received, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as text.
    pub text: String,
    /// The body as JSON (`Null` if it is not JSON).
    pub json: Value,
}

impl Reply {
    /// Returns the JSON if the status is the expected one; otherwise an error that shows the answer.
    pub fn expect(self, status: u16) -> Result<Value> {
        ensure!(self.status == status, "status {} instead of {status}: {}", self.status, self.text);
        Ok(self.json)
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }
}

/// The API behind one socket.
#[derive(Debug, Clone)]
pub struct Api {
    socket: PathBuf,
    user: Option<u32>,
    lives: Arc<Lives>,
}

impl Api {
    /// A client for this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Api {
        Api { socket: socket.into(), user: None, lives: Arc::default() }
    }

    /// Makes this client record accepted volumes, which must still be there after a restart.
    pub(crate) fn remembering(self, lives: &Arc<Lives>) -> Api {
        Api { lives: Arc::clone(lives), ..self }
    }

    /// Returns a client that connects as another user, who is in attachd's group.
    #[must_use]
    pub fn by(&self, uid: u32) -> Api {
        Api { user: Some(uid), ..self.clone() }
    }

    /// The socket's path.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// GET.
    pub fn get(&self, path: &str) -> Result<Reply> {
        self.request("GET", path, None, LIMIT)
    }

    /// POST with a JSON body and without Content-Type, as `curl -d` in existing scripts; the daemon must accept it.
    pub fn post(&self, path: &str, body: &Value) -> Result<Reply> {
        self.request("POST", path, Some(&body.to_string()), LIMIT)
    }

    /// POST with the caller's own name for what it asks for, in `Idempotency-Key`.
    pub fn post_keyed(&self, path: &str, body: &Value, key: &str) -> Result<Reply> {
        self.send_request("POST", path, &format!("Idempotency-Key: {key}\r\n"), Some(&body.to_string()), LIMIT)
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Result<Reply> {
        self.request("DELETE", path, None, LIMIT)
    }

    /// Sends a request with any method, body and time limit.
    pub fn request(&self, method: &str, path: &str, body: Option<&str>, limit: Duration) -> Result<Reply> {
        self.send_request(method, path, "", body, limit)
    }

    /// `headers` are whole lines.
    fn send_request(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: Option<&str>,
        limit: Duration,
    ) -> Result<Reply> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: attachd\r\nConnection: close\r\n{headers}");
        if let Some(body) = body {
            request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        } else {
            request.push_str("\r\n");
        }
        self.lives.answered().asked(method, path);
        let mut reader = BufReader::new(self.send(request.as_bytes(), limit)?);
        let reply = read_reply(&mut reader).with_context(|| format!("{method} {path}"))?;
        self.lives.answered().told(method, path, reply.status, &reply.json);
        Ok(reply)
    }

    /// Sends these bytes (malformed requests) and returns what is received until the server closes or the time limit
    /// passes.
    pub fn raw(&self, bytes: &[u8], limit: Duration) -> Result<Vec<u8>> {
        let mut stream = self.send(bytes, limit)?;
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(e) if !is_timeout(&e) => Err(e).context("reading the answer to a raw request"),
            _ => Ok(answer),
        }
    }

    /// Opens a connection for many requests, one after the other.
    pub fn keep(&self, limit: Duration) -> Result<Kept> {
        self.connect(limit).map(|stream| Kept(BufReader::new(stream)))
    }

    /// An open connection, for half-sent requests.
    pub fn connect(&self, limit: Duration) -> Result<UnixStream> {
        self.connections(1, limit)?.pop().context("one connection")
    }

    /// Opens this many connections, one right after the other.
    pub fn connections(&self, count: usize, limit: Duration) -> Result<Vec<UnixStream>> {
        let connect = || -> Result<UnixStream> {
            let at = || format!("connecting to {}", self.socket.display());
            let stream = UnixStream::connect(&self.socket).with_context(at)?;
            stream.set_read_timeout(Some(limit))?;
            stream.set_write_timeout(Some(limit))?;
            Ok(stream)
        };
        let all = || (0..count).map(|_| connect()).collect();
        match self.user {
            None => all(),
            // The socket's peer credentials are those of the connecting thread, and one thread can change its user.
            Some(uid) => std::thread::scope(|scope| {
                let connected = scope.spawn(|| crate::people::become_user(uid).and_then(|()| all())).join();
                connected.map_err(|_| anyhow::anyhow!("the thread that connects has panicked"))?
            }),
        }
    }

    /// Subscribes to `/api/v1/events`. Returns when the server has answered, so no later event is missed.
    pub fn events(&self) -> Result<Events> {
        self.events_of("")
    }

    /// The same for some of the events: `query` is empty, or begins with `?`.
    pub fn events_of(&self, query: &str) -> Result<Events> {
        let request =
            format!("GET /api/v1/events{query} HTTP/1.1\r\nHost: attachd\r\nAccept: text/event-stream\r\n\r\n");
        Events::open(self.send(request.as_bytes(), LIMIT)?)
    }

    /// Returns what attachd shows of this disk, if it knows the disk.
    pub fn disk(&self, disk: &Disk) -> Result<Option<Value>> {
        let mut shown = self.get("/api/v1/devices")?.expect(200)?;
        let shown = shown["devices"].as_array_mut().context("no devices")?;
        let node = disk.node();
        Ok(shown.iter_mut().find(|shown| shown["node"].as_str() == node.to_str()).map(Value::take))
    }

    /// Waits until attachd knows this disk: udevd may finish with it before attachd receives the event.
    pub fn wait_disk(&self, disk: &Disk, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while self.disk(disk)?.is_none_or(|shown| shown["serial"] != *disk.serial()) {
            ensure!(Instant::now() < deadline, "attachd does not know {}", disk.node().display());
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits for a volume's state: the daemon answers when it is reached. An error shows the volume's present state.
    pub fn wait_volume(&self, volume_id: &str, state: &str, limit: Duration) -> Result<Value> {
        let seconds = limit.as_secs().max(1);
        let path = format!("/api/v1/volumes/{volume_id}?wait={state}&timeout_seconds={seconds}");
        let reply = self.request("GET", &path, None, limit + LIMIT)?;
        ensure!(reply.json["state"] == state, "not {state} after {limit:?}: {} {}", reply.status, reply.text);
        Ok(reply.json)
    }

    fn send(&self, bytes: &[u8], limit: Duration) -> Result<UnixStream> {
        let mut stream = self.connect(limit)?;
        // A server may answer and close before it has read everything (oversized requests); its answer still counts.
        match stream.write_all(bytes) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(e).context("sending a request"),
            _ => Ok(stream),
        }
    }
}

/// A connection for several requests.
#[derive(Debug)]
pub struct Kept(BufReader<UnixStream>);

impl Kept {
    /// Sends one request and reads its answer.
    pub fn request(&mut self, method: &str, path: &str, body: Option<&str>) -> Result<Reply> {
        let body = body.unwrap_or_default();
        let length = body.len();
        let request = format!("{method} {path} HTTP/1.1\r\nHost: attachd\r\nContent-Length: {length}\r\n\r\n{body}");
        self.0.get_mut().write_all(request.as_bytes()).context("sending a request")?;
        read_reply(&mut self.0).with_context(|| format!("{method} {path}"))
    }
}

/// Reads status and header lines.
pub(crate) fn read_head(reader: &mut impl BufRead) -> Result<(u16, Vec<(String, String)>)> {
    let status_line = read_line(reader)?;
    let status = status_line.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.with_context(|| format!("no HTTP status line: {status_line:?}"))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        match line.split_once(':') {
            Some((name, value)) => headers.push((name.to_lowercase(), value.trim().to_owned())),
            None => return Ok((status, headers)),
        }
    }
}

/// Reads a whole answer.
pub fn read_reply(reader: &mut impl BufRead) -> Result<Reply> {
    let (status, headers) = read_head(reader)?;
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str());
    let mut body = Vec::new();
    if is_chunked(&headers) {
        while let Some(chunk) = read_chunk(reader)? {
            body.extend(chunk);
        }
    } else if let Some(length) = header("content-length") {
        body = vec![0; length.parse()?];
        reader.read_exact(&mut body).context("reading the body")?;
    } else if status != 204 {
        reader.read_to_end(&mut body).context("reading the body")?;
    }
    let text = String::from_utf8_lossy(&body).into_owned();
    let json = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok(Reply { status, headers, text, json })
}

pub(crate) fn is_chunked(headers: &[(String, String)]) -> bool {
    headers.iter().any(|(name, value)| name == "transfer-encoding" && value.eq_ignore_ascii_case("chunked"))
}

/// Reads one chunk; `None` at the last one.
pub(crate) fn read_chunk(reader: &mut impl BufRead) -> Result<Option<Vec<u8>>> {
    let size = read_line(reader)?;
    let size = size.split(';').next().unwrap_or_default();
    let size = usize::from_str_radix(size, 16).with_context(|| format!("chunk size {size:?}"))?;
    let mut chunk = vec![0; size];
    reader.read_exact(&mut chunk)?;
    ensure!(read_line(reader)?.is_empty(), "a chunk without its end");
    Ok((size > 0).then_some(chunk))
}

fn read_line(reader: &mut impl BufRead) -> Result<String> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        bail!("the server closed the connection");
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

pub(crate) fn is_timeout(e: &std::io::Error) -> bool {
    matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

//! Proves that an export is served: a new connection, one NBD handshake, and the size that the server offers.
//!
//! The handshake is the fixed newstyle negotiation up to `NBD_OPT_GO`
//! (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>), followed by an orderly disconnect.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_openssl::SslStream;

use super::tls::Tls;
use crate::budget;

/// The time limit for each part of a handshake with a server that runs.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(5);

/// The time limit if the server is started for each connection. nbd-server first makes new Diffie-Hellman parameters,
/// which takes up to a second of processor time, and many seconds on a slow processor.
const HANDSHAKE_LIMIT_WITH_A_START: Duration = Duration::from_mins(1);

/// The number of handshakes at one time with a server that is started for each connection. More of them would slow
/// each other down until none ends in time.
const STARTS_AT_ONCE: usize = 4;

const INIT_PASSWD: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const FIXED_NEWSTYLE: u16 = 1;
const NO_ZEROES: u16 = 1 << 1;
const OPT_ABORT: u32 = 2;
const OPT_LIST: u32 = 3;
const OPT_STARTTLS: u32 = 5;
const OPT_GO: u32 = 7;
const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERROR: u32 = 1 << 31;
const REP_ERR_TLS_REQD: u32 = REP_ERROR | 5;
const REP_ERR_UNKNOWN: u32 = REP_ERROR | 6;
const INFO_EXPORT: u16 = 0;
const CMD_DISC: u16 = 2;
/// The size limit of a reply: real replies are a few dozen bytes, so a longer one is not NBD.
const LONGEST_REPLY: u32 = 64 * 1024;

/// What the server serves under an export's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The size in bytes.
    pub size: u64,
    /// The transmission flags, `NBD_FLAG_*`.
    pub flags: u16,
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// No server accepts the connection.
    #[error("no NBD server answers at {0}: {1}")]
    Connect(SocketAddr, #[source] io::Error),
    /// The connection broke.
    #[error("the NBD server at {0} hung up: {1}")]
    Broken(SocketAddr, #[source] io::Error),
    /// The server did not answer within the time limit.
    #[error("the NBD server at {0} did not finish a handshake within {limit} s", limit = .1.as_secs())]
    Slow(SocketAddr, Duration),
    /// The server does not know the export, or cannot open its device.
    #[error("the NBD server refused the export {name}: {why}")]
    Refused {
        /// The export's name.
        name: String,
        /// The reason, from the server or from attachd.
        why: String,
    },
    /// The disk behind the export was exchanged during the handshake.
    #[error("the disk of {0} was exchanged during the handshake")]
    Exchanged(String),
    /// The check whether the disk is still the same failed.
    #[error("whether the disk of {0} was exchanged during the handshake could not be read: {1}")]
    Unread(String, String),
    /// The server and attachd do not agree about TLS.
    #[error("no TLS with the NBD server at {0}: {1}")]
    Tls(SocketAddr, String),
    /// Another kind of server listens there.
    #[error("what listens at {0} does not speak NBD")]
    NotNbd(SocketAddr),
    /// The handshake's task has panicked.
    #[error("the handshake did not finish: {0}")]
    Died(String),
}

impl ProbeError {
    /// Returns whether the server itself is at fault, and not only this export.
    pub fn is_server(&self) -> bool {
        !matches!(self, Self::Refused { .. } | Self::Exchanged(_) | Self::Unread(..) | Self::Died(_))
    }

    /// Returns whether attachd could not connect for lack of its own resources, which says nothing about the server.
    pub fn is_own(&self) -> bool {
        use rustix::io::Errno;
        let own = [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS, Errno::ADDRNOTAVAIL];
        match self {
            Self::Connect(_, error) => own.iter().any(|own| error.raw_os_error() == Some(own.raw_os_error())),
            Self::Died(_) => true,
            _ => false,
        }
    }
}

/// The NBD server's address, and how attachd makes handshakes with it.
#[derive(Clone)]
pub struct Endpoint {
    /// The server's address.
    pub address: SocketAddr,
    tls: Tls,
    time_limit: Duration,
    permits: Arc<Semaphore>,
}

impl Greeted {
    /// Ends the connection in order, without a request.
    pub async fn leave(mut self) {
        let _ = self.stream.io().write_all(&option(OPT_ABORT, &[])).await;
    }
}

impl Endpoint {
    /// An endpoint of a server that runs all the time.
    pub fn new(address: SocketAddr, tls: Tls) -> Self {
        Self { address, tls, time_limit: HANDSHAKE_LIMIT, permits: Arc::new(Semaphore::new(budget::HANDSHAKES)) }
    }

    /// Returns an endpoint for checks, with permits of its own, so that checks do not delay the handshakes of
    /// volumes. A server that is started for each connection keeps its permits, because it cannot take more.
    #[must_use]
    pub fn for_checks(&self) -> Self {
        if self.time_limit == HANDSHAKE_LIMIT_WITH_A_START {
            return self.clone();
        }
        Self { permits: Arc::new(Semaphore::new(budget::CHECKS)), ..self.clone() }
    }

    /// Returns why changed TLS files cannot be used, if so.
    pub fn tls_trouble(&self) -> Option<String> {
        self.tls.trouble()
    }

    /// Makes this the endpoint of a server that is started for each connection: a longer time limit and fewer
    /// permits.
    #[must_use]
    pub fn started_for_each(self) -> Self {
        Self { time_limit: HANDSHAKE_LIMIT_WITH_A_START, permits: Arc::new(Semaphore::new(STARTS_AT_ONCE)), ..self }
    }

    /// Returns whether each connection starts a server.
    pub fn is_started_for_each(&self) -> bool {
        self.time_limit == HANDSHAKE_LIMIT_WITH_A_START
    }

    /// Waits for a permit, without a time limit.
    async fn permit(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }
}

/// A new connection after the greeting of both sides, before the first request.
pub struct Greeted {
    server: SocketAddr,
    time_limit: Duration,
    stream: Stream,
    _permit: Option<OwnedSemaphorePermit>,
}

/// A connection, with or without TLS.
enum Stream {
    Plain(TcpStream),
    Tls(Box<SslStream<TcpStream>>),
}

/// The operations that both kinds of connection have.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Stream {
    fn io(&mut self) -> &mut dyn Io {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.as_mut(),
        }
    }
}

/// A connection whose handshake is done. Dropping it disconnects in order, so that the server reports no broken
/// client.
pub struct Goodbye(Stream);

impl Goodbye {
    /// Returns the connection, for requests.
    pub(super) fn io(&mut self) -> &mut dyn Io {
        self.0.io()
    }
}

impl Drop for Goodbye {
    fn drop(&mut self) {
        // 28 bytes always fit into the send buffer, and a server that is gone needs no message. TLS would need a
        // wait, so there the connection is just closed.
        if let Stream::Plain(stream) = &self.0 {
            let _ = stream.try_write(&disconnect());
        }
    }
}

/// Connects and exchanges greetings, with TLS if configured: the part of a handshake that needs no export yet.
pub async fn greet(endpoint: &Endpoint) -> Result<Greeted, ProbeError> {
    let permit = endpoint.permit().await;
    let slow = Err(ProbeError::Slow(endpoint.address, endpoint.time_limit));
    let stream = tokio::time::timeout(endpoint.time_limit, greeting(endpoint)).await.unwrap_or(slow)?;
    Ok(Greeted { server: endpoint.address, time_limit: endpoint.time_limit, stream, _permit: permit })
}

/// Requests the export on this connection and consumes the connection. The server opens the device.
///
/// The result is known before the connection is closed. Drop the [`Goodbye`] when no caller waits any more.
pub async fn probe(greeted: Greeted, name: &str) -> Result<(Served, Goodbye), ProbeError> {
    let Greeted { server, time_limit, .. } = greeted;
    tokio::time::timeout(time_limit, go(greeted, name)).await.unwrap_or(Err(ProbeError::Slow(server, time_limit)))
}

/// Returns the names of all exports that the server lists. `None`: the server does not list its exports.
pub async fn list(endpoint: &Endpoint) -> Result<Option<Vec<String>>, ProbeError> {
    let slow = Err(ProbeError::Slow(endpoint.address, endpoint.time_limit));
    tokio::time::timeout(endpoint.time_limit, listing(endpoint)).await.unwrap_or(slow)
}

async fn listing(endpoint: &Endpoint) -> Result<Option<Vec<String>>, ProbeError> {
    let server = endpoint.address;
    let mut stream = greeting(endpoint).await?;
    let broken = |error| ProbeError::Broken(server, error);
    let io = stream.io();
    io.write_all(&option(OPT_LIST, &[])).await.map_err(broken)?;
    let mut names = Vec::new();
    loop {
        let mut head = [0; 20];
        io.read_exact(&mut head).await.map_err(broken)?;
        let (kind, length) = parse_reply_head(&head, OPT_LIST).ok_or(ProbeError::NotNbd(server))?;
        let mut data = vec![0; length as usize];
        io.read_exact(&mut data).await.map_err(broken)?;
        match kind {
            REP_ACK => return Ok(Some(names)),
            REP_SERVER => names.push(parse_name(&data).ok_or(ProbeError::NotNbd(server))?),
            _ => return Ok(None),
        }
    }
}

/// Parses the name in an `NBD_REP_SERVER`: a length, the name, and optional details.
fn parse_name(data: &[u8]) -> Option<String> {
    let (length, rest) = data.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    Some(String::from_utf8_lossy(rest.get(..length)?).into_owned())
}

async fn greeting(endpoint: &Endpoint) -> Result<Stream, ProbeError> {
    let server = endpoint.address;
    let broken = |error| ProbeError::Broken(server, error);
    let mut stream = TcpStream::connect(server).await.map_err(|error| ProbeError::Connect(server, error))?;
    stream.set_nodelay(true).map_err(broken)?;
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.map_err(broken)?;
    let flags = parse_greeting(&greeting).ok_or(ProbeError::NotNbd(server))?;
    let flags = u32::from(flags & (FIXED_NEWSTYLE | NO_ZEROES)).to_be_bytes();
    stream.write_all(&flags).await.map_err(broken)?;
    let Some(tls) = endpoint.tls.current().await else { return Ok(Stream::Plain(stream)) };
    stream.write_all(&option(OPT_STARTTLS, &[])).await.map_err(broken)?;
    let mut head = [0; 20];
    stream.read_exact(&mut head).await.map_err(broken)?;
    match parse_reply_head(&head, OPT_STARTTLS) {
        Some((REP_ACK, 0)) => {}
        Some((kind, _)) => return Err(ProbeError::Tls(server, format!("it does not offer TLS ({kind:#010x})"))),
        None => return Err(ProbeError::NotNbd(server)),
    }
    let stream = tls.connect(stream).await.map_err(|why| ProbeError::Tls(server, why))?;
    Ok(Stream::Tls(Box::new(stream)))
}

async fn go(greeted: Greeted, name: &str) -> Result<(Served, Goodbye), ProbeError> {
    let Greeted { server, mut stream, .. } = greeted;
    let broken = |error| ProbeError::Broken(server, error);
    let io = stream.io();
    io.write_all(&ask(name)).await.map_err(broken)?;
    let mut export = None;
    loop {
        let mut head = [0; 20];
        io.read_exact(&mut head).await.map_err(broken)?;
        let (kind, length) = parse_reply_head(&head, OPT_GO).ok_or(ProbeError::NotNbd(server))?;
        let mut data = vec![0; length as usize];
        io.read_exact(&mut data).await.map_err(broken)?;
        match kind {
            REP_ACK => break,
            REP_INFO => export = parse_export_info(&data).or(export),
            _ => return Err(ProbeError::Refused { name: name.to_owned(), why: refusal(kind, &data) }),
        }
    }
    export.map(|served| (served, Goodbye(stream))).ok_or(ProbeError::NotNbd(server))
}

fn parse_greeting(greeting: &[u8; 18]) -> Option<u16> {
    let (magic, rest) = greeting.split_first_chunk::<8>()?;
    let (option, flags) = rest.split_first_chunk::<8>()?;
    let flags = u16::from_be_bytes(flags.try_into().ok()?);
    let newstyle = u64::from_be_bytes(*magic) == INIT_PASSWD && u64::from_be_bytes(*option) == OPTION;
    (newstyle && flags & FIXED_NEWSTYLE != 0).then_some(flags)
}

/// Builds `NBD_OPT_GO` for an export: name length, name, and no information requests, because `NBD_INFO_EXPORT` is
/// always sent.
fn ask(name: &str) -> Vec<u8> {
    let length = u32::try_from(name.len()).unwrap_or(u32::MAX).to_be_bytes();
    option(OPT_GO, &[&length, name.as_bytes(), &[0, 0]].concat())
}

fn option(option: u32, data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&OPTION.to_be_bytes()[..], &option.to_be_bytes(), &length, data].concat()
}

fn disconnect() -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[6..8].copy_from_slice(&CMD_DISC.to_be_bytes());
    bytes
}

/// Parses the head of a reply to the option `to`: returns its kind and its length.
fn parse_reply_head(head: &[u8; 20], to: u32) -> Option<(u32, u32)> {
    let word = |at: usize| head.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_be_bytes);
    let magic = u64::from_be_bytes(head[..8].try_into().ok()?);
    let (option, kind, length) = (word(8)?, word(12)?, word(16)?);
    (magic == OPTION_REPLY && option == to && length <= LONGEST_REPLY).then_some((kind, length))
}

fn parse_export_info(data: &[u8]) -> Option<Served> {
    let (kind, rest) = data.split_first_chunk::<2>()?;
    let (size, flags) = rest.split_first_chunk::<8>()?;
    (u16::from_be_bytes(*kind) == INFO_EXPORT)
        .then(|| Some(Served { size: u64::from_be_bytes(*size), flags: u16::from_be_bytes(flags.try_into().ok()?) }))?
}

fn refusal(kind: u32, data: &[u8]) -> String {
    let words = String::from_utf8_lossy(data);
    let meaning = match kind {
        REP_ERR_UNKNOWN => "it knows no such export, or cannot open its device",
        REP_ERR_TLS_REQD => "it wants TLS",
        _ => "it answered with an error",
    };
    if words.is_empty() { format!("{meaning} ({kind:#010x})") } else { format!("{meaning} ({kind:#010x}: {words})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    /// A server that sends these bytes and hangs up.
    async fn server(says: Vec<u8>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(&says).await.unwrap();
            stream.shutdown().await.unwrap();
            let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
        });
        address
    }

    async fn probe(server: SocketAddr, name: &str) -> Result<Served, ProbeError> {
        super::probe(greet(&Endpoint::new(server, Tls::none())).await?, name).await.map(|(served, _goodbye)| served)
    }

    fn greeting() -> Vec<u8> {
        let mut bytes = b"NBDMAGICIHAVEOPT".to_vec();
        bytes.extend(3_u16.to_be_bytes());
        bytes
    }

    fn reply(kind: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = OPTION_REPLY.to_be_bytes().to_vec();
        bytes.extend(OPT_GO.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend(data);
        bytes
    }

    fn info(size: u64, flags: u16) -> Vec<u8> {
        [&[0, 0][..], &size.to_be_bytes(), &flags.to_be_bytes()].concat()
    }

    #[tokio::test]
    async fn an_acknowledged_go_tells_the_size() {
        let says = [greeting(), reply(REP_INFO, &info(4096, 0x10d)), reply(REP_ACK, b"")].concat();
        assert_eq!(probe(server(says).await, "x").await.unwrap(), Served { size: 4096, flags: 0x10d });
    }

    #[tokio::test]
    async fn a_refusal_is_told_apart_from_a_server_that_is_not_there() {
        let says = [greeting(), reply(REP_ERR_UNKNOWN, b"")].concat();
        assert!(!probe(server(says).await, "x").await.unwrap_err().is_server());
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert!(matches!(probe(nobody, "x").await.unwrap_err(), ProbeError::Connect(..)));
    }

    #[tokio::test]
    async fn a_server_that_does_not_speak_nbd_is_reported_as_such() {
        for says in [
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            [greeting(), b"garbage that is long enough".to_vec()].concat(),
            [greeting(), reply(REP_ACK, b"")].concat(),
        ] {
            assert!(matches!(probe(server(says).await, "x").await.unwrap_err(), ProbeError::NotNbd(_)));
        }
        assert!(matches!(probe(server(greeting()).await, "x").await.unwrap_err(), ProbeError::Broken(..)));
    }

    #[tokio::test]
    async fn a_reply_that_claims_to_be_huge_is_not_read() {
        let mut huge = reply(REP_INFO, b"");
        huge[16..20].copy_from_slice(&u32::MAX.to_be_bytes());
        let says = [greeting(), huge].concat();
        assert!(matches!(probe(server(says).await, "x").await.unwrap_err(), ProbeError::NotNbd(_)));
    }

    #[tokio::test]
    async fn a_server_that_is_started_for_each_connection_is_given_more_time_and_asked_by_few_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let running = Endpoint::new(listener.local_addr().unwrap(), Tls::none());
        let started = running.clone().started_for_each();
        assert_eq!((running.time_limit, started.time_limit), (HANDSHAKE_LIMIT, HANDSHAKE_LIMIT_WITH_A_START));
        let server = tokio::spawn(async move {
            let mut connections = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(&greeting()).await.unwrap();
                connections.push(stream);
            }
        });
        let mut greeted = Vec::new();
        for _ in 0..STARTS_AT_ONCE {
            greeted.push(greet(&started).await.unwrap());
        }
        let mut next = std::pin::pin!(greet(&started));
        let soon = Duration::from_millis(50);
        assert!(tokio::time::timeout(soon, &mut next).await.is_err(), "not its turn yet");
        greet(&running).await.expect("the control: the server answers");
        greeted.pop();
        next.await.unwrap();
        server.abort();
    }

    #[tokio::test]
    async fn a_server_that_sends_nothing_is_given_up_after_the_reported_time_limit() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silent = Endpoint::new(listener.local_addr().unwrap(), Tls::none());
        let slow = greet(&Endpoint { time_limit: Duration::ZERO, ..silent }).await.err().unwrap().to_string();
        assert!(slow.ends_with("did not finish a handshake within 0 s"), "{slow}");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parsers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = parse_export_info(&bytes);
            if let Ok(head) = bytes.get(..20).unwrap_or_default().try_into() { let _ = parse_reply_head(head, OPT_GO); }
            if let Ok(head) = bytes.get(..18).unwrap_or_default().try_into() { let _ = parse_greeting(head); }
        }
    }
}

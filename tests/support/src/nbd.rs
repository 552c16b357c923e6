//! An NBD client that stays connected, to test refusals while a client is connected.

use anyhow::{Context, Result, bail, ensure};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(20);
const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
const REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const OPT_LIST: u32 = 3;
const OPT_INFO: u32 = 6;
const OPT_GO: u32 = 7;
/// Reply to [`info`] and [`go`]: success.
pub const REP_ACK: u32 = 1;
/// Reply: not allowed, or (nbd-server) the device cannot be opened.
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// Reply: no such export.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const INFO_EXPORT: u16 = 0;
const CMD_READ: u16 = 0;
const CMD_WRITE: u16 = 1;
const CMD_DISC: u16 = 2;
const CMD_FLUSH: u16 = 3;
const CMD_WRITE_ZEROES: u16 = 6;
/// In `flags`: the client can flush.
pub const FLAG_SEND_FLUSH: u16 = 1 << 2;
/// In `flags`: a single write can be made durable.
pub const FLAG_SEND_FUA: u16 = 1 << 3;
/// In `flags`: the server supports WRITE_ZEROES.
pub const FLAG_SEND_WRITE_ZEROES: u16 = 1 << 6;

/// Returns the names that a server lists. `nbdinfo --list` is not used, because it opens every export too, and fails
/// as a whole if one cannot be opened.
pub fn list(address: &str) -> Result<Vec<String>> {
    let mut stream = greet(address)?;
    stream.write_all(&option(OPT_LIST, &[]))?;
    let mut names = Vec::new();
    loop {
        let (kind, body) = option_reply(&mut stream)?;
        match kind {
            REP_ACK => return Ok(names),
            REP_SERVER => names.push(String::from_utf8_lossy(body.get(4..).unwrap_or_default()).into_owned()),
            refusal => bail!("LIST refused ({refusal:#x}): {}", String::from_utf8_lossy(&body)),
        }
    }
}

/// Connects and exchanges greetings: fixed newstyle, no zeroes.
fn greet(address: &str) -> Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_nodelay(true)?;
    greeted(stream)
}

fn greeted<S: Read + Write>(mut stream: S) -> Result<S> {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting)?;
    ensure!(greeting.starts_with(b"NBDMAGICIHAVEOPT"), "not a newstyle NBD server: {greeting:?}");
    stream.write_all(&3_u32.to_be_bytes())?;
    Ok(stream)
}

fn option(code: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = IHAVEOPT.to_be_bytes().to_vec();
    bytes.extend(code.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).expect("an option is small").to_be_bytes());
    bytes.extend(data);
    bytes
}

fn option_reply(stream: &mut impl Read) -> Result<(u32, Vec<u8>)> {
    let mut header = [0; 20];
    stream.read_exact(&mut header)?;
    ensure!(header[..8] == REPLY_MAGIC.to_be_bytes(), "option reply without its magic: {header:?}");
    let mut body = vec![0; u32::from_be_bytes(header[16..20].try_into()?) as usize];
    stream.read_exact(&mut body)?;
    Ok((u32::from_be_bytes(header[12..16].try_into()?), body))
}

/// Returns the server's final reply to `NBD_OPT_INFO` for the export. nbd-server does not open the device for it.
pub fn info(address: &str, export: &str) -> Result<u32> {
    ask(address, OPT_INFO, export)
}

/// Returns the server's final reply to `NBD_OPT_GO` for the export.
pub fn go(address: &str, export: &str) -> Result<u32> {
    ask(address, OPT_GO, export)
}

fn ask(address: &str, code: u32, export: &str) -> Result<u32> {
    let mut stream = greet(address)?;
    stream.write_all(&option(code, &name_without_requests(export)?))?;
    loop {
        let (kind, _) = option_reply(&mut stream)?;
        if kind != REP_INFO {
            return Ok(kind);
        }
    }
}

fn name_without_requests(export: &str) -> Result<Vec<u8>> {
    let mut data = u32::try_from(export.len())?.to_be_bytes().to_vec();
    data.extend(export.as_bytes());
    data.extend(0_u16.to_be_bytes());
    Ok(data)
}

/// A connected NBD client. Dropping it disconnects in order; [`NbdClient::abandon`] just closes the connection.
#[derive(Debug)]
pub struct NbdClient<S: Read + Write = TcpStream> {
    stream: S,
    size: u64,
    flags: u16,
}

impl NbdClient<UnixStream> {
    /// Connects on a Unix socket.
    pub fn connect_unix(socket: &Path, export: &str) -> Result<NbdClient<UnixStream>> {
        let stream = UnixStream::connect(socket).with_context(|| format!("connecting to {}", socket.display()))?;
        stream.set_read_timeout(Some(LIMIT))?;
        NbdClient::open(greeted(stream)?, export)
    }
}

impl NbdClient {
    /// Connects and opens an export (`NBD_OPT_GO`).
    pub fn connect(address: &str, export: &str) -> Result<NbdClient> {
        NbdClient::open(greet(address)?, export)
    }

    /// Returns its own address, as the server sees it.
    pub fn address(&self) -> Result<String> {
        Ok(self.stream.local_addr()?.to_string())
    }

    /// Closes without a disconnect request, like a client whose machine lost power.
    pub fn abandon(self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

impl<S: Read + Write> NbdClient<S> {
    fn open(mut stream: S, export: &str) -> Result<NbdClient<S>> {
        stream.write_all(&option(OPT_GO, &name_without_requests(export)?))?;
        let mut shown = None;
        loop {
            let (kind, body) = option_reply(&mut stream)?;
            match kind {
                REP_ACK => break,
                REP_INFO if body.len() == 12 && body[..2] == INFO_EXPORT.to_be_bytes() => {
                    let size = u64::from_be_bytes(body[2..10].try_into()?);
                    shown = Some((size, u16::from_be_bytes(body[10..].try_into()?)));
                }
                REP_INFO => {}
                refusal => bail!("GO {export} refused ({refusal:#x}): {}", String::from_utf8_lossy(&body)),
            }
        }
        let (size, flags) = shown.context("GO acknowledged without a size")?;
        Ok(NbdClient { stream, size, flags })
    }

    /// Returns the size that the server announced.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Returns the server's transmission flags (`FLAG_…`).
    pub fn flags(&self) -> u16 {
        self.flags
    }

    /// Reads; the error contains the NBD error number.
    pub fn read(&mut self, offset: u64, length: u32) -> Result<Vec<u8>> {
        self.request(CMD_READ, offset, length)?;
        self.answered("read")?;
        let mut data = vec![0; length as usize];
        self.stream.read_exact(&mut data)?;
        Ok(data)
    }

    /// Writes.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.request(CMD_WRITE, offset, u32::try_from(data.len())?)?;
        self.stream.write_all(data)?;
        self.answered("write")
    }

    /// Flushes earlier writes.
    pub fn flush(&mut self) -> Result<()> {
        self.request(CMD_FLUSH, 0, 0)?;
        self.answered("flush")
    }

    /// Writes zeroes in one request of any length.
    pub fn write_zeroes(&mut self, offset: u64, length: u32) -> Result<()> {
        self.request(CMD_WRITE_ZEROES, offset, length)?;
        self.answered("write of zeroes")
    }

    fn answered(&mut self, what: &str) -> Result<()> {
        let mut header = [0; 16];
        self.stream.read_exact(&mut header)?;
        ensure!(header[..4] == 0x6744_6698_u32.to_be_bytes(), "not a simple reply: {header:?}");
        let error = u32::from_be_bytes(header[4..8].try_into()?);
        ensure!(error == 0, "the server answered the {what} with error {error}");
        Ok(())
    }

    fn request(&mut self, command: u16, offset: u64, length: u32) -> Result<()> {
        let mut request = 0x2560_9513_u32.to_be_bytes().to_vec();
        request.extend(0_u16.to_be_bytes());
        request.extend(command.to_be_bytes());
        request.extend(1_u64.to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(length.to_be_bytes());
        Ok(self.stream.write_all(&request)?)
    }
}

impl<S: Read + Write> Drop for NbdClient<S> {
    fn drop(&mut self) {
        let _ = self.request(CMD_DISC, 0, 0);
    }
}

//! What clients have written is made durable before a disk is given away: a connection of attachd's own to the export, opened
//! while it is served, takes FLUSH (`NBD_CMD_FLUSH`) also after the export was taken away.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::probe::{self, Endpoint, Goodbye};

/// How long a disk may take to write what is in its caches.
const LIMIT: Duration = Duration::from_secs(30);

const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;
const CMD_FLUSH: u16 = 3;
const FLAG_SEND_FLUSH: u16 = 1 << 2;

/// A connection to an export. It ends in good order when dropped.
pub struct Flusher {
    connection: Goodbye,
    requests: u64,
}

impl Flusher {
    /// Opens one. An error says why there is none.
    pub async fn open(server: &Endpoint, export: &str) -> Result<Self, String> {
        let greeted = probe::greet(server).await.map_err(|error| error.to_string())?;
        let (served, connection) = probe::probe(greeted, export).await.map_err(|error| error.to_string())?;
        if served.flags & FLAG_SEND_FLUSH == 0 {
            return Err("the NBD server offers no FLUSH for this export".to_owned());
        }
        Ok(Self { connection, requests: 0 })
    }

    /// Returns when everything that the server has taken until now is on the disk, or with why not.
    pub async fn flush(&mut self) -> Result<(), String> {
        self.requests += 1;
        let (request, number) = (request(self.requests), self.requests);
        let io = self.connection.io();
        let exchange = async {
            io.write_all(&request).await?;
            let mut reply = [0; 16];
            io.read_exact(&mut reply).await?;
            io::Result::Ok(reply)
        };
        match timeout(LIMIT, exchange).await {
            Err(_) => Err(format!("the NBD server has not flushed within {} s", LIMIT.as_secs())),
            Ok(Err(error)) => Err(format!("the NBD server hung up: {error}")),
            Ok(Ok(reply)) => judged(&reply, number),
        }
    }
}

fn request(number: u64) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[..4].copy_from_slice(&REQUEST.to_be_bytes());
    bytes[6..8].copy_from_slice(&CMD_FLUSH.to_be_bytes());
    bytes[8..16].copy_from_slice(&number.to_be_bytes());
    bytes
}

fn judged(reply: &[u8; 16], number: u64) -> Result<(), String> {
    let [m0, m1, m2, m3, e0, e1, e2, e3, handle @ ..] = *reply;
    if [m0, m1, m2, m3] != REPLY.to_be_bytes() || handle != number.to_be_bytes() {
        return Err("the NBD server's answer is none to a FLUSH".to_owned());
    }
    match u32::from_be_bytes([e0, e1, e2, e3]) {
        0 => Ok(()),
        error => Err(format!("the NBD server could not flush (error {error})")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    use super::super::tls::Tls;
    use super::*;

    /// A server that serves one export with these flags, and answers a FLUSH with this error.
    async fn server(flags: u16, error: u32) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"NBDMAGICIHAVEOPT\0\x03").await.unwrap();
            let mut asked = [0; 4 + 16 + 4 + 1 + 2];
            stream.read_exact(&mut asked).await.unwrap();
            let reply = |kind: u32, data: &[u8]| {
                let length = u32::try_from(data.len()).unwrap();
                [
                    &0x0003_e889_0455_65a9_u64.to_be_bytes()[..],
                    &7_u32.to_be_bytes(),
                    &kind.to_be_bytes(),
                    &length.to_be_bytes(),
                    data,
                ]
                .concat()
            };
            let info = [&[0, 0][..], &4096_u64.to_be_bytes(), &flags.to_be_bytes()].concat();
            stream.write_all(&[reply(3, &info), reply(1, b"")].concat()).await.unwrap();
            let mut asked = [0; 28];
            while stream.read_exact(&mut asked).await.is_ok() && asked[7] == 3 {
                let reply = [&REPLY.to_be_bytes()[..], &error.to_be_bytes(), &asked[8..16]].concat();
                stream.write_all(&reply).await.unwrap();
            }
        });
        Endpoint::new(address, Tls::none())
    }

    #[tokio::test]
    async fn a_flush_succeeds_only_by_the_servers_word() {
        let mut works = Flusher::open(&server(0x0d, 0).await, "x").await.unwrap();
        for _ in 0..2 {
            works.flush().await.unwrap();
        }
        let mut fails = Flusher::open(&server(0x0d, 5).await, "x").await.unwrap();
        assert!(fails.flush().await.unwrap_err().contains("error 5"));
        let without = Flusher::open(&server(0x09, 0).await, "x").await.err().unwrap();
        assert!(without.contains("no FLUSH"), "{without}");
    }

    proptest! {
        #[test]
        fn no_other_answer_is_taken_for_done(reply in any::<[u8; 16]>(), number in any::<u64>()) {
            let expected = [&REPLY.to_be_bytes()[..], &[0; 4], &number.to_be_bytes()].concat();
            prop_assert_eq!(judged(&reply, number).is_ok(), reply[..] == expected[..]);
            prop_assert!(judged(&expected.try_into().unwrap(), number).is_ok(), "the control");
        }
    }
}

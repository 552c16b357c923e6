//! A reader of server-sent events.

use crate::api::{is_chunked, is_timeout, read_chunk, read_head};
use crate::watch::readable;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::BufReader;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// One event: its name (`event:`), its id and its data as JSON (text that is not JSON becomes a JSON string).
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// `event:`, "message" when absent.
    pub name: String,
    /// `id:`.
    pub id: Option<String>,
    /// `data:`.
    pub data: Value,
}

/// An open event stream.
#[derive(Debug)]
pub struct Events {
    reader: BufReader<UnixStream>,
    chunked: bool,
    text: String,
}

impl Events {
    pub(crate) fn open(stream: UnixStream) -> Result<Events> {
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader)?;
        ensure!(status == 200, "the event stream was answered with {status}");
        Ok(Events { chunked: is_chunked(&headers), reader, text: String::new() })
    }

    /// Returns the next event, or `None` if none came within the limit. Comments (keep-alives) are skipped.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Event>> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let block: String = self.text.drain(..end + 2).collect();
                if let Some(event) = parse(&block) {
                    return Ok(Some(event));
                }
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.reader.buffer().is_empty() && !readable(&[self.reader.get_ref().as_fd()], left)? {
                return Ok(None);
            }
            self.read_more()?;
        }
    }

    /// Returns the first event whose data `wanted` accepts; the error lists the events that came instead.
    pub fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool, limit: Duration) -> Result<Value> {
        let deadline = Instant::now() + limit;
        let mut others = Vec::new();
        while let Some(event) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if wanted(&event.data) {
                return Ok(event.data);
            }
            others.push(format!("{}: {}", event.name, event.data));
        }
        bail!("the awaited event did not come within {limit:?}; these did: {others:#?}")
    }

    fn read_more(&mut self) -> Result<()> {
        let bytes = if self.chunked {
            read_chunk(&mut self.reader)?.context("the event stream ended")?
        } else {
            let buffer = std::io::BufRead::fill_buf(&mut self.reader);
            let bytes = match buffer {
                Err(e) if is_timeout(&e) => Vec::new(),
                other => other?.to_vec(),
            };
            ensure!(!bytes.is_empty(), "the event stream ended");
            std::io::BufRead::consume(&mut self.reader, bytes.len());
            bytes
        };
        self.text.push_str(&String::from_utf8_lossy(&bytes).replace("\r\n", "\n"));
        Ok(())
    }
}

fn parse(block: &str) -> Option<Event> {
    let (mut name, mut id, mut data) = ("message".to_owned(), None, Vec::new());
    for line in block.lines() {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => name = value.to_owned(),
            "id" => id = Some(value.to_owned()),
            "data" => data.push(value),
            _ => {}
        }
    }
    if data.is_empty() {
        return None;
    }
    let data = data.join("\n");
    Some(Event { name, id, data: serde_json::from_str(&data).unwrap_or(Value::String(data)) })
}

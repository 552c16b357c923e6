//! A parser for server-sent events. Pure.

/// One message.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The kind of event, like `volume` or `missed`.
    pub(super) event: String,
    /// The data.
    pub(super) data: String,
}

/// The parser, which takes the stream in pieces of any size.
#[derive(Debug, Default)]
pub(super) struct Parser {
    bytes: Vec<u8>,
    message: Message,
}

impl Parser {
    /// Adds the next bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Returns the next complete message.
    pub(super) fn next(&mut self) -> Option<Message> {
        while let Some(line) = self.line() {
            if line.is_empty() {
                let mut message = std::mem::take(&mut self.message);
                // A block without data (a comment, or only an id) is no message.
                if message.data.pop().is_some() {
                    return Some(message);
                }
                continue;
            }
            let (field, value) = line.split_once(':').unwrap_or((&line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "event" => value.clone_into(&mut self.message.event),
                "data" => {
                    self.message.data.push_str(value);
                    self.message.data.push('\n');
                }
                // A comment has an empty field name; ids are not used.
                _ => {}
            }
        }
        None
    }

    /// Takes one line, which may end with CR, LF or both.
    fn line(&mut self) -> Option<String> {
        let end = self.bytes.iter().position(|byte| matches!(byte, b'\n' | b'\r'))?;
        let ending = match &self.bytes[end..] {
            // A LF may still follow.
            [b'\r'] => return None,
            [b'\r', b'\n', ..] => 2,
            _ => 1,
        };
        let line = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
        self.bytes.drain(..end + ending);
        Some(line)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(parser: &mut Parser) -> Vec<Message> {
        std::iter::from_fn(|| parser.next()).collect()
    }

    fn message(event: &str, data: &str) -> Message {
        Message { event: event.into(), data: data.into() }
    }

    const STREAM: &str = ": listening\n\nevent: volume\nid: 1\ndata: {\"a\":\"ö\"}\n\n\
                          event:missed\r\ndata: {\"missed\":2}\r\n\r\n\
                          data: one\ndata:two\n\nid: 9\n\nevent: volume\ndata: cut off";

    fn expected() -> Vec<Message> {
        vec![message("volume", "{\"a\":\"ö\"}"), message("missed", "{\"missed\":2}"), message("", "one\ntwo")]
    }

    #[test]
    fn a_stream_is_parsed_into_messages() {
        let mut parser = Parser::default();
        parser.push(STREAM.as_bytes());
        assert_eq!(all(&mut parser), expected());
    }

    proptest! {
        #[test]
        fn a_stream_in_pieces_of_any_size_gives_the_same_messages(sizes in prop::collection::vec(1..9_usize, 200)) {
            let mut parser = Parser::default();
            let (mut rest, mut messages) = (STREAM.as_bytes(), Vec::new());
            for size in sizes {
                let (piece, behind) = rest.split_at(size.min(rest.len()));
                parser.push(piece);
                messages.extend(all(&mut parser));
                rest = behind;
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(messages, expected());
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let mut parser = Parser::default();
            parser.push(&bytes);
            all(&mut parser);
        }
    }
}

//! A request as it comes: HTTP/1.1, its parameters from the query and from the body.

use std::io::{BufRead, Error, ErrorKind, Read, Result};

/// More than any request of a client has.
const LONGEST: usize = 1 << 20;

/// One request.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Decoded, in the order they came, those of the query first.
    pub(crate) parameters: Vec<(String, String)>,
}

impl Request {
    /// The next one of a connection; `None` when the client has closed it.
    pub(crate) fn read(stream: &mut impl BufRead) -> Result<Option<Request>> {
        let Some(first) = line(stream)? else { return Ok(None) };
        let mut words = first.split(' ');
        let (Some(method), Some(target)) = (words.next(), words.next()) else { return Err(malformed(&first)) };
        let mut length = 0;
        while let Some(header) = line(stream)?.filter(|header| !header.is_empty()) {
            let (name, value) = header.split_once(':').ok_or_else(|| malformed(&header))?;
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse().map_err(|_| malformed(&header))?;
            }
        }
        if length > LONGEST {
            return Err(malformed("a body without end"));
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body)?;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let mut parameters = form(query.as_bytes());
        parameters.extend(form(&body));
        Ok(Some(Request { method: method.to_owned(), path: path.to_owned(), parameters }))
    }

    /// A parameter by its name in lower case: after the signature's check CloudStack does not mind how it is written.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.parameters.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

fn line(stream: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = Vec::new();
    let limit = u64::try_from(LONGEST).expect("it is small");
    if stream.by_ref().take(limit).read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    let line = String::from_utf8(line).map_err(|_| malformed("bytes that are no text"))?;
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}

fn malformed(what: &str) -> Error {
    Error::new(ErrorKind::InvalidData, format!("this is no HTTP: {what}"))
}

/// `application/x-www-form-urlencoded`.
fn form(text: &[u8]) -> Vec<(String, String)> {
    let pieces = text.split(|byte| *byte == b'&').filter(|piece| !piece.is_empty());
    let pair = |piece: &[u8]| {
        let middle = piece.iter().position(|byte| *byte == b'=').unwrap_or(piece.len());
        (decoded(&piece[..middle]), decoded(piece.get(middle + 1..).unwrap_or_default()))
    };
    pieces.map(pair).collect()
}

fn decoded(text: &[u8]) -> String {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let code = after.get(..2).and_then(|code| std::str::from_utf8(code).ok());
        match (first, code.and_then(|code| u8::from_str_radix(code, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
                continue;
            }
            (b'+', _) => bytes.push(b' '),
            (byte, _) => bytes.push(*byte),
        }
        rest = after;
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_come_from_the_query_and_the_body() {
        let mut bytes = &b"POST /client/api?a=1%262 HTTP/1.1\r\nContent-Length: 9\r\n\r\nb=%7e+c&d"[..];
        let request = Request::read(&mut bytes).expect("it is one").expect("it is there");
        let wanted = [("a", "1&2"), ("b", "~ c"), ("d", "")];
        assert_eq!(request.parameters, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/client/api"));
    }
}

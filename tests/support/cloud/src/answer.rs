//! What is answered: JSON or XML, results and refusals.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use std::io::{Result, Write};

/// An answer as it goes over the wire.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// Headers besides the length.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
    /// So many spaces after the body.
    pub padding: u64,
}

impl Answer {
    /// A page of whoever is between, such as a proxy that does not reach the server.
    pub fn page(status: u16, text: &str) -> Answer {
        Answer::of(status, "text/html", text.as_bytes().to_vec())
    }

    /// Too many calls: come again after so many seconds.
    pub fn throttled(seconds: u64) -> Answer {
        let text =
            format!("The given user has reached his/her account api limit, please retry after {} ms.", seconds * 1000);
        let body = json!({ "errorresponse": Refusal::of(429, 9999, &text).value() });
        let mut answer = Answer::of(429, "application/json", body.to_string().into_bytes());
        answer.headers.push(("Retry-After".into(), seconds.to_string()));
        answer
    }

    /// A good status and a body that is no answer.
    pub fn garbage() -> Answer {
        Answer::of(200, "application/json", b"{\"listvolumesresponse\":{\"count\":\xff\xfe<html>".to_vec())
    }

    /// A body of so many bytes, each of which could be the last one of white space.
    pub fn huge(bytes: u64) -> Answer {
        Answer { padding: bytes, ..Answer::of(200, "application/json", b"{".to_vec()) }
    }

    fn of(status: u16, kind: &str, body: Vec<u8>) -> Answer {
        Answer { status, headers: vec![("Content-Type".into(), kind.into())], body, padding: 0 }
    }

    /// The result of a command, by its name in lower case.
    pub(crate) fn result(shape: Shape, command: &str, result: &Value) -> Answer {
        shape.answer(200, &format!("{}response", command.to_lowercase()), result)
    }

    /// A refusal in the call itself. `command` is one that the server knows.
    pub(crate) fn refusal(shape: Shape, command: Option<&str>, refusal: &Refusal) -> Answer {
        let name = command.map_or("errorresponse".to_owned(), |command| format!("{}response", command.to_lowercase()));
        let mut answer = shape.answer(refusal.http, &name, &refusal.value());
        answer.headers.push(("X-Description".into(), refusal.text.clone()));
        answer
    }

    /// Writes it, or only the first half. `now`: by the server's clock.
    pub(crate) fn write(&self, stream: &mut impl Write, now: Timestamp, whole: bool) -> Result<()> {
        let length = u64::try_from(self.body.len()).unwrap_or_default() + self.padding;
        let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT");
        let (status, reason) = (self.status, reason(self.status));
        let mut head = format!("HTTP/1.1 {status} {reason}\r\nDate: {date}\r\nContent-Length: {length}\r\n");
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend(&self.body[..if whole { self.body.len() } else { self.body.len() / 2 }]);
        stream.write_all(&bytes)?;
        let piece = [b' '; 1 << 16];
        let mut left = if whole { self.padding } else { 0 };
        while left > 0 {
            let now = left.min(1 << 16);
            stream.write_all(&piece[..usize::try_from(now).expect("a small piece")])?;
            left -= now;
        }
        stream.flush()
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        401 => "Unauthorized",
        404 => "Not Found",
        405 => "Method Not Allowed",
        429 => "Too Many Requests",
        _ => "Other",
    }
}

/// CloudStack's no, in its own words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The HTTP status in the call, and `errorcode`.
    pub http: u16,
    /// `cserrorcode`; none for those who are not let in.
    pub code: Option<u32>,
    /// `errortext`.
    pub text: String,
}

impl Refusal {
    /// Any.
    pub fn of(http: u16, code: u32, text: &str) -> Refusal {
        Refusal { http, code: Some(code), text: text.to_owned() }
    }

    /// A parameter that is wrong, or a thing that is not as it has to be.
    pub fn invalid(text: &str) -> Refusal {
        Refusal::of(431, 4350, text)
    }

    /// A parameter that is none.
    pub(crate) fn unreadable(text: &str) -> Refusal {
        Refusal::of(431, 9999, text)
    }

    /// Something went wrong while it was done.
    pub fn runtime(text: &str) -> Refusal {
        Refusal::of(530, 4250, text)
    }

    pub(crate) fn not_let_in() -> Refusal {
        let text = "unable to verify user credentials and/or request signature";
        Refusal { http: 401, code: None, text: text.to_owned() }
    }

    pub(crate) fn not_allowed(command: &str) -> Refusal {
        let text = format!("The given command '{command}' either does not exist, is not available for user.");
        Refusal::of(401, 9999, &text)
    }

    pub(crate) fn value(&self) -> Value {
        let mut value = json!({ "uuidList": [], "errorcode": self.http, "errortext": self.text });
        if let Some(code) = self.code {
            value["cserrorcode"] = json!(code);
        }
        value
    }
}

/// How the caller wants it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    Xml,
    Json {
        /// Servers of long ago called it JavaScript.
        script: bool,
    },
}

impl Shape {
    fn answer(self, status: u16, name: &str, result: &Value) -> Answer {
        match self {
            Shape::Json { script } => {
                let kind = if script { "text/javascript; charset=UTF-8" } else { "application/json; charset=UTF-8" };
                let whole: Map<String, Value> = [(name.to_owned(), result.clone())].into_iter().collect();
                Answer::of(status, kind, Value::from(whole).to_string().into_bytes())
            }
            Shape::Xml => {
                let mut text = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>".to_owned();
                xml(&mut text, name, result);
                Answer::of(status, "text/xml; charset=UTF-8", text.into_bytes())
            }
        }
    }
}

fn xml(text: &mut String, name: &str, value: &Value) {
    if let Value::Array(all) = value {
        return all.iter().for_each(|one| xml(text, name, one));
    }
    text.push_str(&format!("<{name}>"));
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| xml(text, name, value)),
        Value::String(words) => text.push_str(&words.replace('&', "&amp;").replace('<', "&lt;")),
        other => text.push_str(&other.to_string()),
    }
    text.push_str(&format!("</{name}>"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wish_for_json_it_is_xml() {
        let answer = Answer::result(Shape::Xml, "listZones", &json!({ "count": 1, "zone": [{ "name": "a<b" }] }));
        let body = String::from_utf8(answer.body).expect("text");
        let wanted = "<listzonesresponse><count>1</count><zone><name>a&lt;b</name></zone></listzonesresponse>";
        assert!(body.ends_with(wanted), "{body}");
    }
}

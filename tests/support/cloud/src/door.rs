//! Who is let in: keys, signatures, times and methods, in the order in which `ApiServlet` and `ApiServer.verifyRequest` look.

use crate::answer::Refusal;
use crate::commands;
use crate::request::Request;
use crate::sign;
use jiff::{SignedDuration, Timestamp};
use std::collections::BTreeSet;

/// The longest `expires` that a server takes which enforces times.
const AHEAD: SignedDuration = SignedDuration::from_mins(15);

/// A pair of keys.
#[derive(Debug, Clone)]
pub struct Key {
    /// The public one.
    pub key: String,
    /// The secret one.
    pub secret: String,
    /// Neither expired nor yet to come.
    pub valid: bool,
    /// The commands that it may not call.
    pub denied: BTreeSet<String>,
}

impl Key {
    /// A pair that may call everything.
    pub fn new(key: &str, secret: &str) -> Key {
        Key { key: key.to_owned(), secret: secret.to_owned(), valid: true, denied: BTreeSet::new() }
    }
}

/// What the server insists on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct House {
    /// `enforce.post.requests.and.timestamps`
    pub(crate) enforce: bool,
    /// By its own clock.
    pub(crate) now: Timestamp,
}

/// Lets a request in, or says what the server says.
pub(crate) fn let_in(keys: &[Key], house: House, request: &Request) -> Result<&'static commands::Command, Refusal> {
    let named = request.get("command").and_then(commands::find);
    if let Some(command) = named
        && house.enforce
        && command.changes
        && request.method != "POST"
    {
        let text = format!("State changing command {} needs to be sent using POST request", command.name);
        return Err(Refusal::of(405, 9999, &text));
    }
    // That there is no such command is said in no other words.
    let command = named.ok_or_else(Refusal::not_let_in)?;
    let (Some(signature), Some(key)) = (request.get("signature"), request.get("apikey")) else {
        return Err(Refusal::not_let_in());
    };
    if request.get("signatureversion") == Some("3") {
        let expires = request.get("expires").and_then(sign::expires).ok_or_else(Refusal::not_let_in)?;
        if expires < house.now || (house.enforce && expires > house.now + AHEAD) {
            return Err(Refusal::not_let_in());
        }
    } else if house.enforce {
        return Err(Refusal::not_let_in());
    }
    let key = keys.iter().find(|known| known.key == key).ok_or_else(Refusal::not_let_in)?;
    // Looked at before the signature is: in the words of the server's own answer to a stranger, too.
    if key.denied.contains(command.name) {
        return Err(Refusal::not_allowed(command.name));
    }
    let right = sign::signature(&key.secret, &sign::string_to_sign(&request.parameters));
    if key.valid && right == signature { Ok(command) } else { Err(Refusal::not_let_in()) }
}

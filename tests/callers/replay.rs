//! A caller's calls, made one after the other, with its own waits.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use lab::Reply;
use serde_json::Value;

use crate::caller::Caller;
use crate::row::{Client, Poll, Request, Row, Shell, Step};
use crate::world::{OTHER, World};

/// After this time a caller that polls without a limit is taken for one that polls for ever.
const FOR_EVER: Duration = Duration::from_mins(3);

/// The caller's program, up to where it is.
struct Replay<'a> {
    row: &'a Row,
    world: &'a World,
    caller: Caller,
    /// What `{name}` stands for.
    names: BTreeMap<String, String>,
}

/// Replays a row, and checks what its caller was promised.
pub(crate) fn replay(row: &Row) {
    let world = World::of(row);
    let mut names: BTreeMap<String, String> =
        world.volumes.iter().map(|(name, volume)| (name.clone(), volume.id.clone())).collect();
    for (name, value) in [
        ("here", world.cloud.vm_here().to_owned()),
        ("other", OTHER.to_owned()),
        ("zone", world.cloud.zone()),
        ("offering", world.cloud.offering()),
    ] {
        names.insert(name.to_owned(), value);
    }
    let mut replay = Replay { row, world: &world, caller: Caller::default(), names };
    for (number, step) in row.step.iter().enumerate() {
        println!("{} {}", number + 1, replay.step(step));
    }
    for after in &row.after {
        let id = &replay.names[&after.volume];
        world.is(&after.volume, id, after.is);
    }
    world.was_asked(row, &replay.names);
}

impl Replay<'_> {
    fn step(&mut self, step: &Step) -> String {
        match step {
            Step::Call(call) => self.call(call),
            Step::Poll(poll) => self.poll(poll),
            Step::Sleep { seconds } => {
                sleep(Duration::from_secs(*seconds));
                format!("{seconds} s")
            }
            Step::Shell(shell) => self.shell(shell),
        }
    }

    fn call(&mut self, call: &Request) -> String {
        let (method, path) = call.call.split_once(' ').unwrap();
        let (path, body) = (self.filled(path), call.body.as_ref().map(|body| self.filled_value(body)));
        let limit = call.limit_seconds.map(Duration::from_secs).or(self.limit());
        let reply = self.caller.request(method, &path, body.as_ref(), limit).unwrap();
        let wanted = call.comes.unwrap_or(call.requires);
        assert_eq!(reply.status, wanted, "{}: {}{}", call.call, reply.text, self.world.told());
        self.read(&reply.json, &call.reads, &call.answer);
        format!("{method} {path}: {} {}", reply.status, reply.text)
    }

    /// Asks every so many seconds, for the first time after the first of them, and notes each answer.
    fn poll(&mut self, poll: &Poll) -> String {
        let path = format!("/api/v1/operations/{}", self.filled(&poll.operation));
        let (every, limit) = (Duration::from_secs(poll.every_seconds), poll.limit_seconds.map(Duration::from_secs));
        let deadline = Instant::now() + limit.unwrap_or(FOR_EVER);
        let mut seen = Seen::default();
        loop {
            sleep(every);
            assert!(Instant::now() < deadline, "{path} has not ended: {seen:?}{}", self.world.told());
            let reply = self.caller.request("GET", &path, None, self.limit()).unwrap();
            let status = seen.note(&reply);
            if ["completed", "failed", "cancelled"].contains(&status.as_str()) {
                assert_eq!(status, poll.ends, "{path}: {}{}", reply.text, self.world.told());
                self.read(&reply.json, &poll.reads, &poll.answer);
                return format!("{path}: {seen:?} {}", reply.text);
            }
        }
    }

    /// Runs the lines as they stand, again and again if the script does so, until they print what they have to.
    fn shell(&mut self, shell: &Shell) -> String {
        let wanted = self.filled(&shell.prints);
        let is_wanted = |said: &str| {
            wanted.strip_suffix('*').map_or(said == wanted, |start| said.starts_with(start) && !said.is_empty())
        };
        let mut left = shell.times;
        loop {
            if let Some(every) = shell.every_seconds {
                sleep(Duration::from_secs(every));
                left -= 1;
            }
            let (said, errors) = self.run(shell);
            if is_wanted(&said) {
                if !shell.reads.is_empty() {
                    self.names.insert(shell.reads.clone(), said.lines().last().unwrap_or_default().to_owned());
                }
                return said;
            }
            let goes_on = left > 0 && shell.meanwhile.contains(&said);
            assert!(goes_on, "{}\nprints {said:?}, not {wanted:?}: {errors}{}", shell.lines, self.world.told());
        }
    }

    /// Returns what the lines print: to standard output and standard error.
    fn run(&self, shell: &Shell) -> (String, String) {
        let mut command = Command::new("bash");
        command.args(["-c", &shell.lines]).stdin(Stdio::null());
        for (name, value) in &shell.with {
            command.env(name, self.filled(value));
        }
        let output = command.output().unwrap();
        let [said, errors] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
        (said.trim_end().to_owned(), errors)
    }

    /// Compares what the caller relies on, and keeps what it reads.
    fn read(&mut self, answer: &Value, reads: &BTreeMap<String, String>, wanted: &BTreeMap<String, Value>) {
        for (pointer, wanted) in wanted {
            let found = answer.pointer(pointer).unwrap_or(&Value::Null);
            let is_so = match self.filled_value(wanted) {
                Value::String(text) if text.ends_with('*') => {
                    let beginning = &text[..text.len() - 1];
                    found.as_str().is_some_and(|found| !found.is_empty() && found.starts_with(beginning))
                }
                wanted => *found == wanted,
            };
            assert!(is_so, "{pointer} is {found}, not {wanted}: {answer:#}{}", self.world.told());
        }
        for (name, pointer) in reads {
            let found = answer.pointer(pointer).unwrap_or(&Value::Null);
            let found = found.as_str().map_or_else(|| found.to_string(), str::to_owned);
            assert!(!found.is_empty() && found != "null", "{name}, {pointer}: {answer:#}");
            self.names.insert(name.clone(), found);
        }
    }

    /// The time limit of the client for one request.
    fn limit(&self) -> Option<Duration> {
        (self.row.client == Client::Common).then(|| Duration::from_secs(30))
    }

    fn filled(&self, text: &str) -> String {
        let mut filled = text.to_owned();
        for (name, value) in &self.names {
            filled = filled.replace(&format!("{{{name}}}"), value);
        }
        filled
    }

    fn filled_value(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.filled(text)),
            Value::Array(values) => values.iter().map(|value| self.filled_value(value)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(name, value)| (name.clone(), self.filled_value(value))).collect()
            }
            other => other.clone(),
        }
    }
}

/// What one who polls has seen of an operation. It never goes back, and stays the same operation.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    statuses: Vec<String>,
    lasting: Option<Value>,
}

impl Seen {
    /// Notes an answer, and returns its status.
    pub(crate) fn note(&mut self, reply: &Reply) -> String {
        const ORDER: [&str; 3] = ["pending", "executing", "completed"];
        assert_eq!(reply.status, 200, "{}", reply.text);
        let operation = &reply.json;
        let lasting = ["id", "type", "volume_id", "vm_id", "request", "created_at"].map(|name| operation[name].clone());
        // A create learns its volume.
        let lasting = if operation["type"] == "create" { lasting[..2].to_vec() } else { lasting.to_vec() };
        let before = self.lasting.get_or_insert_with(|| lasting.clone().into());
        assert_eq!(*before, Value::Array(lasting), "it is the same operation: {operation:#}");
        let status = operation["status"].as_str().unwrap().to_owned();
        let rank = |status: &str| ORDER.iter().position(|known| *known == status).unwrap_or(ORDER.len() - 1);
        let last = self.statuses.last().map_or(0, |last| rank(last));
        assert!(last <= rank(&status), "it does not go back from {:?} to {status}", self.statuses);
        self.statuses.push(status.clone());
        status
    }
}

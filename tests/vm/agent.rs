//! The QEMU guest agent: runs commands in the guest.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire::Wire;

/// The port name for which udev starts Debian's agent.
pub(crate) const PORT: &str = "org.qemu.guest_agent.0";

/// Longer than the agent needs for any answer of its own.
const LIMIT: Duration = Duration::from_mins(1);

/// The agent has no event for the end of a command. So it is asked again after this pause, and after growing ones.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(100);

pub(crate) struct Agent {
    wire: Wire,
    asked: u64,
}

/// The result of a command in the guest.
#[derive(Debug, Clone)]
pub(crate) struct Output {
    pub(crate) code: i64,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Agent {
    pub(crate) fn new(wire: Wire) -> Self {
        Self { wire, asked: 0 }
    }

    /// Finds the agent of this boot; answers to older requests are dropped.
    pub(crate) fn sync(&mut self, limit: Duration) -> Result<(), String> {
        self.asked += 1;
        let id = self.asked;
        self.ask("guest-sync", &json!({ "id": id }), |answer| answer["return"] == id, limit)?;
        Ok(())
    }

    /// Runs a script in the guest's shell, as root.
    pub(crate) fn run(&mut self, script: &str, limit: Duration) -> Result<Output, String> {
        let deadline = Instant::now() + limit;
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", script], "capture-output": true });
        let started = self.ask("guest-exec", &arguments, |_| true, LIMIT)?;
        let pid = started["pid"].clone();
        let mut pause = FIRST_PAUSE;
        loop {
            let status = self.ask("guest-exec-status", &json!({ "pid": pid }), |_| true, LIMIT)?;
            if status["exited"] == true {
                let code = status["exitcode"].as_i64().unwrap_or(-1);
                return Ok(Output { code, out: text(&status["out-data"]), err: text(&status["err-data"]) });
            }
            if Instant::now() > deadline {
                return Err(format!("not done after {limit:?}: {script}"));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    fn ask(
        &mut self,
        command: &str,
        arguments: &Value,
        is_answer: impl Fn(&Value) -> bool,
        limit: Duration,
    ) -> Result<Value, String> {
        let broken = |error: std::io::Error| format!("the agent's socket: {error}");
        self.wire.send(&json!({ "execute": command, "arguments": arguments })).map_err(broken)?;
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer = self.wire.next(left).map_err(broken)?;
            let answer = answer.ok_or_else(|| format!("the agent has not answered {command} after {limit:?}"))?;
            if answer["error"].is_object() {
                return Err(format!("{command}: {}", answer["error"]["desc"]));
            }
            if is_answer(&answer) {
                return Ok(answer["return"].clone());
            }
        }
    }
}

/// Decodes the agent's base64.
fn text(field: &Value) -> String {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0_u32, 0);
    for six in field.as_str().unwrap_or_default().bytes().filter_map(digit) {
        bits = bits << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

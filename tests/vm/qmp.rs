//! The hypervisor's monitor: commands, and the events that come in between.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::wire::Wire;

/// Longer than any command takes.
const LIMIT: Duration = Duration::from_mins(1);

pub(crate) struct Qmp {
    wire: Wire,
    events: VecDeque<Value>,
}

impl Qmp {
    pub(crate) fn new(mut wire: Wire) -> Self {
        let greeting = wire.next(LIMIT).unwrap().expect("QMP greets");
        assert!(greeting["QMP"].is_object(), "{greeting}");
        let mut qmp = Self { wire, events: VecDeque::new() };
        qmp.execute("qmp_capabilities", &json!({}));
        qmp
    }

    /// Executes a command, which must succeed.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        self.try_execute(command, arguments).unwrap_or_else(|error| panic!("QMP {command}: {error}"))
    }

    /// Executes a command; the error is QEMU's message.
    pub(crate) fn try_execute(&mut self, command: &str, arguments: &Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.wire.send(&request).map_err(|error| error.to_string())?;
        loop {
            let answer = self.wire.next(LIMIT).map_err(|error| error.to_string())?.expect("QMP answers");
            if answer["event"].is_string() {
                self.events.push_back(answer);
            } else if answer["error"].is_object() {
                return Err(answer["error"]["desc"].as_str().unwrap_or_default().to_owned());
            } else {
                return Ok(answer["return"].clone());
            }
        }
    }

    /// Returns the first event that is `wanted`, among those not waited for yet; earlier ones are dropped. `None` if
    /// the limit passed or QEMU ended.
    pub(crate) fn wait(&mut self, wanted: impl Fn(&Value) -> bool, limit: Duration) -> Option<Value> {
        let deadline = Instant::now() + limit;
        loop {
            while let Some(event) = self.events.pop_front() {
                if wanted(&event) {
                    return Some(event);
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.wire.next(left) {
                Ok(Some(event)) => self.events.push_back(event),
                Ok(None) | Err(_) => return None,
            }
        }
    }
}

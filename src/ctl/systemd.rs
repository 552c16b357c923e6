//! Reads and changes systemd's units with `systemctl`.

use std::process::{Command, Stdio};

/// The state of a unit.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    name: String,
    load: String,
    active: String,
    enabled: String,
    result: String,
    status: String,
}

impl Unit {
    /// Reads the unit's state; `None` if systemd cannot be asked.
    pub(super) fn ask(name: &str) -> Option<Self> {
        let properties = "--property=LoadState,ActiveState,UnitFileState,Result,ExecMainStatus";
        let output = Command::new("systemctl").args(["show", properties, name]).stdin(Stdio::null()).output().ok()?;
        output.status.success().then(|| Self::read(name, &String::from_utf8_lossy(&output.stdout)))
    }

    fn read(name: &str, shown: &str) -> Self {
        let value = |key: &str| {
            let found = shown.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            found.unwrap_or_default().to_owned()
        };
        Self {
            name: name.to_owned(),
            load: value("LoadState"),
            active: value("ActiveState"),
            enabled: value("UnitFileState"),
            result: value("Result"),
            status: value("ExecMainStatus"),
        }
    }

    /// Returns whether the unit is enabled or active.
    pub(super) fn is_in_use(&self) -> bool {
        self.enabled == "enabled" || self.active == "active"
    }

    /// Describes the unit's state and, if it is not good, what to do.
    pub(super) fn in_words(&self) -> String {
        let Self { name, load, active, enabled, .. } = self;
        match (load.as_str(), active.as_str()) {
            ("masked", _) => format!("{name} is masked: `systemctl unmask {name}`"),
            ("not-found", _) => format!("{name} is not installed: install the package attachd again"),
            (_, "active") => format!("{name} is active"),
            (_, "failed") => format!("{name} has failed: {}", self.end()),
            (_, "activating" | "deactivating") => {
                format!("{name} does not stay up, and is tried again: {}", self.end())
            }
            (_, other) if enabled == "disabled" => {
                format!("{name} is {other} and disabled: `systemctl enable --now {name}`")
            }
            (_, other) => format!("{name} is {other}: `systemctl start {name}`"),
        }
    }

    /// Describes how the unit's last run ended, and where to read more.
    fn end(&self) -> String {
        let Self { name, result, status, .. } = self;
        let status = if status.is_empty() { String::new() } else { format!(" (status {status})") };
        format!("{result}{status}; see `journalctl -u {name} -n 20`")
    }
}

/// Returns the programs that listen at a port, as `ss` shows them. Root sees all programs, other users see only their
/// own.
pub(super) fn listeners(port: &str) -> Option<String> {
    let output = Command::new("ss").args(["-Hltnp", &format!("sport = :{port}")]).stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, users) = said.split_once("users:((")?;
    users.split_once("))").map(|(users, _)| users.replace("),(", "; "))
}

/// Runs `systemctl`; the error is its output.
pub(super) fn systemctl(arguments: &[&str]) -> Result<(), String> {
    let command = format!("systemctl {}", arguments.join(" "));
    let output = Command::new("systemctl").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("`{command}` cannot be run: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("`{command}` failed: {}", said.split_whitespace().collect::<Vec<_>>().join(" ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_of_a_unit_has_its_own_description_and_advice() {
        let in_words = |load: &str, active: &str, enabled: &str| {
            let shown = format!(
                "LoadState={load}\nActiveState={active}\nUnitFileState={enabled}\nResult=exit-code\nExecMainStatus=203\n"
            );
            Unit::read("x.service", &shown).in_words()
        };
        for (load, active, enabled, words) in [
            ("masked", "inactive", "masked", "systemctl unmask x.service"),
            ("not-found", "inactive", "", "not installed"),
            ("loaded", "failed", "enabled", "exit-code (status 203)"),
            ("loaded", "activating", "enabled", "is tried again: exit-code (status 203)"),
            ("loaded", "inactive", "disabled", "systemctl enable --now x.service"),
            ("loaded", "inactive", "enabled", "systemctl start x.service"),
            ("loaded", "active", "enabled", "x.service is active"),
        ] {
            let words_of_unit = in_words(load, active, enabled);
            assert!(words_of_unit.contains(words), "{words_of_unit}");
        }
    }
}

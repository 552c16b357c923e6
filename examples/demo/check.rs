//! The checks and their results.

use anyhow::Result;

/// The subject of a check, for the last line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum About {
    /// An export was read back and compared.
    Equal,
    /// A disk was refused, and the cause was named.
    Refusal,
    /// An export was revoked at once.
    Revocation,
    /// Anything else.
    Other,
}

/// One named result.
#[derive(Debug)]
struct Check {
    about: About,
    what: String,
    held: bool,
}

/// Every result so far.
#[derive(Debug, Default)]
pub(crate) struct Checks(Vec<Check>);

impl Checks {
    /// Prints a result and keeps it: with details if the check passed, with the cause if it failed.
    pub(crate) fn add(&mut self, what: &str, result: Result<String>) {
        self.add_about(About::Other, what, result);
    }

    /// As [`Checks::add`], and counted in the last line.
    pub(crate) fn add_about(&mut self, about: About, what: &str, result: Result<String>) {
        let held = result.is_ok();
        let detail = result.unwrap_or_else(|error| format!("{error:#}"));
        print_folded(if held { " ok  " } else { " NOT " }, &format!("{what}: {detail}"));
        self.0.push(Check { about, what: what.to_owned(), held });
    }

    pub(crate) fn all_held(&self) -> bool {
        self.0.iter().all(|check| check.held)
    }

    /// Returns one line: what passed, or what failed.
    pub(crate) fn summary(&self) -> String {
        let count = self.0.len();
        let failed: Vec<&str> = self.0.iter().filter(|check| !check.held).map(|check| check.what.as_str()).collect();
        if !failed.is_empty() {
            return format!("{} of {count} checks did NOT hold: {}", failed.len(), failed.join("; "));
        }
        let of = |about| self.0.iter().filter(|check| check.about == about).count();
        format!(
            "{count} of {count} checks held: {} reads by nbdcopy equal byte for byte, {} refusals by name, {} revocations at once, \
             a kill -9 recovered, the NBD port on loopback only",
            of(About::Equal),
            of(About::Refusal),
            of(About::Revocation),
        )
    }
}

/// Prints a text after a heading, wrapped for a narrow terminal.
pub(crate) fn print_folded(heading: &str, text: &str) {
    const WIDTH: usize = 112;
    let indent = heading.chars().count();
    let mut line = heading.to_owned();
    let mut length = indent;
    for word in text.split(' ') {
        let word_length = word.chars().count();
        if length > indent && length + 1 + word_length > WIDTH {
            println!("{}", line.trim_end());
            line = " ".repeat(indent);
            length = indent;
        }
        if length > indent {
            line.push(' ');
            length += 1;
        }
        line.push_str(word);
        length += word_length;
    }
    println!("{}", line.trim_end());
}

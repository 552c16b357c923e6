//! The configuration as text: sections, keys, kinds of values, and positions of mistakes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMistake {
    /// Line and column, both from 1; `None` for the whole file.
    pub place: Option<(usize, usize)>,
    /// What is wrong, and what would be right.
    pub message: String,
}

/// The offset of each key's value in the text.
pub(super) type Offsets = HashMap<(&'static str, &'static str), usize>;

/// The file while it is checked; each value that was read is removed from it.
pub(super) struct File<'a> {
    text: &'a str,
    root: DeTable<'a>,
    names: Vec<&'static str>,
    pub(super) problems: Vec<ConfigMistake>,
    pub(super) offsets: Offsets,
}

/// One table of the file.
pub(super) struct TomlSection<'a, 'f> {
    name: &'static str,
    table: DeTable<'a>,
    known: Vec<&'static str>,
    text: &'a str,
    problems: &'f mut Vec<ConfigMistake>,
    offsets: &'f mut Offsets,
}

impl<'a> File<'a> {
    /// Parses the file as TOML.
    pub(super) fn parse(text: &'a str) -> Result<Self, Vec<ConfigMistake>> {
        let (root, errors) = DeTable::parse_recoverable(text);
        if errors.is_empty() {
            let (problems, offsets) = (Vec::new(), Offsets::new());
            return Ok(Self { text, root: root.into_inner(), names: Vec::new(), problems, offsets });
        }
        let problem = |error: &toml::de::Error| ConfigMistake {
            place: error.span().map(|span| line_and_column(text, span.start)),
            message: error.message().to_owned(),
        };
        Err(errors.iter().map(problem).collect())
    }

    /// Removes a section from the file and reads it; a missing section is empty.
    pub(super) fn section<T>(&mut self, name: &'static str, read: impl FnOnce(&mut TomlSection<'a, '_>) -> T) {
        self.names.push(name);
        let table = match self.root.remove(name) {
            None => DeTable::new(),
            Some(value) => {
                let at = value.span().start;
                match value.into_inner() {
                    DeValue::Table(table) => table,
                    other => {
                        let message = format!("{name} is a section, not a {}: write [{name}]", other.type_str());
                        return self
                            .problems
                            .push(ConfigMistake { place: Some(line_and_column(self.text, at)), message });
                    }
                }
            }
        };
        let mut section = TomlSection {
            name,
            table,
            known: Vec::new(),
            text: self.text,
            problems: &mut self.problems,
            offsets: &mut self.offsets,
        };
        read(&mut section);
        section.finish();
    }

    /// Returns every mistake, if there are any.
    pub(super) fn finish(mut self) -> Result<(), Vec<ConfigMistake>> {
        for (key, _) in &self.root {
            let message = format!("there is no section [{}]; there are {}", key.get_ref(), self.names.join(", "));
            self.problems.push(ConfigMistake { place: Some(line_and_column(self.text, key.span().start)), message });
        }
        self.problems.sort_by_key(|problem| problem.place);
        if self.problems.is_empty() { Ok(()) } else { Err(self.problems) }
    }
}

impl TomlSection<'_, '_> {
    /// Removes a key's value, if present, reads it into `target`, and returns its offset in the text.
    pub(super) fn set<T: Setting>(&mut self, key: &'static str, target: &mut T) -> Option<usize> {
        self.known.push(key);
        let value = self.table.remove(key)?;
        let at = value.span().start;
        self.offsets.insert((self.name, key), at);
        match T::read(&value) {
            Ok(value) => *target = value,
            Err(message) => self.complain(Some(at), &format!("{key}: {message}")),
        }
        Some(at)
    }

    pub(super) fn complain(&mut self, at: Option<usize>, message: &str) {
        let place = at.map(|at| line_and_column(self.text, at));
        self.problems.push(ConfigMistake { place, message: format!("[{}] {message}", self.name) });
    }

    fn finish(self) {
        for (key, _) in &self.table {
            let known = self.known.join(", ");
            let message = format!("[{}] has no key {:?}; it has {known}", self.name, key.get_ref());
            self.problems.push(ConfigMistake { place: Some(line_and_column(self.text, key.span().start)), message });
        }
    }
}

/// Returns line and column of an offset, both from 1, with columns in characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// A kind of value.
pub(super) trait Setting: Sized {
    /// Reads a value; the error says what would be right.
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String>;
}

/// A key that may be missing.
impl<T: Setting> Setting for Option<T> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        T::read(value).map(Some)
    }
}

pub(super) fn text_of<'v>(value: &'v Spanned<DeValue<'_>>) -> Result<&'v str, String> {
    let value = value.get_ref();
    value.as_str().ok_or_else(|| format!("takes text in quotes, not a {}", value.type_str()))
}

impl Setting for String {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value).map(str::to_owned)
    }
}

impl Setting for PathBuf {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let path = PathBuf::from(text_of(value)?);
        let up = path.components().any(|part| part == std::path::Component::ParentDir);
        if path.is_absolute() && !up { Ok(path) } else { Err("takes a path that begins with /, without ..".to_owned()) }
    }
}

impl Setting for SocketAddr {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        text_of(value)?.parse().map_err(|_| "takes an address with a port, like \"127.0.0.1:10809\"".to_owned())
    }
}

impl Setting for bool {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        value.get_ref().as_bool().ok_or_else(|| "takes true or false".to_owned())
    }
}

impl Setting for Vec<u32> {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let list = value.get_ref().as_array().and_then(|list| list.iter().map(|one| u32::read(one).ok()).collect());
        list.ok_or_else(|| format!("takes a list of whole numbers from 0 to {}", u32::MAX))
    }
}

impl Setting for u32 {
    fn read(value: &Spanned<DeValue<'_>>) -> Result<Self, String> {
        let number = value.get_ref().as_integer().map(|number| (number.as_str(), number.radix()));
        number
            .and_then(|(digits, radix)| u32::from_str_radix(digits, radix).ok())
            .ok_or_else(|| format!("takes a whole number from 0 to {}", u32::MAX))
    }
}

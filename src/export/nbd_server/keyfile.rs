//! A parser for GLib's key files, the format of nbd-server's configuration. It is as strict as GLib.
//!
//! attachd has its own parser because the parser must refuse what GLib refuses. Crates for `.ini` files are looser:
//! they accept `;` comments, keys without values, quotes and any escape. GLib itself would be a large C library in
//! the daemon for one function. This parser is stricter than GLib for bytes that nobody writes on purpose: a NUL
//! byte, a section line or a key that is not UTF-8, and a key with a language (`key[de]`).

/// A group (section): its name, its first line, its entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    pub(super) name: String,
    pub(super) line: usize,
    entries: Vec<KeyValue>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct KeyValue {
    key: String,
    value: Vec<u8>,
    line: usize,
}

/// The number of a refused line, counted from 1, and the reason.
pub(super) type Bad = (usize, String);

impl Group {
    /// Returns a key's value and its line. If a key is there twice, the last one counts.
    pub(super) fn value(&self, key: &str) -> Option<(&[u8], usize)> {
        let entry = self.entries.iter().rev().find(|entry| entry.key == key)?;
        Some((&entry.value, entry.line))
    }
}

/// Parses a file into groups, in the order of their first appearance. A name that appears twice makes one group.
pub(super) fn parse(bytes: &[u8]) -> Result<Vec<Group>, Bad> {
    let mut groups: Vec<Group> = Vec::new();
    let mut current = None;
    for (number, line) in (1..).zip(bytes.split_inclusive(|byte| *byte == b'\n')) {
        let bad = |why: &str| Err((number, why.to_owned()));
        if line.contains(&0) {
            return bad("there is a NUL byte in it");
        }
        // GLib removes a carriage return only before a line feed; at the end of the file it is an error.
        let line = match line.strip_suffix(b"\n") {
            Some(line) => line.strip_suffix(b"\r").unwrap_or(line),
            None => line,
        };
        let line = line.trim_ascii_start();
        match line {
            [] | [b'#', ..] => {}
            [b'[', ..] => {
                let name = match group_name(line) {
                    Ok(name) => name,
                    Err(why) => return bad(why),
                };
                let known = groups.iter().position(|group| group.name == name);
                current = Some(known.unwrap_or_else(|| {
                    groups.push(Group { name, line: number, entries: Vec::new() });
                    groups.len() - 1
                }));
            }
            _ => {
                let (key, value) = match key_and_value(line) {
                    Ok(pair) => pair,
                    Err(why) => return bad(why),
                };
                let Some(index) = current else { return bad("a setting comes before the first [section]") };
                if index == 0 && key == "Encoding" && !value.eq_ignore_ascii_case(b"UTF-8") {
                    return bad("Encoding can only be UTF-8");
                }
                groups[index].entries.push(KeyValue { key, value: value.to_owned(), line: number });
            }
        }
    }
    Ok(groups)
}

fn group_name(line: &[u8]) -> Result<String, &'static str> {
    let line = str::from_utf8(line).map_err(|_| "the [section] is not UTF-8")?;
    let (name, rest) = line[1..].split_once(']').ok_or("the ] of a [section] is missing")?;
    if rest.contains(|c| !matches!(c, ' ' | '\t')) {
        return Err("something follows the ] of a [section]");
    }
    if name.is_empty() {
        return Err("the section has no name");
    }
    if name.contains(|c: char| c == '[' || c.is_ascii_control()) {
        return Err("there is a [ or a control character in the section's name");
    }
    Ok(name.to_owned())
}

fn key_and_value(line: &[u8]) -> Result<(String, &[u8]), &'static str> {
    let Some(equals) = line.iter().position(|byte| *byte == b'=') else {
        return Err(match line {
            [b';', ..] => "comments begin with #, not with ;",
            [0xef, 0xbb, 0xbf, ..] => "the file begins with a byte order mark",
            _ => "it is neither key = value, [section] nor # comment",
        });
    };
    let key = str::from_utf8(line[..equals].trim_ascii_end()).map_err(|_| "the key is not UTF-8")?;
    if key.is_empty() || key.contains(['[', ']']) {
        return Err("there is no key before the =, or a bracket in it");
    }
    Ok((key.to_owned(), line[equals + 1..].trim_ascii_start()))
}

/// Parses a value as a string. Trailing blanks belong to the value.
pub(super) fn string(value: &[u8]) -> Result<String, &'static str> {
    let text = str::from_utf8(value).map_err(|_| "the value is not UTF-8")?;
    let mut plain = String::with_capacity(text.len());
    let mut letters = text.chars();
    while let Some(letter) = letters.next() {
        plain.push(match letter {
            '\\' => match letters.next() {
                Some('s') => ' ',
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('\\') => '\\',
                _ => return Err(r"a \ is followed by none of s, n, t, r and \"),
            },
            plain => plain,
        });
    }
    Ok(plain)
}

/// Parses a value as a boolean.
pub(super) fn boolean(value: &[u8]) -> Result<bool, &'static str> {
    match value.trim_ascii_end() {
        b"true" | b"1" => Ok(true),
        b"false" | b"0" => Ok(false),
        _ => Err("the value can only be true, false, 1 or 0"),
    }
}

/// Parses a value as a number of 32 bits. Text after a blank is ignored.
pub(super) fn integer(value: &[u8]) -> Result<i32, &'static str> {
    number(after_blanks(value).split(u8::is_ascii_whitespace).next().unwrap_or_default())
}

/// Parses a value as a number with no text after it.
pub(super) fn long(value: &[u8]) -> Result<i64, &'static str> {
    number(after_blanks(value))
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Result<T, &'static str> {
    str::from_utf8(digits).ok().and_then(|text| text.parse().ok()).ok_or("the value is not a number, or too large")
}

/// Skips blanks as C does: a vertical tab is a blank too.
fn after_blanks(value: &[u8]) -> &[u8] {
    let start = value.iter().position(|byte| !byte.is_ascii_whitespace() && *byte != 0x0b);
    &value[start.unwrap_or(value.len())..]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_section_given_twice_is_merged_and_the_last_value_counts() {
        let groups = parse(b"# x\r\n\r\n [a] \t\r\nk  = 1\r\n[b]\n[a]\nk=\\s2 \n").unwrap();
        assert_eq!(
            groups.iter().map(|group| (group.name.as_str(), group.line)).collect::<Vec<_>>(),
            [("a", 3), ("b", 5)]
        );
        let (value, line) = groups[0].value("k").unwrap();
        assert_eq!((string(value).unwrap().as_str(), line), (" 2 ", 7));
        assert_eq!(groups[1].value("k"), None);
    }

    #[test]
    fn a_refused_line_is_reported_with_its_number() {
        for (line, number) in
            [("[a]\n\n;x\n", 3), ("k = 1\n", 1), ("[a]\n[b\n", 2), ("[a]\nhalf a li", 2), ("[a]\r", 1)]
        {
            assert_eq!(parse(line.as_bytes()).unwrap_err().0, number, "{line:?}");
        }
    }

    #[test]
    fn values_are_read_as_glib_reads_them() {
        assert_eq!((boolean(b"true \t"), boolean(b"0")), (Ok(true), Ok(false)));
        assert!(boolean(b"yes").is_err() && boolean(b"True").is_err() && boolean(b"").is_err());
        assert_eq!((integer(b"-3 x"), integer(b"\x0b +7")), (Ok(-3), Ok(7)));
        assert!(integer(b"").is_err() && integer(b"2147483648").is_err() && integer(b"0x1").is_err());
        assert!(long(b"2147483648").is_ok() && long(b"1 ").is_err());
        assert_eq!(string(br"\\a\nb").unwrap(), "\\a\nb");
        assert!(string(br"a\").is_err() && string(br"\q").is_err() && string(b"\xff").is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
            let _ = (string(&bytes), boolean(&bytes), integer(&bytes), long(&bytes));
        }
    }
}

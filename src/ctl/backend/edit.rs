//! Writes another NBD server into the configuration file and keeps everything else: comments, order, blanks.

use crate::config::Program;

/// The prefix of a line that only nbd-server uses, while nbdkit serves.
const DISABLED_PREFIX: &str = "#attachctl backend: ";

/// The keys of the section that only nbd-server knows.
const ONLY_NBD_SERVER: [&str; 3] = ["mode", "nbd_server_version", "main_file"];

/// The keys whose right value depends on the server.
const EITHER_SERVER: [&str; 2] = ["folder", "pid_file"];

/// Returns the text with this server in the section `[export]`.
///
/// # Errors
/// Returns the key whose value belongs to the other server and must be removed first.
pub(super) fn choose(text: &str, server: Program) -> Result<String, &'static str> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    let header = lines.iter().position(|line| section_of(line) == Some("export"));
    let Some(header) = header else {
        let gap = if text.is_empty() { "" } else { "\n" };
        return Ok(format!("{}{gap}[export]\nbackend = \"{server}\"\n", ended(text)));
    };
    let end = lines.iter().skip(header + 1).position(|line| section_of(line).is_some());
    let end = end.map_or(lines.len(), |length| header + 1 + length);
    let mut found = false;
    for line in &mut lines[header + 1..end] {
        if server == Program::NbdServer
            && let Some(kept) = line.strip_prefix(DISABLED_PREFIX)
        {
            *line = kept.to_owned();
        }
        match key_of(line) {
            Some("backend") => {
                *line = with_value(line, server);
                found = true;
            }
            Some(key) if server == Program::Nbdkit && ONLY_NBD_SERVER.contains(&key) => {
                *line = format!("{DISABLED_PREFIX}{line}");
            }
            Some(key) => {
                if let Some(key) = EITHER_SERVER.into_iter().find(|other| *other == key) {
                    return Err(key);
                }
            }
            None => {}
        }
    }
    if !found {
        lines.insert(header + 1, format!("backend = \"{server}\""));
    }
    Ok(lines.join("\n") + "\n")
}

fn ended(text: &str) -> String {
    if text.is_empty() || text.ends_with('\n') { text.to_owned() } else { format!("{text}\n") }
}

/// Returns the name of the section that begins with this line.
fn section_of(line: &str) -> Option<&str> {
    let (name, rest) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with('#')).then(|| name.trim())
}

/// Returns the key that this line sets.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

/// Returns the line with another value; the rest of the line after the value stays.
fn with_value(line: &str, server: Program) -> String {
    let Some((key, value)) = line.split_once('=') else { return line.to_owned() };
    let value = value.trim_start();
    let quote = value.chars().next().filter(|first| ['"', '\''].contains(first));
    let rest = quote.and_then(|quote| value[1..].split_once(quote)).map_or("", |(_, rest)| rest);
    format!("{}= \"{server}\"{rest}", if key.ends_with(' ') { key.to_owned() } else { format!("{key} ") })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    fn server_in(text: &str) -> &'static str {
        config::parse(text, config::HostFacts::default).unwrap_or_else(|e| panic!("{e:?}\n{text}")).export.server.name()
    }

    #[test]
    fn only_the_one_key_changes_and_comments_stay() {
        let text = "# mine\n[device]\nschemes = [\"loop\"] # so\n\n [export] # here\n# note\n  backend   = 'nbdkit' # why\nlisten = \"127.0.0.1:10809\"\n\n[host]\nvm_id = \"x\"\n";
        let there = choose(text, Program::NbdServer).unwrap();
        assert_eq!(there, text.replace("backend   = 'nbdkit'", "backend   = \"nbd-server\""));
        assert_eq!(server_in(&there), "nbd-server");
        assert_eq!(choose(&there, Program::Nbdkit).unwrap(), text.replace('\'', "\""));
    }

    #[test]
    fn keys_that_only_nbd_server_knows_are_disabled_and_restored() {
        let text = "[export]\nbackend = \"nbd-server\"\nmode = \"socket\"\nnbd_server_version = \"3.26.1-6\" # ours\n";
        let nbdkit = choose(text, Program::Nbdkit).unwrap();
        assert_eq!(server_in(&nbdkit), "nbdkit");
        assert_eq!(choose(&nbdkit, Program::NbdServer).unwrap(), text);
    }

    #[test]
    fn a_missing_key_or_section_is_added() {
        for text in
            ["", "[device]\nschemes = [\"loop\"]", "[export]\nlisten = \"127.0.0.1:10809\"\n", "[export]\n[host]\n"]
        {
            let there = choose(text, Program::NbdServer).unwrap();
            assert_eq!(server_in(&there), "nbd-server", "{there}");
            assert_eq!(server_in(&choose(&there, Program::Nbdkit).unwrap()), "nbdkit");
        }
    }

    #[test]
    fn paths_that_belong_to_the_other_server_are_refused() {
        let text = "[export]\npid_file = \"/run/mine.pid\"\n";
        assert_eq!(choose(text, Program::NbdServer), Err("pid_file"));
        assert!(choose("[export]\n#pid_file = \"/run/mine.pid\"\n", Program::NbdServer).is_ok());
    }
}

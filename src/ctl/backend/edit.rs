//! The configuration with another NBD server in it, everything else as it was: comments, order, blanks.

use crate::config::Program;

/// Before a line that goes with nbd-server alone, while nbdkit serves.
const KEPT: &str = "#attachctl backend: ";

/// Keys of the section that nbdkit does not know.
const NBD_SERVERS_OWN: [&str; 3] = ["mode", "nbd_server_version", "main_file"];

/// Keys whose right value depends on the server.
const EITHERS: [&str; 2] = ["folder", "pid_file"];

/// The text with this server chosen in the section `[export]`.
///
/// # Errors
/// The key that is in the way: it says where the other server's things are.
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
            && let Some(kept) = line.strip_prefix(KEPT)
        {
            *line = kept.to_owned();
        }
        match key_of(line) {
            Some("backend") => {
                *line = with_value(line, server);
                found = true;
            }
            Some(key) if server == Program::Nbdkit && NBD_SERVERS_OWN.contains(&key) => *line = format!("{KEPT}{line}"),
            Some(key) => {
                if let Some(key) = EITHERS.into_iter().find(|other| *other == key) {
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

/// The name of the section that begins with this line.
fn section_of(line: &str) -> Option<&str> {
    let (name, rest) = line.trim_start().strip_prefix('[')?.split_once(']')?;
    let rest = rest.trim_start();
    (rest.is_empty() || rest.starts_with('#')).then(|| name.trim())
}

/// The key that this line gives a value.
fn key_of(line: &str) -> Option<&str> {
    let (key, _) = line.split_once('=')?;
    let key = key.trim();
    (!key.is_empty() && !key.starts_with('#')).then_some(key)
}

/// The line with another value; what stands behind it stays.
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
    fn what_only_nbd_server_knows_is_put_aside_and_comes_back() {
        let text = "[export]\nbackend = \"nbd-server\"\nmode = \"socket\"\nnbd_server_version = \"3.26.1-6\" # ours\n";
        let nbdkit = choose(text, Program::Nbdkit).unwrap();
        assert_eq!(server_in(&nbdkit), "nbdkit");
        assert_eq!(choose(&nbdkit, Program::NbdServer).unwrap(), text);
    }

    #[test]
    fn a_text_without_the_key_or_the_section_gets_it() {
        for text in
            ["", "[device]\nschemes = [\"loop\"]", "[export]\nlisten = \"127.0.0.1:10809\"\n", "[export]\n[host]\n"]
        {
            let there = choose(text, Program::NbdServer).unwrap();
            assert_eq!(server_in(&there), "nbd-server", "{there}");
            assert_eq!(server_in(&choose(&there, Program::Nbdkit).unwrap()), "nbdkit");
        }
    }

    #[test]
    fn places_that_belong_to_the_other_server_are_in_the_way() {
        let text = "[export]\npid_file = \"/run/mine.pid\"\n";
        assert_eq!(choose(text, Program::NbdServer), Err("pid_file"));
        assert!(choose("[export]\n#pid_file = \"/run/mine.pid\"\n", Program::NbdServer).is_ok());
    }
}

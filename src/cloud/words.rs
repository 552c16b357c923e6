//! Makes texts from CloudStack safe to show in one line. Pure.

/// The longest text, in characters.
const LONGEST: usize = 500;

/// Returns one line of bounded length, without characters that a terminal interprets.
pub(super) fn one_line(text: &str) -> String {
    let printable = text.chars().map(|c| if is_plain(c) { c } else { ' ' });
    let mut line = String::new();
    let mut kept = 0;
    for c in printable {
        // Several spaces become one.
        if c == ' ' && (line.is_empty() || line.ends_with(' ')) {
            continue;
        }
        if kept == LONGEST {
            line.push('…');
            break;
        }
        line.push(c);
        kept += 1;
    }
    line.truncate(line.trim_end().len());
    line
}

/// Returns whether the character is no control character, is visible, and does not change the direction of the text.
fn is_plain(c: char) -> bool {
    let hidden = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    !c.is_control() && !c.is_whitespace() && !hidden
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_stay_and_what_acts_on_a_terminal_goes() {
        assert_eq!(one_line("Volume 'a' is\r\n\talready  attached. "), "Volume 'a' is already attached.");
        assert_eq!(one_line("\u{1b}[31mred\u{7}\0 \u{202e}evil"), "[31mred evil");
        assert_eq!(one_line(&"ä".repeat(501)), format!("{}…", "ä".repeat(500)));
        assert_eq!(one_line(&"x".repeat(500)), "x".repeat(500));
    }

    proptest! {
        #[test]
        fn whatever_comes_is_one_short_line(text in any::<String>()) {
            let line = one_line(&text);
            prop_assert!(!line.contains(|c: char| c.is_control()) && line.chars().count() <= LONGEST + 1);
        }
    }
}

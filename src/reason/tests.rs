//! Tests of the table itself, and comparisons with the documents that list its rows.

use super::*;
use crate::volume::State;
use std::collections::{BTreeMap, BTreeSet};

#[test]
fn a_name_is_given_once_and_read_back() {
    for code in Code::ALL {
        assert_eq!(Code::from_name(code.name()), Some(*code));
    }
    assert_eq!(Code::ALL.iter().map(|code| code.name()).collect::<BTreeSet<_>>().len(), Code::ALL.len());
    assert_eq!(Code::from_name("NO_SUCH_CODE"), None);
}

#[test]
fn every_code_that_operators_see_has_a_hint() {
    for code in Code::ALL.iter().filter(|code| code.is_of_volumes() || code.is_of_health()) {
        assert!(code.hint().ends_with('.'), "{code}");
    }
    for case in Case::ALL {
        assert!(case.hint().ends_with('.') && case.hint() != case.code().hint(), "{case:?}");
    }
}

#[test]
fn a_step_is_read_back_by_its_name_and_an_unknown_name_is_kept() {
    for step in StoryStep::ALL {
        assert_eq!(StepName::from(step.name()), StepName::Known(*step));
    }
    let other = StepName::from("of-another-version");
    assert_eq!((other.name(), other.known()), ("of-another-version", None));
}

#[test]
fn an_unrequested_step_is_a_warning_and_a_requested_one_is_not() {
    let loud = |asked| {
        let steps = StoryStep::ALL.iter().filter(move |step| step.severity(asked) == Severity::Warning);
        steps.map(|step| step.name()).collect::<Vec<_>>()
    };
    assert_eq!(loud(false), ["refused", "revoked", "lost", "entries-lost"]);
    assert_eq!(loud(true), ["refused", "lost", "entries-lost"]);
    assert_eq!(StoryStep::Expired.severity(false), Severity::Notice);
}

/// Parses the catalog as journald does: id, header fields, text.
fn catalog(text: &str) -> Vec<(&str, BTreeMap<&str, &str>, &str)> {
    let entries = text.split("\n-- ").skip(1).map(|entry| {
        let (id, rest) = entry.split_once('\n').unwrap();
        let (head, text) = rest.split_once("\n\n").unwrap();
        (id, head.lines().map(|line| line.split_once(": ").unwrap()).collect(), text.trim())
    });
    entries.collect()
}

#[test]
fn the_catalog_explains_each_step_by_its_message_id_and_nothing_else() {
    let catalog = catalog(include_str!("../../packaging/attachd.catalog"));
    let explained: Vec<&str> = catalog.iter().map(|(id, ..)| *id).collect();
    assert_eq!(explained, StoryStep::ALL.iter().map(|step| step.message_id()).collect::<Vec<_>>());
    for ((id, head, text), step) in catalog.iter().zip(StoryStep::ALL) {
        let subject = head.get("Subject").unwrap_or_else(|| panic!("{step} has no subject"));
        assert!(!subject.is_empty() && !text.is_empty() && head.get("Defined-By") == Some(&"attachd"), "{step}");
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{step}");
    }
    assert_eq!(explained.iter().collect::<BTreeSet<_>>().len(), explained.len(), "no id is used twice");
}

/// Returns a table's rows in a document, as trimmed cells.
fn rows<'text>(document: &'text str, head: &str) -> Vec<Vec<&'text str>> {
    let (_, table) = document.split_once(head).unwrap_or_else(|| panic!("there is no table {head}"));
    let lines = table.lines().skip(1).take_while(|line| line.starts_with('|'));
    let rows = lines.skip(1).map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect());
    rows.collect()
}

/// Returns the texts between backticks.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// Returns the words that look like codes: capitals with an underscore in between.
fn codes(text: &str) -> impl Iterator<Item = &str> {
    let is_code = |word: &&str| {
        word.split('_').count() > 1
            && word.split('_').all(|part| part.len() > 1 && part.bytes().all(|b| b.is_ascii_uppercase()))
    };
    quoted(text).filter(is_code)
}

const README: &str = include_str!("../../README.md");

#[test]
fn the_readme_has_a_row_for_each_failed_check_and_for_each_state() {
    let checks = rows(README, "| refusal | meaning |");
    let listed: BTreeSet<&str> = checks.iter().flat_map(|row| quoted(row[0])).collect();
    let checks = Code::ALL.iter().filter(|code| code.is_said(SaidAt::Check)).map(|code| code.name());
    assert_eq!(listed, checks.collect());
    let states = rows(README, "| state | meaning |");
    let listed: BTreeSet<&str> = states.iter().flat_map(|row| quoted(row[0])).collect();
    let states = State::ALL.iter().map(|state| state.as_str());
    assert_eq!(listed, states.collect());
}

#[test]
fn every_code_that_a_document_names_is_in_the_table() {
    // Words that look like codes and are not: capabilities and variables.
    let others = |word: &str| {
        ["CAP_", "ATTACHD_", "LAB_", "VOLUME_ID", "MESSAGE_ID", "CLOCK_", "NBD_", "SENDER_"]
            .iter()
            .any(|start| word.starts_with(start))
    };
    let documents = [
        ("README.md", README),
        ("docs/architecture.md", include_str!("../../docs/architecture.md")),
        ("CHANGELOG.md", include_str!("../../CHANGELOG.md")),
    ];
    let mut seen = 0;
    for (document, text) in documents {
        for word in codes(text).filter(|word| !others(word)) {
            assert!(Code::from_name(word).is_some(), "{document} names {word}, which is no code");
            seen += 1;
        }
    }
    assert!(seen > 20, "the documents name codes: {seen}");
}

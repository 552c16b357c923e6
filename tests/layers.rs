//! Who knows whom: the table in `docs/architecture.md` against the imports.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A part of the library: a file or folder of `src`.
type Parts = BTreeSet<String>;

/// The parts of each row, and those that it says it knows, in the table's order.
fn table() -> Vec<(Parts, Parts)> {
    let text = include_str!("../docs/architecture.md");
    let (_, rest) =
        text.split_once("| part of `src` | subject | knows |\n|---|---|---|\n").expect("the table is there");
    let rows = rest.lines().take_while(|line| line.starts_with('|'));
    let names = |cell: &str| -> Parts {
        cell.split('`')
            .skip(1)
            .step_by(2)
            .map(|name| name.trim_end_matches('/').trim_end_matches(".rs").to_owned())
            .collect()
    };
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        (names(cells[0]), names(cells.last().unwrap()))
    })
    .collect()
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { files(&path) } else { vec![path] };
    entries.flat_map(below).filter(|path| path.extension().is_some_and(|kind| kind == "rs")).collect()
}

/// Which parts each part imports, and one file that does. Tests may know anybody.
fn imports() -> BTreeMap<String, BTreeMap<String, String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for path in files(&src) {
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let part = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if ["lib", "main", "bin"].contains(&&*part) || relative.ends_with("/tests.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod ").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        let knows = found.entry(part.clone()).or_default();
        for after in lines.flat_map(|line| line.split("crate::").skip(1)) {
            let name: String = after.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            assert!(!name.is_empty(), "{relative} imports by a list after `crate::`: one `use` for each, please");
            if name != part {
                knows.entry(name).or_insert_with(|| relative.clone());
            }
        }
    }
    found
}

#[test]
fn each_part_knows_whom_the_table_says_and_nobody_below_it() {
    let table = table();
    let all: Parts = table.iter().flat_map(|(parts, _)| parts.clone()).collect();
    let imports = imports();
    assert_eq!(all, imports.keys().cloned().collect(), "each part is in one row");
    // The first row is for everybody.
    let (tools, _) = &table[0];
    let mut above = tools.clone();
    for (parts, says) in &table {
        let used = parts.iter().flat_map(|part| &imports[part]);
        let used: BTreeMap<_, _> = used.filter(|(name, _)| !parts.contains(*name) && !tools.contains(*name)).collect();
        for (name, file) in &used {
            assert!(says.contains(*name), "{file} imports {name}, and the table does not say so of {parts:?}");
            assert!(above.contains(*name), "{file} imports {name}, which comes after it in the table");
        }
        let idle: Vec<_> = says.iter().filter(|name| !used.contains_key(name)).collect();
        assert!(idle.is_empty(), "{parts:?} know {idle:?} by the table alone");
        above.extend(parts.clone());
    }
}

//! Compares the imports of each part with the table of dependencies in `docs/architecture.md`.
#![allow(clippy::unwrap_used, reason = "a test's panic is its failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Parts of the library: files or folders of `src`.
type Parts = BTreeSet<String>;

/// Returns the parts of each row and the parts that they may import, in the table's order.
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

/// Returns which parts each part imports, with one file for each import. Tests may import everything.
fn imports() -> BTreeMap<String, BTreeMap<String, String>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for path in files(&src) {
        let relative = path.strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let part = relative.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if ["lib", "main", "bin"].contains(&&*part) || relative.ends_with("/tests.rs") || relative.contains("/tests/") {
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
fn each_part_imports_only_what_the_table_says_and_nothing_below_it() {
    let table = table();
    let all: Parts = table.iter().flat_map(|(parts, _)| parts.clone()).collect();
    let imports = imports();
    assert_eq!(all, imports.keys().cloned().collect(), "each part is in one row");
    // The parts of the first row may be imported by all.
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

/// The files of one folder of `src`, by name, without their tests.
fn of_folder(folder: &str) -> BTreeMap<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(folder);
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let files = entries.filter(|path| path.extension().is_some_and(|kind| kind == "rs"));
    let code = |path: &Path| {
        let text = fs::read_to_string(path).unwrap();
        // The engine's simulation is declared in the middle of the file.
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        lines.fold(String::new(), |all, line| all + line + "\n")
    };
    files.map(|path| (path.file_stem().unwrap().to_str().unwrap().to_owned(), code(&path))).collect()
}

fn word(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The names that follow this prefix: `x` of `super::x::Y`, `x` and `y` of `super::{x, y::Z}`.
fn named<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    let mut names = Vec::new();
    for after in code.split(prefix).skip(1) {
        match after.strip_prefix('{').and_then(|list| list.split_once('}')) {
            Some((list, _)) => {
                names.extend(list.split(',').map(|item| word(item.trim())).filter(|name| !name.is_empty()));
            }
            None => names.push(word(after)),
        }
    }
    names
}

/// The types that have methods of their own in this file, and the names of these.
fn methods(code: &str) -> BTreeMap<&str, BTreeSet<&str>> {
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let mut of = None;
    for line in code.lines() {
        if let Some(rest) = line.strip_prefix("impl ").filter(|rest| !rest.contains(" for ")) {
            of = Some(word(rest));
        } else if line == "}" {
            of = None;
        }
        let function =
            line.strip_prefix("    ").filter(|rest| !rest.starts_with(' ')).and_then(|rest| rest.split_once("fn "));
        if let (Some(of), Some((_, function))) = (of, function) {
            found.entry(of).or_default().insert(word(function));
        }
    }
    found
}

/// Which file of a folder knows which: by its paths, and by the methods it calls of a type that has some in both.
fn knows<'a>(folder: &str, files: &'a BTreeMap<String, String>) -> BTreeMap<&'a str, BTreeSet<&'a str>> {
    let whole = format!("crate::{}::", folder.replace('/', "::"));
    let methods: BTreeMap<&str, _> = files.iter().map(|(name, code)| (name.as_str(), methods(code))).collect();
    let mut all = BTreeMap::new();
    for (name, code) in files {
        let known: &mut BTreeSet<&str> = all.entry(name.as_str()).or_default();
        let mut paths = named(code, &whole);
        paths.extend(named(code, if name == "mod" { "self::" } else { "super::" }));
        // What is no file of the folder is an item of `mod.rs`.
        let file = |path: &str| files.get_key_value(path).map_or("mod", |(file, _)| file.as_str());
        known.extend(paths.into_iter().map(file));
        for (other, theirs) in &methods {
            let shared = methods[name.as_str()].keys().filter_map(|of| theirs.get(of)).flatten();
            let called =
                |method: &&&str| ["self", "engine"].iter().any(|who| code.contains(&format!("{who}.{method}(")));
            if other != name && shared.filter(called).count() > 0 {
                known.insert(*other);
            }
        }
        known.remove(name.as_str());
    }
    all
}

/// The files that are in a cycle: each comes back to itself.
fn cycle<'a>(knows: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let comes_back = |start: &&&str| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![**start]);
        while let Some(file) = next.pop() {
            next.extend(knows.get(file).into_iter().flatten().filter(|known| seen.insert(**known)));
        }
        seen.contains(**start)
    };
    knows.keys().filter(comes_back).copied().collect()
}

#[test]
fn no_file_of_the_engine_comes_back_to_itself_by_what_it_imports_or_calls() {
    let mut files = of_folder("engine");
    let (imports, none) = (knows("engine", &files), BTreeSet::new());
    assert_eq!(cycle(&imports), none, "{imports:?}");
    assert!(imports["settle"].contains("step") && imports["mod"].contains("core"), "{imports:?}");
    assert!(imports["results"].contains("settle"), "by a method alone: {imports:?}");
    // The controls: a part that imports what is built on it; a method that calls one of a file above.
    let part = files.insert("pause".to_owned(), "use super::{again, settle::AT_ONCE};".to_owned()).unwrap();
    assert!(cycle(&knows("engine", &files)).is_superset(&["pause", "settle"].into()));
    files.insert("pause".to_owned(), part);
    assert_eq!(cycle(&knows("engine", &files)), none);
    files
        .get_mut("step")
        .unwrap()
        .push_str("impl Engine {\n    fn tell_and_go_on(&mut self) {\n        self.settle(id);\n    }\n}\n");
    assert!(cycle(&knows("engine", &files)).is_superset(&["settle", "step"].into()));
}

/// A folder's `mod.rs` declares its files, which use what it defines: it is left out.
#[test]
fn no_file_of_any_other_folder_comes_back_to_itself_by_what_it_imports() {
    let without_face = |folder: &str| {
        let mut files = of_folder(folder);
        files.remove("mod");
        files
    };
    let folders = ["cloud", "config", "device", "export", "operation", "operations", "operations/next", "projection"];
    for folder in folders.into_iter().chain(["api", "ctl", "helper", "reason", "store", "telemetry", "wire"]) {
        let files = without_face(folder);
        let knows = knows(folder, &files);
        assert_eq!(cycle(&knows), BTreeSet::new(), "{folder}: {knows:?}");
    }
    // The control: what each kind of operation uses imports one of them.
    let mut files = without_face("operations/next");
    files.get_mut("outcome").unwrap().push_str("use super::attach::not_served;\n");
    assert!(cycle(&knows("operations/next", &files)).is_superset(&["attach", "outcome"].into()));
}

/// A part is told what it needs, and says what is to be done: only the files that make up the engine name it.
#[test]
fn the_parts_of_the_engine_do_not_know_it() {
    let files = of_folder("engine");
    let named_by = |names: &[&str]| -> Vec<&str> {
        let words =
            |code: &String| code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| names.contains(&word));
        files.iter().filter(|(_, code)| words(code)).map(|(name, _)| name.as_str()).collect()
    };
    let engine = ["begin", "core", "exports", "leave", "mod", "request", "results", "settle", "step"];
    assert_eq!(named_by(&["Engine", "core"]), engine, "anything else is a part");
    // What comes back goes through the engine's channel.
    let inputs = named_by(&["Input", "Inputs"]).into_iter().filter(|name| !engine.contains(name));
    assert_eq!(inputs.collect::<Vec<_>>(), ["input", "outside", "reader", "steps"]);
    let parts =
        ["admissions", "departure", "errands", "handshakes", "leaving", "looks", "preparation", "telling", "upkeep"];
    for part in parts {
        let text =
            fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("src/engine/{part}.rs"))).unwrap();
        assert!(text.contains("#[cfg(test)]\nmod tests"), "{part} has tests of its own");
    }
}

//! `docs/predecessor.md` names tests: they have to exist.

use std::fs;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// How many lines each table of the page has.
const LINES: [usize; 3] = [8, 8, 15];

#[test]
fn every_line_of_the_predecessors_page_names_tests_that_exist() {
    let page = fs::read_to_string(Path::new(ROOT).join("docs/predecessor.md")).unwrap();
    let sections: Vec<_> = page.split("\n## ").skip(1).collect();
    assert_eq!(sections.len(), LINES.len());
    for (section, lines) in sections.iter().zip(LINES) {
        let rows: Vec<_> = section.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| |")).collect();
        assert_eq!(rows.len(), lines, "{}", section.lines().next().unwrap());
        for row in rows {
            let cells: Vec<_> = row.trim_matches('|').split(" | ").collect();
            assert_eq!(cells.len(), 5, "{row}");
            let tests: Vec<_> = cells[4].split('`').skip(1).step_by(2).collect();
            assert!(!tests.is_empty(), "a test for each line: {row}");
            for test in tests {
                assert!(is_there(test), "there is no test {test}");
            }
        }
    }
    assert!(!is_there("tests/callers.rs: a_test_that_nobody_has_written"), "the control");
}

/// Whether the file has a test of this name: a function, or a row of `tests/callers.rs`.
fn is_there(test: &str) -> bool {
    let (file, name) = test.split_once(": ").unwrap_or_else(|| panic!("{test}: file and name"));
    let file = Path::new(ROOT).join(file);
    let here = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    // The modules of a test program are beside it, in a folder of its name.
    let beside = fs::read_dir(file.with_extension("")).into_iter().flatten();
    let modules = beside.filter_map(|module| fs::read_to_string(module.unwrap().path()).ok());
    modules.chain([here]).any(|text| text.contains(&format!("fn {name}(")) || text.contains(&format!("    {name}: \"")))
}

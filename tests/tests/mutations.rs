//! The table of switches and the source agree; a switch does what it says. What the switches are for: docs/mutations.md.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use vdsmstore_io::mutation::{active, all, reached};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// By name, the files with `without!("name")`, as often as it is there.
fn used() -> BTreeMap<String, Vec<String>> {
    let mut files = Vec::new();
    for package in std::fs::read_dir(root().join("crates")).unwrap() {
        sources(&package.unwrap().path().join("src"), &mut files);
    }
    let mut used = BTreeMap::<String, Vec<String>>::new();
    for file in files.iter().filter(|file| !file.ends_with("io/src/mutation.rs")) {
        let text = std::fs::read_to_string(file).unwrap();
        let place = file.strip_prefix(root()).unwrap().to_str().unwrap();
        for (_, rest) in text.match_indices("without!(").map(|(at, word)| (at, &text[at + word.len()..])) {
            let name = rest.trim_start().strip_prefix('"').and_then(|rest| rest.split_once('"'));
            let (name, _) = name.unwrap_or_else(|| panic!("{place}: a switch without a name"));
            used.entry(name.to_owned()).or_default().push(place.to_owned());
        }
    }
    used
}

#[test]
fn every_switch_is_at_its_one_place() {
    let used = used();
    let mut table = BTreeMap::new();
    for switch in all() {
        assert!(!switch.out.is_empty(), "{switch:?}");
        assert!(switch.test.is_empty() || switch.test.contains("::"), "{switch:?}");
        let former = table.insert(switch.name.to_owned(), vec![switch.place.to_owned()]);
        assert!(former.is_none(), "{} is there twice", switch.name);
    }
    assert!(table.len() > 200, "{}", table.len());
    assert_eq!(used, table, "left: the source, right: the table");
}

/// What is noticed only together with other switches.
const COVERED: &str = "Covered by another one";

/// The rest of a line of that table: others, a test, and why; the last of which is returned.
fn covered<'a>(name: &str, rest: &'a str) -> &'a str {
    let [others, test, why] = rest.splitn(3, " | ").collect::<Vec<_>>()[..] else {
        panic!("{name}: {rest}");
    };
    let others: Vec<_> = others.split(", ").map(|other| other.trim_matches('`')).collect();
    for other in &others {
        assert!(*other != name && all().any(|switch| switch.name == *other), "{name}: {other}");
    }
    assert!(test.starts_with('`') && test.ends_with('`') && test.contains("::"), "{name}: {test}");
    why
}

/// The page has no switches but those that exist, each once, and the table names no test for one that none notices.
#[test]
fn the_page_is_about_switches() {
    let page = std::fs::read_to_string(root().join("docs/mutations.md")).unwrap();
    let mut seen = BTreeSet::new();
    for heading in ["Argued safe", COVERED, "Not noticed yet"] {
        let (_, section) = page.split_once(&format!("\n## {heading}\n")).unwrap();
        let section = section.split("\n## ").next().unwrap();
        let mut count = 0;
        for (name, why) in section.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")) {
            let switch = all().find(|switch| switch.name == name);
            let switch = switch.unwrap_or_else(|| panic!("{name} is no switch"));
            assert!(seen.insert(name.to_owned()), "{name} is there twice");
            assert!(switch.test.is_empty(), "{name} is noticed");
            let why = if heading == COVERED { covered(name, why) } else { why };
            assert!(why.len() > 15, "{name}: {why}");
            count += 1;
        }
        println!("{heading}: {count}");
    }
    for switch in all().filter(|switch| switch.test.is_empty()) {
        assert!(seen.contains(switch.name), "{}: neither a test nor an argument", switch.name);
    }
}

const INNER: &str = "VDSMSTORE_TEST_INNER";

/// This test in a process of its own, with that switch on.
fn with(name: &str, witness: &Path) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_switch_is_on_where_it_is_asked_for", "--nocapture"])
        .env(INNER, "1")
        .env("VDSMSTORE_MUTATION", name)
        .env("VDSMSTORE_MUTATION_REACHED", witness)
        .output()
        .unwrap()
}

#[test]
fn a_switch_is_on_where_it_is_asked_for() {
    if std::env::var_os(INNER).is_some() {
        assert_eq!((active("qcow2.flush.new"), reached()), (false, 0));
        assert!(active("qcow2.flush.tables") && active("qcow2.flush.tables"));
        assert_eq!(reached(), 2);
        if std::env::var("VDSMSTORE_MUTATION").unwrap().contains('+') {
            assert!(active("qcow2.flush.created"));
            assert_eq!(reached(), 3);
        }
        return;
    }
    assert!(!active("qcow2.flush.tables"));
    let folder = tempfile::tempdir().unwrap();
    let witness = folder.path().join("reached");
    let output = with("qcow2.flush.tables", &witness);
    assert!(output.status.success(), "{output:?}");
    assert!(witness.exists());
    let output = with("qcow2.flush.tables+qcow2.flush.created", &witness);
    assert!(output.status.success(), "{output:?}");
    let output = with("qcow2.flush.tables+qcow2.flush.nothing", &witness);
    assert_eq!(output.status.code(), Some(97), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no switch"), "{output:?}");
}

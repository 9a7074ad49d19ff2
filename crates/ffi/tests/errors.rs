//! Every kind of error has the same name and code in Rust, in C and in Python.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use vdsmstore_core::ErrorKind;

fn read(path: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
}

fn snake(name: &str) -> String {
    let mut out = String::new();
    for (index, letter) in name.char_indices() {
        if letter.is_ascii_uppercase() && index > 0 {
            out.push('_');
        }
        out.push(letter.to_ascii_uppercase());
    }
    out
}

#[test]
fn the_header_has_every_kind() {
    let expected: BTreeMap<String, i32> =
        ErrorKind::ALL.iter().map(|kind| (snake(kind.name()), kind.code())).collect();
    let found: BTreeMap<String, i32> = read("include/vdsmstore.h")
        .lines()
        .filter_map(|line| line.strip_prefix("#define VDSMSTORE_ERROR_")?.split_once(' '))
        .map(|(name, code)| (name.to_owned(), code.parse().unwrap()))
        .collect();
    assert_eq!(found, expected);
    assert_eq!(expected.len(), ErrorKind::ALL.len());
}

#[test]
fn python_has_every_kind() {
    let expected: BTreeMap<String, i32> =
        ErrorKind::ALL.iter().map(|kind| (kind.name().to_owned(), kind.code())).collect();
    let mut found = BTreeMap::new();
    let mut class = None;
    let source = read("python/vdsmstore/errors.py");
    for line in source.lines() {
        if let Some(rest) = line.strip_prefix("class ") {
            class = rest.split(['(', ':']).next().filter(|name| *name != "StorageError");
        } else if let (Some(name), Some(code)) = (class, line.strip_prefix("    code = ")) {
            found.insert(name.to_owned(), code.parse().unwrap());
        }
    }
    assert_eq!(found, expected);
}

//! `include/vdsmstore.h` is what cbindgen makes of the sources. `VDSMSTORE_BLESS=1` writes it.

#![allow(clippy::unwrap_used)]

use std::path::Path;

/// In the order of the header.
const SOURCES: [&str; 15] = [
    "version",
    "codes",
    "error",
    "string",
    "store",
    "verbs/repositories",
    "verbs/making",
    "verbs/images",
    "verbs/transfer",
    "verbs/repair",
    "verbs/lease",
    "verbs/waiting",
    "image",
    "difference",
    "unbuilt",
];

fn generate(root: &Path) -> String {
    let config = cbindgen::Config::from_file(root.join("cbindgen.toml")).unwrap();
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in SOURCES {
        builder = builder.with_src(root.join("src").join(source).with_extension("rs"));
    }
    let mut header = Vec::new();
    builder.generate().unwrap().write(&mut header);
    // The contract of unsafe Rust; C programmers know it from the text above it.
    let mut kept = Vec::new();
    let mut safety = false;
    for line in String::from_utf8(header).unwrap().lines() {
        if line == " * # Safety" {
            safety = true;
            while kept.last().is_some_and(|line| line == " *") {
                kept.pop();
            }
        } else if line == " */" {
            safety = false;
        }
        if !safety {
            kept.push(line.to_owned());
        }
    }
    kept.join("\n") + "\n"
}

#[test]
fn the_header_is_up_to_date() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("../../include/vdsmstore.h");
    let header = generate(root);
    if std::env::var_os("VDSMSTORE_BLESS").is_some() {
        std::fs::write(&path, &header).unwrap();
    }
    let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        header == checked_in,
        "include/vdsmstore.h is out of date: run VDSMSTORE_BLESS=1 cargo test -p vdsmstore-ffi"
    );
}

#[test]
fn every_source_with_exports_is_listed() {
    fn walk(folder: &Path, found: &mut Vec<String>, root: &Path) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, found, root);
            } else if std::fs::read_to_string(&path).unwrap().contains("no_mangle") {
                found.push(path.strip_prefix(root).unwrap().with_extension("").to_str().unwrap().to_owned());
            }
        }
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&source, &mut found, &source);
    for name in found {
        assert!(
            SOURCES.contains(&name.as_str()),
            "src/{name}.rs exports functions that the header would lack"
        );
    }
}

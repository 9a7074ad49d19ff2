//! Everything in the corpora of the fuzzers, and variants of it: nothing that was found once comes back.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::PathBuf;

use vdsmstore_hostile::target;

/// Variants of each entry; more when `VDSMSTORE_LONG` says so.
fn variants() -> u64 {
    let times: u64 = std::env::var("VDSMSTORE_LONG").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
    100 * (9 * times + 1)
}

fn run(name: &str) {
    let target = target(name).unwrap();
    let corpus = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(name);
    let mut paths: Vec<PathBuf> = fs::read_dir(corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut ran = 0;
    for path in paths {
        let bytes = fs::read(&path).unwrap();
        let guarded = |bytes: &[u8], what: &str| {
            let result = std::panic::catch_unwind(|| target(bytes));
            if let Err(panic) = result {
                let kept = std::env::temp_dir().join(format!("vdsmstore-hostile-{name}"));
                fs::write(&kept, bytes).unwrap();
                eprintln!("{name}: {what} of {}, kept in {}", path.display(), kept.display());
                std::panic::resume_unwind(panic);
            }
        };
        guarded(&bytes, "the bytes");
        let mut state = bytes.len() as u64 | 1;
        let mut random = |limit: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % limit.max(1)
        };
        // Bytes that are not zero say something.
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for _ in 0..variants() {
            let mut variant = bytes.clone();
            for _ in 0..=random(4) {
                if variant.is_empty() {
                    break;
                }
                let place = places.get(random(places.len())).copied().unwrap_or(0);
                let at = (place + random(9)).saturating_sub(4).min(variant.len() - 1);
                variant[at] = match random(4) {
                    0 => variant[at] ^ 1 << random(8),
                    1 => 0,
                    2 => 0xff,
                    _ => random(256) as u8,
                };
            }
            if random(16) == 0 {
                variant.truncate(random(variant.len()));
            }
            guarded(&variant, "a variant");
        }
        ran += 1;
    }
    println!("{name}: {ran} entries, {} variants of each", variants());
    assert!(ran >= 8, "the corpus is not there");
}

#[test]
fn read() {
    run("read");
}

#[test]
fn write() {
    run("write");
}

#[test]
fn repair() {
    run("repair");
}

#[test]
fn records() {
    run("records");
}

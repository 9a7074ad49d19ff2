//! Power cuts: whatever subset of the unflushed sectors survives, the image opens and has leaks at worst, flushed data
//! is there, and the rest is old or new, sector by sector.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "../common/checker.rs"]
mod checker;
#[path = "../common/mod.rs"]
mod common;

mod content;
mod cutter;
mod packed;
mod places;
mod random;
mod scenarios;
mod stage;

/// Whether the metadata of an image is sound: nothing worse than leaks.
fn judge(bytes: &[u8]) -> Result<(), String> {
    checker::check(bytes).map(|_| ())
}

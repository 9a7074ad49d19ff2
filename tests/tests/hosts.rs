//! Several hosts at the same time, on simulated storage: hosts that are frozen, lose their locks, are displaced, and come
//! back. `docs/simulator.md` says how to add an operation, a fault, an invariant.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::field_reassign_with_default,
    clippy::match_same_arms,
    clippy::needless_range_loop,
    clippy::struct_excessive_bools,
    clippy::too_many_arguments,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[allow(dead_code)]
#[path = "causes/changing.rs"]
mod changing;
#[path = "hosts/costs.rs"]
mod costs;
#[path = "hosts/displaced.rs"]
mod displaced;
#[path = "hosts/fencing.rs"]
mod fencing;
#[path = "hosts/invariants.rs"]
mod invariants;
#[path = "hosts/invariants_fail.rs"]
mod invariants_fail;
#[path = "hosts/judge.rs"]
mod judge;
#[allow(dead_code)]
#[path = "causes/making.rs"]
mod making;
#[allow(dead_code)]
#[path = "causes/operation.rs"]
mod operation;
#[path = "hosts/operations.rs"]
mod operations;
#[path = "hosts/random.rs"]
mod random;
#[allow(dead_code)]
#[path = "causes/raw.rs"]
mod raw;
#[allow(dead_code)]
#[path = "causes/scene.rs"]
mod scene;
#[path = "hosts/writing.rs"]
mod writing;

#[path = "hosts/repeated.rs"]
mod repeated;
#[path = "hosts/watermarks.rs"]
mod watermarks;

/// The file that is imported: it stays as it is for the whole run.
fn file_to_import() -> &'static str {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/hosts-import.raw")
}

/// As thorough as is wanted: 0 in a normal run.
fn long() -> u64 {
    std::env::var("VDSMSTORE_LONG").map_or(0, |text| text.parse().unwrap_or(1))
}

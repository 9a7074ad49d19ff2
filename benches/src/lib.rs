//! The measurements behind `make bench`: ratios to QEMU's tools and to bare system calls, taken in the same run, the two
//! sides in turns. `docs/benchmarks.md` says what is measured how.

#![allow(clippy::cast_precision_loss, clippy::cast_sign_loss, reason = "numbers for people")]

pub mod check;
pub mod durable;
pub mod image;
pub mod large;
pub mod merge;
pub mod numbers;
pub mod scene;
pub mod speed;
pub mod takeover;
pub mod verb;
pub mod verbs;

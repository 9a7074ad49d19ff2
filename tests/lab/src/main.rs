//! What the tests with virtual machines run inside them: `vdsmstore-lab record|replay ...`, see `docs/lab.md`.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::expect_used,
    clippy::unwrap_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

mod frozen;
mod journal;
mod judge;
mod late;
#[path = "../../tests/kills/left.rs"]
mod left;
mod log;
mod moves;
mod nfs;
mod replay;
mod state;
mod workload;

use std::env;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        // A file system, and a file for what was acknowledged; then the log device whose log gets marks.
        ["record", root, journal, seed, ref device @ ..] => {
            workload::run(
                Path::new(root),
                Path::new(journal),
                seed.parse().unwrap(),
                device.first().copied(),
            );
        }
        // What hosts do that share a place.
        ["nfs", ref words @ ..] => nfs::run(words),
        // What moves on an NFS share.
        ["moves", ref words @ ..] => moves::run(words),
        // A host is frozen, and comes back.
        ["frozen", "prepare", root, ref kinds @ ..] => frozen::prepare(Path::new(root), kinds),
        ["frozen", "work", root, host, case, log] => {
            frozen::work(Path::new(root), host, case, Path::new(log));
        }
        ["frozen", "finish", root, host] => frozen::finish(Path::new(root), host),
        ["frozen", "judge", root, host] => frozen::judge(Path::new(root), host),
        ["frozen", "late", case, log, said, since] => {
            late::judge(case, Path::new(log), Path::new(said), since.parse().unwrap());
        }
        // The log, what was acknowledged, a directory for the replays, how many.
        ["replay", kind, log, journal, scratch, points, seed] => {
            let points = if points == "all" { usize::MAX } else { points.parse().unwrap() };
            let replay = replay::Replay::new(kind, Path::new(log), Path::new(journal), Path::new(scratch));
            return if replay.run(points, seed.parse().unwrap()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            };
        }
        _ => {
            eprintln!("vdsmstore-lab: record ROOT JOURNAL SEED [DEVICE]");
            eprintln!("vdsmstore-lab: nfs format|latency|race|hold|take|copy|finish ROOT ...");
            eprintln!("vdsmstore-lab: moves make DIR MEBIBYTES | go DIR MOUNT clone|copy|cached | judge DIR");
            eprintln!("vdsmstore-lab: frozen prepare|work|finish|judge ROOT ... | late CASE LOG SAID SINCE");
            eprintln!("vdsmstore-lab: replay ext4|xfs LOG JOURNAL SCRATCH POINTS|all SEED");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Small and repeatable.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

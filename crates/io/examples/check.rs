//! How long the check of a full image takes, beside `qemu-img check` in the same run.
//!
//! `cargo run --release -p vdsmstore-io --example check -- DIRECTORY` needs 200 MiB there. Each round runs both, one after
//! the other; ratios over 1 mean that we are slower.

use std::error::Error;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use vdsmstore_io::{FileDevice, qcow2};

const ROUNDS: usize = 7;

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args().nth(1).ok_or("usage: check DIRECTORY")?;
    let path = Path::new(&directory).join("full.qcow2");
    let name = path.to_str().ok_or("a path that is no text")?;
    tool(&["create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", name, "1T"])?;
    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let started = Instant::now();
        let report = qcow2::check(&FileDevice::open(&path, false)?)?;
        let ours = started.elapsed().as_secs_f64();
        if !report.is_clean() || report.allocated_clusters != report.total_clusters {
            return Err(format!("not what was expected: {report:?}").into());
        }
        let started = Instant::now();
        tool(&["check", "-f", "qcow2", name])?;
        let theirs = started.elapsed().as_secs_f64();
        println!("check of a full 1 TiB image  {ours:.3} s  {theirs:.3} s  {:.2}", ours / theirs);
        if round > 0 {
            // The first one fills caches.
            ratios.push(ours / theirs);
        }
    }
    std::fs::remove_file(path)?;
    ratios.sort_by(f64::total_cmp);
    println!("median {:.2}, {:.2} to {:.2}", ratios[ratios.len() / 2], ratios[0], ratios[ratios.len() - 1]);
    Ok(())
}

fn tool(arguments: &[&str]) -> Result<(), Box<dyn Error>> {
    let status = Command::new("qemu-img").args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err("qemu-img failed".into()) }
}

//! Times and ratios with their spread, and the machine that they are of.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::scene::Result;

/// The least, the middle and the greatest of several numbers.
#[derive(Clone, Copy, Debug)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle.
    pub median: f64,
    /// The greatest.
    pub max: f64,
}

/// Numbers of one kind, from several turns.
#[derive(Clone, Debug, Default)]
pub struct Samples(Vec<f64>);

impl Samples {
    /// One more.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// One more time.
    pub fn push_time(&mut self, time: Duration) {
        self.push(time.as_secs_f64());
    }

    /// Those of each turn, divided by the other's of the same turn.
    pub fn over(&self, other: &Self) -> Spread {
        Self(self.0.iter().zip(&other.0).map(|(a, b)| a / b).collect()).spread()
    }

    /// Their spread; of none, zeroes.
    pub fn spread(&self) -> Spread {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |index: usize| sorted.get(index).copied().unwrap_or(0.0);
        Spread { min: at(0), median: at(sorted.len() / 2), max: at(sorted.len().saturating_sub(1)) }
    }

    /// The middle.
    pub fn median(&self) -> f64 {
        self.spread().median
    }
}

impl Spread {
    /// A ratio: the middle, and in brackets the least and the greatest.
    pub fn ratio(self) -> String {
        format!("{:.2} ({:.2} to {:.2})", self.median, self.min, self.max)
    }
}

/// Seconds in the unit that suits them.
pub fn seconds(value: f64) -> String {
    match value {
        _ if value < 1e-3 => format!("{:.0} us", value * 1e6),
        _ if value < 1.0 => format!("{:.2} ms", value * 1e3),
        _ => format!("{value:.2} s"),
    }
}

/// How long the work takes.
pub fn timed<T>(work: impl FnOnce() -> Result<T>) -> Result<(Duration, T)> {
    let started = Instant::now();
    let result = work()?;
    Ok((started.elapsed(), result))
}

fn is_asked(what: &str) -> bool {
    std::env::var("BENCH").is_ok_and(|value| value == what)
}

/// `BENCH=full` asks for more turns, `BENCH=smoke` for one.
pub fn turns(usual: usize, full: usize) -> usize {
    if is_smoke() {
        1
    } else if is_full() {
        full
    } else {
        usual
    }
}

/// Whether all rows are wanted, for the documentation.
pub fn is_full() -> bool {
    is_asked("full")
}

/// Whether all is only tried out, with little data and beside others: whether results are right, not how long they take.
pub fn is_smoke() -> bool {
    is_asked("smoke")
}

/// One line about the machine.
pub fn machine(place: &Path) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory = memory.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 20;
    let kernel = read("/proc/sys/kernel/osrelease");
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output().ok();
        output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let place = place.to_string_lossy();
    let stored = said("findmnt", &["--noheadings", "--output", "FSTYPE,SOURCE", "--target", &place]);
    let qemu = said("qemu-img", &["--version"]);
    let qemu = qemu.split_whitespace().nth(2).unwrap_or("none");
    format!(
        "{} x {cpus}, {memory} GiB, Linux {}, {}, qemu-img {qemu}",
        field(&read("/proc/cpuinfo"), "model name"),
        kernel.trim(),
        stored.split_whitespace().collect::<Vec<_>>().join(" on "),
    )
}

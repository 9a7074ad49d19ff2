//! What `make bench` runs: see `docs/benchmarks.md`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use vdsmstore_bench::large::Large;
use vdsmstore_bench::scene::Result;
use vdsmstore_bench::{check, durable, image, merge, numbers, speed, takeover, verb, verbs};

const USAGE: &str = "usage: vdsmstore-bench DIRECTORY [PART | PART/GROUP]...
parts: verbs durable check merge takeover speed reflinks image; groups, of speed and reflinks:
copies chain compares compressed huge incremental merge";

/// Of the large repository. `BENCH_LARGE=PATH`: one that was made before (`make`) is used, and left damaged by `check`.
const IMAGES: usize = 100_000;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.split_first() {
        // What measurements start as processes of their own.
        Some((first, rest)) if first == "once" => verb::once(rest),
        Some((first, rest)) if first == "check" => check::once(rest),
        Some((first, [path, images])) if first == "make" => make(Path::new(path), images),
        Some((first, rest)) if first == "copies" => takeover::copies(rest),
        Some((first, rest)) if first == "goes-on" => takeover::goes_on(rest),
        Some((directory, parts)) => run(Path::new(directory), parts),
        None => Err(USAGE.into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vdsmstore-bench: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A repository to look at: `vdsmstore-bench make PATH IMAGES`.
fn make(path: &Path, images: &str) -> Result<()> {
    Large::make(path, images.parse()?).map(drop)
}

fn run(directory: &Path, parts: &[String]) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("vdsmstore-bench.").tempdir_in(directory)?;
    let known = ["verbs", "durable", "check", "merge", "takeover", "speed", "reflinks", "image"];
    let is_known = |wanted: &str| match wanted.split_once('/') {
        Some(("speed", group)) => speed::GROUPS.contains(&group),
        Some(("reflinks", group)) => speed::REFLINK_GROUPS.contains(&group),
        _ => known.contains(&wanted),
    };
    if let Some(part) = parts.iter().find(|part| !is_known(part)) {
        return Err(format!("no part {part:?}; {USAGE}").into());
    }
    let wanted = |part: &str| parts.is_empty() || parts.iter().any(|wanted| wanted == part);
    // Of a part that is wanted as a whole, all.
    let groups = |part: &str, all: &'static [&'static str]| -> Vec<&'static str> {
        let named = |group: &&str| parts.iter().any(|wanted| *wanted == format!("{part}/{group}"));
        all.iter().copied().filter(|group| wanted(part) || named(group)).collect()
    };
    println!("{}", numbers::machine(scratch.path()));
    let place = |name: &str| -> PathBuf { scratch.path().join(name) };
    speed::run(scratch.path(), &groups("speed", speed::GROUPS))?;
    speed::run_reflinks(scratch.path(), &groups("reflinks", speed::REFLINK_GROUPS))?;
    if wanted("image") {
        image::run(scratch.path())?;
    }
    if wanted("merge") {
        merge::run(scratch.path())?;
    }
    if wanted("takeover") {
        takeover::run(scratch.path())?;
    }
    if wanted("durable") {
        durable::run(scratch.path())?;
    }
    if wanted("verbs") || wanted("check") {
        let large = if let Some(path) = std::env::var_os("BENCH_LARGE") {
            Large::load(Path::new(&path))?
        } else {
            let (time, large) = numbers::timed(|| Large::make(&place("large"), IMAGES))?;
            println!("\n{IMAGES} images made in {}, and checked", numbers::seconds(time.as_secs_f64()));
            large
        };
        if wanted("verbs") {
            let few = Large::make(&place("few"), 10)?;
            let some = Large::make(&place("some"), 1000)?;
            verbs::run(scratch.path(), &[&few, &some, &large])?;
        }
        // Last: it leaves the repository in pieces.
        if wanted("check") {
            check::run(scratch.path(), &large)?;
        }
    }
    Ok(())
}

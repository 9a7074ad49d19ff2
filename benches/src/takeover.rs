//! A process is killed in the middle of a copy; another one runs the fix and goes on.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use vdsmstore_core::options::{CheckOptions, CopyOptions, CreateOptions, FixOptions, WaitOptions};
use vdsmstore_core::{FixType, Status, Store};

use crate::numbers::{Samples, seconds, turns};
use crate::scene::{MIB, Result, connect, disk, fill_with_noise, format, noise, store, text};

/// What is copied, all of it data.
const SIZE: u64 = 4096 * MIB;
/// The engine promises that no more is copied twice than this, or what two seconds of work have copied.
const TWICE: u64 = 64 * MIB;
/// Nothing takes as long.
const PATIENCE: Duration = Duration::from_mins(5);

/// Kills and takes over, several times.
pub fn run(directory: &Path) -> Result<()> {
    let (a, b) = (directory.join("takeover-a"), directory.join("takeover-b"));
    format(&a)?;
    let snapshot = source(&a)?;
    let (mut first, mut twice, mut allowed) = (Samples::default(), Samples::default(), Samples::default());
    let mut seed = 11;
    for _ in 0..turns(3, 9) {
        format(&b)?;
        // Somewhere in the middle half.
        let at = SIZE / 4 + noise(&mut seed) % (SIZE / 2);
        let taken = take_over(&a, &b, &snapshot, at)?;
        first.push_time(taken.first_byte);
        twice.push(taken.twice as f64 / MIB as f64);
        allowed.push(taken.allowed as f64 / MIB as f64);
        fs::remove_dir_all(&b)?;
    }
    fs::remove_dir_all(&a)?;
    let (first, twice, allowed) = (first.spread(), twice.spread(), allowed.spread());
    println!(
        "\ntake-over of a copy of {} MiB: from the kill to the first new byte {} ({} to {}); \
         copied twice {:.0} MiB ({:.0} to {:.0}), allowed {:.0} MiB ({:.0} to {:.0})",
        SIZE / MIB,
        seconds(first.median),
        seconds(first.min),
        seconds(first.max),
        twice.median,
        twice.min,
        twice.max,
        allowed.median,
        allowed.min,
        allowed.max,
    );
    Ok(())
}

/// A snapshot that is full of data.
fn source(repo: &Path) -> Result<String> {
    let store = store()?;
    connect(&store, "A", repo)?;
    let disk = disk(&store, "A", SIZE)?;
    let open = store.open_image("A", &disk, true)?;
    let mut data = vec![0; 4 << 20];
    fill_with_noise(&mut data, &mut 13);
    for offset in (0..SIZE).step_by(data.len()) {
        // Never the same twice.
        data[..8].copy_from_slice(&offset.to_le_bytes());
        open.write(offset.try_into()?, &data)?;
    }
    open.flush()?;
    open.close()?;
    Ok(store.create_snapshot("A", &disk, "{}", &CreateOptions::default())?.to_string())
}

/// What a take-over was like.
struct Taken {
    first_byte: Duration,
    twice: u64,
    allowed: u64,
}

fn take_over(a: &Path, b: &Path, snapshot: &str, at: u64) -> Result<Taken> {
    // The other one is there before, as another host would be.
    let mut other = Helper::start("goes-on", a, b, snapshot)?;
    other.hear("ready")?;
    let mut copier = Helper::start("copies", a, b, snapshot)?;
    copier.hear("ready")?;
    let started = Instant::now();
    let file = data_file(b)?;
    while written(&file)? < at {
        if started.elapsed() > PATIENCE {
            return Err("the copy does not get on".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    copier.child.kill()?;
    let killed = Instant::now();
    let speed = written(&file)? as f64 / started.elapsed().as_secs_f64();
    let before = transferred(copier.child.id())?;
    copier.child.wait()?;
    let last = changed(&file)?;
    other.say("go")?;
    while changed(&file)? == last {
        if killed.elapsed() > PATIENCE {
            return Err("nobody goes on".into());
        }
        thread::sleep(Duration::from_micros(200));
    }
    let first_byte = killed.elapsed();
    other.hear("done")?;
    let after = transferred(other.child.id())?;
    other.say("end")?;
    other.child.wait()?;
    Ok(Taken {
        first_byte,
        // Records and progress are in it too.
        twice: (before + after).saturating_sub(SIZE),
        allowed: TWICE.max((speed * 2.0) as u64),
    })
}

/// The only data file of a repository, once it is there.
fn data_file(repo: &Path) -> Result<PathBuf> {
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(entry) = fs::read_dir(repo.join("data"))?.next() {
            return Ok(entry?.path());
        }
        thread::sleep(Duration::from_millis(1));
    }
    Err("the copy does not begin".into())
}

fn written(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file)?.blocks() * 512)
}

fn changed(file: &Path) -> Result<(i64, i64)> {
    let metadata = fs::metadata(file)?;
    Ok((metadata.mtime(), metadata.mtime_nsec()))
}

/// Bytes that a process had written to storage, by the kernel's count; also of one that is dead and not waited for.
fn transferred(process: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{process}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).ok_or("no write_bytes")?;
    Ok(line.parse()?)
}

/// This program once more.
struct Helper {
    child: Child,
    words: BufReader<std::process::ChildStdout>,
}

impl Helper {
    fn start(role: &str, a: &Path, b: &Path, snapshot: &str) -> Result<Helper> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([role, text(a)?, text(b)?, snapshot])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let words = BufReader::new(child.stdout.take().ok_or("no output")?);
        Ok(Helper { child, words })
    }

    fn hear(&mut self, wanted: &str) -> Result<()> {
        let mut line = String::new();
        self.words.read_line(&mut line)?;
        if line.trim() == wanted { Ok(()) } else { Err(format!("{line:?} instead of {wanted:?}").into()) }
    }

    fn say(&mut self, word: &str) -> Result<()> {
        let stdin = self.child.stdin.as_mut().ok_or("no input")?;
        Ok(writeln!(stdin, "{word}")?)
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        // One that has ended cannot be killed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn both(arguments: &[String]) -> Result<(Store, &str)> {
    let [a, b, snapshot] = arguments else { return Err("three arguments are needed".into()) };
    let store = store()?;
    connect(&store, "A", Path::new(a))?;
    connect(&store, "B", Path::new(b))?;
    Ok((store, snapshot))
}

/// The process that is killed.
pub fn copies(arguments: &[String]) -> Result<()> {
    let (store, snapshot) = both(arguments)?;
    println!("ready");
    store.copy_image("B", snapshot, None, "{}", &CopyOptions::default())?;
    store.wait_image("B", snapshot, None, &WaitOptions::default())?;
    Err("nobody killed it in time".into())
}

/// The process that goes on.
pub fn goes_on(arguments: &[String]) -> Result<()> {
    let (store, snapshot) = both(arguments)?;
    println!("ready");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let fixes = store.check_storage_repository("B", &CheckOptions::default())?;
    let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).ok_or("nothing to mend")?;
    let task = store.fix_storage_repository("B", mend, &FixOptions::default())?;
    store.wait_task(&task, None)?;
    if store.get_image_status("B", snapshot)?.status != Status::Optimized {
        return Err("the copy is not whole".into());
    }
    println!("done");
    std::io::stdin().read_line(&mut line)?;
    Ok(())
}

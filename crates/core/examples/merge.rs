//! How fast thirty layers become one, beside `qemu-img commit`, layer by layer, in the same run.
//!
//! `cargo run --release -p vdsmstore-core --example merge -- DIRECTORY` needs 6 GiB there. The two take turns; each
//! ends with the data on the storage. Ratios over 1 mean that we are faster.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CreateOptions, FixOptions, FormatOptions, PrepareOptions, RemoveOptions,
};
use vdsmstore_core::{FixType, Store, StoreOptions};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 1024 * MIB;
const LAYERS: u64 = 30;
/// What each layer has, somewhere in a part of the disk that all of them change.
const EACH: u64 = 64 * MIB;
const PART: u64 = 256 * MIB;
const CLUSTER: u64 = 64 << 10;
const TURNS: usize = 5;

fn main() -> Result<()> {
    let directory = std::env::args().nth(1).ok_or("usage: merge DIRECTORY")?;
    let directory = Path::new(&directory);
    println!("{:<36} {:>10} {:>10}  ratio", "", "vdsmstore", "qemu-img");
    for scattered in [false, true] {
        let mut ratios = Vec::with_capacity(TURNS);
        for turn in 0..TURNS {
            let place = directory.join(format!("{scattered}-{turn}"));
            let chain = Chain::make(&place, scattered)?;
            // Who is first changes.
            let (ours, theirs) = if turn % 2 == 0 {
                let theirs = chain.commit()?;
                (chain.merge()?, theirs)
            } else {
                let ours = chain.merge()?;
                (ours, chain.commit()?)
            };
            let ratio = theirs.as_secs_f64() / ours.as_secs_f64();
            let what = if scattered { "30 layers, single clusters" } else { "30 layers, 16 MiB pieces" };
            println!("{what:<36} {:>8.3} s {:>8.3} s  {ratio:.1}", ours.as_secs_f64(), theirs.as_secs_f64());
            ratios.push(ratio);
            chain.same()?;
            std::fs::remove_dir_all(&place)?;
        }
        ratios.sort_by(f64::total_cmp);
        println!("{:<36} median {:.1}, least {:.1}", "", ratios[TURNS / 2], ratios[0]);
    }
    Ok(())
}

/// A disk on thirty snapshots, and a copy of its files for QEMU.
struct Chain {
    store: Store,
    disk: String,
    /// Lowest first.
    copies: Vec<PathBuf>,
}

impl Chain {
    fn make(place: &Path, scattered: bool) -> Result<Chain> {
        let (repo, copy) = (place.join("repo"), place.join("copy"));
        std::fs::create_dir_all(&repo)?;
        std::fs::create_dir_all(&copy)?;
        let mut at = Map::new();
        at.insert("path".into(), Value::from(text(&repo)?));
        let store = Store::new(StoreOptions::default())?;
        store.format_storage_repository("localfs-1.0", &at, &FormatOptions::default())?;
        store.connect_storage_repository("A", "localfs-1.0", &at)?;
        let plain = CreateOptions::default();
        let disk = store.create_virtual_disk("A", Some(SIZE.try_into()?), None, "{}", &plain)?.to_string();
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let mut snapshots = Vec::new();
        for layer in 0..=LAYERS {
            let image = store.open_image("A", &disk, true)?;
            let piece = if scattered { CLUSTER } else { 16 * MIB };
            let mut data = vec![0; usize::try_from(piece)?];
            for _ in 0..EACH / piece {
                for word in data.chunks_mut(8) {
                    word.copy_from_slice(&noise(&mut seed).to_le_bytes()[..word.len()]);
                }
                // The lowest has its own part, and the others theirs.
                let from = if layer == 0 { PART } else { 0 };
                let offset = from + noise(&mut seed) % (PART / piece) * piece;
                image.write(offset.try_into()?, &data)?;
            }
            image.close()?;
            if layer < LAYERS {
                snapshots.push(store.create_snapshot("A", &disk, "{}", &plain)?.to_string());
            }
        }
        let mut copies = Vec::new();
        for id in snapshots.iter().chain([&disk]) {
            let prepared = store.prepare_image("A", id, &PrepareOptions { read_only: true })?;
            let path = PathBuf::from(&prepared.path);
            let name = path.file_name().ok_or("a path without a name")?;
            tool("cp", &["--sparse=always", text(&path)?, text(&copy)?])?;
            copies.push(copy.join(name));
            store.teardown_image("A", id, &vdsmstore_core::options::ForceOptions::default())?;
        }
        let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
        for id in &snapshots {
            store.remove_image("A", id, &options)?;
        }
        tool("sync", &["-f", text(place)?])?;
        Ok(Chain { store, disk, copies })
    }

    /// All snapshots go, and what is left is one volume.
    fn merge(&self) -> Result<Duration> {
        let started = Instant::now();
        for fix in self.store.check_storage_repository("A", &CheckOptions::default())? {
            if fix.fix_type != FixType::Merge {
                return Err(format!("an unexpected fix: {}", fix.description).into());
            }
            let task = self.store.fix_storage_repository("A", &fix, &FixOptions::default())?;
            self.store.wait_task(&task, None)?;
        }
        Ok(started.elapsed())
    }

    /// The same with QEMU: each layer is committed into the one below it, and deleted.
    fn commit(&self) -> Result<Duration> {
        let started = Instant::now();
        for path in self.copies[1..].iter().rev() {
            tool("qemu-img", &["commit", "-q", "-d", "-f", "qcow2", text(path)?])?;
            std::fs::remove_file(path)?;
        }
        tool("sync", &["-f", text(&self.copies[0])?])?;
        Ok(started.elapsed())
    }

    fn same(&self) -> Result<()> {
        let prepared = self.store.prepare_image("A", &self.disk, &PrepareOptions { read_only: true })?;
        let (path, base) = (&prepared.path, text(&self.copies[0])?);
        tool("qemu-img", &["compare", "-q", "-f", &prepared.format, "-F", "raw", path, base])
    }
}

fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new(program).args(arguments).stdout(Stdio::null()).status()?;
    if status.success() { Ok(()) } else { Err(format!("{program} {arguments:?} failed").into()) }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| "a path that is no text".into())
}

/// Never the same twice, never compressible.
fn noise(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

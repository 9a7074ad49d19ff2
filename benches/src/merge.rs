//! How fast thirty layers become one, beside `qemu-img commit`, layer by layer. The two take turns; each ends with the data
//! on the storage.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vdsmstore_core::options::{CheckOptions, CreateOptions, FixOptions, ForceOptions, PrepareOptions};
use vdsmstore_core::{FixType, Store};

use crate::numbers::{Samples, seconds, turns};
use crate::scene::{
    MIB, Result, connect, disk, fill_with_noise, format, mark_removed, noise, store, text, tool,
};

const SIZE: u64 = 1024 * MIB;
const LAYERS: u64 = 30;
/// What each layer has, somewhere in a part of the disk that all of them change.
const EACH: u64 = 64 * MIB;
const PART: u64 = 256 * MIB;
const CLUSTER: u64 = 64 << 10;

/// Merges and commits, by turns.
pub fn run(directory: &Path) -> Result<()> {
    println!("\n{LAYERS} layers become one: time of qemu-img commit / ours, median (min to max)");
    for scattered in [false, true] {
        let (mut ours, mut theirs) = (Samples::default(), Samples::default());
        for turn in 0..turns(3, 9) {
            let place = directory.join(format!("merge-{scattered}-{turn}"));
            let chain = Chain::make(&place, scattered)?;
            // Who is first changes.
            if turn % 2 == 0 {
                theirs.push_time(chain.commit()?);
                ours.push_time(chain.merge()?);
            } else {
                ours.push_time(chain.merge()?);
                theirs.push_time(chain.commit()?);
            }
            chain.same()?;
            std::fs::remove_dir_all(&place)?;
        }
        let what = if scattered { "single clusters" } else { "pieces of 16 MiB" };
        let (us, them) = (seconds(ours.median()), seconds(theirs.median()));
        println!("{what:<18} {us:>10} {them:>10}   {}", theirs.over(&ours).ratio());
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
        std::fs::create_dir_all(&copy)?;
        format(&repo)?;
        let store = store()?;
        connect(&store, "A", &repo)?;
        let plain = CreateOptions::default();
        let disk = disk(&store, "A", SIZE)?;
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let mut snapshots = Vec::new();
        for layer in 0..=LAYERS {
            let image = store.open_image("A", &disk, true)?;
            let piece = if scattered { CLUSTER } else { 16 * MIB };
            let mut data = vec![0; usize::try_from(piece)?];
            for _ in 0..EACH / piece {
                fill_with_noise(&mut data, &mut seed);
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
            store.teardown_image("A", id, &ForceOptions::default())?;
        }
        for id in &snapshots {
            mark_removed(&store, "A", id)?;
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

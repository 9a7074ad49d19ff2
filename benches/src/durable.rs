//! Create and snapshot, durable when they return, beside a bare program that makes the same files, links and syncs, and
//! beside spawning `qemu-img create`, which syncs nothing.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use uuid::Uuid;
use vdsmstore_core::Store;
use vdsmstore_core::options::CreateOptions;

use crate::large::{Large, SIZE};
use crate::numbers::{Samples, timed, turns};
use crate::scene::{Result, connect, disk, store, text, tool};

/// Calls of one kind in a row.
const ROW: usize = 5;
/// Enough for a repository to have all its shards.
const IMAGES: usize = 4096;

/// What is measured, in turns.
#[derive(Default)]
struct Columns {
    ours: Samples,
    bare: Samples,
    qemu: Samples,
}

/// Measures both.
pub fn run(directory: &Path) -> Result<()> {
    let large = Large::make(&directory.join("durable"), IMAGES)?;
    let bare = Bare { place: directory.join("bare") };
    bare.make()?;
    let store = store()?;
    connect(&store, "R", &large.path)?;
    let images = directory.join("qemu");
    fs::create_dir(&images)?;
    let (mut create, mut snapshot) = (Columns::default(), Columns::default());
    for turn in 0..=turns(12, 60) {
        let taken = one_turn(&store, &bare, &images, turn)?;
        // The first one warms up.
        if turn > 0 {
            for (columns, [ours, bare, qemu]) in [&mut create, &mut snapshot].into_iter().zip(taken) {
                columns.ours.push(ours);
                columns.bare.push(bare);
                columns.qemu.push(qemu);
            }
        }
    }
    println!(
        "\ndurable calls per second in a running process: ours, bare system calls, qemu-img; ratios of times, median (min to max)"
    );
    for (what, columns) in [("create", create), ("snapshot", snapshot)] {
        let rate = |samples: &Samples| 1.0 / samples.median();
        let (ours, bare, qemu) = (rate(&columns.ours), rate(&columns.bare), rate(&columns.qemu));
        println!(
            "{what:<10} {ours:>8.1} {bare:>8.1} {qemu:>8.1}   ours/bare {}   qemu-img/ours {}",
            columns.ours.over(&columns.bare).ratio(),
            columns.qemu.over(&columns.ours).ratio(),
        );
    }
    Ok(())
}

/// Seconds of one call: of create and of snapshot, each by us, bare, and by QEMU.
fn one_turn(store: &Store, bare: &Bare, images: &Path, turn: usize) -> Result<[[f64; 3]; 2]> {
    let mut taken = [[0.0; 3]; 2];
    let (mut disks, mut made, mut files) = (Vec::new(), Vec::new(), Vec::new());
    // Who is first changes.
    for side in (0..3).map(|side| (side + turn) % 3) {
        let (time, ()) = timed(|| {
            for index in 0..ROW {
                match side {
                    0 => disks.push(disk(store, "R", SIZE)?),
                    1 => made.push(bare.create()?),
                    _ => {
                        let file = images.join(format!("{turn}-{index}"));
                        tool("qemu-img", &["create", "-q", "-f", "qcow2", text(&file)?, &SIZE.to_string()])?;
                        files.push(file);
                    }
                }
            }
            Ok(())
        })?;
        taken[0][side] = time.as_secs_f64() / ROW as f64;
    }
    for side in (0..3).map(|side| (side + turn) % 3) {
        let (time, ()) = timed(|| {
            for index in 0..ROW {
                match side {
                    0 => drop(store.create_snapshot("R", &disks[index], "{}", &CreateOptions::default())?),
                    1 => bare.snapshot(made[index])?,
                    _ => {
                        let file = images.join(format!("{turn}-{index}-top"));
                        let arguments = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
                        tool("qemu-img", &[&arguments[..], &[text(&files[index])?, text(&file)?]].concat())?;
                    }
                }
            }
            Ok(())
        })?;
        taken[1][side] = time.as_secs_f64() / ROW as f64;
    }
    Ok(taken)
}

/// The least that the documented sequences ask of a file system, in directories like those of a repository: no locks,
/// no listings, nothing is compared.
struct Bare {
    place: PathBuf,
}

/// An image and its volume.
type Made = (Uuid, Uuid);

impl Bare {
    fn make(&self) -> Result<()> {
        for room in ["images", "volumes", "children", "holders"] {
            for shard in 0..4096 {
                fs::create_dir_all(self.place.join(room).join(format!("{shard:03x}")))?;
            }
        }
        fs::create_dir(self.place.join("data"))?;
        tool("sync", &["-f", text(&self.place)?])
    }

    fn shard(&self, room: &str, id: Uuid) -> PathBuf {
        self.place.join(room).join(&id.simple().to_string()[..3])
    }

    /// A generation of a record: written, synced, linked, the shard synced; the one before the last goes.
    fn put(&self, room: &str, id: Uuid, generation: u64) -> Result<()> {
        let shard = self.shard(room, id);
        let name = |generation: u64| shard.join(format!("{id}.{generation:016x}"));
        let temporary = shard.join(format!(".t.{id}.0"));
        let mut file = File::create_new(&temporary)?;
        file.write_all(&[b'r'; 600])?;
        file.sync_all()?;
        fs::hard_link(&temporary, name(generation))?;
        File::open(&shard)?.sync_all()?;
        fs::remove_file(&temporary)?;
        if generation > 2 {
            fs::remove_file(name(generation - 2))?;
        }
        Ok(())
    }

    /// A marker.
    fn mark(&self, room: &str, first: Uuid, second: Uuid) -> Result<()> {
        let shard = self.shard(room, first);
        File::create_new(shard.join(format!("{first}.{second}")))?;
        Ok(File::open(&shard)?.sync_all()?)
    }

    /// A data file with its name; what is written to it is the caller's.
    fn data(&self, volume: Uuid) -> Result<File> {
        let data = self.place.join("data");
        let file = File::create_new(data.join(volume.to_string()))?;
        File::open(&data)?.sync_all()?;
        Ok(file)
    }

    /// Volume filling, marker, image pending, data, volume ready, image live.
    fn create(&self) -> Result<Made> {
        let (image, volume) = (Uuid::new_v4(), Uuid::new_v4());
        self.put("volumes", volume, 1)?;
        self.mark("holders", volume, image)?;
        self.put("images", image, 1)?;
        let file = self.data(volume)?;
        file.set_len(SIZE)?;
        file.sync_data()?;
        self.put("volumes", volume, 2)?;
        self.put("images", image, 2)?;
        Ok((image, volume))
    }

    /// Snapshot pending, disk frozen, its data synced, snapshot live, overlay filling, its data, overlay ready, disk
    /// switched.
    fn snapshot(&self, (disk, volume): Made) -> Result<()> {
        let (snapshot, overlay) = (Uuid::new_v4(), Uuid::new_v4());
        self.mark("holders", volume, snapshot)?;
        self.put("images", snapshot, 1)?;
        self.put("images", disk, 3)?;
        File::open(self.place.join("data").join(volume.to_string()))?.sync_data()?;
        self.put("images", snapshot, 2)?;
        self.mark("children", snapshot, overlay)?;
        self.put("volumes", overlay, 1)?;
        self.mark("holders", overlay, disk)?;
        let file = self.data(overlay)?;
        // Header, refcount table and block, first-level table.
        for cluster in 0..4 {
            file.write_all_at(&[1; 4096], cluster << 16)?;
        }
        file.sync_data()?;
        self.put("volumes", overlay, 2)?;
        self.put("images", disk, 4)?;
        fs::remove_file(self.shard("holders", volume).join(format!("{volume}.{disk}")))?;
        Ok(())
    }
}

//! The check of a large repository with two thousand things wrong, beside a bare read of its records by as many threads.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use serde_json::{Value, json};
use uuid::Uuid;
use vdsmstore_core::options::CheckOptions;
use vdsmstore_core::{Fix, FixType};

use crate::large::{Large, Pair, record};
use crate::numbers::{Samples, seconds, timed, turns};
use crate::scene::{MIB, Result, connect, format, store, text};

/// As many as a check has.
const THREADS: usize = 4;
/// What is done to the repository, all kinds together.
const WRONG: usize = 2000;

/// A fix as it is listed: its type, and the ids in its description, in order.
type Listed = (String, Vec<Uuid>);

/// Damages the repository and checks it.
pub fn run(directory: &Path, large: &Large) -> Result<()> {
    let elsewhere = directory.join("elsewhere");
    format(&elsewhere)?;
    let mut damage = Damage { large, elsewhere: &elsewhere, expected: Vec::new(), done: 0 };
    damage.all()?;
    let wrong = damage.done;
    let mut expected = damage.expected;
    expected.sort();
    let store = store()?;
    connect(&store, "R", &large.path)?;
    connect(&store, "S", &elsewhere)?;
    let (mut ours, mut bare) = (Samples::default(), Samples::default());
    let mut read = (0, 0);
    for turn in 0..=turns(5, 15) {
        let (bare_time, records) = timed(|| read_bare(&large.path))?;
        let (time, fixes) = timed(|| Ok(store.check_storage_repository("R", &CheckOptions::default())?))?;
        judge(&fixes, &expected)?;
        // The first one warms up.
        if turn > 0 {
            ours.push_time(time);
            bare.push_time(bare_time);
        }
        read = records;
    }
    let peak = Command::new(std::env::current_exe()?)
        .args(["check", text(&large.path)?, text(&elsewhere)?])
        .output()?;
    println!(
        "\ncheck of {} images, {wrong} things wrong, {} fixes listed, exactly those expected\n\
         ours {}, bare read of {} records ({} MiB) {}: ratio {}; {} of memory at most",
        large.images(),
        expected.len(),
        seconds(ours.median()),
        read.0,
        read.1 / MIB as usize,
        seconds(bare.median()),
        ours.over(&bare).ratio(),
        String::from_utf8_lossy(&peak.stdout).trim(),
    );
    Ok(())
}

/// A process that only checks, and says how much memory it had at most.
pub fn once(arguments: &[String]) -> Result<()> {
    let [repo, elsewhere] = arguments else { return Err("two arguments are needed".into()) };
    let store = store()?;
    connect(&store, "R", Path::new(repo))?;
    connect(&store, "S", Path::new(elsewhere))?;
    store.check_storage_repository("R", &CheckOptions::default())?;
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{} MiB", kib >> 10);
    Ok(())
}

/// Reads the newest generation of all records of a repository, and does nothing with them.
fn read_bare(repo: &Path) -> Result<(usize, usize)> {
    let next = AtomicUsize::new(0);
    let work = || -> std::io::Result<(usize, usize)> {
        let (mut records, mut bytes) = (0, 0);
        loop {
            let shard = next.fetch_add(1, Ordering::Relaxed);
            if shard >= 4096 {
                return Ok((records, bytes));
            }
            for room in ["images", "volumes"] {
                let path = repo.join(room).join(format!("{shard:03x}"));
                let mut newest = HashMap::<String, String>::new();
                for entry in fs::read_dir(&path)? {
                    let name = entry?.file_name().to_string_lossy().into_owned();
                    if let Some((id, generation)) = name.split_once('.').filter(|(id, _)| id.len() == 36) {
                        let known = newest.entry(id.to_owned()).or_default();
                        if generation > known.as_str() {
                            generation.clone_into(known);
                        }
                    }
                }
                for (id, generation) in newest {
                    records += 1;
                    bytes += fs::read(path.join(format!("{id}.{generation}")))?.len();
                }
            }
        }
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        let mut sum = (0, 0);
        for worker in workers {
            let (records, bytes) = worker.join().map_err(|_| "a thread panicked")??;
            sum = (sum.0 + records, sum.1 + bytes);
        }
        Ok(sum)
    })
}

/// Exactly what is expected is listed.
fn judge(fixes: &[Fix], expected: &[Listed]) -> Result<()> {
    let mut listed: Vec<Listed> = fixes.iter().map(listed).collect();
    listed.sort();
    if listed == expected {
        return Ok(());
    }
    let mut counts = BTreeMap::<&Listed, i64>::new();
    for fix in expected {
        *counts.entry(fix).or_default() -= 1;
    }
    for fix in &listed {
        *counts.entry(fix).or_default() += 1;
    }
    let wrong: Vec<_> = counts.into_iter().filter(|(_, count)| *count != 0).take(20).collect();
    Err(format!("{} fixes instead of {}; missing or too many: {wrong:#?}", listed.len(), expected.len())
        .into())
}

fn listed(fix: &Fix) -> Listed {
    let words = fix.description.split([' ', ',']);
    (kind(fix.fix_type).to_owned(), words.filter_map(|word| Uuid::try_parse(word).ok()).collect())
}

fn kind(fix_type: FixType) -> &'static str {
    match fix_type {
        FixType::Clean => "clean",
        FixType::Optimize => "optimize",
        FixType::Merge => "merge",
        FixType::Mend => "mend",
    }
}

/// Things done to a repository, and the fixes that a check must list for them.
struct Damage<'a> {
    large: &'a Large,
    elsewhere: &'a Path,
    expected: Vec<Listed>,
    done: usize,
}

/// Something done to a disk and its volume.
type ToPlain<'a> = fn(&mut Damage<'a>, Uuid, Uuid) -> Result<()>;
/// Something done to a disk on a snapshot.
type ToPair<'a> = fn(&mut Damage<'a>, Pair) -> Result<()>;

impl<'a> Damage<'a> {
    fn all(&mut self) -> Result<()> {
        let on_plain: [ToPlain<'a>; 15] = [
            Self::removed,
            Self::pending,
            Self::orphan,
            Self::doomed,
            Self::stray_object,
            Self::stale_child,
            Self::stale_holder,
            Self::blob,
            Self::progress,
            Self::freeze,
            Self::next,
            Self::slow,
            Self::lost,
            Self::corrupt,
            Self::leftover,
        ];
        let on_pair: [ToPair<'a>; 3] = [Self::fetched, Self::mirror, Self::merge];
        let kinds = on_plain.len() + on_pair.len();
        let (mut plain, mut pairs) = (self.large.plain.iter(), self.large.pairs.iter());
        for index in 0..WRONG {
            let kind = index % kinds;
            if let Some(damage) = on_plain.get(kind) {
                let (image, volume) = *plain.next().ok_or("too few images")?;
                damage(self, image, volume)?;
            } else {
                let pair = *pairs.next().ok_or("too few images")?;
                on_pair[kind - on_plain.len()](self, pair)?;
            }
            self.done += 1;
        }
        // All that is left over is one fix.
        self.expect(FixType::Clean, &[]);
        Ok(())
    }

    fn expect(&mut self, fix_type: FixType, ids: &[Uuid]) {
        self.expected.push((kind(fix_type).to_owned(), ids.to_vec()));
    }

    fn repo(&self) -> &Path {
        &self.large.path
    }

    /// The next generation of a record.
    fn change(&self, room: &str, id: Uuid, change: impl FnOnce(&mut Value)) -> Result<()> {
        let (path, mut value) = record(self.repo(), room, id)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let generation = u64::from_str_radix(name.rsplit_once('.').ok_or("no generation")?.1, 16)? + 1;
        change(&mut value);
        Ok(fs::write(path.with_file_name(format!("{id}.{generation:016x}")), value.to_string())?)
    }

    fn place(&self, room: &str, first: Uuid, name: &str) -> Result<PathBuf> {
        let shard = self.repo().join(room).join(&first.simple().to_string()[..3]);
        fs::create_dir_all(&shard)?;
        Ok(shard.join(name))
    }

    fn mark(&self, room: &str, first: Uuid, second: Uuid) -> Result<()> {
        Ok(fs::write(self.place(room, first, &format!("{first}.{second}"))?, "")?)
    }

    fn data(&self, volume: Uuid) -> PathBuf {
        self.repo().join("data").join(volume.to_string())
    }

    fn bury(&self, image: Uuid) -> Result<()> {
        self.change("images", image, |record| *record = json!({"tombstone": true, "id": image}))
    }

    /// An image that nobody wants any more.
    fn removed(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        self.change("images", image, |record| record["state"] = "removed".into())?;
        self.expect(FixType::Clean, &[image]);
        Ok(())
    }

    /// One that is not complete.
    fn pending(&mut self, image: Uuid, volume: Uuid) -> Result<()> {
        self.change("images", image, |record| record["state"] = "pending".into())?;
        self.change("volumes", volume, |record| {
            record["state"] = "filling".into();
            record["fill"] = json!({"how": "zero"});
        })?;
        fs::remove_file(self.data(volume))?;
        self.expect(FixType::Mend, &[image]);
        Ok(())
    }

    /// A volume that no image uses.
    fn orphan(&mut self, image: Uuid, volume: Uuid) -> Result<()> {
        self.bury(image)?;
        self.expect(FixType::Clean, &[volume]);
        Ok(())
    }

    /// The same, and its deletion has begun.
    fn doomed(&mut self, image: Uuid, volume: Uuid) -> Result<()> {
        self.change("volumes", volume, |record| record["state"] = "doomed".into())?;
        self.orphan(image, volume)
    }

    /// Data without a record.
    fn stray_object(&mut self, _image: Uuid, _volume: Uuid) -> Result<()> {
        let stray = Uuid::new_v4();
        fs::write(self.data(stray), "stray")?;
        self.expect(FixType::Clean, &[stray]);
        Ok(())
    }

    /// A volume that was to be built on an image, and never was.
    fn stale_child(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        let never = Uuid::new_v4();
        self.mark("children", image, never)?;
        self.expect(FixType::Clean, &[never, image]);
        Ok(())
    }

    /// An image that was to be on a volume, and never was.
    fn stale_holder(&mut self, _image: Uuid, volume: Uuid) -> Result<()> {
        let never = Uuid::new_v4();
        self.mark("holders", volume, never)?;
        self.expect(FixType::Clean, &[never, volume]);
        Ok(())
    }

    /// User data that was replaced.
    fn blob(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        fs::write(self.place("blobs", image, &format!("{image}.{}", Uuid::new_v4()))?, "{}")?;
        self.expect(FixType::Clean, &[image]);
        Ok(())
    }

    /// The progress of work that is done.
    fn progress(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        fs::write(self.place("progress", image, &image.to_string())?, "{}")?;
        self.expect(FixType::Clean, &[image]);
        Ok(())
    }

    /// A disk with a snapshot that is announced.
    fn freeze(&mut self, image: Uuid, volume: Uuid) -> Result<()> {
        let snapshot = Uuid::new_v4();
        let (_, mut value) = record(self.repo(), "images", image)?;
        value["id"] = snapshot.to_string().into();
        value["kind"] = "snapshot".into();
        value["state"] = "pending".into();
        fs::write(self.place("images", snapshot, &format!("{snapshot}.{:016x}", 1))?, value.to_string())?;
        self.mark("holders", volume, snapshot)?;
        self.change("images", image, |record| record["freeze"] = json!([snapshot]))?;
        self.expect(FixType::Mend, &[snapshot]);
        self.expect(FixType::Mend, &[image]);
        Ok(())
    }

    /// A disk whose next representation is being made.
    fn next(&mut self, image: Uuid, volume: Uuid) -> Result<()> {
        let next = Uuid::new_v4();
        let (_, mut value) = record(self.repo(), "volumes", volume)?;
        value["id"] = next.to_string().into();
        value["state"] = "filling".into();
        value["fill"] = json!({"how": "flatten"});
        fs::write(self.place("volumes", next, &format!("{next}.{:016x}", 1))?, value.to_string())?;
        self.mark("holders", next, image)?;
        self.change("images", image, |record| record["next"] = json!(next))?;
        self.expect(FixType::Mend, &[image]);
        Ok(())
    }

    /// A disk that is to be fast, and is thin.
    fn slow(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        self.change("images", image, |record| record["strategy"] = "performance".into())?;
        self.expect(FixType::Optimize, &[image]);
        Ok(())
    }

    /// A disk without its data: nothing can be done about it.
    fn lost(&mut self, _image: Uuid, volume: Uuid) -> Result<()> {
        Ok(fs::remove_file(self.data(volume))?)
    }

    /// A record that cannot be understood: what hangs on it is left alone.
    fn corrupt(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        self.change("images", image, |record| *record = "nonsense".into())
    }

    /// A temporary file of a store that is gone; all together are one fix.
    fn leftover(&mut self, image: Uuid, _volume: Uuid) -> Result<()> {
        Ok(fs::write(self.place("images", image, &format!(".t.{}.7", Uuid::new_v4()))?, "half a record")?)
    }

    /// A snapshot without its data, which another repository has. The disk on it waits for it.
    fn fetched(&mut self, pair: Pair) -> Result<()> {
        for (room, id) in [("images", pair.snapshot), ("volumes", pair.lower)] {
            let (path, _) = record(self.repo(), room, id)?;
            let shard = self.elsewhere.join(room).join(&id.simple().to_string()[..3]);
            fs::create_dir_all(&shard)?;
            fs::copy(&path, shard.join(path.file_name().unwrap_or_default()))?;
        }
        fs::copy(self.data(pair.lower), self.elsewhere.join("data").join(pair.lower.to_string()))?;
        fs::remove_file(self.data(pair.lower))?;
        self.expect(FixType::Mend, &[pair.snapshot]);
        Ok(())
    }

    /// A header that names another volume than the records mean.
    fn mirror(&mut self, pair: Pair) -> Result<()> {
        self.change("volumes", pair.upper, |record| record["mirror"] = Value::Null)?;
        self.expect(FixType::Mend, &[pair.disk]);
        Ok(())
    }

    /// A snapshot that goes, and the disk on it that stays.
    fn merge(&mut self, pair: Pair) -> Result<()> {
        self.change("images", pair.snapshot, |record| record["state"] = "removed".into())?;
        self.expect(FixType::Merge, &[pair.snapshot]);
        Ok(())
    }
}

//! The log is replayed up to chosen points; at each the file system is mounted, and what was acknowledged must be there.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use vdsmstore_tests::{at, store};

use crate::Random;
use crate::journal;
use crate::judge::{self, REPOS, Seen};
use crate::log::Log;
use crate::state::{Mark, State};

const PAGE: u64 = 4096;
/// At least that of the recorded device.
const SIZE: u64 = 512 << 20;
/// How far ahead a control judges: something must be missing then.
const AHEAD: usize = 12;
/// Points at which that is tried, at most.
const CONTROLS: usize = 5;
/// Of so many points some are in the middle of work, which leaves something to be fixed.
const MANY: usize = 20;

pub struct Replay {
    kind: String,
    log: Log,
    marks: Vec<Mark>,
    base: PathBuf,
    scratch: PathBuf,
    mount: PathBuf,
}

/// The power fails after so many entries. Of what was not flushed all is kept, or what a seed says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    entries: usize,
    lost: Option<u64>,
}

/// What was seen at all points.
#[derive(Default)]
struct Counts {
    points: usize,
    /// By what the device held.
    distinct: HashSet<(usize, u64)>,
    at_flush: usize,
    between: usize,
    with_loss: usize,
    /// Points at which an operation was under way, by it.
    under_way: BTreeMap<String, usize>,
    unmountable: Vec<String>,
    failures: Vec<String>,
    controls: usize,
    caught: usize,
    fixed: usize,
    total: Seen,
}

impl Replay {
    pub fn new(kind: &str, log: &Path, journal: &Path, scratch: &Path) -> Replay {
        let mount = scratch.join("mount");
        fs::create_dir_all(&mount).unwrap();
        Replay {
            kind: kind.to_owned(),
            log: Log::read(log),
            marks: journal::read(journal),
            base: scratch.join("base"),
            scratch: scratch.join("device"),
            mount,
        }
    }

    /// Replays to so many points; whether all was right.
    pub fn run(&self, wanted: usize, seed: u64) -> bool {
        let start = Instant::now();
        println!("{}: LAB_SEED={seed}", self.kind);
        let points = self.points(wanted, &mut Random::new(seed));
        let mut counts = Counts::default();
        let mut known = HashSet::new();
        let mut device = Device::new(&self.base);
        let mut durable = 0;
        let controls = CONTROLS.min(points.len().div_ceil(4));
        for (index, point) in points.iter().enumerate() {
            let boundary = self.boundary(point.entries);
            for entry in durable..boundary {
                self.apply(&mut device, entry, &mut |_| true);
            }
            durable = durable.max(boundary);
            let key = self.lay_out(&device, durable, *point);
            counts.points += 1;
            counts.distinct.insert(key);
            let (states, doing) = self.states(point.entries);
            if let Some(doing) = doing {
                *counts.under_way.entry(doing).or_default() += 1;
            }
            match (point.lost, self.at_border(point.entries)) {
                (Some(_), _) => counts.with_loss += 1,
                (None, true) => counts.at_flush += 1,
                (None, false) => counts.between += 1,
            }
            let what = format!("{} {point:?}", self.kind);
            self.judge(&what, states, &mut known, &mut counts);
            // Spread over all of them; where nothing follows there is no later state, so that is made up for.
            if counts.controls <= index * controls / points.len() {
                self.lay_out(&device, durable, *point);
                self.control(point.entries, &mut counts);
            }
        }
        counts.print(&self.kind, start)
    }

    /// Before and after each flush and forced write, then between them, then with losses; a third of each.
    fn points(&self, wanted: usize, random: &mut Random) -> Vec<Point> {
        let first =
            self.log.entries.iter().position(|entry| entry.mark == Some(1)).expect("the first mark") + 1;
        let all = first..self.log.entries.len() + 1;
        let whole = |entries| Point { entries, lost: None };
        let (mut border, mut between): (Vec<_>, Vec<_>) =
            all.clone().partition(|&entries| self.at_border(entries));
        let lossy: Vec<usize> = all.filter(|&entries| self.boundary(entries) + 1 < entries).collect();
        println!(
            "{}: {} entries, {} marks; {} points at flushes, {} between, {} with something to lose",
            self.kind,
            self.log.entries.len(),
            self.marks.len(),
            border.len(),
            between.len(),
            lossy.len()
        );
        let mut points = BTreeSet::new();
        if wanted == usize::MAX {
            points.extend(border.into_iter().chain(between).map(whole));
            points.extend(lossy.iter().map(|&entries| Point { entries, lost: Some(random.below(1 << 40)) }));
        } else {
            for list in [&mut border, &mut between] {
                for _ in 0..wanted / 3 {
                    if !list.is_empty() {
                        points.insert(whole(list.swap_remove(random.below(list.len() as u64) as usize)));
                    }
                }
            }
            while points.len() < wanted && !lossy.is_empty() {
                let entries = lossy[random.below(lossy.len() as u64) as usize];
                points.insert(Point { entries, lost: Some(random.below(1 << 40)) });
            }
        }
        points.into_iter().collect()
    }

    /// The entry after the power loss, or the one before it, is a flush or forced.
    fn at_border(&self, entries: usize) -> bool {
        let is = |index: usize| {
            self.log.entries.get(index).is_some_and(|entry| entry.is_flush() || entry.is_forced())
        };
        is(entries) || entries > 0 && is(entries - 1)
    }

    /// The last flush before the point: what came before it cannot be lost.
    fn boundary(&self, entries: usize) -> usize {
        self.log.entries[..entries].iter().rposition(crate::log::Entry::is_flush).unwrap_or(0)
    }

    /// Makes the scratch device from the durable state; what identifies its content.
    fn lay_out(&self, base: &Device, durable: usize, point: Point) -> (usize, u64) {
        let mut device = base.copy(&self.scratch);
        let mut random = point.lost.map(Random::new);
        let mut kept = 0_u64;
        for index in durable..point.entries {
            let forced = self.log.entries[index].is_forced();
            self.apply(&mut device, index, &mut |piece| {
                let keep = forced || random.as_mut().is_none_or(|random| random.below(2) == 0);
                if keep {
                    kept = (kept ^ (index as u64) << 20 ^ piece).wrapping_mul(0x0100_0000_01b3);
                }
                keep
            });
        }
        let before = self.log.entries[..durable].iter().filter(|entry| entry.length > 0).count();
        (before, kept)
    }

    /// Writes an entry's pages, those that are kept.
    fn apply(&self, device: &mut Device, index: usize, keep: &mut dyn FnMut(u64) -> bool) {
        let entry = &self.log.entries[index];
        assert!(!entry.is_discard(), "a file system that discards is not thought of here");
        if entry.is_write() {
            for (piece, bytes) in (0..).zip(self.log.data(entry).chunks(PAGE as usize)) {
                if keep(piece) {
                    device.write(entry.offset + piece * PAGE, bytes);
                }
            }
        }
    }

    /// What was acknowledged last, and what the next acknowledged step makes of it.
    fn states(&self, entries: usize) -> ([&State; 2], Option<String>) {
        let mark = self.log.entries[..entries].iter().rev().find_map(|entry| entry.mark).unwrap() as usize;
        let before = &self.marks[mark - 1];
        assert_eq!(before.number as usize, mark, "a mark is missing in the journal");
        match self.marks.get(mark) {
            Some(after) => ([&before.state, &after.state], Some(after.done.clone())),
            None => ([&before.state; 2], None),
        }
    }

    fn judge(&self, what: &str, states: [&State; 2], known: &mut HashSet<u64>, counts: &mut Counts) {
        if let Err(error) = self.mount() {
            counts.unmountable.push(format!("{what}: {error}"));
            return;
        }
        let judged = catch_unwind(AssertUnwindSafe(|| self.visit(states, known)));
        self.unmount();
        match judged {
            Ok(seen) => counts.add(seen),
            Err(_) => counts.failures.push(what.to_owned()),
        }
    }

    fn visit(&self, states: [&State; 2], known: &mut HashSet<u64>) -> Seen {
        let store = store("next");
        for repo in REPOS {
            store.connect_storage_repository(repo, "localfs-1.0", &at(&self.mount.join(repo))).unwrap();
        }
        let seen = judge::all(&self.mount, &store, states, known);
        store.close().unwrap();
        seen
    }

    /// The same place judged as if it were later: a judge that finds nothing wrong then is worth nothing.
    fn control(&self, entries: usize, counts: &mut Counts) {
        let mark = self.log.entries[..entries].iter().rev().find_map(|entry| entry.mark).unwrap() as usize;
        let Some(later) = self.marks.get(mark + AHEAD) else { return };
        if self.mount().is_err() {
            return;
        }
        counts.controls += 1;
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(|_| {}));
        let judged = catch_unwind(AssertUnwindSafe(|| self.visit([&later.state; 2], &mut HashSet::new())));
        std::panic::set_hook(hook);
        self.unmount();
        counts.caught += usize::from(judged.is_err());
    }

    fn mount(&self) -> Result<(), String> {
        let options = if self.kind == "xfs" { "loop,nouuid" } else { "loop" };
        let output = Command::new("mount")
            .args(["-t", &self.kind, "-o", options])
            .arg(&self.scratch)
            .arg(&self.mount)
            .output()
            .expect("mount");
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }

    fn unmount(&self) {
        let status = Command::new("umount").arg(&self.mount).status().expect("umount");
        assert!(status.success(), "umount {}", self.mount.display());
    }
}

impl Counts {
    fn add(&mut self, seen: Seen) {
        self.total.broken += seen.broken;
        self.total.early += seen.early;
        self.total.fixes += seen.fixes;
        self.total.checked += seen.checked;
        self.total.leaks += seen.leaks;
        self.fixed += usize::from(seen.fixes > 0);
    }

    fn print(&self, kind: &str, start: Instant) -> bool {
        let seconds = start.elapsed().as_secs_f64();
        let Seen { broken, early, fixes, checked, leaks } = self.total;
        println!(
            "{kind}: {} points, {} distinct: {} at flushes, {} between, {} with losses; Linux {}, {seconds:.1} s",
            self.points,
            self.distinct.len(),
            self.at_flush,
            self.between,
            self.with_loss,
            release()
        );
        println!("{kind}: under way: {:?}", self.under_way);
        println!(
            "{kind}: {fixes} fixes at {} points, {broken} images broken before, {early} that no call had returned, \
             qemu-img checked {checked} files ({leaks} with leaks)",
            self.fixed
        );
        println!(
            "{kind}: controls: {} of {} judged as if later were found wrong",
            self.caught, self.controls
        );
        for line in self.unmountable.iter().chain(&self.failures) {
            println!("{kind}: FAILED {line}");
        }
        let fixed = self.fixed > 0 || self.points < MANY;
        let seen = self.points > 0 && self.distinct.len() > 1 && fixed && checked > 0;
        let sharp = self.controls > 0 && self.caught == self.controls;
        let passed = seen && sharp && self.failures.is_empty() && self.unmountable.is_empty();
        println!("{kind}: {}", if passed { "passed" } else { "FAILED" });
        passed
    }
}

/// The kernel that mounted what was left.
fn release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .map_or_else(|_| "?".to_owned(), |text| text.trim().to_owned())
}

/// A file that stands for the device, and which of its pages are not zero.
struct Device {
    file: File,
    pages: BTreeSet<u64>,
}

impl Device {
    fn new(path: &Path) -> Device {
        let _ = fs::remove_file(path);
        let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
        file.set_len(SIZE).unwrap();
        Device { file, pages: BTreeSet::new() }
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let pages = offset / PAGE..(offset + bytes.len() as u64).div_ceil(PAGE);
        // What is a hole stays one as long as nothing is written there.
        if bytes.iter().any(|byte| *byte != 0) || pages.clone().any(|page| self.pages.contains(&page)) {
            self.file.write_all_at(bytes, offset).unwrap();
            self.pages.extend(pages);
        }
    }

    /// All of it, holes left out.
    fn copy(&self, path: &Path) -> Device {
        let copy = Device { pages: self.pages.clone(), ..Device::new(path) };
        let mut page = vec![0; PAGE as usize];
        for number in &self.pages {
            self.file.read_exact_at(&mut page, number * PAGE).unwrap();
            copy.file.write_all_at(&page, number * PAGE).unwrap();
        }
        copy
    }
}

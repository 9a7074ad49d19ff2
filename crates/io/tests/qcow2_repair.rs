//! Repair: against QEMU's on damaged images of every kind, and through power cuts.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::images::{self, Made};
use common::{Random, run, scratch, storage_of};
use vdsmstore_io::qcow2::{self, Finding, Part, Problem, Repair, Report};
use vdsmstore_io::{Device, FileDevice, Format, Image, ImageOptions, Layer, Power, SimDevice, SimStorage};

const BLOCK: u64 = 4096;
const COPIED: u64 = 1 << 63;

fn qemu_status(path: &Path, repair: Option<&str>) -> Option<i32> {
    let mut arguments = vec!["check", "-q", "-f", "qcow2"];
    arguments.extend(repair.iter().flat_map(|how| ["-r", *how]));
    arguments.push(path.to_str().unwrap());
    run("qemu-img", &arguments).status.code()
}

/// What the disk reads as, block by block; `None`: it cannot be read.
fn content(device: Arc<dyn Device>, beside: &Path) -> Vec<Option<Vec<u8>>> {
    let Ok(info) = qcow2::info(&*device) else { return Vec::new() };
    let open = |what: &str| -> Option<Arc<dyn Device>> {
        let path = beside.with_file_name(format!("{}.{what}", beside.file_name()?.to_str()?));
        path.exists().then(|| Arc::new(FileDevice::open(&path, false).unwrap()) as Arc<dyn Device>)
    };
    let mut layers = vec![Layer { device, format: Format::Qcow2, size: info.size }];
    if let Some(device) = open("backing") {
        let size = device.len().unwrap();
        layers.push(Layer { device, format: Format::Raw, size });
    }
    let data = if info.data_file { open("data") } else { None };
    let data: Vec<_> = data.into_iter().map(|device| (0, device)).collect();
    let options = ImageOptions { data_files: &data, ..ImageOptions::default() };
    let Ok(image) = Image::open_with(layers, &options) else { return Vec::new() };
    (0..image.size().min(8 << 20).div_ceil(BLOCK))
        .map(|number| {
            let at = number * BLOCK;
            let mut bytes = vec![0; BLOCK.min(image.size() - at) as usize];
            image.read(at, &mut bytes).ok().map(|()| bytes)
        })
        .collect()
}

/// What could be read before is read again.
fn assert_same_content(what: &str, before: &[Option<Vec<u8>>], after: &[Option<Vec<u8>>]) {
    for (number, block) in before.iter().enumerate().filter(|(_, block)| block.is_some()) {
        let same = after.get(number).is_some_and(|after| after == block);
        assert!(same, "{what}: the disk has changed at block {number}");
    }
}

/// Small images of every kind: copying them is what takes long.
fn make_small(directory: &Path) -> Vec<Made> {
    images::make_all(directory).into_iter().filter(|made| !made.name.contains("2m")).collect()
}

fn damage(bytes: &mut [u8], places: &[usize], random: &mut Random) -> String {
    let mut what = String::new();
    for _ in 0..=random.below(3) {
        let at = (places[random.below(places.len() as u64) as usize] & !7) + random.below(8) as usize;
        let at = at.min(bytes.len() - 1);
        let mask = 1 << random.below(8);
        bytes[at] ^= mask;
        write!(what, " {at:#x}^{mask:#x}").unwrap();
    }
    what
}

#[test]
fn what_qemu_repairs_is_repaired() {
    let cases = if common::effort() > 1 { 3000 } else { 120 };
    let next = AtomicU64::new(0);
    let tally = Mutex::new(BTreeMap::<&str, u64>::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let (_keep, directory) = scratch();
                let made = make_small(&directory);
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= cases {
                        break;
                    }
                    let class = repair_both_ways(&made, seed);
                    *tally.lock().unwrap().entry(class).or_default() += 1;
                }
            });
        }
    });
    let tally = tally.into_inner().unwrap();
    println!("{tally:?}");
    assert_eq!(tally.values().sum::<u64>(), cases);
    assert!(tally["repaired by both"] > cases / 10, "{tally:?}");
}

fn repair_both_ways(made: &[Made], seed: u64) -> &'static str {
    let mut random = Random::new(seed + 1);
    let made = &made[random.below(made.len() as u64) as usize];
    let mut bytes = std::fs::read(&made.path).unwrap();
    // The names in the header stay as they are.
    let places: Vec<usize> =
        (0..bytes.len()).filter(|at| bytes[*at] != 0 && !(112..1024).contains(at)).collect();
    let what = format!("seed {seed}, {}:{}", made.name, damage(&mut bytes, &places, &mut random));
    let (how, name) = if random.below(3) == 0 { (Repair::Leaks, "leaks") } else { (Repair::All, "all") };
    let (ours, theirs) = (made.path.with_extension("ours"), made.path.with_extension("theirs"));
    std::fs::write(&ours, &bytes).unwrap();
    std::fs::write(&theirs, &bytes).unwrap();

    let damaged = qemu_status(&theirs, None);
    qemu_status(&theirs, Some(name));
    let their_status = qemu_status(&theirs, None);
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&ours, true).unwrap());
    let before = content(Arc::clone(&device), &made.path);
    let repaired = qcow2::repair(&*device, how);
    let after = content(Arc::clone(&device), &made.path);
    assert_same_content(&what, &before, &after);
    let our_status = qemu_status(&ours, None);
    // With bitmaps and internal snapshots, QEMU loses all of the latter when it opens an image for repair.
    let snapshots = |path: &Path| {
        let mut start = vec![0; 512];
        std::fs::File::open(path).unwrap().read_exact_at(&mut start, 0).unwrap();
        Target(start).be32(60)
    };
    let lost = snapshots(&theirs) == 0 && snapshots(&ours) > 0;
    // What we leave alone and QEMU does not: tables that share their clusters, and entries of the snapshot table that
    // nobody can understand.
    let left = repaired.as_ref().is_ok_and(|report| {
        let unreadable =
            |finding: &Finding| matches!(finding.problem, Problem::Unreadable { part: Part::Snapshots, .. });
        report.overlaps > 0 || report.findings.iter().any(unreadable)
    });
    if their_status == Some(0) && !lost && !left {
        assert_eq!(our_status, Some(0), "{what} -r {name}: {repaired:?}");
    }
    if let Ok(report) = &repaired {
        let expected = match report {
            Report { check_errors: 1.., .. } => 1,
            Report { corruptions: 1.., .. } => 2,
            Report { leaks: 1.., .. } => 3,
            _ => 0,
        };
        assert_eq!(our_status, Some(expected), "{what} -r {name}: {report:?}");
        assert!(report.corruptions > 0 || report.check_errors > 0 || !report.dirty, "{what}");
        // A second time changes nothing.
        let bytes = std::fs::read(&ours).unwrap();
        let again = qcow2::repair(&*device, how).unwrap();
        let same = std::fs::read(&ours).unwrap() == bytes;
        assert!(same, "{what} -r {name}: it goes on repairing: {report:?} {again:?}");
    }
    match (damaged, their_status, our_status) {
        _ if lost => "QEMU loses the snapshots",
        (Some(0), _, _) => "nothing to repair",
        (_, Some(0), Some(0)) => "repaired by both",
        (_, _, Some(0)) => "repaired by us alone",
        (_, _, _) if repaired.is_err() => "not to be read",
        _ => "repaired by neither",
    }
}

/// An image as bytes, for damage that is aimed at.
struct Target(Vec<u8>);

impl Target {
    fn be32(&self, at: u64) -> u64 {
        u64::from(u32::from_be_bytes(self.0[at as usize..][..4].try_into().unwrap()))
    }

    fn be64(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.0[at as usize..][..8].try_into().unwrap())
    }

    fn put64(&mut self, at: u64, value: u64) {
        self.0[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
    }

    fn cluster(&self) -> u64 {
        1 << self.be32(20)
    }

    fn reftable(&self) -> u64 {
        self.be64(48)
    }

    /// Where the 16-bit refcount of that cluster lies.
    fn refcount_at(&self, cluster: u64) -> usize {
        let per_block = self.cluster() / 2;
        (self.be64(self.reftable() + cluster / per_block * 8) + cluster % per_block * 2) as usize
    }

    fn set_refcount(&mut self, cluster: u64, count: u16) {
        let at = self.refcount_at(cluster);
        self.0[at..at + 2].copy_from_slice(&count.to_be_bytes());
    }

    fn refcount(&self, cluster: u64) -> u16 {
        u16::from_be_bytes(self.0[self.refcount_at(cluster)..][..2].try_into().unwrap())
    }

    /// Where the entries of the disk's L2 tables lie that are not 0, and what they are.
    fn entries(&self) -> Vec<(u64, u64)> {
        let (l1, count) = (self.be64(40), self.be32(36));
        let tables = (0..count).map(|index| self.be64(l1 + index * 8) & 0x00ff_ffff_ffff_fe00);
        let tables = tables.filter(|table| *table != 0 && *table < self.0.len() as u64);
        let entries = tables.flat_map(|table| (0..self.cluster() / 8).map(move |index| table + index * 8));
        entries.map(|at| (at, self.be64(at))).filter(|(_, entry)| *entry != 0).collect()
    }

    /// Those of clusters with a place of their own.
    fn clusters(&self) -> Vec<(u64, u64)> {
        let mut entries = self.entries();
        entries.retain(|(_, entry)| entry >> 62 & 1 == 0 && entry & 0x00ff_ffff_ffff_fe00 != 0);
        entries
    }
}

/// Damage that can be repaired.
type Damage = (&'static str, &'static str, fn(&mut Target));

const DAMAGES: &[Damage] = &[
    ("a leak", "v3-4k", |t| {
        let end = t.0.len() as u64;
        t.0.resize((end + 3 * t.cluster()) as usize, 0);
        for cluster in 0..3 {
            t.set_refcount(end / t.cluster() + cluster, cluster as u16 + 1);
        }
    }),
    ("refcounts too large", "v3-4k", |t| {
        for (_, entry) in t.clusters().iter().take(20) {
            t.set_refcount((entry & 0x00ff_ffff_ffff_fe00) / t.cluster(), 3);
        }
    }),
    ("refcounts too small", "snapshots-4k", |t| {
        for cluster in 0..t.0.len() as u64 / t.cluster() {
            t.set_refcount(cluster, t.refcount(cluster).saturating_sub(1));
        }
    }),
    ("no block", "v3-4k", |t| t.put64(t.reftable(), 0)),
    ("a block outside", "v3-4k", |t| t.put64(t.reftable(), 1 << 40)),
    ("a block that is not aligned", "snapshots-4k", |t| t.put64(t.reftable(), t.be64(t.reftable()) + 512)),
    ("a block on a table", "v3-4k", |t| t.put64(t.reftable(), t.be64(40))),
    ("reserved bits of a block", "v3-4k", |t| t.put64(t.reftable(), t.be64(t.reftable()) | 1)),
    ("a refcount table on the L1 table", "v3-4k", |t| t.put64(48, t.be64(40))),
    ("a refcount table outside", "v3-4k", |t| t.put64(48, 1 << 40)),
    ("marks missing", "v3-4k", |t| {
        for (at, entry) in t.clusters() {
            t.put64(at, entry & !COPIED);
        }
        let l1 = t.be64(40);
        t.put64(l1, t.be64(l1) & !COPIED);
    }),
    ("marks too many", "snapshots-4k", |t| {
        for (at, entry) in t.clusters() {
            t.put64(at, entry | COPIED);
        }
    }),
    ("a cluster used twice", "v3-4k", |t| {
        let clusters = t.clusters();
        let to = clusters[1].1;
        t.put64(clusters[0].0, to);
    }),
    ("marks of compressed clusters", "deflate-4k", |t| {
        let packed: Vec<_> = t.entries().into_iter().filter(|(_, entry)| entry >> 62 & 1 == 1).collect();
        assert!(!packed.is_empty());
        for (at, entry) in packed {
            t.put64(at, entry | COPIED);
        }
    }),
    ("places of zeroes that are none", "v3-4k", |t| {
        let zeroes: Vec<_> = t.clusters().into_iter().filter(|(_, entry)| entry & 1 == 1).collect();
        assert!(!zeroes.is_empty());
        for (at, entry) in zeroes {
            t.put64(at, entry | 512);
        }
    }),
    ("incomplete snapshots", "deflate-4k", |t| {
        let at = t.be64(64) as usize;
        t.0[at + 36..at + 40].copy_from_slice(&8u32.to_be_bytes());
    }),
    ("left open", "dirty", |_| {}),
    ("marked as corrupt", "v3-4k", |t| t.put64(72, t.be64(72) | 2)),
    ("bitmaps in use", "bitmaps-in-use", |_| {}),
];

fn damaged(directory: &Path, (name, kind, damage): &Damage) -> Vec<u8> {
    // Tables that are changed must fit 16-bit refcounts.
    let kind = if *kind == "snapshots-4k" { "deflate-4k" } else { kind };
    let path = directory.join(kind);
    if !path.exists() {
        images::make_one(directory, kind);
    }
    let mut target = Target(std::fs::read(&path).unwrap());
    let before = target.0.clone();
    damage(&mut target);
    assert!(target.0 != before || matches!(*name, "left open" | "bitmaps in use"), "{name}");
    target.0
}

#[test]
fn aimed_damage_is_repaired() {
    let (_keep, directory) = scratch();
    let mut rebuilt = 0;
    for case in DAMAGES {
        let (name, kind, _) = case;
        let bytes = damaged(&directory, case);
        let path = directory.join("damaged");
        std::fs::write(&path, &bytes).unwrap();
        let device: Arc<dyn Device> = Arc::new(FileDevice::open(&path, true).unwrap());
        let found = qcow2::check(&*device).unwrap();
        assert!(
            !found.is_clean() || found.dirty || found.marked_corrupt || found.bitmaps_in_use > 0,
            "{name}"
        );
        let before = content(Arc::clone(&device), &path);
        let report = qcow2::repair(&*device, Repair::All).unwrap();
        assert!(report.is_clean(), "{name} {kind}: {report:?}");
        assert!(!report.dirty && !report.marked_corrupt && report.bitmaps_in_use == 0, "{name}: {report:?}");
        assert_eq!(
            (report.corruptions_fixed, report.leaks_fixed >= found.leaks),
            (found.corruptions, true),
            "{name}"
        );
        assert_eq!(qemu_status(&path, None), Some(0), "{name}");
        assert_same_content(name, &before, &content(Arc::clone(&device), &path));
        rebuilt += u64::from(Target(std::fs::read(&path).unwrap()).reftable() != Target(bytes).reftable());
    }
    assert!(rebuilt >= 7, "{rebuilt}");
}

#[test]
fn bitmaps_that_were_in_use_mark_everything() {
    let (_keep, directory) = scratch();
    let made = images::make_one(&directory, "bitmaps-in-use");
    let device = FileDevice::open(&made.path, true).unwrap();
    assert_eq!(qcow2::bitmaps(&device).unwrap().iter().filter(|bitmap| !bitmap.consistent).count(), 1);
    qcow2::repair(&device, Repair::Leaks).unwrap();
    assert!(!qcow2::bitmaps(&device).unwrap()[0].consistent, "leaks are all that was to be repaired");
    qcow2::repair(&device, Repair::All).unwrap();
    let mut marked = Vec::new();
    qcow2::visit_bitmap(&device, "one", &mut |offset, length| {
        marked.push((offset, length));
        Ok(())
    })
    .unwrap();
    assert_eq!(marked, [(0, 4 << 20)]);
    // QEMU believes it.
    let info = common::qemu("qemu-img", &["info", "--output=json", made.path.to_str().unwrap()]);
    let bitmaps = info.split_once("\"bitmaps\"").unwrap().1;
    assert!(bitmaps.contains("auto") && !bitmaps.contains("in-use"), "{info}");
}

#[test]
fn what_cannot_be_repaired_stays_readable() {
    let (_keep, directory) = scratch();
    let made = images::make_one(&directory, "v3-4k");
    let mut target = Target(std::fs::read(&made.path).unwrap());
    // A cluster is lost: what its entry referred to must not be given away.
    let entries = target.clusters();
    target.put64(entries[5].0, COPIED | 1 << 40);
    // Beside it something that can be repaired, but not in that table; and a refcount.
    let l1 = target.be64(40);
    let second = target.be64(l1 + 8) & 0x00ff_ffff_ffff_fe00;
    let (at, entry) = *entries.iter().find(|(at, _)| *at >= second && *at < second + 4096).unwrap();
    target.put64(at, entry & !COPIED);
    target.set_refcount((entries[9].1 & 0x00ff_ffff_ffff_fe00) / 4096, 0);
    std::fs::write(&made.path, &target.0).unwrap();
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(&made.path, true).unwrap());
    let found = qcow2::check(&*device).unwrap();
    assert_eq!((found.leaks, found.corruptions), (1, 5), "{found:?}");
    let before = content(Arc::clone(&device), &made.path);
    let report = qcow2::repair(&*device, Repair::All).unwrap();
    assert_eq!((report.leaks, report.corruptions), (1, 2), "{report:?}");
    assert_same_content("lost", &before, &content(device, &made.path));
}

#[test]
fn nothing_is_changed_where_tables_are_doubtful() {
    let (_keep, directory) = scratch();
    let made = images::make_one(&directory, "v3-4k");
    let mut target = Target(std::fs::read(&made.path).unwrap());
    // An L2 table is lost.
    let l1 = target.be64(40);
    target.put64(l1 + 8, 1 << 40);
    let marked = target.clusters()[0];
    target.put64(marked.0, marked.1 & !COPIED);
    std::fs::write(&made.path, &target.0).unwrap();
    let device = FileDevice::open(&made.path, true).unwrap();
    let report = qcow2::repair(&device, Repair::All).unwrap();
    assert!(report.leaks > 0 && report.corruptions > 1, "{report:?}");
    assert!(std::fs::read(&made.path).unwrap() == target.0);
}

/// Clusters with more references than their refcount says, and those whose entries are marked as the only reference
/// though the refcount is another: there a writer would do harm.
fn endangered(report: &Report) -> BTreeSet<u64> {
    let danger = report.findings.iter().filter(|finding| match finding.problem {
        Problem::Refcount { refcount, references } => refcount < references,
        Problem::Copied { entry, .. } => entry & COPIED != 0,
        Problem::Unreadable { .. } => true,
        _ => false,
    });
    danger.map(|finding| finding.offset).collect()
}

#[test]
fn a_power_cut_leaves_nothing_worse() {
    let (_keep, directory) = scratch();
    let (mut states, mut cuts) = (BTreeSet::new(), 0);
    for (number, case) in DAMAGES.iter().enumerate() {
        let (name, ..) = case;
        let bytes = damaged(&directory, case);
        let start = storage_of(&bytes, 1);
        let device = |storage: &Arc<SimStorage>, power: &Arc<Power>| -> Arc<dyn Device> {
            Arc::new(SimDevice::new(Arc::clone(storage), Arc::clone(power), "sim".into(), true))
        };
        let first = qcow2::check(&*device(&start, &Power::new())).unwrap();
        let danger = endangered(&first);
        // Every cluster may be in danger if refcounts cannot be read at all.
        let blind = first.check_errors > 0;
        let before = content(device(&start, &Power::new()), Path::new("none"));
        let mut cut = 0;
        loop {
            let mut random = Random::new(number as u64 * 1000 + cut);
            let mut finished = false;
            for odds in [1, 0, 2, 3] {
                let storage = SimStorage::new(1, 1);
                start.clone_to(&storage);
                storage.crash(&mut || true);
                let power = Power::new();
                power.cut_after(Some(cut));
                let result = qcow2::repair(&*device(&storage, &power), Repair::All);
                finished = result.is_ok();
                assert!(finished || power.is_off(), "{name}: {result:?}");
                storage.crash(&mut || odds == 1 || (odds > 0 && random.below(odds) == 0));
                let power = Power::new();
                let after = device(&storage, &power);
                let report = qcow2::check(&*after).unwrap();
                let now = endangered(&report);
                assert!(blind || now.is_subset(&danger), "{name}, cut {cut}: {danger:x?} {now:x?}");
                assert_same_content(name, &before, &content(Arc::clone(&after), Path::new("none")));
                let again = qcow2::repair(&*after, Repair::All).unwrap();
                assert!(again.is_clean(), "{name}, cut {cut}: {again:?}");
                states.insert((number, report.corruptions, report.leaks, report.check_errors));
                cuts += u64::from(!finished);
            }
            if finished {
                break;
            }
            cut += 1;
        }
        assert!(cut > 0, "{name}: nothing was written");
    }
    println!("{cuts} cuts, {} states", states.len());
    assert!(states.len() > 2 * DAMAGES.len(), "{}", states.len());
}

#[test]
fn a_file_that_cannot_be_written_is_left() {
    let (_keep, directory) = scratch();
    let bytes = damaged(&directory, &DAMAGES[0]);
    let path = directory.join("damaged");
    std::fs::write(&path, &bytes).unwrap();
    let device = FileDevice::open(&path, false).unwrap();
    assert_eq!(qcow2::repair(&device, Repair::All).unwrap_err().kind(), vdsmstore_io::ErrorKind::ReadOnly);
    let mut now = vec![0; bytes.len()];
    device.file().read_exact_at(&mut now, 0).unwrap();
    assert!(now == bytes);
}

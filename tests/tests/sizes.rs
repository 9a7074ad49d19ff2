//! Disks that are longer or shorter than what they are built on, or than their volumes: after a merge or a growth they show
//! zeroes where they did, by our reading and QEMU's, and after a power cut.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::field_reassign_with_default,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "crash/scene.rs"]
mod simulated;

use serde_json::Value;
use vdsmstore_core::id::VolumeId;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CopyOptions, CreateOptions, FixOptions, RemoveOptions, ResizeOptions,
};
use vdsmstore_core::repository::{Access, Read, RecordKey};
use vdsmstore_core::sim::SimWorld;
use vdsmstore_core::{FixType, Store};
use vdsmstore_io::{Format, Image, Layer};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::qemu::qemu_io_works;
use vdsmstore_tests::scene::{MIB, SIZE, Scene, bytes};
use vdsmstore_tests::{PATIENCE, prepared, run, write};

use simulated::{host, join, pattern};

const CLUSTER: usize = 64 << 10;

/// On `base`, which is 4 MiB of ones, `short`, a snapshot of the first MiB with a cluster of twos, and maybe some zeroes, and on
/// that `disk`, which is longer than `short`.
struct Chain {
    scene: Scene,
    base: String,
    short: String,
    disk: String,
    data: Vec<u8>,
}

fn remove(store: &Store, id: &str) {
    let options = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    store.remove_image("A", id, &options).unwrap();
}

impl Chain {
    /// `overlay`: the base is itself a qcow2 that is built on something. `size`: of the disk.
    fn new(overlay: bool, size: i64) -> Chain {
        Chain::above(overlay, SIZE, MIB, size)
    }

    /// `long`: how much a program saw, and wrote, of the base's volume; `short`: what the snapshot was grown to.
    fn above(overlay: bool, long: i64, short: i64, size: i64) -> Chain {
        let beyond = long;
        let scene = Scene::new();
        let store = &scene.store;
        let long = scene.create("A", Some(SIZE), None, &CreateOptions::default());
        if overlay {
            scene.snapshot("A", &long);
        }
        let all = bytes(1, SIZE as usize / CLUSTER);
        write(store, "A", &long, |image| image.write(0, &all));
        if beyond > SIZE {
            write_beyond(&scene, &long, SIZE, beyond);
        }
        let base = scene.snapshot("A", &long);
        remove(store, &long);
        // It stores what it has that the base has not.
        let source = scene.create("A", Some(MIB), None, &CreateOptions::default());
        let mut data = all[..MIB as usize].to_vec();
        data[..CLUSTER].fill(2);
        write(store, "A", &source, |image| image.write(0, &data));
        let disk = scene.copy("A", &source, Some(&base), &CopyOptions::default());
        remove(store, &source);
        let grow = |size| store.resize_virtual_disk("A", &disk, size, &ResizeOptions::default()).unwrap();
        grow(short);
        let short = scene.snapshot("A", &disk);
        grow(size);
        data.resize(size as usize, 0);
        let mut chain = Chain { scene, base, short, disk, data };
        chain.fix(FixType::Clean);
        chain.holds();
        chain.write(CLUSTER, 1);
        chain
    }

    fn write(&mut self, from: usize, clusters: usize) {
        let data = vec![3; clusters * CLUSTER];
        write(&self.scene.store, "A", &self.disk, |image| image.write(from as i64, &data));
        self.data[from..from + data.len()].fill(3);
    }

    fn holds(&self) {
        self.scene.holds("A", &self.disk, &self.data);
    }

    fn fix(&self, kind: FixType) -> usize {
        let store = &self.scene.store;
        let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
        let wanted = fixes.iter().filter(|fix| fix.fix_type == kind);
        let run = |fix| {
            let task = store.fix_storage_repository("A", fix, &FixOptions::default()).unwrap();
            store.wait_task(&task, Some(PATIENCE)).unwrap();
        };
        wanted.map(run).count()
    }

    fn volumes(&self) -> usize {
        std::fs::read_dir(self.scene.repo("A").join("data")).unwrap().count()
    }
}

/// Upwards: what is below the disk then is longer than what was there before.
#[test]
fn a_disk_that_a_merge_puts_on_a_longer_one() {
    let mut chain = Chain::new(false, 2 * MIB);
    // Most of what is merged is in the disk.
    chain.write(2 * CLUSTER, 12);
    remove(&chain.scene.store, &chain.short);
    assert_eq!(chain.fix(FixType::Merge), 1);
    assert_eq!(chain.volumes(), 2, "the short one is there still");
    chain.holds();
    chain.scene.holds("A", &chain.base, &bytes(1, SIZE as usize / CLUSTER));
    // And when the disk grows further.
    chain.scene.store.resize_virtual_disk("A", &chain.disk, 3 * MIB, &ResizeOptions::default()).unwrap();
    chain.data.resize(3 * MIB as usize, 0);
    chain.holds();
}

/// Downwards, into a volume that is longer than what was seen of it.
#[test]
fn a_disk_that_a_merge_puts_into_a_longer_one() {
    for overlay in [false, true] {
        let chain = Chain::new(overlay, 5 * MIB);
        for id in [&chain.base, &chain.short] {
            remove(&chain.scene.store, id);
        }
        let volumes = chain.volumes();
        assert_eq!(chain.fix(FixType::Merge), 1);
        assert_eq!(chain.volumes(), volumes - 2);
        let format = if overlay { "qcow2" } else { "raw" };
        assert_eq!(chain.scene.format("A", &chain.disk), format, "the wrong direction");
        chain.holds();
    }
}

/// Downwards, into a volume of which programs saw more, and wrote there: who opens the files by their names sees none of that
/// through what is built on the image that stays, and is longer.
#[test]
fn a_disk_above_one_that_a_merge_puts_where_a_program_wrote() {
    for (overlay, short) in [(false, SIZE), (false, 5 * MIB), (true, SIZE), (true, 5 * MIB)] {
        let chain = Chain::above(overlay, 6 * MIB, short, 8 * MIB);
        remove(&chain.scene.store, &chain.base);
        assert_eq!(chain.fix(FixType::Merge), 1);
        let format = if overlay { "qcow2" } else { "raw" };
        assert_eq!(chain.scene.format("A", &chain.short), format, "the wrong direction");
        chain.holds();
    }
}

/// A program makes the volume of a disk longer than the disk, and writes there.
fn write_beyond(scene: &Scene, disk: &str, size: i64, longer: i64) {
    let format = scene.format("A", disk);
    let path = prepared(&scene.store, "A", disk, |prepared| prepared.path.clone());
    run("qemu-img", &["resize", "-q", "-f", &format, &path, &longer.to_string()]);
    let beyond = format!("write -P 0xee {size} {}", longer - size);
    assert!(qemu_io_works(&path, &format, false, &[&beyond]));
}

/// A growth that was broken off left the volume of a disk longer, and a program wrote there. What is built on a snapshot of
/// the disk then, and is longer, has zeroes where the snapshot ends: as an overlay, and as a clone.
#[test]
fn a_disk_on_a_base_whose_volume_is_longer() {
    let clones = can_mount().then(|| Mounted::new("xfs", 512));
    if clones.is_none() {
        println!("not root: no clones are tested");
    }
    for place in [None].into_iter().chain(clones.as_ref().map(Some)) {
        for (size, qcow2) in [(SIZE, false), (SIZE + 512, false), (SIZE, true), (SIZE + 512, true)] {
            let scene = match place {
                None => Scene::new(),
                Some(mounted) => Scene::within(tempfile::tempdir_in(mounted.path()).unwrap()),
            };
            let mut data = bytes(1, 64);
            data.resize(size as usize, 7);
            let disk = scene.create("A", Some(size), None, &CreateOptions::default());
            write(&scene.store, "A", &disk, |image| image.write(0, &data));
            if qcow2 && scene.format("A", &disk) == "raw" {
                scene.snapshot("A", &disk);
            }
            write_beyond(&scene, &disk, size, 6 * MIB);
            let base = scene.snapshot("A", &disk);
            let source = scene.create("A", Some(8 * MIB), None, &CreateOptions::default());
            write(&scene.store, "A", &source, |image| image.write(0, &data));
            let new = scene.create("A", Some(8 * MIB), Some(&base), &CreateOptions::default());
            let copy = scene.copy("A", &source, Some(&base), &CopyOptions::default());
            data.resize(8 * MIB as usize, 0);
            for id in [&new, &copy] {
                scene.holds("A", id, &data);
            }
        }
    }
}

/// The format of an image's volume, its id and length, as recorded, and the length of the image.
fn volume_of(world: &SimWorld, image: &str) -> (Format, VolumeId, u64, u64) {
    let driver = world.connect(host("looker"));
    let document = |key| -> Value {
        serde_json::from_slice(&driver.get(key, Read::Relaxed).unwrap().unwrap().bytes).unwrap()
    };
    let is_it = |key: &RecordKey| matches!(key, RecordKey::Image(id) if id.to_string() == image);
    let image = document(world.records().into_iter().find(is_it).unwrap());
    let id = VolumeId(image["volume"].as_str().unwrap().parse().unwrap());
    let volume = document(RecordKey::Volume(id));
    driver.close().unwrap();
    let format = volume["format"].as_str().unwrap().parse().unwrap();
    (format, id, volume["size"].as_u64().unwrap(), image["size"].as_u64().unwrap())
}

/// A growth that was broken off leaves a volume that is longer than its disk. A program that opens the volume by its path
/// sees all of it, and writes there; when the disk grows, that is not its data.
#[test]
fn a_disk_that_grows_over_what_a_program_wrote_beyond_its_end() {
    let (start, ids) = simulated::scene(false);
    let large = 2 * simulated::SIZE;
    for id in [&ids.copy, &ids.child] {
        let repo = usize::from(id == &ids.copy);
        let grow = |store: &Store| {
            store.resize_virtual_disk(simulated::NAMES[repo], id, large as i64, &ResizeOptions::default())
        };
        let mut longer = 0;
        for steps in 0.. {
            let scene = start.copy();
            let world = &scene.worlds[repo];
            let (store, me) = join(&scene, "first");
            world.power(me.incarnation).cut_after(Some(steps));
            let done = grow(&store).is_ok();
            for world in &scene.worlds {
                world.crash(me.incarnation, &mut || true);
            }
            if done {
                break;
            }
            let (format, volume, length, size) = volume_of(world, id);
            if length == size {
                continue;
            }
            longer += 1;
            let what = format!("{format:?}, stopped after {steps} steps");
            let program = world.connect(host("program"));
            let device = program.open_volume(volume, Access::Lease).unwrap().device;
            // Of a qcow2 only its own layer: what is below does not reach that far.
            let image = Image::open(vec![Layer { device, format, size: length }], true);
            // It has a name of something below in its header, which is not needed to write whole clusters.
            let image = image.unwrap();
            image.write(size, &vec![0xee; (length - size) as usize]).unwrap();
            image.flush().unwrap();
            drop(image);
            program.close().unwrap();
            let (store, me) = join(&scene, "second");
            grow(&store).unwrap();
            let judge = |when: &str| {
                let (store, _) = join(&scene, "judge");
                let image = store.open_image(simulated::NAMES[repo], id, false).unwrap();
                let mut data = vec![0xaa; image.size().unwrap() as usize];
                image.read(0, &mut data).unwrap();
                image.close().unwrap();
                let (old, new) = data.split_at(size as usize);
                assert_eq!(data.len() as u64, large, "{what}, {when}");
                assert!(old == pattern(if repo == 1 { 1 } else { 2 }), "{what}, {when}: the old bytes");
                assert!(new.iter().all(|byte| *byte == 0), "{what}, {when}: the new bytes");
                store.close().unwrap();
            };
            judge("before a power cut");
            for world in &scene.worlds {
                world.crash(me.incarnation, &mut || false);
            }
            judge("after a power cut");
        }
        assert!(longer > 0, "no volume was longer than its disk");
        println!("{longer} volumes were longer than their disk");
    }
}

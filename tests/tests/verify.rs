//! Hashes of what is copied: read back, kept with the image, and used by the next difference.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vdsmstore_core::options::{
    AutoFix, Bandwidth, CheckOptions, CopyOptions, CreateOptions, FixOptions, MeasureOptions, RemoveOptions,
    ResizeOptions, WaitOptions,
};
use vdsmstore_core::{ErrorKind, FixType, Status, Store, StoreOptions};
use vdsmstore_io::hash::{Manifest, hash};
use vdsmstore_io::{Control, FileDevice, Format, Image, Layer};
use vdsmstore_tests::mounts::Mounted;
use vdsmstore_tests::records::record;
use vdsmstore_tests::scene::fails;
use vdsmstore_tests::{counted, new_repo, qemu_equal, scratch, settle, store, write};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 160 * MIB + 1536;
/// Of the disk, from its beginning.
const DATA: u64 = 48 * MIB;

/// What this process has read, by the kernel's counts: by calls, and from storage, which io_uring does without such.
fn reads() -> u64 {
    counted(["rchar", "read_bytes"]).iter().sum()
}

fn noise(length: u64, seed: u64) -> Vec<u8> {
    (0..length / 8).flat_map(|n| ((n + seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1).to_le_bytes()).collect()
}

fn verified() -> CopyOptions {
    CopyOptions { verify: true, ..CopyOptions::default() }
}

fn copy(store: &Store, repo: &str, image: &str, base: Option<&str>, options: &CopyOptions) -> String {
    let id = store.copy_image(repo, image, base, "{}", options).unwrap().to_string();
    settle(store, repo, &id);
    id
}

/// The manifest that the record names, read without the engine.
fn kept(repo: &Path, image: &str) -> Option<Manifest> {
    let record = record(repo, "images", image).unwrap();
    let blob = record.get("manifest")?.get("blob")?.as_str()?;
    let path = repo.join("blobs").join(&image[..3]).join(format!("{image}.{blob}"));
    Some(Manifest::decode(&std::fs::read(path).unwrap()).unwrap())
}

/// The manifest of a raw file.
fn hashed(path: &Path) -> Manifest {
    let device = std::sync::Arc::new(FileDevice::open(path, false).unwrap());
    let size = std::fs::metadata(path).unwrap().len();
    let image = Image::open(vec![Layer { device, format: Format::Raw, size }], false).unwrap();
    let control = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };
    hash(&image, &control).unwrap().unwrap()
}

/// Two repositories, a disk in the first, and a raw file that is what it must contain.
struct Place {
    store: Store,
    a: PathBuf,
    b: PathBuf,
    disk: String,
    model: PathBuf,
}

impl Place {
    fn new(root: &Path) -> Place {
        let store = store("here");
        let (a, b) = (new_repo(&store, root, "A"), new_repo(&store, root, "B"));
        let disk = store.create_virtual_disk("A", Some(SIZE as i64), None, "{}", &CreateOptions::default());
        let place = Place { store, a, b, disk: disk.unwrap().to_string(), model: root.join("model") };
        let file = OpenOptions::new().write(true).create(true).truncate(true).open(&place.model).unwrap();
        file.set_len(SIZE).unwrap();
        place.change(0, &noise(DATA, 1));
        place
    }

    fn change(&self, offset: u64, data: &[u8]) {
        let file = OpenOptions::new().write(true).open(&self.model).unwrap();
        file.write_all_at(data, offset).unwrap();
        file.sync_all().unwrap();
        write(&self.store, "A", &self.disk, |image| image.write(offset as i64, data));
    }

    fn holds(&self, repo: &str, image: &str) {
        qemu_equal(&self.store, repo, image, &self.model);
    }
}

fn spares_the_base(root: &Path) {
    let place = Place::new(root);
    let plain = copy(&place.store, "B", &place.disk, None, &CopyOptions::default());
    assert_eq!(kept(&place.b, &plain), None);
    let before = reads();
    let first = copy(&place.store, "B", &place.disk, None, &verified());
    let read = reads() - before;
    assert!((2 * DATA..2 * DATA + 8 * MIB).contains(&read), "read {read}: the source, and what was written");
    assert_eq!(kept(&place.b, &first), Some(hashed(&place.model)));
    place.change(20 * MIB + 4096, &noise(MIB, 2));
    place.change(100 * MIB, &noise(64 << 10, 3));
    // Without hashes both are read, with them the source, and twice and once more what changed.
    for (base, most, least) in [(&plain, u64::MAX, 2 * DATA), (&first, DATA + 16 * MIB, DATA)] {
        let before = reads();
        let second = copy(&place.store, "B", &place.disk, Some(base), &CopyOptions::default());
        let read = reads() - before;
        assert!(read >= least && read <= most, "read {read}, expected {least} to {most}");
        place.holds("B", &second);
        // The copy itself is small.
        assert!(place.store.get_image_info("B", &second).unwrap().allocated < 4 * MIB);
    }
    // The hidden image that the first copy was frozen as has them.
    let below = record(&place.b, "images", &first).unwrap()["volume"].as_str().unwrap().to_owned();
    let below = record(&place.b, "volumes", &below).unwrap()["backing"]["image"].as_str().unwrap().to_owned();
    assert_eq!(kept(&place.b, &below), kept(&place.b, &first));
}

#[test]
fn a_difference_to_a_verified_copy_does_not_read_it() {
    spares_the_base(scratch().path());
}

#[test]
fn a_difference_to_a_verified_copy_does_not_read_it_from_the_disk() {
    let mounted = Mounted::new("ext4", 2048);
    spares_the_base(mounted.path());
}

#[test]
fn hashes_of_what_a_disk_was_are_not_believed() {
    let root = scratch();
    let place = Place::new(root.path());
    let first = copy(&place.store, "B", &place.disk, None, &verified());
    // The base is another one now, and so is the disk, in the same place.
    write(&place.store, "B", &first, |image| image.write(3 * MIB as i64, &noise(MIB, 7)));
    let second = copy(&place.store, "B", &place.disk, Some(&first), &CopyOptions::default());
    place.holds("B", &second);
    assert_eq!(kept(&place.b, &first), None);
    assert!(place.store.check_storage_repository("B", &CheckOptions::default()).unwrap().is_empty());
    // A record that still names them, of another state.
    let third = copy(&place.store, "B", &place.disk, None, &verified());
    let grown = (SIZE + 512) as i64;
    place.store.resize_virtual_disk("B", &third, grown, &ResizeOptions::default()).unwrap();
    place.change(0, &noise(MIB, 8));
    let fourth = copy(&place.store, "B", &place.disk, Some(&third), &verified());
    place.holds("B", &fourth);
    assert_eq!(kept(&place.b, &fourth), Some(hashed(&place.model)));
}

#[test]
fn a_chain_of_verified_differences() {
    let root = scratch();
    let place = Place::new(root.path());
    let mut base: Option<String> = None;
    for night in 0..4_u64 {
        place.change(night * 7 * MIB + 8192, &noise(300 << 10, night));
        place.change((60 + night) * MIB, &vec![0; 64 << 10]);
        let made = copy(&place.store, "B", &place.disk, base.as_deref(), &verified());
        place.holds("B", &made);
        assert_eq!(kept(&place.b, &made), Some(hashed(&place.model)), "night {night}");
        base = Some(made);
    }
}

/// A verified import of the model, and a snapshot of that.
fn imported(place: &Place) -> (String, String) {
    let options = CreateOptions { verify: true, ..CreateOptions::default() };
    let path = place.model.to_str().unwrap();
    let disk = place.store.import_image("A", path, "raw", "{}", &options).unwrap().to_string();
    settle(&place.store, "A", &disk);
    let made = place.store.create_snapshot("A", &disk, "{}", &CreateOptions::default()).unwrap().to_string();
    settle(&place.store, "A", &made);
    (disk, made)
}

#[test]
fn an_import_whose_file_ends_anywhere() {
    let root = scratch();
    let place = Place::new(root.path());
    let file = OpenOptions::new().write(true).open(&place.model).unwrap();
    file.set_len(SIZE - 777).unwrap();
    file.write_all_at(&[1, 2, 3], SIZE - 780).unwrap();
    let (disk, snapshot) = imported(&place);
    file.set_len(SIZE.next_multiple_of(512) - 512).unwrap();
    let expected = hashed(&place.model);
    assert_eq!((kept(&place.a, &disk), kept(&place.a, &snapshot)), (Some(expected.clone()), Some(expected)));
    place.holds("A", &snapshot);
}

/// Bytes of the snapshot's volume that the engine did not write.
fn damage(place: &Place, image: &str) -> impl Fn() {
    let volume = record(&place.a, "images", image).unwrap()["volume"].as_str().unwrap().to_owned();
    let file = OpenOptions::new().read(true).write(true).open(place.a.join("data").join(volume)).unwrap();
    move || {
        let mut byte = [0];
        file.read_exact_at(&mut byte, 5 * MIB + 3).unwrap();
        file.write_all_at(&[!byte[0]], 5 * MIB + 3).unwrap();
        file.sync_all().unwrap();
    }
}

#[test]
fn a_copy_of_what_is_not_what_its_hashes_say() {
    let root = scratch();
    let place = Place::new(root.path());
    let (_, snapshot) = imported(&place);
    let flip = damage(&place, &snapshot);
    flip();
    let options = CopyOptions { task_id: Some("copies".to_owned()), ..CopyOptions::default() };
    place.store.copy_image("B", &snapshot, None, "{}", &options).unwrap();
    let error = fails(ErrorKind::VerificationFailed, place.store.wait_task("copies", None));
    assert_eq!(error.details()["offset"], 5 * MIB, "{error:?}");
    let status = place.store.get_image_status("B", &snapshot).unwrap();
    assert_eq!(status.status, Status::Broken);
    assert!(status.last_error.unwrap().contains("hashes"));
    // Once it is what it was, any host completes it.
    flip();
    let fixes = place.store.check_storage_repository("B", &CheckOptions::default()).unwrap();
    let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    place.store.fix_storage_repository("B", mend, &FixOptions::default()).unwrap();
    settle(&place.store, "B", &snapshot);
    place.holds("B", &snapshot);
    assert_eq!(kept(&place.b, &snapshot), kept(&place.a, &snapshot), "they are carried over");
}

/// Somebody damages what was written before it is read back.
#[test]
fn what_does_not_read_back_as_it_was_written() {
    let root = scratch();
    let place = Place::new(root.path());
    let options = CopyOptions {
        bandwidth: Some(Bandwidth(16 << 20)),
        task_id: Some("copies".to_owned()),
        ..verified()
    };
    let id = place.store.copy_image("B", &place.disk, None, "{}", &options).unwrap().to_string();
    let volume = record(&place.b, "images", &id).unwrap()["volume"].as_str().unwrap().to_owned();
    let path = place.b.join("data").join(volume);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut byte = [0];
    // It is read back once a second, and begins with other bytes than zeroes.
    while byte == [0] {
        assert!(Instant::now() < deadline);
        if let Ok(file) = OpenOptions::new().read(true).write(true).open(&path)
            && file.read_at(&mut byte, 0).unwrap() == 1
            && byte != [0]
        {
            file.write_all_at(&[!byte[0]], 0).unwrap();
            file.sync_all().unwrap();
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = fails(ErrorKind::VerificationFailed, place.store.wait_task("copies", None));
    assert_eq!(
        (&error.details()["offset"], &error.details()["length"]),
        (&0.into(), &65536.into()),
        "{error:?}"
    );
    assert_eq!(place.store.get_image_status("B", &id).unwrap().status, Status::Broken);
    let fixes = place.store.check_storage_repository("B", &CheckOptions::default()).unwrap();
    let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    let faster = FixOptions { bandwidth: Some(Bandwidth(1 << 40)), ..FixOptions::default() };
    place.store.fix_storage_repository("B", mend, &faster).unwrap();
    settle(&place.store, "B", &id);
    place.holds("B", &id);
}

/// A snapshot whose data is lost is mended from elsewhere, but not with other data.
#[test]
fn a_mend_is_held_against_the_hashes() {
    let root = scratch();
    let place = Place::new(root.path());
    let (disk, snapshot) = imported(&place);
    copy(&place.store, "B", &snapshot, None, &CopyOptions::default());
    place.store.remove_image("A", &disk, &RemoveOptions::default()).unwrap();
    let flip = damage(&place, &snapshot);
    flip();
    // The image in B loses its data.
    let volume = record(&place.b, "images", &snapshot).unwrap()["volume"].as_str().unwrap().to_owned();
    std::fs::remove_file(place.b.join("data").join(&volume)).unwrap();
    let mend = |name: &str| {
        let fixes = place.store.check_storage_repository("B", &CheckOptions::default()).unwrap();
        let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
        let options = FixOptions { task_id: Some(name.to_owned()), ..FixOptions::default() };
        place.store.fix_storage_repository("B", mend, &options).unwrap();
        place.store.wait_task(name, None)
    };
    fails(ErrorKind::VerificationFailed, mend("first"));
    flip();
    mend("second").unwrap();
    place.holds("B", &snapshot);
}

#[test]
fn a_verified_copy_that_is_stopped_and_gone_on_with() {
    let root = scratch();
    let place = Place::new(root.path());
    let bandwidth = Some(Bandwidth(8 << 20));
    let options = CopyOptions { bandwidth, ..verified() };
    let id = place.store.copy_image("B", &place.disk, None, "{}", &options).unwrap().to_string();
    let deadline = Instant::now() + Duration::from_mins(1);
    while place.store.list_tasks().unwrap().iter().all(|task| task.bytes_done < 10 * MIB) {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(20));
    }
    place.store.stop_image_task("B", &id).unwrap();
    assert_eq!(place.store.get_image_status("B", &id).unwrap().status, Status::Broken);
    let other = Store::new(StoreOptions::default()).unwrap();
    for (name, path) in [("A", &place.a), ("B", &place.b)] {
        other.connect_storage_repository(name, "localfs-1.0", &vdsmstore_tests::at(path)).unwrap();
    }
    let fixes = other.check_storage_repository("B", &CheckOptions::default()).unwrap();
    let mend = fixes.iter().find(|fix| fix.fix_type == FixType::Mend).unwrap();
    let faster = FixOptions { bandwidth: Some(Bandwidth(1 << 40)), ..FixOptions::default() };
    other.fix_storage_repository("B", mend, &faster).unwrap();
    other.wait_image("B", &id, None, &WaitOptions::default()).unwrap();
    assert_eq!(kept(&place.b, &id), Some(hashed(&place.model)));
    qemu_equal(&other, "B", &id, &place.model);
}

#[test]
fn what_it_costs_is_measured() {
    let root = scratch();
    let place = Place::new(root.path());
    let of = |verify| MeasureOptions { verify, ..MeasureOptions::default() };
    let plain = place.store.measure_image("A", &place.disk, None, &of(false)).unwrap();
    let verified = place.store.measure_image("A", &place.disk, None, &of(true)).unwrap();
    assert_eq!((plain.read, plain.required), (DATA, DATA));
    assert!(verified.read >= 2 * DATA && verified.required == DATA);
    let refused = CreateOptions { verify: true, auto_fix: AutoFix::Off, ..CreateOptions::default() };
    fails(ErrorKind::InvalidParameter, place.store.create_virtual_disk("A", Some(512), None, "{}", &refused));
    fails(ErrorKind::InvalidParameter, place.store.create_snapshot("A", &place.disk, "{}", &refused));
}

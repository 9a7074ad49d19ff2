//! What the tests of localfs need: places, mounts, other processes.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod power;
mod sweep;

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tempfile::TempDir;
use vdsmstore_core::id::{ImageId, Incarnation, VolumeId};
use vdsmstore_core::repository::localfs::{LocalFs, format};
use vdsmstore_core::repository::{Access, Driver, FormatOptions, Marker, OpenVolume, Put, Read, RecordKey};
use vdsmstore_core::{ErrorKind, Result};

use crate::driver::{host, image, kind};

pub fn parameters(path: &Path) -> Map<String, Value> {
    Map::from_iter([("path".to_owned(), json!(path.to_str().unwrap()))])
}

/// An empty repository.
pub fn make() -> TempDir {
    let place = tempfile::tempdir().unwrap();
    format(&parameters(place.path()), &FormatOptions::default()).unwrap();
    place
}

pub fn connect(path: &Path, host: vdsmstore_core::repository::HostIdentity) -> Result<LocalFs> {
    LocalFs::connect(&parameters(path), host)
}

pub fn open(path: &Path) -> LocalFs {
    connect(path, host("test")).unwrap()
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// All files below, with their content; directories with None.
pub fn tree(path: &Path) -> BTreeMap<String, Option<Vec<u8>>> {
    fn walk(root: &Path, below: &Path, all: &mut BTreeMap<String, Option<Vec<u8>>>) {
        for entry in fs::read_dir(root.join(below)).unwrap().map(|entry| entry.unwrap()) {
            let name = below.join(entry.file_name());
            let kind = entry.file_type().unwrap();
            let content = kind.is_file().then(|| fs::read(entry.path()).unwrap());
            all.insert(name.to_str().unwrap().to_owned(), content);
            if kind.is_dir() {
                walk(root, &name, all);
            }
        }
    }
    let mut all = BTreeMap::new();
    walk(path, Path::new(""), &mut all);
    all
}

pub fn names(path: &Path) -> Vec<String> {
    tree(path).into_keys().collect()
}

fn run(command: &[&str]) {
    let output = Command::new(command[0]).args(&command[1..]).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A file system of its own in a file, gone when dropped.
pub struct Mount {
    place: TempDir,
    mounted: PathBuf,
}

impl Mount {
    /// None: this process may not mount.
    pub fn new(mkfs: &[&str], size: u64) -> Option<Mount> {
        if !is_root() {
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        let (image, mounted) = (place.path().join("image"), place.path().join("mounted"));
        fs::File::create(&image).unwrap().set_len(size).unwrap();
        run(&[mkfs, &[image.to_str().unwrap()]].concat());
        fs::create_dir(&mounted).unwrap();
        run(&["mount", "-o", "loop", image.to_str().unwrap(), mounted.to_str().unwrap()]);
        Some(Mount { place, mounted })
    }

    pub fn path(&self) -> &Path {
        &self.mounted
    }

    pub fn remount(&self, how: &str) {
        run(&["mount", "-o", &format!("remount,{how}"), self.mounted.to_str().unwrap()]);
    }

    /// The power goes: what the file system had not written to its disk by now is lost. Nothing in it may be open.
    pub fn without_power(self) -> Mount {
        let place = tempfile::tempdir().unwrap();
        let (image, mounted) = (place.path().join("image"), place.path().join("mounted"));
        let old = self.place.path().join("image");
        run(&["cp", "--sparse=always", old.to_str().unwrap(), image.to_str().unwrap()]);
        // Only one of the two may be mounted: they are the same file system.
        run(&["umount", self.mounted.to_str().unwrap()]);
        fs::create_dir(&mounted).unwrap();
        run(&["mount", "-o", "loop", image.to_str().unwrap(), mounted.to_str().unwrap()]);
        Mount { place, mounted }
    }

    /// Takes all space that is left, by appending to that volume.
    pub fn fill(&self, volume: &OpenVolume) {
        for step in [1 << 20, 64 << 10, 4096] {
            // What is freed by a commit of the journal comes late.
            run(&["sync", "-f", self.mounted.to_str().unwrap()]);
            loop {
                let end = volume.device.len().unwrap();
                match volume.device.allocate(end, step) {
                    Ok(()) => {}
                    Err(error) if error.kind() == vdsmstore_io::ErrorKind::NoSpace => break,
                    Err(error) => panic!("{error:?}"),
                }
                if volume.device.len().unwrap() == end {
                    break;
                }
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a test that panics may have something open in it still.
        let _ = Command::new("umount").arg("-l").arg(&self.mounted).output();
        let _ = fs::remove_file(self.place.path().join("image"));
    }
}

/// Another process, killed when dropped.
pub struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(command: &mut Command) -> Option<Process> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().ok()?;
        let output = BufReader::new(child.stdout.take()?);
        Some(Process { child, output })
    }

    /// What it says.
    pub fn line(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "it ended without a word");
            // The test harness talks too.
            if let Some((_, line)) = line.split_once("says: ") {
                return line.trim().to_owned();
            }
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs [`other_process`] in a role of its own.
pub fn child(role: &str, place: &Path, prefix: &[&str], arguments: &[&str]) -> Option<Process> {
    // A copy, for who may not enter the build directory.
    let bin = std::env::temp_dir().join(format!("driver-test-{}-{role}", std::process::id()));
    // Not written by this process: another thread's child would hold it open for writing and keep it from running.
    run(&["cp", std::env::current_exe().unwrap().to_str().unwrap(), bin.to_str().unwrap()]);
    let whole: Vec<_> = prefix.iter().copied().chain([bin.to_str().unwrap()]).collect();
    let process = Process::start(
        Command::new(whole[0])
            .args(&whole[1..])
            .args(["--ignored", "--exact", "other_process", "--nocapture"])
            .env("ROLE", role)
            .env("PLACE", place)
            .env("ARGUMENTS", arguments.join(" ")),
    );
    // It has started as soon as it has spoken; the tests wait for that. The file may go when it runs.
    std::thread::sleep(Duration::from_millis(300));
    fs::remove_file(&bin).unwrap();
    process
}

pub fn other_process() {
    let Ok(role) = std::env::var("ROLE") else { return };
    let place = PathBuf::from(std::env::var("PLACE").unwrap());
    let arguments = std::env::var("ARGUMENTS").unwrap();
    let mut ids = arguments.split_whitespace().map(|id| id.parse().unwrap());
    let me = vdsmstore_core::repository::HostIdentity { incarnation: Incarnation::random(), ..host("child") };
    let connected = connect(&place, me.clone());
    match role.as_str() {
        "hold" => {
            let driver = connected.unwrap();
            let _volume = driver.open_volume(VolumeId(ids.next().unwrap()), Access::Write).unwrap();
            let _image = driver.lock_image(ImageId(ids.next().unwrap())).unwrap().unwrap();
            println!("says: {}", me.incarnation);
            std::thread::sleep(Duration::from_mins(1));
        }
        "work" => {
            let driver = connected.unwrap();
            assert!(!driver.read_only());
            let (key, volume) = (image(), VolumeId::random());
            assert_eq!(driver.put(key, None, b"1").unwrap(), Put::Done(1));
            assert_eq!(driver.put(key, Some(1), b"2").unwrap(), Put::Done(2));
            assert_eq!(driver.delete(key, 2).unwrap(), Put::Done(3));
            driver.create_volume(volume).unwrap().device.write_at(0, b"x").unwrap();
            let locked = driver.open_volume(volume, Access::Write).unwrap();
            driver.delete_volume(volume, locked).unwrap();
            assert!(driver.lock_image(ImageId::random()).unwrap().is_some());
            driver.close().unwrap();
            println!("says: done");
        }
        "leave" => {
            let _driver = connected.unwrap();
            sweep::leave(&place, me.incarnation);
            println!("says: {}", me.incarnation);
            std::thread::sleep(Duration::from_mins(1));
        }
        "busy" => sweep::busy(&connected.unwrap()),
        "read" => {
            let driver = connected.unwrap();
            assert!(driver.read_only());
            let volume = VolumeId(ids.next().unwrap());
            reads_only(&driver, RecordKey::Image(ImageId(ids.next().unwrap())), volume);
            println!("says: done");
        }
        "fail" => println!("says: {:?}", kind(connected)),
        other => panic!("no role {other}"),
    }
}

/// Reading works, changing does not.
pub fn reads_only(driver: &LocalFs, key: RecordKey, volume: VolumeId) {
    assert!(driver.get(key, Read::Fresh).unwrap().is_some());
    let first = driver.open_volume(volume, Access::Read).unwrap();
    drop(driver.open_volume(volume, Access::ReadStill).unwrap());
    drop(first);
    driver.usage().unwrap();
    driver.qemu_use(volume).unwrap();
    assert_eq!(driver.children(ImageId::random()).unwrap(), []);
    let read_only = ErrorKind::ReadOnlyRepository;
    assert_eq!(kind(driver.put(image(), None, b"x")), read_only);
    assert_eq!(kind(driver.delete(key, 1)), read_only);
    assert_eq!(kind(driver.mark(Marker::Child(ImageId::random(), volume))), read_only);
    assert_eq!(kind(driver.unmark(Marker::Child(ImageId::random(), volume))), read_only);
    assert_eq!(kind(driver.put_progress(ImageId::random(), b"x")), read_only);
    assert_eq!(kind(driver.open_volume(volume, Access::Write)), read_only);
    assert_eq!(kind(driver.open_volume(volume, Access::Lease)), read_only);
    assert_eq!(kind(driver.create_volume(volume)), read_only);
    assert_eq!(kind(driver.sweep()), read_only);
    assert_eq!(driver.list_volumes().unwrap(), [volume]);
    driver.leftovers().unwrap();
    assert_eq!(kind(driver.lock_image(ImageId::random())), read_only);
}

/// Until it is so, but not for ever.
pub fn wait(mut so: impl FnMut() -> bool) {
    let since = Instant::now();
    while !so() {
        assert!(since.elapsed() < Duration::from_mins(1), "it takes too long");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A QEMU program that has a file open.
pub struct Qemu {
    process: Process,
}

impl Qemu {
    pub fn io(path: &Path, read_only: bool) -> Qemu {
        let mode: &[&str] = if read_only { &["-r"] } else { &[] };
        let mut process =
            Process::start(Command::new("qemu-io").args(["-f", "raw"]).args(mode).arg(path)).unwrap();
        // It answers when it has opened the file.
        process.child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        while !line.contains("MiB") {
            line.clear();
            assert!(process.output.read_line(&mut line).unwrap() > 0, "qemu-io has ended");
        }
        Qemu { process }
    }

    pub fn nbd(path: &Path, place: &Path) -> Qemu {
        let socket = place.join("socket");
        let mut command = Command::new("qemu-nbd");
        command.args(["-f", "raw", "-t", "-k", socket.to_str().unwrap()]).arg(path);
        let process = Process::start(&mut command).unwrap();
        wait(|| socket.exists());
        Qemu { process }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.process.kill();
    }
}

/// Whether qemu-io can do that to the file.
pub fn qemu_io(path: &Path, mode: &[&str], command: &str) -> bool {
    let output = Command::new("qemu-io")
        .args(["-f", "raw"])
        .args(mode)
        .args(["-c", command])
        .arg(path)
        .output()
        .unwrap();
    let refused = String::from_utf8_lossy(&output.stderr).contains("lock");
    assert_ne!(output.status.success(), refused, "{output:?}");
    output.status.success()
}

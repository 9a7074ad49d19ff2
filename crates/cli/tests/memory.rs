//! How much memory large copies take. Needs root, for a file system on which direct requests are possible.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Place, ended};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
/// What a command may take on top of what it takes anyway.
const LIMIT: u64 = 64 * MIB;

struct Mounted {
    mount: PathBuf,
    _folder: TempDir,
}

impl Mounted {
    /// None: it cannot be mounted here.
    fn new() -> Option<Self> {
        let memory = Path::new("/dev/shm");
        let folder = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        let (file, mount) = (folder.path().join("file"), folder.path().join("mount"));
        File::create(&file).unwrap().set_len(3 << 30).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let made = Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).arg(&file).status();
        let made = made.is_ok_and(|status| status.success());
        let put = || Command::new("mount").args(["-o", "loop"]).args([&file, &mount]).output().unwrap();
        (made && put().status.success()).then_some(Self { mount, _folder: folder })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.mount).status();
    }
}

/// The most memory that a process has had so far, in bytes.
fn peak(child: &Child) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().unwrap() * 1024)
}

/// The most that a command has had, looked at while it runs, and what it prints.
fn peak_of(place: &Place, arguments: &[&str]) -> (u64, String) {
    let mut child = place.start(arguments);
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        most = peak(&child).unwrap_or(0).max(most);
        std::thread::sleep(Duration::from_millis(1));
    }
    let ran = ended(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
    assert!(most > 0);
    (most, String::from_utf8(ran.out).unwrap())
}

/// What the program takes when it has a repository open and waits.
fn base(place: &Place) -> u64 {
    let disk = place.id(&["image", "create", "A", "1M"]);
    let mut child = place.command(&["image", "write", "A", &disk]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(&[1; 4096]).unwrap();
    let mut last = 0;
    // Until it waits for more.
    for _ in 0..50 {
        std::thread::sleep(Duration::from_millis(10));
        last = peak(&child).unwrap();
    }
    drop(input);
    assert!(child.wait().unwrap().success());
    last
}

#[test]
fn large_copies_take_little_memory() {
    let Some(mounted) = Mounted::new() else {
        println!("nothing can be mounted: nothing is tested");
        return;
    };
    let place = Place::within(TempDir::new_in(&mounted.mount).unwrap());
    let base = base(&place);
    let file = place.path("raw");
    let mut out = File::create(&file).unwrap();
    let mut block = vec![0; MIB as usize];
    for index in 0..400u32 {
        for (at, byte) in block.iter_mut().enumerate() {
            *byte = (at as u32).wrapping_mul(index + 1).wrapping_mul(2_654_435_761).to_le_bytes()[3] | 1;
        }
        out.write_all(&block).unwrap();
    }
    out.sync_all().unwrap();
    rustix::fs::fadvise(&out, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    drop(out);
    let raw = file.to_str().unwrap();
    let check = |arguments: &[&str]| {
        let (most, said) = peak_of(&place, arguments);
        println!("{arguments:?}: {} KiB, {} KiB without", most / 1024, base / 1024);
        assert!(most < base + LIMIT, "{arguments:?}: {most} bytes, {base} without");
        // So much the buffers are that were used, at least.
        assert!(most > base + 8 * MIB, "{arguments:?}: nothing was direct, {most} bytes");
        said
    };
    check(&["file", "convert", "-f", "raw", "-O", "raw", raw, "copy"]);
    check(&["file", "compare", "-f", "raw", "-F", "raw", raw, "copy"]);
    std::fs::remove_file(place.path("copy")).unwrap();
    check(&["file", "convert", "-f", "raw", "-O", "qcow2", raw, "copy"]);
    std::fs::remove_file(place.path("copy")).unwrap();
    let packed = ["file", "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"];
    check(&[&packed[..], &[raw, "copy"]].concat());
    std::fs::remove_file(place.path("copy")).unwrap();
    let disk = check(&["image", "import", "A", raw, "--format", "raw"]);
    check(&["image", "copy", "B", disk.trim()]);
    // As many hashes as a disk can have, three times: of the source, of the base, of what comes out.
    File::options().write(true).open(&file).unwrap().set_len(512 << 30).unwrap();
    let disk = check(&["image", "import", "A", raw, "--format", "raw", "--verify"]);
    let known = check(&["image", "copy", "B", disk.trim(), "--snapshot", "--verify"]);
    let snapshot = place.id(&["image", "snapshot", "A", disk.trim()]);
    check(&["image", "copy", "B", &snapshot, "--base", known.trim(), "--verify"]);
}

//! Jobs that run at once share the memory of their process. Needs root, for a file system on which direct requests are possible.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::fs::File;
use std::os::unix::fs::FileExt;

use vdsmstore_core::options::CreateOptions;
use vdsmstore_core::{Store, StoreOptions};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{new_repo, qemu_equal, settle};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 192 * MIB;
const JOBS: u8 = 6;
/// Of all jobs: 36 large buffers with their small ones.
const SHARED: u64 = 63 * MIB;
/// The least that each job has.
const LEAST: u64 = 7 * MIB;

/// Bytes of memory that this process has, or has had at most.
fn memory(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(what)).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn many_jobs_take_no_more_than_their_share() {
    if !can_mount() {
        println!("not root: nothing is tested");
        return;
    }
    let dir = Mounted::new("ext4", 4096);
    let mut options = StoreOptions::default();
    options.threads = Some(u32::from(JOBS));
    let store = Store::new(options).unwrap();
    new_repo(&store, dir.path(), "A");
    let files: Vec<_> = (1..=JOBS)
        .map(|job| {
            let path = dir.path().join(job.to_string());
            let file = File::create(&path).unwrap();
            let bytes = vec![job; MIB as usize];
            for at in 0..SIZE / MIB {
                file.write_all_at(&bytes, at * MIB).unwrap();
            }
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
            path
        })
        .collect();
    let before = memory("VmHWM:");
    let disks: Vec<_> = files
        .iter()
        .map(|file| {
            let path = file.to_str().unwrap();
            store.import_image("A", path, "raw", "{}", &CreateOptions::default()).unwrap().to_string()
        })
        .collect();
    for disk in &disks {
        settle(&store, "A", disk);
    }
    while !store.list_tasks().unwrap().is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let most = memory("VmHWM:") - before;
    println!("{} KiB on top of {} KiB", most / 1024, before / 1024);
    // Three have all they want, the others little; and what each needs for itself.
    let limit = SHARED + u64::from(JOBS - 3) * LEAST + u64::from(JOBS) * 4 * MIB;
    assert!(most <= limit, "{most} bytes of {limit}");
    assert!(most >= 12 * MIB, "{most}: nothing was direct");
    // What was kept from step to step has gone with the last job.
    let now = memory("VmRSS:");
    println!("{} KiB afterwards", now / 1024);
    assert!(now < before + 32 * MIB, "{now} bytes are still there, before there were {before}");
    for (disk, file) in disks.iter().zip(&files) {
        qemu_equal(&store, "A", disk, file);
    }
}

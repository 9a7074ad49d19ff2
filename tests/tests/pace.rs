//! How fast work goes that is limited, and how soon it ends when it is told to.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::field_reassign_with_default,
    reason = "tests fail by panicking; numbers are small"
)]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::{Bandwidth, CopyOptions, CreateOptions};
use vdsmstore_core::repository::HostIdentity;
use vdsmstore_core::sim::{SimOptions, SimWorld};
use vdsmstore_core::{Store, StoreOptions};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};
use vdsmstore_io::plan::{self, Target};
use vdsmstore_io::{Control, ErrorKind, FileDevice, Format, Image, Layer, execute};
use vdsmstore_tests::mounts::{Mounted, can_mount};
use vdsmstore_tests::{counted, scratch};

const MIB: u64 = 1 << 20;
/// What is copied is all this.
const BYTE: u8 = 0xa5;
const WINDOW: Duration = Duration::from_secs(5);

/// Two simulated repositories, and a host that has no threads.
fn joined(worlds: &[SimWorld; 2]) -> Store {
    let mut options = StoreOptions::default();
    options.host_id = Some("host".into());
    options.threads = Some(0);
    let store = Store::new(options).unwrap();
    let identity =
        HostIdentity { host_id: "host".into(), incarnation: Incarnation::random(), boot_id: "boot".into() };
    for (world, name) in worlds.iter().zip(["A", "B"]) {
        store.connect_driver(name, world.connect(identity.clone())).unwrap();
    }
    store
}

/// Copies that many bytes at a rate; what had arrived, by virtual time: in the time up to each entry, and since the entry
/// before it, so much.
fn arrivals(rate: u64, size: u64, server_copies: bool) -> Vec<(Duration, u64)> {
    let worlds = [(); 2].map(|()| SimWorld::new(SimOptions { server_copies, ..SimOptions::default() }));
    let (store, disk) = hosts::alone(0, || {
        let store = joined(&worlds);
        let disk = store.create_virtual_disk("A", Some(size as i64), None, "{}", &CreateOptions::default());
        let disk = disk.unwrap().to_string();
        let image = store.open_image("A", &disk, true).unwrap();
        for at in 0..size / MIB {
            image.write((at * MIB) as i64, &vec![BYTE; MIB as usize]).unwrap();
        }
        image.close().unwrap();
        (store, disk)
    });
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let note = {
        let (arrived, target) = (Arc::clone(&arrived), worlds[1].clone());
        Box::new(move |turn: &Turn<'_>| {
            if turn.act == Act::Pause {
                let bytes: usize = target
                    .objects()
                    .into_iter()
                    .filter_map(|id| target.bytes(id))
                    .map(|all| all.iter().map(|byte| usize::from(*byte == BYTE)).sum::<usize>())
                    .sum();
                arrived.lock().unwrap().push((turn.now, bytes as u64));
            }
            0
        })
    };
    hosts::watched(1, note, || {
        let options = CopyOptions { bandwidth: Some(Bandwidth(rate)), ..CopyOptions::default() };
        store.copy_image("B", &disk, None, "{}", &options).unwrap();
        store.run_tasks();
        assert!(store.list_tasks().unwrap().is_empty());
    });
    let mut arrived = arrived.lock().unwrap().clone();
    // What came at once is one piece.
    arrived.dedup_by(|next, last| {
        let same = next.1 == last.1;
        if same {
            last.0 = next.0;
        }
        same
    });
    arrived
}

#[test]
fn a_limit_holds_over_any_five_seconds() {
    // The last one is moved in pieces that are large enough for a server.
    let cases = [(MIB, 24, false), (3_000_000, 24, false), (2 * MIB + 12345, 24, false), (5 * MIB, 48, true)];
    for (rate, mebibytes, server_copies) in cases {
        let arrived = arrivals(rate, mebibytes * MIB, server_copies);
        let piece = arrived[0].1;
        let expected = u128::from(rate) * WINDOW.as_nanos() / 1_000_000_000;
        let (mut windows, mut most, mut least) = (0, 0, u128::MAX);
        for (first, (begin, before)) in arrived.iter().enumerate() {
            // Pieces arrive at the times of the entries: that of the begin of a window counts for the most, not for the least.
            let inside = arrived[first..].iter().take_while(|(time, _)| *time <= *begin + WINDOW).count();
            let Some((_, after)) = arrived.get(first + inside) else { break };
            most = most.max(u128::from(after - before));
            least = least.min(u128::from(after - arrived[first + 1].1));
            windows += 1;
        }
        println!("{rate}: {windows} windows, pieces of {piece}, {least} to {most} bytes for {expected}");
        assert!(windows > 10);
        assert!(most * 100 <= expected * 105, "{rate}: {most} bytes in five seconds");
        assert!(least * 100 >= expected * 95, "{rate}: {least} bytes in five seconds");
    }
}

/// Bytes that this process has had read from storage, and written there, counted when the requests are begun.
fn begun() -> (u64, u64) {
    counted(["read_bytes", "write_bytes"]).into()
}

fn open(path: &Path, format: Format, size: u64, writable: bool) -> Image {
    let device = Arc::new(FileDevice::open(path, writable).unwrap());
    Image::open(vec![Layer { device, format, size }], writable).unwrap()
}

/// Of a copy that is cancelled when `enough` is done.
#[derive(Debug)]
struct Cancelled {
    /// Bytes that were done then, and those that were done later.
    done: (u64, u64),
    /// Bytes whose reading was begun before it, and later.
    read: (u64, u64),
    /// The same of writing.
    written: (u64, u64),
}

fn cancelled(dir: &Path, size: u64, enough: u64, threads: usize) -> Cancelled {
    let (from, to) = (dir.join("from"), dir.join("to"));
    let file = File::create(&from).unwrap();
    for at in 0..size / MIB {
        file.write_all_at(&vec![BYTE; MIB as usize], at * MIB).unwrap();
    }
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    File::create(&to).unwrap().set_len(size).unwrap();
    let (source, target) = (open(&from, Format::Raw, size, false), open(&to, Format::Raw, size, true));
    let (done, when) = (AtomicU64::new(0), Mutex::new(None));
    let progress = |bytes| {
        done.fetch_add(bytes, Ordering::Relaxed);
    };
    let cancel = || {
        let done = done.load(Ordering::Relaxed);
        if done < enough {
            return false;
        }
        when.lock().unwrap().get_or_insert_with(|| (done, begun()));
        true
    };
    let control = Control { cancel: &cancel, progress: &progress, threads };
    let plan = plan::copy(&source, None, Target { backed: false, known_zero: true }, 0, size).unwrap();
    let start = begun();
    let error = execute(&plan, &source, None, &target, &control).unwrap_err();
    let end = begun();
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    let (before, at) = when.into_inner().unwrap().unwrap();
    Cancelled {
        done: (before, done.into_inner() - before),
        read: (at.0 - start.0, end.0 - at.0),
        written: (at.1 - start.1, end.1 - at.1),
    }
}

#[test]
fn what_is_cancelled_begins_nothing_more() {
    // Through the cache: each thread ends its request.
    let memory = scratch();
    let Cancelled { done: (before, later), .. } = cancelled(memory.path(), 64 * MIB, 16 * MIB, 4);
    assert!(before >= 16 * MIB && later <= 4 * MIB, "{before} {later}");
    if !can_mount() {
        println!("not root: the rest is not tested");
        return;
    }
    let mounted = Mounted::new("ext4", 1024);
    let seen = cancelled(mounted.path(), 256 * MIB, 64 * MIB, 4);
    println!("{seen:?}");
    let Cancelled { done: (_, later), read: (had_read, read), written: (had_written, written) } = seen;
    assert!(had_read >= 64 * MIB && had_written >= 64 * MIB, "they are not counted: {seen:?}");
    // What waited to be handed over together with the last, and no more.
    assert!(read <= 8 * MIB && written <= 8 * MIB, "{seen:?}");
    // What is under way ends; what was only read by then is not written.
    assert!(later <= 32 * MIB, "{seen:?}");
}

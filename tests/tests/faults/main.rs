//! Faults for real: every operation runs on a file system in which one call fails (`vdsmstore-faults`), the first of
//! its kind, the second, and so on, in each of the ways that such a call can fail. The operation succeeds or tells what
//! the storage said; nothing that was whole is lost; and when the fault has gone, another store brings everything in
//! order. Each case asserts that its fault has happened.
//!
//! A normal run takes some of the calls of each kind, by chance: `VDSMSTORE_FAULTS_SEED` repeats them.
//! `VDSMSTORE_LONG=1` takes all. `VDSMSTORE_FAULTS=text` takes the operations whose names contain the text.

#![allow(
    clippy::cast_possible_wrap,
    clippy::field_reassign_with_default,
    clippy::never_loop,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

mod judge;
#[path = "../kills/left.rs"]
mod left;
mod operation;
mod scene;
mod table;
mod ways;
mod writing;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use rustix::mount::UnmountFlags;
use vdsmstore_core::Result;
use vdsmstore_faults::{Answer, Call, Errno, Fault, FaultFs, Met};
use vdsmstore_tests::scratch;

use judge::{Seen, explains};
use operation::{OPERATIONS, Operation, Run};
use scene::{Scene, connect, copy_tree, idle};
use table::Table;
use ways::{Random, Watch, choose, transparent, ways};
use writing::Writes;

/// What became of an operation.
struct Outcome {
    result: Result<()>,
    met: Met,
}

/// The scene under the same name, but without the file system of faults, which is slower.
struct Kept {
    binds: Vec<PathBuf>,
    _faults: Option<FaultFs>,
}

impl Kept {
    fn new(operation: &Operation, faults: FaultFs, source: &Path, mount: &Path) -> Kept {
        if operation.name.starts_with("import") {
            // The file to be imported must be the same one.
            let binds = scene::NAMES.map(|name| mount.join(name));
            for (name, to) in scene::NAMES.iter().zip(&binds) {
                rustix::mount::mount_bind(source.join(name), to).unwrap();
            }
            return Kept { binds: binds.to_vec(), _faults: Some(faults) };
        }
        drop(faults);
        fs::remove_dir(mount).unwrap();
        fs::rename(source, mount).unwrap();
        Kept { binds: Vec::new(), _faults: None }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        for bind in &self.binds {
            let _ = rustix::mount::unmount(bind, UnmountFlags::DETACH);
        }
    }
}

/// Runs the operation where the fault happens, and judges what is left.
fn attempt(operation: &Operation, scene: &Scene, fault: Option<&Fault>, what: &str) -> Outcome {
    let case = scratch();
    let (source, mount) = (case.path().join("source"), case.path().join("mount"));
    copy_tree(scene.root.path(), &source);
    fs::create_dir(&mount).unwrap();
    let faults = FaultFs::mount(&source, &mount).unwrap();
    let store = idle("victim");
    if operation.connected {
        connect(&store, &mount).unwrap();
    }
    match fault {
        Some(fault) => faults.arm(fault.clone()),
        None => faults.count(),
    }
    let mut run =
        Run { store: &store, scene, root: &mount, returned: false, began: false, writes: Writes::default() };
    let result = (operation.run)(&mut run);
    let Run { returned, began, writes, .. } = run;
    store.close().unwrap();
    let met = faults.disarm();
    drop(store);
    let kept = Kept::new(operation, faults, &source, &mount);
    let failed = result.is_err();
    let told = failed && began && fault.is_some_and(|fault| fault.times == 1);
    Seen { operation, scene, root: &mount, returned, writes, succeeded: !failed, told, what }.judge();
    drop(kept);
    Outcome { result, met }
}

fn judge_error(fault: &Fault, outcome: &Outcome, what: &str) {
    assert!(outcome.met.fired > 0, "{what}: the fault did not happen");
    let Err(error) = &outcome.result else { return };
    assert!(!transparent(fault.answer), "{what}: it is no error: {error:?}");
    if let Some(errno) = fault.answer.errno() {
        explains(error, errno, what);
        // Of data that is read or written, the range too.
        let data = error.details()["path"].as_str().unwrap().contains("/data/")
            && matches!(fault.call, Call::Read | Call::Write | Call::Allocate);
        for key in ["offset", "length"].iter().filter(|_| data) {
            assert!(error.details().contains_key(*key), "{what}: no {key} in the details of {error:?}");
        }
    }
}

fn all_faults_of(operation: &'static Operation, random: &mut Random, watch: &Watch, table: &Mutex<Table>) {
    let scene = Scene::new(operation.prepare);
    let dry = attempt(operation, &scene, None, operation.name);
    dry.result.unwrap_or_else(|error| panic!("{}: without a fault: {error:?}", operation.name));
    let mut rooms: BTreeMap<Call, Vec<String>> = BTreeMap::new();
    for (call, path) in &dry.met.calls {
        let room = path.iter().take(2).collect::<std::path::PathBuf>();
        rooms.entry(*call).or_default().push(room.display().to_string());
    }
    for (call, rooms) in rooms {
        for (way, &(answer, times)) in ways(call).iter().enumerate() {
            for nth in choose(&rooms, way, random) {
                let fault = Fault { call, under: String::new(), nth, answer, times };
                let lasts = match times {
                    1 => String::new(),
                    ways::EVER => " and all after it".to_owned(),
                    times => format!(" and {} after it", times - 1),
                };
                let room = &rooms[nth as usize - 1];
                let what = format!(
                    "{}: {call:?} {nth} of {} ({room}){lasts}: {answer:?}",
                    operation.name,
                    rooms.len()
                );
                watch.begin(&what);
                let done = catch_unwind(AssertUnwindSafe(|| {
                    let outcome = attempt(operation, &scene, Some(&fault), &what);
                    judge_error(&fault, &outcome, &what);
                    (outcome.met.fired, outcome.result.is_ok())
                }));
                watch.end();
                table.lock().unwrap().add(operation.name, call, done.ok());
            }
        }
    }
}

#[test]
fn every_operation_meets_every_fault() {
    if !FaultFs::is_possible() {
        println!("not root, or no /dev/fuse: nothing is tested");
        return;
    }
    let seed = env::var("VDSMSTORE_FAULTS_SEED")
        .map_or_else(|_| u64::from(std::process::id()) << 16 | 1, |text| text.parse().expect("a number"));
    println!("VDSMSTORE_FAULTS_SEED={seed}");
    let wanted = env::var("VDSMSTORE_FAULTS").unwrap_or_default();
    let operations: Vec<_> =
        OPERATIONS.iter().enumerate().filter(|(_, o)| o.name.contains(&wanted)).collect();
    let start = Instant::now();
    let table = Mutex::new(Table::default());
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..ways::WORKERS {
            scope.spawn(|| {
                let watch = Watch::start();
                while let Some((index, operation)) = operations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // Of its own, so that one operation alone can be repeated.
                    let mut random = Random(seed.wrapping_mul(*index as u64 * 2 + 1));
                    all_faults_of(operation, &mut random, &watch, &table);
                }
            });
        }
    });
    let table = table.into_inner().unwrap();
    table.print(operations.iter().map(|(_, operation)| operation.name));
    println!("{:.1} s", start.elapsed().as_secs_f64());
    assert_eq!(table.failed(), 0, "see above");
}

/// The answers are told apart by what a program makes of them.
#[test]
fn faults_have_errors() {
    assert_eq!(Answer::Half(Errno::IO).errno(), Some(Errno::IO));
    assert!(transparent(Answer::Short) && transparent(Answer::Error(Errno::INTR)));
}

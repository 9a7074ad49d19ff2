//! Every cause for every fix: the real operation is interrupted where it leaves just that, the check lists the fix, and
//! another host runs this fix alone.
//!
//! [`CAUSES`] has the actions of the fix documents (`crates/core/src/fix/document.rs`), and for each all causes that the
//! check can see in the records; [`cause`] tells them apart, from what is stored, not by asking the engine. The
//! operations of `causes/making.rs` and `causes/changing.rs` lose power after every single step, and whatever is listed
//! then has a cause in the table: a fix that has none fails the test, and so does a cause that no interruption led to.
//! That no action is missing is read from the source of the documents. A sweep has causes that only files have:
//! `causes/local.rs`, which also has what is left by a stop.
//!
//! Some causes no interruption makes, because the order of the steps excludes them: an object without its record, an
//! image without its volume's record, an image without its object, a flag on an image that something is built on. There
//! a fault of the storage, or a put that comes between two steps of another host, makes the scene
//! (`Scene::lose_volume_record`, `lose_object`, `flag`).
//!
//! `VDSMSTORE_LONG=1` judges every single step at which a fix is listed, not each different situation once.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::field_reassign_with_default,
    clippy::match_same_arms,
    clippy::unwrap_used,
    clippy::expect_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "causes/cause.rs"]
mod cause;
#[path = "causes/changing.rs"]
mod changing;
#[path = "causes/judge.rs"]
mod judge;
#[path = "causes/local.rs"]
mod local;
#[path = "causes/making.rs"]
mod making;
#[path = "causes/operation.rs"]
mod operation;
#[path = "causes/raw.rs"]
mod raw;
#[path = "causes/scene.rs"]
mod scene;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use vdsmstore_core::options::{CopyOptions, CreateOptions, RemoveOptions, ResizeOptions};
use vdsmstore_core::{ErrorKind, Fix, Status, Store};

use cause::{CAUSES, action, cause};
use judge::{Finding, check};
use operation::Operation;
use scene::{Crash, Scene, Storage, crash, pattern};

/// Where a cause was met.
#[derive(Default)]
struct Met {
    first: String,
    /// Interruptions after which it was listed.
    listed: u32,
    /// Of these, judged.
    judged: u32,
    failed: u32,
    companies: BTreeSet<String>,
}

/// By action and cause, then by operation and storage.
type Table = BTreeMap<(String, &'static str), BTreeMap<(&'static str, Storage), Met>>;

/// The file that is imported: it stays as it is for the whole run.
fn file_to_import() -> &'static str {
    concat!(env!("CARGO_TARGET_TMPDIR"), "/causes-import.raw")
}

/// What else is listed, and who has what open: a cause is judged once in each company.
fn company(scene: &Scene, found: &[(usize, &Fix, &'static str)], returned: bool) -> String {
    let mut listed: Vec<String> =
        found.iter().map(|(repo, fix, cause)| format!("{repo} {} {cause}", action(fix))).collect();
    listed.sort();
    listed.dedup();
    let open = scene.raw(0).images.values().filter(|image| !image["open"].is_null()).count();
    format!("{listed:?} {open} {returned}")
}

fn interrupt(operation: &Operation, storage: Storage, table: &mut Table) {
    let mut start = Scene::new(storage);
    let (store, _) = start.join("setup");
    (operation.setup)(&store, &mut start);
    store.close().unwrap();
    let before = [start.raw(0), start.raw(1)];
    let long = std::env::var_os("VDSMSTORE_LONG").is_some();
    for cut in 0..2 {
        for after in 0.. {
            let mut all = false;
            for keep in [false, true] {
                let scene = start.copy();
                let Crash { returned, finished } = crash(&scene, cut, after, operation.run, keep);
                all = finished;
                let (lister, _) = scene.join("lister");
                let fixes = [check(&lister, 0), check(&lister, 1)];
                lister.close().unwrap();
                let mut found = Vec::new();
                for (repo, fixes) in fixes.iter().enumerate() {
                    let raw = scene.raw(repo);
                    found.extend(
                        fixes.iter().map(|fix| (repo, fix, cause(fix, &raw, &before[repo], storage))),
                    );
                }
                let company = company(&scene, &found, returned);
                for (repo, fix, cause) in found {
                    let met = table.entry((action(fix).to_owned(), cause)).or_default();
                    let met = met.entry((operation.name, storage)).or_default();
                    let kept = if keep { "kept" } else { "lost" };
                    let place = scene::NAMES[cut];
                    if met.listed == 0 {
                        met.first = format!("step {after} in {place}, {kept}");
                    }
                    met.listed += 1;
                    if !met.companies.insert(company.clone()) && !long {
                        continue;
                    }
                    met.judged += 1;
                    let what = format!(
                        "{}, {storage:?}, {place} cut after {after}, {kept}: {}: {cause}",
                        operation.name,
                        action(fix)
                    );
                    let finding = Finding { operation, returned, repo, fix, cause, what };
                    // All that fail are told, not only the first.
                    if catch_unwind(AssertUnwindSafe(|| finding.judge(&scene.copy()))).is_err() {
                        met.failed += 1;
                    }
                }
            }
            if all {
                break;
            }
        }
    }
}

fn interrupt_all(storage: Storage) -> Table {
    let mut table = Table::new();
    let operations = making::OPERATIONS.iter().chain(changing::OPERATIONS);
    for operation in operations.filter(|operation| operation.storages.contains(&storage)) {
        interrupt(operation, storage, &mut table);
    }
    table
}

#[test]
fn every_cause_of_every_fix() {
    std::fs::write(file_to_import(), pattern(6)).unwrap();
    let start = Instant::now();
    let storages = [Storage::Overlays, Storage::Clones, Storage::Doubts];
    let tables = std::thread::scope(|scope| {
        let threads = storages.map(|storage| scope.spawn(move || interrupt_all(storage)));
        threads.map(|thread| thread.join().unwrap())
    });
    let mut table = Table::new();
    for (cause, met) in tables.into_iter().flatten() {
        table.entry(cause).or_default().extend(met);
    }
    let (mut listed, mut judged, mut failed) = (0, 0, 0);
    for ((action, cause), met) in &table {
        println!("{action}: {cause}");
        for ((operation, storage), met) in met {
            println!(
                "    {operation} ({storage:?}): {}; listed {}, judged {}, failed {}",
                met.first, met.listed, met.judged, met.failed
            );
            listed += met.listed;
            judged += met.judged;
            failed += met.failed;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    println!("{} causes; listed {listed} times, judged {judged} times, {seconds:.1} s", table.len());
    let wanted: BTreeSet<(String, &str)> =
        CAUSES.iter().map(|(action, cause)| ((*action).to_owned(), *cause)).collect();
    let found: BTreeSet<_> = table.into_keys().collect();
    let missing: Vec<_> = wanted.difference(&found).collect();
    let more: Vec<_> = found.difference(&wanted).collect();
    assert_eq!(failed, 0, "see above");
    assert!(missing.is_empty() && more.is_empty(), "never met: {missing:#?}, not in the table: {more:#?}");
}

/// A new action needs causes here.
#[test]
fn no_action_is_forgotten() {
    let source = include_str!("../../crates/core/src/fix/document.rs");
    let arms = source.lines().filter(|line| line.trim_start().starts_with("Action::"));
    let names = arms.filter_map(|arm| arm.split_once("=> (\"")?.1.split_once('"')).map(|(name, _)| name);
    let known: BTreeSet<&str> = CAUSES.iter().map(|(action, _)| *action).collect();
    assert_eq!(names.collect::<BTreeSet<_>>(), known);
}

/// A copy of a snapshot whose data object was lost is made anew by the same call.
#[test]
fn a_copy_replaces_what_was_lost() {
    let mut scene = Scene::new(Storage::Overlays);
    let (store, _) = scene.join("here");
    operation::family(&store, &mut scene);
    operation::copy(&store, &mut scene, "copied", "snapshot", None);
    scene.lose_object(1, "copied");
    let id = scene.id("copied");
    assert_eq!(store.get_image_status("B", id).unwrap().status, Status::Broken);
    store.copy_image("B", id, None, "{}", &CopyOptions::default()).unwrap();
    store.run_tasks();
    assert_eq!(store.get_image_status("B", id).unwrap().status, Status::Optimized);
    assert!(scene::read(&store, "B", id).unwrap() == scene.data(1, "copied"));
}

/// Bytes without a record are not taken from an image that points at them.
#[test]
fn what_lost_its_record_is_not_cleaned_away() {
    let mut scene = Scene::new(Storage::Overlays);
    let (store, _) = scene.join("here");
    operation::disk(&store, &mut scene, 0, "disk", pattern(1));
    scene.lose_volume_record(0, "disk");
    assert_eq!(store.get_image_status("A", scene.id("disk")).unwrap().status, Status::Broken);
    assert_eq!(check(&store, 0), []);
    // Not before its image is removed.
    store.remove_image("A", scene.id("disk"), &RemoveOptions::default()).unwrap();
    store.run_tasks();
    let fixes = check(&store, 0);
    assert!(fixes.iter().any(|fix| action(fix) == "clean-object"), "{fixes:#?}");
}

/// What a store that died had open is no hindrance: not for a resize, not for a snapshot, not for a removal.
#[test]
fn what_a_dead_store_held_is_free() {
    let mut scene = Scene::new(Storage::Overlays);
    let (store, victim) = scene.join("victim");
    let blank = vec![0; scene::SIZE];
    for name in ["grown", "frozen", "removed"] {
        let size = Some(scene::SIZE as i64);
        let id = store.create_virtual_disk("A", size, None, "{}", &CreateOptions::default()).unwrap();
        std::mem::forget(store.open_image("A", &id.to_string(), true).unwrap());
        scene.keep(0, name, id.to_string(), blank.clone());
    }
    let (other, _) = scene.join("other");
    let grow = |store: &Store| {
        let size = 2 * scene::SIZE as i64;
        store.resize_virtual_disk("A", scene.id("grown"), size, &ResizeOptions::default())
    };
    assert_eq!(grow(&other).unwrap_err().kind(), ErrorKind::ImageInUse);
    for world in &scene.worlds {
        world.crash(victim, &mut || true);
    }
    grow(&other).unwrap();
    other.create_snapshot("A", scene.id("frozen"), "{}", &CreateOptions::default()).unwrap();
    other.remove_image("A", scene.id("removed"), &RemoveOptions::default()).unwrap();
    assert_eq!(scene::read(&other, "A", scene.id("grown")).unwrap(), vec![0; 2 * scene::SIZE]);
}

//! Verbs cost as many calls of the file system in a repository of ten thousand images as in one of ten.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::path::Path;

use vdsmstore_bench::large::Large;
use vdsmstore_bench::scene::{connect, disk, format, store};
use vdsmstore_bench::verb::Verb;
use vdsmstore_core::Store;
use vdsmstore_core::options::CreateOptions;
use vdsmstore_faults::FaultFs;

const FEW: usize = 10;
const MANY: usize = 10_000;
/// More calls than any of the verbs needs.
const BOUND: usize = 400;

/// By kind: how many calls of the file system were made.
type Counts = BTreeMap<String, usize>;

/// A scratch directory in memory if there is such a place.
fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap()
}

/// A snapshot in the repository S.
fn other(store: &Store, path: &Path) -> String {
    format(path).unwrap();
    connect(store, "S", path).unwrap();
    let disk = disk(store, "S", vdsmstore_bench::large::SIZE).unwrap();
    store.create_snapshot("S", &disk, "{}", &CreateOptions::default()).unwrap().to_string()
}

/// Every verb in a new connection to a repository of so many images.
fn counts(images: usize) -> BTreeMap<&'static str, Counts> {
    let scratch = scratch();
    let (source, mount) = (scratch.path().join("source"), scratch.path().join("mount"));
    std::fs::create_dir(&source).unwrap();
    std::fs::create_dir(&mount).unwrap();
    let large = Large::make(&source.join("repo"), images).unwrap();
    // To make a shard takes calls of its own: here all of them are there.
    for room in ["images", "volumes", "children", "holders"] {
        for shard in 0..4096 {
            std::fs::create_dir_all(large.path.join(room).join(format!("{shard:03x}"))).unwrap();
        }
    }
    let faults = FaultFs::mount(&source, &mount).unwrap();
    let repo = faults.path().join("repo");
    let any = large.plain[0].0.to_string();
    let mut counts = BTreeMap::new();
    for verb in Verb::ALL {
        let store = store().unwrap();
        let other = other(&store, &scratch.path().join(verb.name()));
        connect(&store, "R", &repo).unwrap();
        let made = disk(&store, "R", vdsmstore_bench::large::SIZE).unwrap();
        let image = match verb {
            Verb::Snapshot | Verb::Remove => &made,
            Verb::Copy => &other,
            _ => &any,
        };
        faults.count();
        verb.call(&store, image).unwrap();
        let mut kinds = Counts::new();
        for (call, _) in faults.disarm().calls {
            *kinds.entry(format!("{call:?}")).or_default() += 1;
        }
        assert!(!kinds.is_empty(), "{}: nothing was counted", verb.name());
        counts.insert(verb.name(), kinds);
    }
    counts
}

#[test]
fn verbs_make_as_many_calls_in_a_large_repository() {
    if !FaultFs::is_possible() {
        println!("not root, or no FUSE: nothing is tested");
        return;
    }
    let (few, many) = (counts(FEW), counts(MANY));
    for verb in Verb::ALL {
        let (few, many) = (&few[verb.name()], &many[verb.name()]);
        println!("{:<18} {few:?}\n{:<18} {many:?}", verb.name(), "");
        let sum: usize = many.values().sum();
        assert!(sum <= BOUND, "{}: {many:?}", verb.name());
        for (call, count) in many {
            let allowed = few.get(call).copied().unwrap_or(0);
            assert!(*count <= allowed, "{}: {count} calls {call} instead of {allowed}", verb.name());
        }
    }
}

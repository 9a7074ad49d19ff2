//! Sequences of operations, as many as are asked for, and what must have happened in them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{FileFailurePersistence, TestRunner};

use crate::cut::Hits;
use crate::operation::operation;
use crate::{World, judge};

const REGRESSIONS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/model/model.proptest-regressions");
/// Times that as much runs again, should nothing have been broken off, or a kind of operation never have succeeded.
const MORE_RUNS: u32 = 5;

/// All kinds; each must have succeeded at least once.
const KINDS: [&str; 30] = [
    "stop",
    "kill",
    "fix",
    "remember fixes",
    "fix of an earlier check",
    "resize",
    "set strategy",
    "export",
    "difference",
    "tidy",
    "create",
    "create on base",
    "snapshot",
    "announce snapshot",
    "copy disk",
    "copy snapshot",
    "copy on disk",
    "copy on snapshot",
    "copy partial",
    "bring back",
    "write",
    "write by QEMU",
    "open for reading",
    "open for writing",
    "close",
    "remove",
    "set user data",
    "import raw",
    "import qcow2",
    "reconnect",
];

/// Runs so many sequences on a file system.
pub fn random_operations(place: &Path, cases: u32) {
    let given = std::env::var("PROPTEST_CASES").is_ok();
    let mut config = ProptestConfig::default();
    if !given {
        config.cases = cases;
    }
    config.max_shrink_iters = 400;
    config.failure_persistence = Some(Box::new(FileFailurePersistence::Direct(REGRESSIONS)));
    config.source_file = Some(file!());
    let counts: RefCell<BTreeMap<&str, (u32, u32)>> = RefCell::default();
    let all_hits: RefCell<Hits> = RefCell::default();
    let sequences = (prop::bool::weighted(0.7), prop::collection::vec(operation(), 1..80));
    let mut runner = TestRunner::new(config);
    let mut run = || {
        runner.run(&sequences, |(begun, operations)| {
            let mut world = World::new(place);
            if begun {
                world.begin();
            }
            for op in &operations {
                let outcome = world.apply(op);
                world.settle();
                if let Some((kind, succeeded)) = outcome {
                    let mut counts = counts.borrow_mut();
                    let count = counts.entry(kind).or_default();
                    count.0 += 1;
                    count.1 += u32::from(succeeded);
                }
            }
            judge::everything(&mut world);
            all_hits.borrow_mut().add(world.hits);
            Ok(())
        })
    };
    let mut result = run();
    // What a moment hits is up to the machine, and what an operation is applied to, to random ids.
    for _ in 0..MORE_RUNS {
        let hits = *all_hits.borrow();
        if result.is_err()
            || given
            || hits.stopped > 0
                && hits.unfinished > 0
                && hits.completed > 0
                && hits.stale > 0
                && never_succeeded(&counts.borrow()).is_none()
        {
            break;
        }
        result = run();
    }
    let hits = all_hits.into_inner();
    println!("{hits:?}");
    let counts = counts.into_inner();
    for (kind, (ran, succeeded)) in &counts {
        println!("{kind}: {ran} ran, {succeeded} succeeded");
    }
    if let Err(error) = result {
        panic!("{error}");
    }
    let never = never_succeeded(&counts);
    assert!(given || never.is_none(), "{never:?} never succeeded");
    assert!(given || hits.stopped > 0, "no stop hit a running task");
    assert!(given || hits.unfinished > 0, "no kill left anything unfinished");
    assert!(given || hits.stale > 0, "no fix of an earlier check had become unnecessary");
    assert!(given || hits.completed > 0, "nothing that was broken off became whole");
}

/// A kind of operation that should have succeeded, by how often each ran and succeeded.
fn never_succeeded(counts: &BTreeMap<&str, (u32, u32)>) -> Option<&'static str> {
    KINDS.into_iter().find(|&kind| {
        let (tried, succeeded) = counts.get(kind).copied().unwrap_or_default();
        // Where storage clones there is little to tidy. What a kill hits is counted apart. What is tried once or twice
        // may be refused each time.
        let rare = kind == "tidy" || (1..5).contains(&tried);
        !rare && succeeded == 0
    })
}

//! Nobody touches what is in use: merge, replace, clean, resize, createSnapshot and removeImage, while an image of the
//! chain is prepared, open, or open in a QEMU process, in the same store or in another one.
//!
//! Each operation is tried beside each guest, on each image of the chain that could be harmed. It is refused, or does
//! nothing, or does what the guest does not notice (a merge beyond it, a replacement whose old volume stays for as long
//! as it is read): which of these is in [`expected`]. No byte of a file that the guest uses changes meanwhile, of any
//! file if the operation is refused; the guest goes on reading; and when it has gone, the same operation completes.
//! `qemu_locks.rs` has the locks themselves, and what QEMU may open while we work.

#![allow(
    clippy::cast_possible_wrap,
    clippy::cast_possible_truncation,
    clippy::unwrap_used,
    missing_docs,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "guests/case.rs"]
mod case;
#[path = "guests/guest.rs"]
mod guest;

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use tempfile::tempdir_in;
use vdsmstore_core::ErrorKind;
use vdsmstore_core::options::CheckOptions;
use vdsmstore_tests::scene::{Scene, read};

use case::{CASES, Case, Images, finish};
use guest::{Guest, Use, data_files, files_of};

/// What became of an operation beside a guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// `ImageInUse`; no data file changed.
    Refused,
    /// It was done, and the guest did not notice.
    Done,
}

/// Which outcome there must be.
fn expected(case: &Case, on: &str, how: Use) -> Outcome {
    (case.expected)(on, how)
}

struct Try {
    case: &'static Case,
    on: &'static str,
    how: Use,
    /// The guest is in the store that does the operation.
    here: bool,
}

impl Try {
    fn name(&self) -> String {
        let Try { case, on, how, here } = self;
        let whose = match (how.alone(), here) {
            (true, _) => "",
            (false, true) => " by the same store",
            (false, false) => " by another store",
        };
        format!("{}: {on}: {how:?}{whose}", case.name)
    }

    fn run(&self) -> (Outcome, u32) {
        let name = self.name();
        let scene = Scene::within(tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        let other = scene.another();
        let repo = scene.repo("A");
        let mut images = Images::default();
        (self.case.setup)(&scene, &mut images);
        scene.quiet();
        for (image, (_, data)) in &images.chain {
            std::fs::write(scene.root.path().join(image), data).unwrap();
        }
        let (id, _) = images.chain[self.on].clone();
        let mine = files_of(&scene.store, &id);
        let holder = if self.here { &scene.store } else { &other };
        let guest = Guest::begin(holder, &id, self.how, &scene.root.path().join(self.on));
        if let Some(then) = self.case.then {
            then(&scene, &mut images);
            scene.quiet();
        }
        let before = data_files(&repo);
        let (result, reads) = guest.beside(|| (self.case.run)(&scene, &images));
        let after = data_files(&repo);
        let outcome = match &result {
            Err(error) if error.kind() == ErrorKind::ImageInUse => Outcome::Refused,
            Err(error) => panic!("{name}: {error:?}"),
            Ok(()) => Outcome::Done,
        };
        if outcome == Outcome::Done {
            for file in &mine {
                assert!(before[file] == after[file], "{name}: {file} changed under its guest");
            }
        } else {
            assert!(before == after, "{name}: {outcome:?}, and a data file changed");
        }
        if self.how.writes() {
            guest.write();
        }
        guest.read();
        guest.end();
        if outcome != Outcome::Done {
            (self.case.run)(&scene, &images).unwrap_or_else(|error| {
                panic!("{name}: it does not complete when the guest has gone: {error:?}")
            });
        }
        finish(&scene.store);
        assert!((self.case.done)(&scene, &images), "{name}: it is not done");
        for (image, (id, data)) in
            images.chain.iter().filter(|(image, _)| !self.case.removes.contains(*image))
        {
            let now = read(&other, "A", id);
            assert!(now[..data.len()] == data[..], "{name}: the data of {image}");
            assert!(now[data.len()..].iter().all(|byte| *byte == 0), "{name}: the new bytes of {image}");
        }
        assert_eq!(scene.store.check_storage_repository("A", &CheckOptions::default()).unwrap(), []);
        (outcome, reads)
    }
}

#[test]
fn nobody_touches_what_is_in_use() {
    let start = Instant::now();
    let mut tries = VecDeque::new();
    for case in CASES {
        for (on, uses) in case.guests {
            for how in *uses {
                tries.push_back(Try { case, on, how: *how, here: false });
                if !how.alone() {
                    tries.push_back(Try { case, on, how: *how, here: true });
                }
            }
        }
    }
    let count = tries.len();
    let tries = Mutex::new(tries);
    let results = Mutex::new(Vec::new());
    // Most of them wait for what is refused in the end.
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                loop {
                    let Some(one) = tries.lock().unwrap().pop_front() else { break };
                    let began = Instant::now();
                    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| one.run()));
                    let line = match &result {
                        Ok((outcome, reads)) => format!("{outcome:?}, {reads} readings"),
                        Err(_) => "failed".to_owned(),
                    };
                    let right = matches!(&result, Ok((outcome, _)) if *outcome == expected(one.case, one.on, one.how));
                    results.lock().unwrap().push((one.name(), line, right, began.elapsed().as_secs_f64()));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, line, right, seconds) in &results {
        println!("{}{name}: {line}, {seconds:.1} s", if *right { "" } else { "WRONG " });
    }
    println!("{count} combinations in {:.1} s", start.elapsed().as_secs_f64());
    let wrong: Vec<_> = results.iter().filter(|result| !result.2).map(|result| &result.0).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

//! A call is made once more on another host while the first one is under way, as after a timeout; and the first one fails.
//! What the second was answered stays true.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vdsmstore_core::ErrorKind;
use vdsmstore_io::device::sim::Fault;
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use crate::judge;
use crate::operation::Operation;
use crate::operations;
use crate::scene::{NAMES, Scene, Storage};

const CALLS: &[(&str, Storage)] = &[
    ("snapshot", Storage::Overlays),
    ("snapshot", Storage::Clones),
    ("create", Storage::Overlays),
    ("create on a snapshot", Storage::Overlays),
    ("create on a snapshot", Storage::Clones),
];

/// The first is held at that step, the second makes the same call, and from then on the first can write no data. Whether
/// the first failed, and whether the second was answered.
fn repeated(begin: &Scene, operation: &'static Operation, step: u64) -> Option<(bool, bool)> {
    let what = format!("{}, held at step {step}", operation.name);
    let scene = begin.copy();
    let ((first, me), (second, _)) = hosts::alone(2, || (scene.join("first"), scene.join("second")));
    let before = judge::moments(&scene);
    let outcomes = Arc::new(Mutex::new([true; 2]));
    let held = Arc::new(AtomicBool::new(false));
    let works: Vec<hosts::Work<()>> = [first, second]
        .into_iter()
        .enumerate()
        .map(|(index, store)| -> hosts::Work<()> {
            let (scene, outcomes) = (scene.clone(), outcomes.clone());
            Box::new(move || {
                let outcome = (operation.run)(&store, &scene);
                outcomes.lock().unwrap()[index] = outcome.is_ok();
                store.close().unwrap();
            })
        })
        .collect();
    let decide = {
        let (scene, held) = (scene.clone(), held.clone());
        Box::new(move |turn: &Turn<'_>| {
            if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                held.store(true, Ordering::Relaxed);
                for world in &scene.worlds {
                    for act in [Act::Write, Act::Flush] {
                        let kind = vdsmstore_io::ErrorKind::NoSpace;
                        world.power(me).fail(Fault { act, after: 0, times: u64::MAX, kind });
                    }
                }
            }
            // One that waits for the first lets it go on.
            let waits = turn.host == 1 && turn.act == Act::Pause;
            usize::from(held.load(Ordering::Relaxed) && !turn.ended[1] && !waits)
        })
    };
    hosts::run(3, works, decide);
    if !held.load(Ordering::Relaxed) {
        return None;
    }
    let [one, other] = *outcomes.lock().unwrap();
    hosts::alone(4, || {
        let (store, _) = scene.join("judge");
        let status = store.get_image_status(NAMES[0], scene.id("new"));
        let lost = status.is_err_and(|error| error.kind() == ErrorKind::ImageNotFound);
        assert!(!lost || !one && !other, "{what}: what was answered is lost: {one} {other}");
        judge::hold(&scene, &before, &what);
        let model = judge::model(&scene, &[(operation, one || other)]);
        judge::recover(&scene, &store, &model, &what);
        judge::look(&scene, &store, &model, true, &what);
        store.close().unwrap();
    });
    Some((!one, other))
}

#[test]
fn a_call_that_fails_takes_nothing_back_that_another_was_answered() {
    for &(name, storage) in CALLS {
        let operation = operations::named(name);
        let begin = operations::start(operation, storage, 1);
        let outcomes: Vec<_> = (1..).map_while(|step| repeated(&begin, operation, step)).collect();
        let both = outcomes.iter().filter(|(failed, answered)| *failed && *answered).count();
        println!(
            "{name} ({storage:?}): {} schedules, in {both} the first failed and the second did not",
            outcomes.len()
        );
        assert!(both > 0, "{name}: the first never failed");
    }
}

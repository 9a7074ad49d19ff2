//! Schedules made by hand, and judged by what they are about: what takes three hosts, a fault at one step, or a call
//! that no deed makes. Each is tried at all steps of the first host.

#[path = "aimed/clones.rs"]
mod clones;
#[path = "aimed/copies.rs"]
mod copies;
#[path = "aimed/leftovers.rs"]
mod leftovers;
#[path = "aimed/looks.rs"]
mod looks;
#[path = "aimed/taken.rs"]
mod taken;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vdsmstore_core::id::Incarnation;
use vdsmstore_core::options::CheckOptions;
use vdsmstore_core::repository::Liveness;
use vdsmstore_core::{Fix, FixType, Store};
use vdsmstore_io::device::sim::hosts::{self, Act, Turn};

use crate::scene::{NAMES, Scene, Storage};
use crate::{judge, operations};

/// The scene of an operation, before it.
fn begin(operation: &str, storage: Storage) -> Scene {
    operations::start(operations::named(operation), storage, 1)
}

/// By a host of its own.
fn prepare(scene: &mut Scene, work: impl FnOnce(&Store, &mut Scene)) {
    hosts::alone(7, || {
        let (store, _) = scene.join("setup");
        work(&store, scene);
        store.close().unwrap();
    });
}

/// What two hosts do.
type Works<'a> = [&'a dyn Fn(&Scene) -> Box<dyn FnOnce(&Store) + Send>; 2];

/// One host does that, with the scene.
fn does(
    work: impl Fn(&Store, &Scene) + Clone + Send + 'static,
) -> impl Fn(&Scene) -> Box<dyn FnOnce(&Store) + Send> {
    move |scene| {
        let (scene, work) = (scene.clone(), work.clone());
        Box::new(move |store| work(store, &scene))
    }
}

/// The first host is held before that step, counted from 1; the second makes so many steps, if it has so
/// many; then the first goes on to its end, and the second after it. `fate`: what becomes of the first where
/// it is held. None: it has fewer steps.
fn held(
    scene: &Scene,
    step: u64,
    pauses: Option<u64>,
    works: Works<'_>,
    mut fate: impl FnMut(&Scene, Incarnation) + Send + 'static,
) -> Option<()> {
    let ((one, me), (two, _)) = hosts::alone(1, || (scene.join("first"), scene.join("second")));
    let [first, second] = works.map(|work| work(scene));
    let works: Vec<hosts::Work<()>> = vec![
        Box::new(move || {
            first(&one);
            let _ = one.close();
        }),
        Box::new(move || {
            second(&two);
            let _ = two.close();
        }),
    ];
    let was_held = Arc::new(AtomicBool::new(false));
    let decide = {
        let (scene, was_held) = (scene.clone(), was_held.clone());
        let (mut holding, mut waited) = (false, 0);
        move |turn: &Turn<'_>| {
            if turn.host == 0 && turn.step() == step && turn.act != Act::End {
                holding = true;
                was_held.store(true, Ordering::Relaxed);
                fate(&scene, me);
            }
            if holding && turn.host == 1 {
                // One that waits for the first lets it go on.
                waited += u32::from(turn.act == Act::Pause);
                holding = turn.act != Act::End && waited < 100 && pauses != Some(turn.step());
            }
            usize::from(holding && !turn.ended[1] || turn.ended[0])
        }
    };
    hosts::run(2, works, Box::new(decide));
    was_held.load(Ordering::Relaxed).then_some(())
}

/// Its locks are lost, and it does not know it.
fn lose(scene: &Scene, host: Incarnation) {
    for world in &scene.worlds {
        world.revoke(host, false);
        world.set_liveness(host, Liveness::LikelyDead);
    }
}

fn stays(_: &Scene, _: Incarnation) {}

/// What a check lists that is of that type, and about that image if one is named.
fn listed(store: &Store, repo: usize, fix_type: FixType, image: Option<&str>) -> Option<Fix> {
    let fixes = store.check_storage_repository(NAMES[repo], &CheckOptions::default()).ok()?;
    let is_it = |fix: &Fix| image.is_none_or(|id| fix.image_id.is_some_and(|image| image.to_string() == id));
    fixes.into_iter().find(|fix| fix.fix_type == fix_type && is_it(fix))
}

/// All that a check lists, as far as it can be done.
fn repaired(scene: &Scene, what: &str) -> Store {
    let (store, _) = scene.join("judge");
    judge::repair_politely(&store, what);
    store
}

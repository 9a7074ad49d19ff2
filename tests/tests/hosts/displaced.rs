//! A host that is run alone, step by step; and one that is displaced.

use vdsmstore_core::Store;
use vdsmstore_core::id::Incarnation;
use vdsmstore_core::repository::Liveness;
use vdsmstore_io::device::sim::hosts::{self, Turn};

use crate::scene::Scene;

/// How a host is displaced.
#[derive(Clone, Copy, Debug)]
pub struct Displaced {
    /// What is said of it.
    said: Liveness,
    /// What it has open fails; else its late writes of data arrive.
    fenced: bool,
}

/// Certain death with data that still arrives is what no storage may say: "certain" means that it does not.
pub const WAYS: &[Displaced] = &[
    Displaced { said: Liveness::LikelyDead, fenced: false },
    Displaced { said: Liveness::LikelyDead, fenced: true },
    Displaced { said: Liveness::CertainlyDead, fenced: true },
];

impl Displaced {
    #[allow(dead_code, reason = "only one of the tests asks")]
    pub fn is_certain(self) -> bool {
        self.said == Liveness::CertainlyDead
    }

    pub fn displace(self, scene: &Scene, host: Incarnation) {
        for world in &scene.worlds {
            world.revoke(host, self.fenced);
            world.set_liveness(host, self.said);
        }
    }
}

/// Lets a host of its own work on this scene alone; `each` sees every step.
pub fn walk(
    scene: &Scene,
    seed: u64,
    work: impl FnOnce(&Store, &Scene) + Send + 'static,
    mut each: impl FnMut(&Turn<'_>, Incarnation) + Send + 'static,
) {
    let (store, me) = hosts::alone(seed, || scene.join("first"));
    let scene = scene.clone();
    let work = move || {
        work(&store, &scene);
        let _ = store.close();
    };
    let decide = move |turn: &Turn<'_>| {
        each(turn, me);
        0
    };
    hosts::run::<()>(seed + 1, vec![Box::new(work)], Box::new(decide));
}

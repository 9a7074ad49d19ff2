//! The schedules that were written down.

use crate::deeds::Deed;
use crate::displaced::WAYS;
use crate::scene::{Scene, Storage};
use crate::schedule::Fate;
use crate::{Begin, Row};

fn key(scene: &Scene, repo: usize, name: &str) -> (usize, String) {
    (repo, scene.id(name).to_owned())
}

pub const ROWS: &[Row] = &[Row {
    switch: "add.look.base",
    storage: Storage::Overlays,
    operation: "resize",
    first: Begin::Deed(|scene| Deed::CreateOn(key(scene, 0, "snapshot"))),
    nth: 0,
    later: -12..=0,
    fate: Fate::Displaced(WAYS[2]),
    second: |scene| vec![Deed::Remove(key(scene, 0, "snapshot")), Deed::Fix],
    pauses: None,
    goes_on: None,
}];

//! The schedules that were written down.

use crate::deeds::Deed;
use crate::displaced::WAYS;
use crate::scene::{Scene, Storage};
use crate::schedule::Fate;
use crate::{Begin, Row};

#[path = "rows/between.rs"]
mod between;
#[path = "rows/taking_turns.rs"]
mod taking_turns;
#[path = "rows/together.rs"]
mod together;

pub const ALL: &[&[Row]] = &[ROWS, between::ROWS, taking_turns::ROWS, together::ROWS];

fn key(scene: &Scene, repo: usize, name: &str) -> (usize, String) {
    (repo, scene.id(name).to_owned())
}

const ROWS: &[Row] = &[Row {
    switch: "layout.look.target",
    at: "",
    storage: Storage::Clones,
    operation: "create on a snapshot of another repository",
    first: Begin::Operation,
    nth: 0,
    later: -20..=-8,
    fate: Fate::Displaced(WAYS[2]),
    second: |_| vec![Deed::Fix, Deed::Write],
    pauses: None,
    goes_on: Some(8),
}];

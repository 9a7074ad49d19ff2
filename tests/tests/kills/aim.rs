//! How a stage of an operation is hit: at a moment, or as soon as something is to be seen in the repository.

use std::path::Path;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use vdsmstore_tests::dying::{Dying, Moment, Pace};
use vdsmstore_tests::records::{in_shards, record};

use crate::Random;
use crate::counts::Stage;
use crate::operation::{Case, Judge, Operation};
use crate::place::Place;

type Sight = Box<dyn Fn() -> bool>;

pub enum Aim {
    At(Moment),
    /// And so long after it was seen.
    Seen(Sight, Duration),
}

impl Aim {
    pub fn new(
        place: &Place,
        operation: &Operation,
        case: &Case,
        stage: Stage,
        pace: Pace,
        random: &mut Random,
    ) -> Aim {
        let call = pace.returned.max(Duration::from_micros(500)) * 11 / 10;
        let whole = pace.finished.max(Duration::from_millis(1)) * 11 / 10;
        match stage {
            Stage::FirstHalf => return Aim::At(Moment::Done(1 + random.below(400), Duration::ZERO)),
            Stage::SecondHalf => return Aim::At(Moment::Done(500 + random.below(450), Duration::ZERO)),
            _ => {}
        }
        if random.below(4) == 0 {
            let limit = if stage == Stage::Sealed { whole } else { call };
            return Aim::At(Moment::After(random.time(limit)));
        }
        let late = match random.below(4) {
            0 | 1 => Duration::ZERO,
            2 => random.time(Duration::from_micros(300)),
            _ => random.time(Duration::from_millis(2)),
        };
        Aim::Seen(sight(place, operation.judge, case, stage), late)
    }

    /// Lets the host work until then.
    pub fn wait(&self, dying: &mut Dying) {
        match self {
            Aim::At(moment) => {
                dying.run_until(Some(moment));
            }
            Aim::Seen(seen, late) => {
                dying.run_until_seen(seen);
                thread::sleep(*late);
            }
        }
    }
}

/// What tells that the stage has begun.
fn sight(place: &Place, judge: Judge, case: &Case, stage: Stage) -> Sight {
    let repo = place.root().join(case.repo);
    let id = case.image.clone();
    let now = |room: &str, id: &str| record(&repo, room, id).unwrap_or_default();
    let image = now("images", &id);
    let volume_id = image["volume"].as_str().unwrap_or_default().to_owned();
    let volume = now("volumes", &volume_id);
    let field = |room: &'static str, id: &str, key: &'static str, wanted: Value| -> Sight {
        let (repo, id) = (repo.clone(), id.to_owned());
        Box::new(move || record(&repo, room, &id).is_some_and(|record| record[key] == wanted))
    };
    let changed = |room: &'static str, id: &str, key: &'static str, before: Value| -> Sight {
        let (repo, id) = (repo.clone(), id.to_owned());
        Box::new(move || record(&repo, room, &id).is_some_and(|record| record[key] != before))
    };
    match (judge, stage) {
        (Judge::Export, _) => {
            let path = case.job["path"].as_str().unwrap().to_owned();
            let name = if stage == Stage::Intent { format!("{path}.part") } else { path };
            Box::new(move || Path::new(&name).exists())
        }
        (Judge::Remove, _) => {
            Box::new(move || record(&repo, "images", &id).is_none_or(|image| image["state"] != "live"))
        }
        (_, Stage::BeforeIntent) => {
            let rooms = ["blobs", "children", "holders", "volumes"].map(|room| repo.join(room));
            let before = rooms.each_ref().map(|room| in_shards(room).len());
            Box::new(move || rooms.iter().zip(&before).any(|(room, before)| in_shards(room).len() > *before))
        }
        (Judge::Snapshot, Stage::Intent) => {
            let disk = case.job["image"].as_str().unwrap();
            changed("images", disk, "freeze", now("images", disk)["freeze"].clone())
        }
        (Judge::New, Stage::Intent) => field("images", &id, "state", "pending".into()),
        (Judge::New | Judge::Snapshot | Judge::Again | Judge::BringBack, Stage::Sealed) => {
            field("images", &id, "state", "live".into())
        }
        (Judge::Again | Judge::Resize, _) => changed("volumes", &volume_id, "gen", volume["gen"].clone()),
        (Judge::Optimize, Stage::Intent) => changed("images", &id, "next", image["next"].clone()),
        (Judge::MergeDown, Stage::Intent) => {
            let lower = volume["backing"]["image"].as_str().unwrap();
            field("images", lower, "state", "absorbed".into())
        }
        (Judge::MergeUp, _) => changed("volumes", &volume_id, "backing", volume["backing"].clone()),
        (Judge::UserData, _) => changed("images", &id, "userData", image["userData"].clone()),
        _ => changed("images", &id, "volume", image["volume"].clone()),
    }
}

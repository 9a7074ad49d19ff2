//! Where an operation was when its host died, as the records say.

use std::fs;

use serde_json::Value;
use vdsmstore_core::{ErrorKind, Status};
use vdsmstore_tests::dying::Said;
use vdsmstore_tests::records::record;

use crate::counts::Stage;
use crate::operation::{Case, Judge, Operation, filling};
use crate::place::{Listed, Place};

impl Place {
    /// Where the operation was when its host died. None: nothing is unfinished, or nothing was begun.
    pub fn stage(&self, operation: &Operation, case: &Case, before: &Listed, said: &Said) -> Option<Stage> {
        let listed = self.listed();
        if operation.judge == Judge::Export {
            assert!(listed == *before, "{}: an export leaves {listed:?}", self.kind());
            let path = case.job["path"].as_str().unwrap();
            let begun = fs::exists(format!("{path}.part")).unwrap();
            let named = fs::exists(path).unwrap();
            return begun.then(|| if named { Stage::Sealed } else { filling(said.done) });
        }
        if operation.judge == Judge::Resize {
            return self.is_half_grown(case).then_some(Stage::Intent);
        }
        let status = match self.store.get_image_status(case.repo, &case.image) {
            Err(error) if error.kind() == ErrorKind::ImageNotFound => None,
            status => Some(status.unwrap().status),
        };
        if listed.is_empty() || listed == *before && said.done == 0 {
            return None;
        }
        let still = |key: &str| listed.iter().any(|(what, _)| what.starts_with(key));
        match (operation.judge, status) {
            (Judge::New | Judge::Snapshot | Judge::BringBack, None) | (Judge::Remove, Some(_)) => {
                Some(Stage::BeforeIntent)
            }
            (Judge::New | Judge::Again, Some(Status::Broken)) => Some(filling(said.done)),
            (Judge::Snapshot, Some(Status::Broken)) => {
                let promised = self.is_promised(case);
                Some(if promised { Stage::Intent } else { Stage::BeforeIntent })
            }
            (Judge::Optimize, _) if self.record(case).0["next"].is_string() => Some(filling(said.done)),
            (Judge::Optimize, _) if still("Optimize ") => Some(Stage::BeforeIntent),
            // What was moved upwards is in no record; that it is not done is.
            (Judge::MergeUp, _) if still("Merge ") => (said.done > 0).then(|| filling(said.done)),
            (Judge::MergeDown, _) if still("Merge ") => self.is_absorbed(case).then(|| filling(said.done)),
            (Judge::UserData, _) => {
                let now = self.store.get_image_info(case.repo, &case.image).unwrap();
                let written = now.user_data.get() == case.job["userData"].as_str().unwrap();
                Some(if written { Stage::Sealed } else { Stage::BeforeIntent })
            }
            _ => Some(Stage::Sealed),
        }
    }

    /// The disk is to be frozen as the snapshot.
    fn is_promised(&self, case: &Case) -> bool {
        let disk = record(&self.root().join(case.repo), "images", case.job["image"].as_str().unwrap());
        disk.unwrap()["freeze"].as_array().unwrap().iter().any(|id| *id == *case.image)
    }

    /// What the image is built on is being merged into it.
    fn is_absorbed(&self, case: &Case) -> bool {
        let (_, volume) = self.record(case);
        let below = volume["backing"]["image"].as_str().unwrap();
        record(&self.root().join(case.repo), "images", below).unwrap()["state"] == "absorbed"
    }

    fn record(&self, case: &Case) -> (Value, Value) {
        let repo = self.root().join(case.repo);
        let image = record(&repo, "images", &case.image).unwrap_or_default();
        let volume = image["volume"].as_str().and_then(|id| record(&repo, "volumes", id));
        (image, volume.unwrap_or_default())
    }

    /// The volume has grown, and the image not yet.
    fn is_half_grown(&self, case: &Case) -> bool {
        let (image, volume) = self.record(case);
        let size = image["size"].as_u64().unwrap();
        let object = self.root().join(case.repo).join("data").join(image["volume"].as_str().unwrap());
        let larger = volume["format"] == "raw" && fs::metadata(object).unwrap().len() > size;
        larger || volume["size"].as_u64().unwrap() > size
    }
}

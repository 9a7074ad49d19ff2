//! Each invariant can fail.

use serde_json::{Value, json};
use uuid::Uuid;

use crate::invariants::Moment;
use crate::operation::{chain, family};
use crate::raw::{base_of, text};
use crate::scene::{Scene, Storage};

fn moment() -> Moment {
    let mut scene = Scene::new(Storage::Overlays);
    let (store, _) = scene.join("setup");
    family(&store, &mut scene);
    chain(&store, &mut scene, false);
    store.close().unwrap();
    let moment = Moment::new(scene.raw(0), &scene.worlds[0]);
    assert_eq!(moment.violations(Some(&moment.clone())), Vec::<String>::new());
    moment
}

/// Breaks something, and the invariant of that number is said to be violated.
fn broken(number: &str, change: impl FnOnce(&mut Moment)) {
    let before = moment();
    let mut after = before.clone();
    change(&mut after);
    let found = after.violations(Some(&before));
    assert!(found.iter().any(|what| what.starts_with(&format!("{number}:"))), "{number}: {found:?}");
}

fn overlay(moment: &Moment) -> String {
    let volumes = &moment.raw.volumes;
    volumes.iter().find(|(_, volume)| base_of(volume).is_some()).map(|(id, _)| id.clone()).unwrap()
}

fn disk(moment: &Moment) -> String {
    let images = &moment.raw.images;
    images.iter().find(|(_, image)| image["kind"] == "disk").map(|(id, _)| id.clone()).unwrap()
}

#[test]
fn each_can_fail() {
    broken("I4", |moment| {
        let volume = overlay(moment);
        moment.raw.volumes.get_mut(&volume).unwrap()["state"] = "filling".into();
    });
    broken("I4", |moment| {
        let image = disk(moment);
        let volume = text(&moment.raw.images[&image]["volume"]).to_owned();
        moment.raw.volumes.remove(&volume);
    });
    broken("I5", |moment| *moment.generations.values_mut().next().unwrap() -= 1);
    broken("I5", |moment| {
        let image = disk(moment);
        moment.raw.images.get_mut(&image).unwrap()["size"] = 1.into();
    });
    broken("I6", |moment| moment.raw.holders.clear());
    broken("I6", |moment| moment.raw.children.clear());
    broken("I7", |moment| {
        let image = disk(moment);
        let volume = text(&moment.raw.images[&image]["volume"]).to_owned();
        moment.raw.volumes.remove(&volume);
    });
    broken("I8", |moment| {
        let (volume, image) = (overlay(moment), disk(moment));
        moment.raw.volumes.get_mut(&volume).unwrap()["backing"]["image"] = image.into();
    });
    broken("I10", |moment| moment.trespasses.push("somebody".into()));
    broken("I11", |moment| {
        let image = disk(moment);
        let image = moment.raw.images.get_mut(&image).unwrap();
        image["freeze"] = vec!["x"].into();
        image["open"] = "somebody".into();
    });
    broken("I12", |moment| {
        let image = disk(moment);
        moment.raw.images.get_mut(&image).unwrap()["open"] = "somebody".into();
    });
    broken("I13", |moment| {
        let (image, lowest) = (disk(moment), overlay(moment));
        let id = |value: &Value| Uuid::parse_str(text(value)).unwrap().as_u128();
        let record = &moment.raw.images[&image];
        let volume = record["volume"].clone();
        let token = id(&record["token"]) ^ id(&volume) ^ Uuid::parse_str(&lowest).unwrap().as_u128();
        let epoch = &moment.raw.volumes[text(&volume)]["epoch"];
        let progress = json!({
            "volume": volume, "epoch": epoch, "stage": "merge up", "watermark": 65536,
            "sourceToken": Uuid::from_u128(token),
        });
        moment.raw.progress.insert(image, progress);
        // Nothing of it is durable.
        moment.durable.insert(text(&volume).to_owned(), Vec::new());
    });
    broken("I15", |moment| {
        let volume = overlay(moment);
        moment.raw.volumes.get_mut(&volume).unwrap()["mirror"] = "x".into();
    });
}

//! Why a fix is listed, read from what is stored.

use serde_json::Value;
use vdsmstore_core::Fix;

use crate::raw::{Raw, base_of, text};
use crate::scene::Storage;

/// Action and cause.
pub const CAUSES: &[(&str, &str)] = &[
    ("mend", "create, announced"),
    ("mend", "create, begun"),
    ("mend", "clone, announced"),
    ("mend", "clone, begun"),
    ("mend", "copy, announced"),
    ("mend", "copy, begun"),
    ("mend", "copy, with progress"),
    ("mend", "diff, announced, its base to be frozen"),
    ("mend", "diff, announced on its base"),
    ("mend", "diff, begun"),
    ("mend", "diff, with progress"),
    ("mend", "import, announced"),
    ("mend", "import, begun"),
    ("mend", "import, with progress"),
    ("mend", "filled, and not live yet"),
    ("mend", "a snapshot that a disk is to be frozen as"),
    ("mend", "a snapshot of a disk that was removed since"),
    ("mend", "frozen, the snapshot is pending"),
    ("mend", "frozen, the snapshot is live"),
    ("mend", "replace, announced"),
    ("mend", "replace, begun"),
    ("mend", "replace, with progress"),
    ("mend", "the next volume is ready"),
    ("mend", "its data object was lost; a snapshot elsewhere"),
    ("mend", "fetched anew, announced"),
    ("mend", "fetched anew, begun"),
    ("mend", "fetched anew, with progress"),
    ("mend", "a partial copy without its base; the whole elsewhere"),
    ("mend", "a partial copy whose base came"),
    ("mend", "its base moved to another volume"),
    ("optimize", "a disk that is to have a volume of its own"),
    ("optimize", "a snapshot that is to have a volume of its own"),
    ("optimize", "a chain of more than 64 volumes"),
    ("optimize", "a former host may still write it"),
    ("merge", "a hidden base with one child"),
    ("merge", "a removed image with one child"),
    ("merge", "down, absorbed"),
    ("merge", "up, begun"),
    ("merge", "a line of removed images"),
    ("merge", "down, a line, some of it absorbed"),
    ("merge", "down, a line, all of it absorbed"),
    ("merge", "up, a line, begun"),
    ("clean-image", "announced, its volume was lost"),
    ("clean-image", "a snapshot whose call never returned"),
    ("clean-image", "removed before it was complete"),
    ("clean-image", "removed, nothing is built on it"),
    ("clean-image", "a hidden base, nothing is built on it"),
    ("clean-image", "flagged to be buried"),
    ("clean-image", "flagged to be buried, something is built on it"),
    ("clean-image", "merged away"),
    ("clean-volume", "announced, and its image never came"),
    ("clean-volume", "its image does not want it any more"),
    ("clean-volume", "its image is on another volume, or gone"),
    ("clean-volume", "a former host may still write it"),
    ("clean-volume", "doomed"),
    ("clean-volume", "doomed, its object is gone"),
    ("clean-volume", WANTED),
    ("clean-object", "its record was lost"),
    ("clean-child", "announced, and the volume never came"),
    ("clean-child", "the volume is built on another image now"),
    ("clean-holder", "announced, and neither came"),
    ("clean-holder", "announced, and the image never came"),
    ("clean-holder", "the image is on another volume now"),
    ("clean-blob", "stored, and the image never came"),
    ("clean-blob", "the image does not name it any more"),
    ("clean-progress", "the image was removed"),
    ("clean-progress", "the image is complete"),
    ("sweep", "the registration of a dead store"),
];

/// The cause of a fix that keeps a volume.
pub const WANTED: &str = "doomed, and its image wants it";

/// The action of a fix, as its document names it.
pub fn action(fix: &Fix) -> &str {
    fix.data["action"].as_str().unwrap()
}

/// The ids in the document.
pub fn ids(fix: &Fix) -> Vec<&str> {
    fix.data["ids"].as_array().unwrap().iter().map(text).collect()
}

/// The cause of a fix; `before`: what was stored before the operation.
pub fn cause(fix: &Fix, raw: &Raw, before: &Raw, storage: Storage) -> &'static str {
    let ids = ids(fix);
    match (action(fix), &ids[..]) {
        ("mend", [image]) => mend(image, raw),
        ("optimize", [image]) => optimize(image, raw),
        ("merge", [image]) => merge(image, raw, before),
        ("clean-image", [image]) => clean_image(image, raw),
        ("clean-volume", [volume]) => clean_volume(volume, raw, storage),
        ("clean-object", [volume]) => {
            assert!(raw.objects.contains_key(*volume) && !raw.volumes.contains_key(*volume));
            "its record was lost"
        }
        ("clean-child", [image, volume]) => match raw.volumes.get(*volume) {
            None => "announced, and the volume never came",
            Some(record) => {
                assert_ne!(base_of(record), Some(*image));
                "the volume is built on another image now"
            }
        },
        ("clean-holder", [volume, image]) => {
            let held = raw.held_by(volume);
            assert!(!held.contains(image));
            match (raw.images.get(*image), held.is_empty()) {
                (None, true) => "announced, and neither came",
                (None, false) => "announced, and the image never came",
                (Some(_), _) => "the image is on another volume now",
            }
        }
        ("clean-blob", [image, blob]) => match raw.images.get(*image) {
            None => "stored, and the image never came",
            Some(record) => {
                assert_ne!(record["userData"]["blob"], *blob);
                "the image does not name it any more"
            }
        },
        ("clean-progress", [image]) => match raw.images.get(*image) {
            None => "the image was removed",
            Some(record) => match text(&record["state"]) {
                "live" => "the image is complete",
                "removed" | "absorbed" => "the image was removed",
                other => panic!("the progress of an image that is {other}"),
            },
        },
        ("sweep", []) => {
            assert!(raw.leftovers > 0);
            "the registration of a dead store"
        }
        (other, _) => panic!("an action without a test: {other} {ids:?}"),
    }
}

fn mend(id: &str, raw: &Raw) -> &'static str {
    let image = &raw.images[id];
    let volume = raw.volume_of(id);
    if image["state"] == "pending" {
        let volume = volume.expect("a pending image that is mended has a volume");
        return match text(&volume["state"]) {
            "filling" => filling(id, volume, raw, false),
            "ready" => promised(id, raw),
            other => panic!("pending on a volume that is {other}"),
        };
    }
    assert_eq!(image["state"], "live");
    if let Some(freeze) = image["freeze"].as_array().filter(|freeze| !freeze.is_empty()) {
        let live = freeze.iter().any(|id| raw.images.get(text(id)).is_some_and(|s| s["state"] == "live"));
        return if live { "frozen, the snapshot is live" } else { "frozen, the snapshot is pending" };
    }
    if let Some(next) = image["next"].as_str() {
        let volume = &raw.volumes[next];
        return match text(&volume["state"]) {
            "filling" => filling(id, volume, raw, true),
            "ready" => "the next volume is ready",
            other => panic!("the next volume is {other}"),
        };
    }
    let volume = volume.expect("a live image has a volume");
    if !raw.objects.contains_key(text(&image["volume"])) {
        return "its data object was lost; a snapshot elsewhere";
    }
    let base = base_of(volume).expect("nothing else is to be mended of a volume that stands alone");
    if !raw.images.contains_key(base) {
        return "a partial copy without its base; the whole elsewhere";
    }
    assert_ne!(volume["mirror"], raw.images[base]["volume"]);
    if volume["mirror"].is_null() {
        "a partial copy whose base came"
    } else {
        "its base moved to another volume"
    }
}

fn filling(id: &str, volume: &Value, raw: &Raw, next: bool) -> &'static str {
    let laid = raw.objects.contains_key(text(&volume["id"]));
    let progress = raw.progress.get(id).is_some_and(|progress| progress["volume"] == volume["id"]);
    let has_base = volume["backing"].is_object();
    match (next, text(&volume["fill"]["how"]), laid, progress) {
        (false, "zero", false, _) => "create, announced",
        (false, "zero", true, _) => "create, begun",
        (false, "clone", false, _) => "clone, announced",
        (false, "clone", true, _) => "clone, begun",
        (false, "copy", false, _) => "copy, announced",
        (false, "copy", true, false) => "copy, begun",
        (false, "copy", true, true) => "copy, with progress",
        (false, "diff", false, _) if !has_base => "diff, announced, its base to be frozen",
        (false, "diff", false, _) => "diff, announced on its base",
        (false, "diff", true, false) => "diff, begun",
        (false, "diff", true, true) => "diff, with progress",
        (false, "import", false, _) => "import, announced",
        (false, "import", true, false) => "import, begun",
        (false, "import", true, true) => "import, with progress",
        (true, "flatten", false, _) => "replace, announced",
        (true, "flatten", true, false) => "replace, begun",
        (true, "flatten", true, true) => "replace, with progress",
        (true, "copy", false, _) => "fetched anew, announced",
        (true, "copy", true, false) => "fetched anew, begun",
        (true, "copy", true, true) => "fetched anew, with progress",
        other => panic!("a fill without a test: {other:?}"),
    }
}

/// A pending image on a volume that is ready.
fn promised(id: &str, raw: &Raw) -> &'static str {
    let names = |image: &&Value| {
        image["freeze"].as_array().is_some_and(|freeze| freeze.iter().any(|frozen| frozen == id))
    };
    match raw.images.values().find(names).map(|disk| text(&disk["state"])) {
        Some("live") => "a snapshot that a disk is to be frozen as",
        Some("removed") => "a snapshot of a disk that was removed since",
        None => "filled, and not live yet",
        other => panic!("frozen by a disk that is {other:?}"),
    }
}

fn optimize(id: &str, raw: &Raw) -> &'static str {
    let image = &raw.images[id];
    match (text(&image["kind"]), text(&image["strategy"])) {
        ("disk", "performance") => "a disk that is to have a volume of its own",
        ("snapshot", "performance") => "a snapshot that is to have a volume of its own",
        (_, "space") if raw.depth(id) > 64 => "a chain of more than 64 volumes",
        (_, "space") if raw.volume_of(id).is_some_and(|volume| volume["writer"].is_string()) => {
            "a former host may still write it"
        }
        other => panic!("degraded without a test: {other:?}"),
    }
}

fn merge(id: &str, raw: &Raw, before: &Raw) -> &'static str {
    let (line, volumes) = merged(id, raw);
    let states: Vec<&str> = line.iter().map(|id| text(&raw.images[*id]["state"])).collect();
    let absorbed = states.iter().filter(|state| **state == "absorbed").count();
    let begun = is_written(volumes[line.len()], raw, before);
    match (line.len(), absorbed) {
        (1, 0) if states[0] == "live" => "a hidden base with one child",
        (1, 0) if begun => "up, begun",
        (1, 0) => "a removed image with one child",
        (1, _) => "down, absorbed",
        (_, 0) if begun => "up, a line, begun",
        (_, 0) => "a line of removed images",
        (count, absorbed) if absorbed == count => "down, a line, all of it absorbed",
        _ => "down, a line, some of it absorbed",
    }
}

/// The images in a row that nobody wants, from `id` up, and their volumes with the one above them.
pub fn merged<'a>(id: &'a str, raw: &'a Raw) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut line, mut volumes) = (vec![id], vec![text(&raw.images[id]["volume"])]);
    loop {
        let built = raw.built_on(line[line.len() - 1]);
        let [upper] = built[..] else { panic!("merged with {built:?}") };
        let held = raw.held_by(upper);
        let [above] = held[..] else { panic!("merged with {held:?}") };
        volumes.push(upper);
        if !is_unwanted(&raw.images[above]) || raw.built_on(above).len() != 1 {
            return (line, volumes);
        }
        line.push(above);
    }
}

fn is_unwanted(image: &Value) -> bool {
    match text(&image["state"]) {
        "live" => image["kind"] == "hidden",
        other => other == "removed" || other == "absorbed",
    }
}

fn is_written(volume: &str, raw: &Raw, before: &Raw) -> bool {
    before.objects.get(volume).is_some_and(|bytes| *bytes != raw.objects[volume])
}

fn clean_image(id: &str, raw: &Raw) -> &'static str {
    let image = &raw.images[id];
    let volume = raw.volume_of(id).map(|volume| text(&volume["state"]));
    let built = !raw.built_on(id).is_empty();
    match (text(&image["state"]), text(&image["kind"]), volume) {
        ("pending", _, None) => "announced, its volume was lost",
        ("pending", _, Some("ready")) => "a snapshot whose call never returned",
        ("removed", _, Some("filling")) => "removed before it was complete",
        ("removed", _, _) if !built => "removed, nothing is built on it",
        ("live", "hidden", _) if !built => "a hidden base, nothing is built on it",
        ("absorbed", ..) if image["absorbedBy"].is_array() => "merged away",
        ("absorbed", ..) if built => "flagged to be buried, something is built on it",
        ("absorbed", ..) => "flagged to be buried",
        other => panic!("an image is cleaned without a test: {other:?}"),
    }
}

fn clean_volume(id: &str, raw: &Raw, storage: Storage) -> &'static str {
    let volume = &raw.volumes[id];
    let laid = raw.objects.contains_key(id);
    let holders: Vec<_> = raw.holders.iter().filter(|(of, _)| of == id).map(|(_, image)| image).collect();
    let came = holders.iter().any(|image| raw.images.contains_key(*image));
    match (text(&volume["state"]), laid) {
        ("filling", _) if storage == Storage::Doubts && laid => "a former host may still write it",
        ("filling", _) if came => "its image does not want it any more",
        ("filling", _) => "announced, and its image never came",
        ("ready", _) => "its image is on another volume, or gone",
        ("doomed", true) if !raw.held_by(id).is_empty() => WANTED,
        ("doomed", true) => "doomed",
        ("doomed", false) => "doomed, its object is gone",
        other => panic!("a volume is cleaned without a test: {other:?}"),
    }
}

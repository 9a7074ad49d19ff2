//! What holds of the records at every moment, whoever died when: `docs/engine.md`, section 11.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use vdsmstore_core::repository::{Marker, RecordKey};
use vdsmstore_core::sim::SimWorld;

use crate::scene::documents;

/// The records of a repository, by id.
struct Records {
    images: BTreeMap<String, Value>,
    volumes: BTreeMap<String, Value>,
}

fn records(world: &SimWorld) -> Records {
    let mut records = Records { images: BTreeMap::new(), volumes: BTreeMap::new() };
    for (key, record) in documents(world) {
        match key {
            RecordKey::Image(id) => records.images.insert(id.to_string(), record),
            RecordKey::Volume(id) => records.volumes.insert(id.to_string(), record),
        };
    }
    records
}

/// The name of the backing file in a qcow2 header.
fn backing_name(bytes: &[u8]) -> Option<String> {
    let number = |at: usize, length: usize| -> usize {
        bytes[at..at + length].iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
    };
    if bytes.len() < 512 || !bytes.starts_with(b"QFI\xfb") {
        return None;
    }
    let (at, length) = (number(8, 8), number(16, 4));
    (at > 0).then(|| String::from_utf8_lossy(&bytes[at..at + length]).into_owned())
}

/// Every reference has its marker (I6), every object its record (I7); what is not pending lies on a ready volume (I4), and
/// nothing is built on a disk (I8). A header names a volume that is there (I15), and what is ready has all its length.
pub fn hold(worlds: &[SimWorld], what: &str) {
    for (repo, world) in worlds.iter().enumerate() {
        let what = format!("{what}, repository {repo}");
        let Records { images, volumes } = records(world);
        let (mut children, mut holders) = (BTreeSet::new(), BTreeSet::new());
        for marker in world.markers() {
            match marker {
                Marker::Child(image, volume) => children.insert((image.to_string(), volume.to_string())),
                Marker::Holder(volume, image) => holders.insert((volume.to_string(), image.to_string())),
            };
        }
        for (id, volume) in &volumes {
            let Some(base) = volume["backing"]["image"].as_str() else { continue };
            let marker = (base.to_owned(), id.clone());
            assert!(children.contains(&marker), "{what}: no marker says that {id} is built on {base}");
            if let Some(image) = images.get(base) {
                assert_ne!(image["kind"], "disk", "{what}: {id} is built on the disk {base}");
            }
        }
        for (id, image) in &images {
            for volume in [&image["volume"], &image["next"]].into_iter().filter_map(Value::as_str) {
                let marker = (volume.to_owned(), id.clone());
                assert!(holders.contains(&marker), "{what}: no marker says that {id} is on {volume}");
            }
            let volume = volumes.get(image["volume"].as_str().unwrap());
            let state = volume.map(|volume| volume["state"].as_str().unwrap());
            match image["state"].as_str().unwrap() {
                "live" => assert_eq!(state, Some("ready"), "{what}: the volume of {id}: {image:#}"),
                "removed" => assert!(
                    matches!(state, Some("ready" | "filling")),
                    "{what}: the volume of {id} is {state:?}: {image:#}"
                ),
                _ => {}
            }
        }
        let objects: BTreeSet<String> = world.objects().iter().map(ToString::to_string).collect();
        for id in world.objects() {
            let (bytes, id) = (world.bytes(id).unwrap(), id.to_string());
            let name = backing_name(&bytes);
            let Some(record) = volumes.get(&id) else { panic!("{what}: {id} has no record") };
            if record["state"] != "ready" {
                continue;
            }
            if record["format"] == "raw" {
                let (length, size) = (bytes.len() as u64, record["size"].as_u64().unwrap());
                assert!(length >= size, "{what}: {id} has {length} bytes of {size}");
            }
            let Some(name) = name else { continue };
            // While the base is not here, its own id stands there.
            let base = record["backing"]["image"].as_str().unwrap_or_default();
            let named = objects.contains(&name) || name == base;
            assert!(named, "{what}: the header of {id} names {name}, which is not there");
        }
    }
}

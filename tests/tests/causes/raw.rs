//! A simulated repository as it is stored, read without the engine.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use vdsmstore_core::id::VolumeId;
use vdsmstore_core::repository::{Driver, Marker, Read, RecordKey};
use vdsmstore_core::sim::SimWorld;

/// Everything that has a name in it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Raw {
    /// Documents with their generation as `stored`.
    pub images: BTreeMap<String, Value>,
    pub volumes: BTreeMap<String, Value>,
    /// Base image and volume.
    pub children: BTreeSet<(String, String)>,
    /// Volume and image.
    pub holders: BTreeSet<(String, String)>,
    /// Image and blob.
    pub blobs: BTreeSet<(String, String)>,
    /// By image.
    pub progress: BTreeMap<String, Value>,
    /// The bytes of each volume.
    pub objects: BTreeMap<String, Vec<u8>>,
    /// Bytes that dead stores left over.
    pub leftovers: u64,
}

impl Raw {
    /// Reads through any connection.
    pub fn read(world: &SimWorld, driver: &dyn Driver) -> Raw {
        let mut raw = Raw { leftovers: driver.leftovers().unwrap(), ..Raw::default() };
        for key in world.records() {
            let Some(stored) = driver.get(key, Read::Relaxed).unwrap() else { continue };
            let mut document: Value = serde_json::from_slice(&stored.bytes).unwrap();
            document["stored"] = stored.generation.into();
            match key {
                RecordKey::Image(id) => raw.images.insert(id.to_string(), document),
                RecordKey::Volume(id) => raw.volumes.insert(id.to_string(), document),
            };
        }
        for marker in world.markers() {
            match marker {
                Marker::Child(image, volume) => raw.children.insert((image.to_string(), volume.to_string())),
                Marker::Holder(volume, image) => raw.holders.insert((volume.to_string(), image.to_string())),
            };
        }
        raw.blobs = world.blobs().iter().map(|(image, blob)| (image.to_string(), blob.to_string())).collect();
        for shard in driver.shards(None).unwrap() {
            for image in driver.list_progress(shard).unwrap() {
                if let Some(bytes) = driver.get_progress(image).unwrap() {
                    raw.progress.insert(image.to_string(), serde_json::from_slice(&bytes).unwrap());
                }
            }
        }
        raw.objects = world
            .objects()
            .into_iter()
            .map(|id: VolumeId| (id.to_string(), world.bytes(id).unwrap()))
            .collect();
        raw
    }

    /// The volume that an image is on.
    pub fn volume_of(&self, image: &str) -> Option<&Value> {
        self.volumes.get(text(&self.images.get(image)?["volume"]))
    }

    /// The images that point at the volume.
    pub fn held_by(&self, volume: &str) -> Vec<&str> {
        let holds = |image: &Value| text(&image["volume"]) == volume || text(&image["next"]) == volume;
        self.images.iter().filter(|(_, image)| holds(image)).map(|(id, _)| id.as_str()).collect()
    }

    /// The volumes that are built on the image.
    pub fn built_on(&self, image: &str) -> Vec<&str> {
        let builds = |volume: &Value| base_of(volume) == Some(image);
        self.volumes.iter().filter(|(_, volume)| builds(volume)).map(|(id, _)| id.as_str()).collect()
    }

    /// Over how many volumes the data of an image is spread.
    pub fn depth(&self, image: &str) -> usize {
        let below = self.volume_of(image).and_then(base_of);
        1 + below.map_or(0, |base| self.depth(base))
    }

    /// Bytes of a volume that are not zero: what the storage would have allocated, nearly.
    pub fn used(&self, volume: &str) -> usize {
        self.objects.get(volume).map_or(0, |bytes| bytes.iter().filter(|byte| **byte != 0).count())
    }

    /// Nothing is there but what the records need, and the records need each other.
    pub fn nothing_left_over(&self, what: &str) {
        let (mut holders, mut children, mut wanted) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut blobs = BTreeSet::new();
        for (id, image) in &self.images {
            let state = text(&image["state"]);
            assert!(["live", "removed"].contains(&state), "{what}: image {id} is {state}");
            assert!(image["next"].is_null(), "{what}: image {id} has a next volume");
            assert!(image["freeze"].as_array().is_none_or(Vec::is_empty), "{what}: image {id} is frozen");
            let wanted_itself = state == "live" && image["kind"] != "hidden";
            assert!(wanted_itself || !self.built_on(id).is_empty(), "{what}: nobody needs image {id}");
            holders.insert((text(&image["volume"]).to_owned(), id.clone()));
            wanted.insert(text(&image["volume"]).to_owned());
            if let Some(blob) = image["userData"]["blob"].as_str() {
                blobs.insert((id.clone(), blob.to_owned()));
            }
            // Hashes may be lost, where locks were: then they say nothing.
            let hashes = image["manifest"]["blob"].as_str().map(|blob| (id.clone(), blob.to_owned()));
            blobs.extend(hashes.filter(|hashes| self.blobs.contains(hashes)));
        }
        for (id, volume) in &self.volumes {
            assert_eq!(volume["state"], "ready", "{what}: volume {id}");
            if let Some(base) = base_of(volume) {
                assert!(self.images.contains_key(base), "{what}: volume {id} is built on {base}, not here");
                children.insert((base.to_owned(), id.clone()));
            }
        }
        assert_eq!(self.volumes.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{what}: volumes");
        assert_eq!(self.objects.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{what}: objects");
        assert_eq!(self.holders, holders, "{what}: holder markers");
        assert_eq!(self.children, children, "{what}: child markers");
        assert_eq!(self.blobs, blobs, "{what}: blobs");
        assert_eq!(self.progress, BTreeMap::new(), "{what}: progress");
        assert_eq!(self.leftovers, 0, "{what}: dead stores");
    }
}

/// A text of a document; null is empty.
pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// The image that the volume is built on.
pub fn base_of(volume: &Value) -> Option<&str> {
    volume["backing"]["image"].as_str()
}

//! The records of a repository, read without the engine.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

/// The records of a repository: of each id the highest generation, tombstones left out.
#[derive(Debug)]
pub struct Records {
    /// By id.
    pub images: BTreeMap<String, Value>,
    /// By id.
    pub volumes: BTreeMap<String, Value>,
}

impl Records {
    /// Reads them all.
    pub fn read(repo: &Path) -> Records {
        Records { images: records(&repo.join("images")), volumes: records(&repo.join("volumes")) }
    }
}

/// One record of a room (`images`, `volumes`) as it is at this moment; None: there is none, or it is just moving.
pub fn record(repo: &Path, room: &str, id: &str) -> Option<Value> {
    let shard = repo.join(room).join(id.get(..3)?);
    let entries = fs::read_dir(&shard).ok()?.flatten();
    let mine = entries.map(|entry| entry.file_name()).filter(|name| name.to_string_lossy().starts_with(id));
    serde_json::from_slice(&fs::read(shard.join(mine.max()?)).ok()?).ok()
}

/// What lies in a directory, if there is one.
pub fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// The names in all shards of a room.
pub fn in_shards(room: &Path) -> BTreeSet<String> {
    names(room).iter().flat_map(|shard| names(&room.join(shard))).collect()
}

fn records(room: &Path) -> BTreeMap<String, Value> {
    let mut highest = BTreeMap::<String, (String, String)>::new();
    for shard in names(room) {
        for name in names(&room.join(&shard)) {
            let Some((id, generation)) = name.split_once('.').filter(|(id, _)| id.len() == 36) else {
                continue;
            };
            let known = highest.entry(id.to_owned()).or_default();
            if generation > known.0.as_str() {
                *known = (generation.to_owned(), format!("{shard}/{name}"));
            }
        }
    }
    let read = |path: &str| serde_json::from_slice::<Value>(&fs::read(room.join(path)).unwrap()).unwrap();
    let all = highest.into_iter().map(|(id, (_, path))| (id, read(&path)));
    all.filter(|(_, record)| record["tombstone"] != true).collect()
}

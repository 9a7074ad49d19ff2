//! What lies in a repository, read without the engine: whether anything is left over.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use vdsmstore_tests::records::{Records, in_shards, names};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Nothing is there but what the records need, and the records need each other. `hosts`: stores that live.
pub fn nothing_left_over(repo: &Path, hosts: usize, what: &str) {
    let Records { images, volumes } = Records::read(repo);
    let mut wanted = BTreeSet::new();
    let (mut holders, mut children, mut blobs) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for (id, image) in &images {
        let state = text(&image["state"]);
        assert!(["live", "removed"].contains(&state.as_str()), "{what}: image {id} is {state}");
        assert!(image["next"].is_null(), "{what}: image {id} has a next volume");
        assert!(image["freeze"].as_array().is_none_or(Vec::is_empty), "{what}: image {id} is frozen");
        assert!(image["open"].is_null(), "{what}: image {id} is open");
        let needed = state == "live" && image["kind"] != "hidden"
            || volumes.values().any(|volume| volume["backing"]["image"] == **id);
        assert!(needed, "{what}: nobody needs image {id}");
        wanted.insert(text(&image["volume"]));
        holders.insert(format!("{}.{id}", text(&image["volume"])));
        if let Some(blob) = image["userData"]["blob"].as_str() {
            blobs.insert(format!("{id}.{blob}"));
        }
    }
    for (id, volume) in &volumes {
        assert_eq!(volume["state"], "ready", "{what}: volume {id}");
        if let Some(base) = volume["backing"]["image"].as_str() {
            assert!(
                images.contains_key(base),
                "{what}: volume {id} is built on image {base}, which is not there"
            );
            children.insert(format!("{base}.{id}"));
        }
    }
    let equal = |name: &str, found: BTreeSet<String>, wanted: &BTreeSet<String>| {
        let more: Vec<_> = found.difference(wanted).collect();
        let less: Vec<_> = wanted.difference(&found).collect();
        assert!(more.is_empty() && less.is_empty(), "{what}: {name}: left over {more:?}, missing {less:?}");
    };
    equal("volumes", volumes.into_keys().collect(), &wanted);
    equal("data", names(&repo.join("data")).into_iter().collect(), &wanted);
    equal("holders", in_shards(&repo.join("holders")), &holders);
    equal("children", in_shards(&repo.join("children")), &children);
    equal("blobs", in_shards(&repo.join("blobs")), &blobs);
    equal("progress", in_shards(&repo.join("progress")), &BTreeSet::new());
    assert_eq!(names(&repo.join("hosts")).len(), hosts, "{what}: registrations");
    for room in ["images", "volumes"] {
        let strange = in_shards(&repo.join(room)).into_iter().find(|name| name.starts_with('.'));
        assert_eq!(strange, None, "{what}: a temporary file in {room}");
    }
}

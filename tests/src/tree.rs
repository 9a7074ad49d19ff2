//! What lies in a repository, to tell whether a call has changed anything.

use std::collections::BTreeMap;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Not the content of a repository: who is connected, what is locked, what is kept for bad times.
const ASIDE: [&str; 3] = ["hosts", "locks", "reserve"];

/// Larger files are not read.
const LARGE: u64 = 64 << 10;

/// All files below a directory, by relative path: what tells whether they have changed.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    walk(root, "", &mut found);
    found
}

fn walk(directory: &Path, prefix: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).expect("a listing") {
        let entry = entry.expect("an entry");
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if ASIDE.contains(&name.as_str()) {
            continue;
        }
        let kind = entry.file_type().expect("a type");
        if kind.is_dir() {
            // A shard that was made for nothing is empty, and counts for nothing.
            walk(&entry.path(), &format!("{name}/"), found);
        } else if kind.is_file() {
            found.insert(name, digest(&entry.path()));
        } else {
            found.insert(name, format!("{kind:?}"));
        }
    }
}

/// Of small files the content; of large ones, where reading all takes too long, when it was changed.
fn digest(path: &Path) -> String {
    let metadata = fs::metadata(path).expect("its state");
    let length = metadata.len();
    if length > LARGE {
        return format!("{length} bytes, changed {}.{:09}", metadata.ctime(), metadata.ctime_nsec());
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(path).expect("its content"));
    format!("{length} bytes, {:016x}", hasher.finish())
}

/// Runs a call that must leave the repository as it is.
pub fn unchanged<T>(root: &Path, what: &str, call: impl FnOnce() -> T) -> T {
    let before = tree(root);
    let result = call();
    let after = tree(root);
    let differs: Vec<String> = before
        .keys()
        .chain(after.keys())
        .filter(|name| before.get(*name) != after.get(*name))
        .map(|name| format!("{name}: {:?} -> {:?}", before.get(name), after.get(name)))
        .collect();
    assert!(differs.is_empty(), "{what} changed the repository: {differs:#?}");
    result
}

/// Bytes that the files below a directory take on the storage.
pub fn disk_usage(root: &Path) -> u64 {
    let mut bytes = 0;
    for entry in fs::read_dir(root).expect("a listing") {
        let entry = entry.expect("an entry");
        // What is being deleted by somebody takes nothing.
        let Ok(metadata) = entry.metadata() else { continue };
        bytes += if metadata.is_dir() { disk_usage(&entry.path()) } else { metadata.blocks() * 512 };
    }
    bytes
}

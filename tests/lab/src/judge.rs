//! Whether repositories hold what they must, and are brought in order by a new host.

use std::collections::{BTreeSet, HashSet, hash_map::DefaultHasher};
use std::fs;
use std::hash::Hasher;
use std::path::Path;
use std::process::Command;

use vdsmstore_core::options::{CheckOptions, FixOptions, ListOptions};
use vdsmstore_core::{ErrorKind, Status, Store};
use vdsmstore_tests::records::Records;
use vdsmstore_tests::write;

use crate::left::nothing_left_over;
use crate::state::{BLOCK, Expected, State, content, differs};

pub const REPOS: [&str; 2] = ["A", "B"];
/// Rounds of a check and all its fixes that must suffice.
const ROUNDS: u32 = 10;

/// What was seen, so that a test that sees nothing can be told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Images that were not usable before the fixes.
    pub broken: u32,
    /// Images that only a call made which had not returned.
    pub early: u32,
    /// Fixes that did something, registrations of the dead aside.
    pub fixes: u32,
    /// Different files looked at by `qemu-img check`, and those with leaks.
    pub checked: u32,
    pub leaks: u32,
}

/// Waits until nothing runs.
pub fn quiet(store: &Store) {
    while let Some(task) = store.list_tasks().unwrap().first() {
        // What became of it is to be seen from its image.
        let _ = store.wait_task(&task.task_id, None);
    }
}

/// All images are as in the first of two states, or on the way from it to the second. `fixed`: nothing is unfinished.
pub fn images(store: &Store, [before, after]: [&State; 2], fixed: bool) -> Seen {
    let mut seen = Seen::default();
    for repo in REPOS {
        let listed = store.list_images(repo, &ListOptions::default()).unwrap();
        let listed: BTreeSet<String> = listed.iter().map(ToString::to_string).collect();
        for id in before[repo].keys() {
            assert!(
                listed.contains(id) || !after[repo].contains_key(id),
                "image {id} in {repo} is lost: {:?}",
                before[repo][id].user_data
            );
        }
        for id in &listed {
            let allowed: Vec<&Expected> =
                [before, after].iter().filter_map(|state| state[repo].get(id)).collect();
            assert!(!allowed.is_empty(), "image {id} in {repo} is nobody's");
            let early = !before[repo].contains_key(id);
            seen.early += u32::from(early);
            let must_be_whole = fixed || before[repo].get(id).is_some_and(|image| image.whole);
            seen.broken += u32::from(!image(store, repo, id, &allowed, must_be_whole));
        }
    }
    seen
}

/// One image; whether it is usable.
fn image(store: &Store, repo: &str, id: &str, allowed: &[&Expected], must_be_whole: bool) -> bool {
    let status = store.get_image_status(repo, id).unwrap();
    let info = store.get_image_info(repo, id).unwrap();
    let any = |is: &dyn Fn(&Expected) -> bool| allowed.iter().any(|image| is(image));
    assert!(
        any(&|image| image.user_data == info.user_data.get()),
        "user data of {id} in {repo}: {}",
        info.user_data
    );
    assert!(any(&|image| image.size() == info.size), "size of {id} in {repo}: {}", info.size);
    assert!(any(&|image| image.mutable == info.mutable), "image {id} in {repo} is of the other kind");
    if status.status == Status::Broken {
        assert!(!must_be_whole, "image {id} in {repo} is broken: {status:?}");
        return false;
    }
    let image = store.open_image(repo, id, false).unwrap();
    let mut bytes = vec![0xaa; info.size as usize];
    image.read(0, &mut bytes).unwrap();
    image.close().unwrap();
    if let Some(wrong) = differs(&bytes, allowed) {
        panic!("image {id} in {repo}: {wrong}");
    }
    true
}

/// Checks and runs all fixes until nothing is listed; how many ran.
pub fn recover(store: &Store) -> u32 {
    let mut ran = 0;
    for round in 0..=ROUNDS {
        let mut clean = true;
        for repo in REPOS {
            for fix in store.check_storage_repository(repo, &CheckOptions::default()).unwrap() {
                clean = false;
                assert!(round < ROUNDS, "after {ROUNDS} rounds there is still {fix:?}");
                let task = store.fix_storage_repository(repo, &fix, &FixOptions::default());
                match task.and_then(|task| store.wait_task(&task, None)) {
                    // What was done before it changed what it is about.
                    Err(error) if error.kind() == ErrorKind::FixRefused => {}
                    outcome => outcome.unwrap_or_else(|error| panic!("{fix:?}: {error:?}")),
                }
                ran += u32::from(fix.data["action"] != "sweep");
            }
        }
        if clean {
            break;
        }
    }
    ran
}

/// Every disk is opened for writing, written to, and read again.
pub fn disks_can_be_written(store: &Store, state: &State) {
    for repo in REPOS {
        for id in store.list_images(repo, &ListOptions::default()).unwrap() {
            let id = id.to_string();
            if state[repo].get(&id).is_none_or(|image| !image.mutable) {
                continue;
            }
            let data = content(1, u32::MAX);
            let mut found = vec![0; BLOCK];
            write(store, repo, &id, |image| {
                image.write(BLOCK as i64, &data)?;
                image.flush()?;
                image.read(BLOCK as i64, &mut found)
            });
            assert!(found == data, "disk {id} in {repo} does not hold what was written to it");
        }
    }
}

/// `qemu-img check` finds at most leaks in the qcow2 volumes that are said to be ready. What was looked at is
/// remembered: most files are the same at many points.
pub fn qemu_checks(root: &Path, known: &mut HashSet<u64>, seen: &mut Seen) {
    /// Leaked clusters, and nothing worse.
    const LEAKED: i32 = 3;
    for repo in REPOS {
        for (id, volume) in Records::read(&root.join(repo)).volumes {
            let path = root.join(repo).join("data").join(&id);
            if volume["format"] != "qcow2" || volume["state"] != "ready" || !path.exists() {
                continue;
            }
            let mut hasher = DefaultHasher::new();
            hasher.write(&fs::read(&path).unwrap());
            if !known.insert(hasher.finish()) {
                continue;
            }
            let output = Command::new("qemu-img")
                .args(["check", "-f", "qcow2"])
                .arg(&path)
                .output()
                .expect("qemu-img");
            let leaks = output.status.code() == Some(LEAKED);
            assert!(output.status.success() || leaks, "qemu-img check of volume {id} in {repo}: {output:?}");
            seen.checked += 1;
            seen.leaks += u32::from(leaks);
        }
    }
}

/// All of it on a file system as the power loss left it.
pub fn all(root: &Path, store: &Store, states: [&State; 2], known: &mut HashSet<u64>) -> Seen {
    let mut seen = images(store, states, false);
    qemu_checks(root, known, &mut seen);
    seen.fixes = recover(store);
    images(store, states, true);
    disks_can_be_written(store, states[1]);
    recover(store);
    qemu_checks(root, known, &mut seen);
    for repo in REPOS {
        nothing_left_over(&root.join(repo), 1, repo);
    }
    seen
}

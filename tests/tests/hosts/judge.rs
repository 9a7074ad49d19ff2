//! What every schedule is judged by: the model, and that all fixes lead to a state in which nothing is left over.

use std::collections::{BTreeMap, BTreeSet};

use vdsmstore_core::options::{CheckOptions, FixOptions, ListOptions};
use vdsmstore_core::{ErrorKind, Fix, Status, Store};

use crate::invariants::Moment;
use crate::operation::Operation;
use crate::scene::{NAMES, Scene, read};

/// What an image may hold.
#[derive(Clone, Debug)]
pub struct Allowed {
    pub data: Vec<Vec<u8>>,
    /// It may not be there.
    pub absent: bool,
    /// It need not be there, and must not.
    pub gone: bool,
    /// It may be broken until all fixes were run.
    pub unfinished: bool,
    /// It may be broken for good.
    pub lost: bool,
}

/// By repository and id.
pub type Model = BTreeMap<(usize, String), Allowed>;

/// What the images of a scene may hold after these operations; and whether each of them returned.
pub fn model(scene: &Scene, operations: &[(&Operation, bool)]) -> Model {
    let removed = |repo: usize, id: &str, done: bool| {
        let removes = |operation: &Operation| {
            operation
                .removes
                .iter()
                .any(|(at, name)| *at == repo && scene.ids.get(name).is_some_and(|i| i == id))
        };
        operations.iter().any(|(operation, returned)| removes(operation) && (*returned || !done))
    };
    let all_returned = operations.iter().all(|(_, returned)| *returned);
    let allowed = scene.wants.iter().map(|((repo, id), want)| {
        let allowed = Allowed {
            data: vec![want.data.clone()],
            absent: want.unfinished && !all_returned || removed(*repo, id, false),
            gone: removed(*repo, id, true),
            unfinished: want.unfinished,
            lost: want.lost && !all_returned,
        };
        ((*repo, id.clone()), allowed)
    });
    allowed.collect()
}

/// What is longer is zeroes: a resize.
pub fn same(found: &[u8], wanted: &[u8]) -> bool {
    let common = found.len().min(wanted.len());
    found[..common] == wanted[..common]
        && found[common..].iter().chain(&wanted[common..]).all(|byte| *byte == 0)
}

impl Allowed {
    fn holds(&self, found: &[u8]) -> bool {
        self.data.iter().any(|data| same(found, data))
    }
}

/// Every image is what the model says. `complete`: all fixes were run.
pub fn look(scene: &Scene, store: &Store, model: &Model, complete: bool, what: &str) {
    for ((repo, id), allowed) in model {
        let name = NAMES[*repo];
        let status = match store.get_image_status(name, id) {
            Err(error) if error.kind() == ErrorKind::ImageNotFound => {
                assert!(allowed.absent || allowed.gone, "{what}: image {id} in {name} is lost");
                continue;
            }
            status => status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}")),
        };
        assert!(!allowed.gone, "{what}: {id} in {name} is still there");
        if status.status == Status::Broken {
            let may = allowed.unfinished && !complete || allowed.lost;
            assert!(may, "{what}: {id} in {name} is broken: {status:?}");
            continue;
        }
        let data = read(store, name, id).unwrap_or_else(|error| panic!("{what}: {id}: {error:?}"));
        assert!(
            allowed.holds(&data),
            "{what}: the data of {id} in {name} is wrong: {}",
            differs(&data, allowed)
        );
    }
    for (repo, name) in NAMES.iter().enumerate() {
        for id in store.list_images(name, &ListOptions::default()).unwrap() {
            let id = id.to_string();
            let known =
                model.contains_key(&(repo, id.clone())) || scene.ids.values().any(|known| *known == id);
            assert!(known, "{what}: {id} in {name} is nobody's");
        }
    }
}

fn differs(found: &[u8], allowed: &Allowed) -> String {
    let wanted = &allowed.data[0];
    let clusters = found.chunks(65536).zip(wanted.chunks(65536)).enumerate();
    let differing = clusters.filter(|(_, (a, b))| a != b);
    format!("{:?}", differing.map(|(index, (a, b))| (index, a[100], b[100])).collect::<Vec<_>>())
}

pub fn check(store: &Store, repo: usize) -> Vec<Fix> {
    store.check_storage_repository(NAMES[repo], &CheckOptions::default()).unwrap()
}

/// Runs one fix to its end.
pub fn fix(store: &Store, repo: usize, fix: &Fix) -> vdsmstore_core::Result<()> {
    let task = store.fix_storage_repository(NAMES[repo], fix, &FixOptions::default())?;
    store.run_tasks();
    store.wait_task(&task, None)
}

/// What a fix may answer while others work, or may still work: busy, stale, displaced.
pub fn is_polite(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::ImageInUse
            | ErrorKind::FixRefused
            | ErrorKind::Stopped
            | ErrorKind::Conflict
            | ErrorKind::ImageNotFound
            | ErrorKind::ImageBroken
    )
}

/// All fixes in rounds, until nothing is listed or nothing changes, while others may be in the way.
pub fn repair_politely(store: &Store, what: &str) {
    for _ in 0..6 {
        let mut done = false;
        for repo in 0..2 {
            for each in check(store, repo) {
                match fix(store, repo, &each) {
                    Ok(()) => done = true,
                    Err(error) => {
                        assert!(is_polite(error.kind()), "{what}: {each:?} fails: {error:?}");
                    }
                }
            }
        }
        if !done {
            return;
        }
    }
}

/// All fixes, until nothing is listed: a fixed point, and nothing is left over in it.
pub fn recover(scene: &Scene, store: &Store, model: &Model, what: &str) {
    fix_all(store, model, what);
    let lost = model.values().any(|allowed| allowed.lost);
    for repo in (0..2).filter(|_| !lost) {
        scene.raw(repo).nothing_left_over(&format!("{what}: after all fixes, {}", NAMES[repo]));
    }
}

/// All fixes, until nothing is listed but what nobody can complete.
pub fn fix_all(store: &Store, model: &Model, what: &str) {
    let lost = model.values().any(|allowed| allowed.lost);
    for round in 0.. {
        let mut clean = true;
        for repo in 0..2 {
            for each in check(store, repo) {
                let outcome = fix(store, repo, &each);
                // A copy of what is gone: only a person can say that it is not wanted any more.
                if lost && outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::ImageNotFound) {
                    continue;
                }
                clean = false;
                assert!(round < 10, "{what}: round {round} still lists {each:?}");
                match outcome {
                    Ok(()) => {}
                    // One before it changed what it is about.
                    Err(error) if error.kind() == ErrorKind::FixRefused => {}
                    Err(error) => assert!(round < 9, "{what}: {each:?} fails: {error:?}"),
                }
            }
        }
        if clean {
            break;
        }
    }
}

/// Both repositories as they are.
pub fn moments(scene: &Scene) -> [Moment; 2] {
    [0, 1].map(|repo| Moment::new(scene.raw(repo), &scene.worlds[repo]))
}

/// The invariants hold.
pub fn hold(scene: &Scene, before: &[Moment; 2], what: &str) {
    for ((now, before), name) in moments(scene).iter().zip(before).zip(NAMES) {
        let violations = now.violations(Some(before));
        assert!(violations.is_empty(), "{what}: in {name}: {violations:#?}");
    }
}

/// The disks that are there.
pub fn disks(scene: &Scene, repo: usize) -> BTreeSet<String> {
    let images = scene.raw(repo).images;
    let disks = images.into_iter().filter(|(_, image)| image["kind"] == "disk" && image["state"] == "live");
    disks.map(|(id, _)| id).collect()
}

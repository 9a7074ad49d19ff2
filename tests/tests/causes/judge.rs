//! One fix alone, by another host: what it is for is repaired, and nothing else is harmed.

use vdsmstore_core::options::{CheckOptions, FixOptions, ListOptions};
use vdsmstore_core::{ErrorKind, Fix, FixType, Result, Status, Store};

use crate::cause::{WANTED, action, ids, merged};
use crate::operation::Operation;
use crate::raw::Raw;
use crate::scene::{NAMES, SIZE, Scene, read};

/// What a metadata change costs at most.
const SMALL: u64 = 1 << 20;

/// A fix that was found, where, and after what.
pub struct Finding<'a> {
    pub operation: &'a Operation,
    /// The interrupted call had come back.
    pub returned: bool,
    pub repo: usize,
    pub fix: &'a Fix,
    pub cause: &'static str,
    pub what: String,
}

pub fn check(store: &Store, repo: usize) -> Vec<Fix> {
    store.check_storage_repository(NAMES[repo], &CheckOptions::default()).unwrap()
}

fn run(store: &Store, repo: usize, fix: &Fix) -> Result<()> {
    let task = store.fix_storage_repository(NAMES[repo], fix, &FixOptions::default())?;
    store.run_tasks();
    store.wait_task(&task, None)
}

/// The documents say the same; what was observed when they were listed does not count.
fn same(a: &Fix, b: &Fix) -> bool {
    action(a) == action(b) && ids(a) == ids(b)
}

impl Finding<'_> {
    /// Runs the fix alone, then again, then all others.
    pub fn judge(&self, scene: &Scene) {
        let Finding { repo, fix, what, .. } = self;
        let before = scene.raw(*repo);
        self.text_and_cost(&before);
        let (store, _) = scene.join("fixer");
        // As another host gets it.
        let sent: Fix = serde_json::from_str(&serde_json::to_string(fix).unwrap()).unwrap();
        if let Err(error) = run(&store, *repo, &sent) {
            let waits = error.kind() == ErrorKind::ImageInUse && self.waits(&before);
            assert!(waits, "{what}: the fix fails alone: {error:?}");
            return self.all_others(scene, &store);
        }
        self.look(scene, &store, false);
        let listed: Vec<Fix> = check(&store, *repo);
        assert!(!listed.iter().any(|other| same(other, fix)), "{what}: still listed: {listed:#?}");
        let after = scene.raw(*repo);
        self.repaired(&store, &before, &after);
        match run(&store, *repo, &sent) {
            Ok(()) => {}
            // The object needs another work now, which the check lists.
            Err(error) if error.kind() == ErrorKind::FixRefused => {
                let about = |other: &Fix| ids(other).first() == ids(fix).first();
                assert!(listed.iter().any(about), "{what}: refused for nothing: {error:?}");
            }
            Err(error) => panic!("{what}: the second time: {error:?}"),
        }
        assert!(scene.raw(*repo) == after, "{what}: the second time changed something");
        self.all_others(scene, &store);
    }

    /// A former host may still write a header that names the volume: first, what is on that moves.
    fn waits(&self, before: &Raw) -> bool {
        let names =
            |volume: &serde_json::Value| volume["writer"].is_string() && volume["mirror"] == ids(self.fix)[0];
        action(self.fix) == "clean-volume" && before.volumes.values().any(names)
    }

    /// Runs all fixes; all is complete then, and nothing left over.
    fn all_others(&self, scene: &Scene, store: &Store) {
        self.recover(store);
        self.look(scene, store, true);
        store.close().unwrap();
        // What is lost for good may leave something that points at it.
        let lost = scene.wants.values().any(|want| want.lost) && !self.returned;
        for repo in (0..2).filter(|_| !lost) {
            scene.raw(repo).nothing_left_over(&format!("{}: after all fixes, {}", self.what, NAMES[repo]));
        }
    }

    fn text_and_cost(&self, before: &Raw) {
        let Finding { fix, what, .. } = self;
        let line = &fix.description;
        assert!(!line.is_empty() && !line.contains('\n') && line.len() < 200, "{what}: {line:?}");
        let names = ids(fix);
        assert!(names.is_empty() || names.iter().any(|id| line.contains(id)), "{what}: {line:?}");
        let cost = fix.cost;
        let used = |volume: &str| before.used(volume) as u64;
        match action(fix) {
            "mend" => {
                assert!((SMALL..=SMALL + SIZE as u64).contains(&cost.write), "{what}: {cost:?}");
                // Of a difference both sides are read; what only reserves space reads nothing.
                assert!((SMALL..=SMALL + 2 * SIZE as u64).contains(&cost.read), "{what}: {cost:?}");
                assert_eq!((cost.needs, cost.frees), (cost.write, 0), "{what}");
            }
            "optimize" => {
                assert_eq!(
                    (cost.read, cost.write, cost.needs),
                    (SIZE as u64, SIZE as u64, SIZE as u64),
                    "{what}"
                );
            }
            "merge" => {
                // Either the lowest volume stays or the one on top.
                let (line, volumes) = merged(ids(self.fix)[0], before);
                let all: u64 = volumes.iter().map(|volume| used(volume)).sum();
                let ways = [volumes[0], volumes[line.len()]].map(|stays| all - used(stays));
                let (less, more) = (ways[0].min(ways[1]), ways[0].max(ways[1]));
                assert!(cost.frees >= more && cost.write >= less, "{what}: {cost:?}");
            }
            "clean-volume" if self.cause == WANTED => assert_eq!(cost.frees, 0, "{what}"),
            "clean-volume" | "clean-object" => assert!(cost.frees >= used(names[0]), "{what}: {cost:?}"),
            "sweep" => assert!(cost.frees > 0, "{what}: {cost:?}"),
            _ => assert_eq!((cost.read, cost.write, cost.needs), (0, 0, 0), "{what}"),
        }
    }

    /// What the fix is about.
    fn repaired(&self, store: &Store, before: &Raw, after: &Raw) {
        let Finding { repo, fix, cause, what, .. } = self;
        let pair = |set: &std::collections::BTreeSet<(String, String)>| {
            set.contains(&(ids(fix)[0].to_owned(), ids(fix)[1].to_owned()))
        };
        let id = ids(fix).first().copied().unwrap_or_default();
        let expected = match action(fix) {
            "mend" => FixType::Mend,
            "optimize" => FixType::Optimize,
            "merge" => FixType::Merge,
            _ => FixType::Clean,
        };
        assert_eq!(fix.fix_type, expected, "{what}");
        match action(fix) {
            // Nobody can ask for the status of a base that was frozen.
            "mend" if before.images[id]["kind"] == "hidden" => {
                assert_eq!(after.images[id]["state"], "live", "{what}");
            }
            "mend" => {
                let status = store.get_image_status(NAMES[*repo], id).unwrap();
                assert_ne!(status.status, Status::Broken, "{what}: {status:?}");
                assert_eq!(status.last_error, None, "{what}");
            }
            "optimize" => {
                let status = store.get_image_status(NAMES[*repo], id).unwrap();
                assert_eq!(status.status, Status::Optimized, "{what}");
                assert_eq!(after.depth(id), 1, "{what}");
            }
            "merge" => {
                let (line, volumes) = merged(id, before);
                assert!(
                    line.iter().all(|id| !after.images.contains_key(*id)),
                    "{what}: a merged image is there"
                );
                let left: Vec<_> = volumes.iter().filter(|id| after.objects.contains_key(**id)).collect();
                // The lowest, or the one on top.
                let ends = [volumes[0], volumes[line.len()]];
                assert!(
                    left.len() == 1 && ends.contains(left[0]),
                    "{what}: {left:?} of {volumes:?} are there"
                );
            }
            "clean-image" if *cause == "flagged to be buried, something is built on it" => {
                assert_eq!(after.images[id]["state"], "removed", "{what}");
            }
            "clean-image" => assert!(!after.images.contains_key(id), "{what}: the image is there"),
            "clean-volume" if *cause == WANTED => {
                assert_ne!(after.volumes[id]["state"], "doomed", "{what}");
            }
            "clean-volume" | "clean-object" => {
                assert!(!after.volumes.contains_key(id) && !after.objects.contains_key(id), "{what}");
                // A stale marker of a volume without a record has a fix of its own.
                let marked = after.holders.iter().any(|(volume, _)| volume == id);
                assert!(!marked || action(fix) == "clean-object", "{what}: markers");
            }
            "clean-child" => assert!(!pair(&after.children), "{what}"),
            "clean-holder" => assert!(!pair(&after.holders), "{what}"),
            "clean-blob" => assert!(!pair(&after.blobs), "{what}"),
            "clean-progress" => assert!(!after.progress.contains_key(id), "{what}"),
            "sweep" => assert_eq!(after.leftovers, 0, "{what}"),
            other => panic!("an action without a test: {other}"),
        }
    }

    /// Every image is what it must be. `complete`: all fixes were run.
    pub fn look(&self, scene: &Scene, store: &Store, complete: bool) {
        let Finding { operation, returned, what, .. } = self;
        let removes: Vec<(usize, &str)> =
            operation.removes.iter().map(|(repo, name)| (*repo, scene.id(name))).collect();
        for ((repo, id), want) in &scene.wants {
            let gone = removes.contains(&(*repo, id.as_str()));
            let status = match store.get_image_status(NAMES[*repo], id) {
                Err(error) if error.kind() == ErrorKind::ImageNotFound => {
                    assert!(gone || want.unfinished && !returned, "{what}: image {id} is lost");
                    continue;
                }
                status => status.unwrap_or_else(|error| panic!("{what}: {id}: {error:?}")),
            };
            assert!(!(gone && *returned), "{what}: {id} is still there");
            if status.status == Status::Broken {
                let unfinished = want.unfinished && !complete || want.lost && !returned;
                assert!(unfinished, "{what}: {id} is broken: {status:?}");
                continue;
            }
            let data = read(store, NAMES[*repo], id).unwrap_or_else(|e| panic!("{what}: {id}: {e:?}"));
            assert!(data == want.data, "{what}: the data of {id} in {} is wrong", NAMES[*repo]);
        }
        for (repo, name) in NAMES.iter().enumerate() {
            for id in store.list_images(name, &ListOptions::default()).unwrap() {
                let id = id.to_string();
                let known =
                    scene.wants.contains_key(&(repo, id.clone())) || scene.ids.values().any(|i| *i == id);
                assert!(known, "{what}: {id} in {name} is nobody's");
            }
        }
    }

    /// All that is listed, until nothing is.
    fn recover(&self, store: &Store) {
        let what = &self.what;
        for round in 0.. {
            let mut clean = true;
            for repo in 0..2 {
                for fix in check(store, repo) {
                    clean = false;
                    assert!(round < 10, "{what}: round {round} still lists {fix:?}");
                    match run(store, repo, &fix) {
                        Ok(()) => {}
                        // One before it changed what it is about.
                        Err(error) if error.kind() == ErrorKind::FixRefused => {}
                        Err(error) => assert!(round < 9, "{what}: {fix:?} fails: {error:?}"),
                    }
                }
            }
            if clean {
                break;
            }
        }
    }
}

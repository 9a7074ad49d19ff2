//! Fixes in the middle of everything else: all of a check, a single one, one of an earlier check.

use serde_json::json;
use vdsmstore_core::options::{CheckOptions, FixOptions};
use vdsmstore_core::{ErrorKind, Fix, FixType};
use vdsmstore_tests::tree::unchanged;

use crate::cut::FAST;
use crate::operation::Pick;
use crate::{NAMES, World};

/// Fixes that are kept for later.
const KEPT: usize = 30;

impl World {
    fn check(&self, store: usize, repo: usize) -> Vec<Fix> {
        self.stores[store].check_storage_repository(NAMES[repo], &CheckOptions::default()).unwrap()
    }

    /// Everything that a check lists.
    pub fn tidy(&mut self, store: usize, repo: usize) -> bool {
        let mut fixed = false;
        for fix in self.check(store, repo) {
            fixed |= self.run_fix(store, repo, &fix) == Some(true);
        }
        fixed
    }

    pub fn fix(&mut self, finder: usize, store: usize, repo: usize, pick: Pick) -> Option<bool> {
        let fixes = self.check(finder, repo);
        let fix = pick.of(&fixes)?;
        self.keep(repo, fixes);
        self.run_fix(store, repo, &fix)
    }

    pub fn remember(&mut self, store: usize, repo: usize) -> bool {
        let fixes = self.check(store, repo);
        let some = !fixes.is_empty();
        self.keep(repo, fixes);
        some
    }

    fn keep(&mut self, repo: usize, fixes: Vec<Fix>) {
        self.remembered.extend(fixes.into_iter().map(|fix| (repo, fix)));
        let more = self.remembered.len().saturating_sub(KEPT);
        self.remembered.drain(..more);
    }

    /// A fix that is not listed any more is refused or does nothing; another one is as good as new.
    pub fn stale(&mut self, store: usize, pick: Pick) -> Option<bool> {
        let (repo, fix) = pick.of(&self.remembered)?;
        let same = |other: &Fix| ["action", "ids"].iter().all(|key| other.data[key] == fix.data[key]);
        // A replacement that has begun goes on, by whichever of the two fixes.
        let begun = |other: &Fix| {
            fix.data["action"] == "optimize"
                && other.data["action"] == "mend"
                && other.data["ids"] == fix.data["ids"]
        };
        if self.check(store, repo).iter().any(|other| same(other) || begun(other)) {
            return self.run_fix(store, repo, &fix);
        }
        let held = self.model.open.iter().any(|open| open.repo == repo);
        let root = self.root.path().join(NAMES[repo]);
        let store = &self.stores[store];
        let outcome = unchanged(&root, &format!("{fix:?}"), || {
            let task = store.fix_storage_repository(NAMES[repo], &fix, &FixOptions::default())?;
            store.run_tasks();
            store.wait_task(&task, None)
        });
        if let Err(error) = outcome {
            // Needed still, but not before whoever has the image open lets go of it.
            let waits = error.kind() == ErrorKind::ImageInUse && held;
            assert!(waits || error.kind() == ErrorKind::FixRefused, "{fix:?}: {error:?}");
        }
        self.hits.stale += 1;
        Some(true)
    }

    /// None: it is not for this model.
    fn run_fix(&mut self, store: usize, repo: usize, fix: &Fix) -> Option<bool> {
        // A reader keeps the former representation of all that it reads through, and no longer keeps writers out: right,
        // but not modelled.
        let read = self.model.open.iter().any(|open| open.repo == repo);
        if read && matches!(fix.fix_type, FixType::Optimize | FixType::Mend) {
            return None;
        }
        self.broken_off = true;
        if fix.fix_type == FixType::Mend {
            self.model.may_complete_all(repo);
        }
        if self.is_killed() {
            let said = self.by_dying_host(json!({ "call": "fix", "repo": NAMES[repo], "fix": fix }));
            return Some(said.failed.is_none());
        }
        let options =
            FixOptions { bandwidth: Some(self.bandwidth().unwrap_or(FAST)), ..FixOptions::default() };
        let task = match self.stores[store].fix_storage_repository(NAMES[repo], fix, &options) {
            Ok(task) => task,
            // Another fix has changed what it is about.
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::FixRefused, "{fix:?}: {error:?}");
                return Some(false);
            }
        };
        self.work(store);
        let Err(error) = self.stores[store].wait_task(&task, None) else { return Some(true) };
        let kind = error.kind();
        let harmless = match kind {
            ErrorKind::FixRefused => true,
            ErrorKind::ImageInUse => !self.handles.is_empty(),
            ErrorKind::Stopped => !self.is_run(),
            // What it is to be made from is not there, or not what it was.
            ErrorKind::ImageNotFound
            | ErrorKind::ImageBroken
            | ErrorKind::InvalidParameter
            | ErrorKind::Conflict => fix.fix_type == FixType::Mend,
            _ => false,
        };
        assert!(harmless, "{fix:?}: {error:?}, with {} images open", self.handles.len());
        Some(false)
    }
}

//! A store with images of each kind, and what it means that a call is refused.

#![allow(clippy::unwrap_used, clippy::new_without_default, missing_docs, reason = "tests fail by panicking")]

use std::fmt::Debug;
use std::path::PathBuf;

use vdsmstore_core::ErrorKind::{InvalidParameter, InvalidSize};
use vdsmstore_core::{Error, ErrorKind, Result, Store};
use vdsmstore_tests::scene::{SIZE, Scene, off};
use vdsmstore_tests::tree::unchanged;

/// The id of no image.
pub const NOWHERE: &str = "00000000-0000-4000-8000-000000000000";

/// A disk, its snapshot, and a disk that is only intended.
pub struct Images {
    pub scene: Scene,
    pub disk: String,
    pub snapshot: String,
    pub broken: String,
    /// A directory outside of the repositories.
    pub files: PathBuf,
}

impl Images {
    pub fn new() -> Images {
        let scene = Scene::new();
        let disk = scene.disk("A", 1, 4);
        let snapshot = scene.snapshot("A", &disk);
        let broken = scene.create("A", Some(SIZE), None, &off());
        let files = scene.root.path().join("outside");
        std::fs::create_dir(&files).unwrap();
        Images { scene, disk, snapshot, broken, files }
    }

    pub fn store(&self) -> &Store {
        &self.scene.store
    }

    /// The call is refused and changes neither the repositories nor what lies beside them.
    pub fn refused<T: Debug>(
        &self,
        what: &str,
        kind: ErrorKind,
        names: &str,
        call: impl FnOnce() -> Result<T>,
    ) -> Error {
        let (a, b) = (self.scene.repo("A"), self.scene.repo("B"));
        let result = unchanged(&self.files, what, || unchanged(&a, what, || unchanged(&b, what, call)));
        let Err(error) = result else { panic!("{what}: not refused") };
        assert_eq!(error.kind(), kind, "{what}: {error:?}");
        assert!(error.message().contains(names), "{what}: {names:?} is not named: {error:?}");
        assert!(!error.message().contains('\n') && !error.message().is_empty(), "{what}: {error:?}");
        if matches!(kind, InvalidParameter | InvalidSize) {
            assert!(
                error.details().contains_key("parameter") || error.details().contains_key("path"),
                "{what}: {error:?}"
            );
        }
        error
    }
}

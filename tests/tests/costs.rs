//! A fix says what it costs at most, or if asked, what it costs.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use vdsmstore_core::options::{AutoFix, CheckOptions, CopyOptions, FixOptions};
use vdsmstore_core::{Cost, FixType, Status};
use vdsmstore_tests::scene::Scene;
use vdsmstore_tests::{PATIENCE, write};

const UNIT: u64 = 65536;

/// The only fix of the repository B, its bounds and its price; carried out.
fn fix(scene: &Scene, fix_type: FixType) -> (Cost, Cost) {
    let only = |exact_cost| {
        let options = CheckOptions { exact_cost };
        let fixes = scene.store.check_storage_repository("B", &options).unwrap();
        let [fix] = &fixes[..] else { panic!("{fixes:#?}") };
        assert_eq!(fix.fix_type, fix_type);
        fix.clone()
    };
    let (bounds, fix) = (only(false).cost, only(true));
    assert!(bounds.read >= fix.cost.read && bounds.write >= fix.cost.write, "{bounds:?} {fix:?}");
    assert!(bounds.needs >= fix.cost.needs, "{bounds:?} {fix:?}");
    let task = scene.store.fix_storage_repository("B", &fix, &FixOptions::default()).unwrap();
    scene.store.wait_task(&task, Some(PATIENCE)).unwrap();
    (bounds, fix.cost)
}

fn off() -> CopyOptions {
    CopyOptions { auto_fix: AutoFix::Off, ..CopyOptions::default() }
}

#[test]
fn of_a_copy_and_a_difference() {
    let scene = Scene::new();
    let disk = scene.disk("A", 3, 5);
    let copy = scene.store.copy_image("B", &disk, None, "{}", &off()).unwrap().to_string();
    let (_, exact) = fix(&scene, FixType::Mend);
    assert_eq!((exact.read, exact.write, exact.needs), (5 * UNIT, 5 * UNIT, 5 * UNIT));
    write(&scene.store, "A", &disk, |image| image.write(2 * 65536, &vec![9; 2 * 65536]));
    // The base is a disk, which is frozen when the work begins; what both have is read on both sides.
    scene.store.copy_image("B", &disk, Some(&copy), "{}", &off()).unwrap();
    let (_, exact) = fix(&scene, FixType::Mend);
    assert_eq!((exact.read, exact.write), (10 * UNIT, 5 * UNIT));
}

#[test]
fn of_what_is_fetched() {
    let scene = Scene::new();
    let disk = scene.disk("A", 3, 5);
    let snapshot = scene.snapshot("A", &disk);
    scene.copy("B", &snapshot, None, &CopyOptions::default());
    for file in std::fs::read_dir(scene.repo("B").join("data")).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    let (_, exact) = fix(&scene, FixType::Mend);
    assert_eq!((exact.read, exact.write), (5 * UNIT, 5 * UNIT));
    assert_eq!(scene.status("B", &snapshot), Status::Optimized);
}

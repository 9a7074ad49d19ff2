//! The verbs that change, read, check, repair and stop: what they are given is wrong, or the image is in no state for
//! it. Each call is refused with the kind of docs/api.md, and nothing has changed.

#![allow(
    clippy::large_stack_arrays,
    clippy::unwrap_used,
    reason = "the numbers of tests are small, and tests fail by panicking"
)]

#[path = "../bad_input_common/mod.rs"]
mod bad_input_common;
mod closed;
mod deep;
mod export;
mod fixes;
mod places;
mod states;

use std::time::Duration;

use vdsmstore_core::ErrorKind::{
    ImageBroken, ImageNotFound, InvalidParameter, InvalidSize, IoError, NoSpace, NotADisk,
    RepositoryNotFound, Stopped, TaskIdInUse, TaskNotFound, Timeout,
};
use vdsmstore_core::options::{
    Bandwidth, CheckOptions, CopyOptions, CreateOptions, ExportOptions, FixOptions, ListOptions,
    MeasureOptions, NoOptions, RemoveOptions, ResizeOptions, Strategy, WaitOptions, WaitStatus, parse,
};
use vdsmstore_core::{Error, Fix, Result, Store};
use vdsmstore_tests::scene::{SIZE, fails};
use vdsmstore_tests::tree::{tree, unchanged};

use bad_input_common::{Images, NOWHERE};

type Call<'a> = (&'static str, Box<dyn Fn(&str) -> Result<()> + 'a>);

fn grow(store: &Store, repo: &str, id: &str, size: i64) -> Result<()> {
    store.resize_virtual_disk(repo, id, size, &ResizeOptions::default())
}

fn measure(store: &Store, repo: &str, id: &str, base: Option<&str>) -> Result<()> {
    store.measure_image(repo, id, base, &MeasureOptions::default()).map(drop)
}

fn diff(store: &Store, repo: &str, id: &str, base: Option<&str>) -> Result<()> {
    store.diff_images(repo, id, base)?.next_batch(1000).map(drop)
}

impl Images {
    /// A path outside.
    fn file(&self, name: &str) -> String {
        self.files.join(name).to_str().unwrap().to_owned()
    }

    /// Some fix of the repository.
    fn some_fix(&self) -> Fix {
        self.store().check_storage_repository("A", &CheckOptions::default()).unwrap().remove(0)
    }

    /// An export that takes two seconds, under way.
    fn slow_export(&self, task_id: &str, name: &str) {
        let options = ExportOptions {
            task_id: Some(task_id.to_owned()),
            bandwidth: Some(Bandwidth(128 << 10)),
            ..ExportOptions::default()
        };
        self.store().export_image("A", &self.snapshot, &self.file(name), "raw", &options).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while self.store().list_tasks().unwrap().iter().all(|task| task.bytes_done == 0) {
            assert!(std::time::Instant::now() < deadline, "nothing is exported");
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// The verbs that take the id of an image, in repository A.
fn with_id(images: &Images) -> Vec<Call<'_>> {
    let (store, disk) = (images.store(), images.disk.as_str());
    let export = ExportOptions::default();
    let wait = WaitOptions { status: Some(WaitStatus::Optimized) };
    vec![
        ("resize", Box::new(move |id| grow(store, "A", id, 2 * SIZE))),
        ("strategy", Box::new(move |id| store.set_image_strategy("A", id, Strategy::Performance))),
        (
            "export",
            Box::new(move |id| store.export_image("A", id, &images.file("out"), "raw", &export).map(drop)),
        ),
        ("diff", Box::new(move |id| diff(store, "A", id, None))),
        ("base of a diff", Box::new(move |id| diff(store, "A", disk, Some(id)))),
        ("diff to a disk", Box::new(move |id| diff(store, "A", id, Some(disk)))),
        ("measure", Box::new(move |id| measure(store, "A", id, None))),
        ("base of a measure", Box::new(move |id| measure(store, "A", disk, Some(id)))),
        ("wait", Box::new(move |id| store.wait_image("A", id, Some(Duration::ZERO), &wait).map(drop))),
    ]
}

#[test]
fn ids_that_are_no_uuids() {
    let images = Images::new();
    let id = images.disk.as_str();
    let bad = [
        String::new(),
        "../..".into(),
        format!("../{id}"),
        format!("{id}/"),
        format!("{id}\0"),
        format!("{id} "),
        id.replace('-', ""),
        format!("{{{id}}}"),
        id[..35].into(),
        "x".repeat(100_000),
    ];
    for bad in &bad {
        for (what, call) in with_id(&images) {
            images.refused(&format!("{what} {bad:?}"), InvalidParameter, "", || call(bad));
        }
        images.refused("stop", InvalidParameter, "", || images.store().stop_image_task("A", bad));
    }
}

#[test]
fn ids_of_nothing() {
    let images = Images::new();
    for (what, call) in with_id(&images) {
        images.refused(what, ImageNotFound, NOWHERE, || call(NOWHERE));
    }
    // Of what is not there nothing runs.
    unchanged(&images.scene.repo("A"), "stop", || images.store().stop_image_task("A", NOWHERE)).unwrap();
}

#[test]
fn images_of_the_wrong_kind_or_broken() {
    let images = Images::new();
    let Images { snapshot, broken, .. } = &images;
    let store = images.store();
    for size in [512, SIZE, 2 * SIZE] {
        images.refused("resize", NotADisk, snapshot, || grow(store, "A", snapshot, size));
    }
    for (what, call) in with_id(&images) {
        match what {
            // It is wanted in this way from the beginning.
            "strategy" => {}
            // Nobody works on it: it does not become better.
            "wait" => drop(images.refused(what, Timeout, broken, || call(broken))),
            _ => drop(images.refused(what, ImageBroken, broken, || call(broken))),
        }
    }
    let gone = images.scene.disk("A", 3, 1);
    images.scene.remove("A", &gone);
    images.scene.quiet();
    for (what, call) in with_id(&images) {
        images.refused(what, ImageNotFound, &gone, || call(&gone));
    }
}

#[test]
fn sizes() {
    let images = Images::new();
    let (store, disk) = (images.store(), images.disk.as_str());
    let impossible =
        [0, -1, -512, 1, 511, SIZE + 1, SIZE + 511, 1 << 53, (1 << 53) - 511, i64::MAX, i64::MIN];
    for size in impossible.into_iter().chain([512, SIZE - 512]) {
        images.refused(&size.to_string(), InvalidSize, &size.to_string(), || grow(store, "A", disk, size));
    }
    unchanged(&images.scene.repo("A"), "the same size", || grow(store, "A", disk, SIZE)).unwrap();
    images.scene.holds("A", disk, &vdsmstore_tests::scene::bytes(1, 4));
    // As large as can be: made, or refused for what the storage cannot do, and then it has the size it had.
    let largest = (1 << 53) - 512;
    match unchanged_unless_ok(&images, || grow(store, "A", disk, largest)) {
        Ok(()) => assert_eq!(store.get_image_info("A", disk).unwrap().size, largest.unsigned_abs()),
        Err(error) => {
            assert!(matches!(error.kind(), InvalidSize | NoSpace | IoError), "{error:?}");
            images.scene.holds("A", disk, &vdsmstore_tests::scene::bytes(1, 4));
            grow(store, "A", disk, 2 * SIZE).unwrap();
        }
    }
    // The same for one on a base: nothing that anybody sees is left.
    let all = store.list_images("A", &ListOptions::default()).unwrap();
    let fixes = store.check_storage_repository("A", &CheckOptions::default()).unwrap();
    let base = Some(images.snapshot.as_str());
    match store.create_virtual_disk("A", Some(largest), base, "{}", &CreateOptions::default()) {
        Ok(id) => drop(vdsmstore_tests::settle(store, "A", &id.to_string())),
        Err(error) => {
            assert!(matches!(error.kind(), InvalidSize | NoSpace | IoError), "{error:?}");
            assert_eq!(store.list_images("A", &ListOptions::default()).unwrap(), all);
            assert_eq!(store.check_storage_repository("A", &CheckOptions::default()).unwrap(), fixes);
        }
    }
}

fn unchanged_unless_ok<T>(images: &Images, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let before = tree(&images.scene.repo("A"));
    call().inspect_err(|error| assert_eq!(tree(&images.scene.repo("A")), before, "{error:?}"))
}

#[test]
fn formats() {
    let images = Images::new();
    let (store, disk) = (images.store(), images.disk.as_str());
    for format in ["", "RAW", "raw ", "vmdk", "auto", "qcow", "qcow2\0", "../raw"] {
        images.refused(format, InvalidParameter, "format", || {
            store.export_image("A", disk, &images.file("out"), format, &ExportOptions::default())
        });
        images.refused(format, InvalidParameter, "format", || {
            store.measure_image("A", disk, None, &MeasureOptions { format: format.to_owned(), verify: false })
        });
    }
    let bad = [("raw", "zstd"), ("raw", "deflate"), ("qcow2", ""), ("qcow2", "zlib"), ("qcow2", "Zstd")];
    for (format, compress) in bad {
        let options = ExportOptions { compress: Some(compress.to_owned()), ..ExportOptions::default() };
        images.refused(compress, InvalidParameter, "compress", || {
            store.export_image("A", disk, &images.file("out"), format, &options)
        });
    }
}

#[test]
fn options_from_text() {
    fn invalid(parsed: impl Fn(&str) -> Option<Error>, texts: &[&str]) {
        let common = [
            "[]",
            "1",
            "{",
            "{}{}",
            "\"\"",
            r#"{"noSuchOption":1}"#,
            r#"{"":0}"#,
            r#"{"AUTOFIX":true}"#,
            r#"{"verify ":true}"#,
        ];
        for text in common.iter().chain(texts) {
            let error = parsed(text).unwrap_or_else(|| panic!("{text}: not refused"));
            assert_eq!(error.kind(), InvalidParameter, "{text}: {error:?}");
            assert!(error.details().contains_key("parameter"), "{text}: {error:?}");
        }
        assert!(parsed("{}").is_none() && parsed("").is_none() && parsed("null").is_none());
    }
    invalid(
        |text| parse::<CheckOptions>(text).err(),
        &[r#"{"exactCost":1}"#, r#"{"exactCost":"true"}"#, r#"{"exactcost":true}"#, r#"{"taskId":"x"}"#],
    );
    invalid(
        |text| parse::<FixOptions>(text).err(),
        &[
            r#"{"taskId":1}"#,
            r#"{"taskId":[]}"#,
            r#"{"bandwidth":0}"#,
            r#"{"bandwidth":-5}"#,
            r#"{"bandwidth":1e19}"#,
            r#"{"bandwidth":"1M"}"#,
            r#"{"bandwidth":true}"#,
            r#"{"AutoFix":true}"#,
        ],
    );
    invalid(
        |text| parse::<ExportOptions>(text).err(),
        &[
            r#"{"overwrite":1}"#,
            r#"{"overwrite":"yes"}"#,
            r#"{"compress":true}"#,
            r#"{"taskId":{}}"#,
            r#"{"bandwidth":0.5}"#,
            r#"{"AutoFix":true}"#,
            r#"{"format":"raw"}"#,
        ],
    );
    invalid(
        |text| parse::<ResizeOptions>(text).err(),
        &[r#"{"AutoFix":"x"}"#, r#"{"AutoFix":0}"#, r#"{"taskId":"x"}"#, r#"{"strategy":"space"}"#],
    );
    invalid(
        |text| parse::<MeasureOptions>(text).err(),
        &[r#"{"format":1}"#, r#"{"format":["raw"]}"#, r#"{"strategy":"space"}"#],
    );
    invalid(|text| parse::<NoOptions>(text).err(), &[r#"{"AutoFix":true}"#, r#"{"force":true}"#]);
    assert!(parse::<ResizeOptions>(r#"{"AutoFix":false}"#).is_ok());
    assert!(parse::<FixOptions>(r#"{"taskId":null,"bandwidth":1}"#).is_ok());
}

#[test]
fn lists_and_their_limits() {
    let images = Images::new();
    let store = images.store();
    let list = |text: &str| store.list_images("A", &parse::<ListOptions>(text).unwrap()).unwrap();
    let all = list("{}");
    assert_eq!(all.len(), 3);
    unchanged(&images.scene.repo("A"), "lists", || {
        assert!(list(r#"{"limit":0}"#).is_empty());
        assert_eq!(list(r#"{"limit":18446744073709551615}"#), all);
        assert_eq!(list(&format!(r#"{{"after":"{NOWHERE}"}}"#)), all);
        assert!(list(r#"{"after":"ffffffff-ffff-ffff-ffff-ffffffffffff"}"#).is_empty());
        assert_eq!(list(&format!(r#"{{"after":"{}","limit":1}}"#, all[0])), all[1..2]);
        assert_eq!(list(r#"{"kind":"snapshot"}"#)[0].to_string(), images.snapshot);
        assert_eq!(list(r#"{"kind":"snapshot"}"#).len() + list(r#"{"kind":"disk"}"#).len(), 3);
    });
    for text in
        [r#"{"limit":18446744073709551616}"#, r#"{"limit":"1"}"#, r#"{"after":1}"#, r#"{"kind":"Disk"}"#]
    {
        assert_eq!(parse::<ListOptions>(text).unwrap_err().kind(), InvalidParameter, "{text}");
    }
}

#[test]
fn repositories_that_are_not_connected() {
    let images = Images::new();
    let (store, id, fix) = (images.store(), images.disk.as_str(), images.some_fix());
    for name in ["", "C", "a", "A\0", "../A"] {
        let check = |what: &str, call: &dyn Fn() -> Result<()>| {
            images.refused(what, RepositoryNotFound, "", call);
        };
        check("resize", &|| grow(store, name, id, 2 * SIZE));
        check("strategy", &|| store.set_image_strategy(name, id, Strategy::Performance));
        check("export", &|| {
            store.export_image(name, id, &images.file("out"), "raw", &ExportOptions::default()).map(drop)
        });
        check("diff", &|| diff(store, name, id, None));
        check("measure", &|| measure(store, name, id, None));
        check("check", &|| store.check_storage_repository(name, &CheckOptions::default()).map(drop));
        check("fix", &|| store.fix_storage_repository(name, &fix, &FixOptions::default()).map(drop));
        check("stop", &|| store.stop_image_task(name, id));
        check("graph", &|| store.graph(name).map(drop));
    }
}

#[test]
fn names_of_tasks() {
    let images = Images::new();
    let (store, snapshot, fix) = (images.store(), images.snapshot.as_str(), images.some_fix());
    let long = "x".repeat(129);
    let export = |task_id: &str| ExportOptions { task_id: Some(task_id.into()), ..ExportOptions::default() };
    let fixing = |task_id: &str| FixOptions { task_id: Some(task_id.into()), ..FixOptions::default() };
    for bad in ["", " ", "a b", "a/b", "../..", "ä", "a\0", "a\n", long.as_str()] {
        images.refused(bad, InvalidParameter, "task", || {
            store.export_image("A", snapshot, &images.file("out"), "raw", &export(bad))
        });
        images
            .refused(bad, InvalidParameter, "task", || store.fix_storage_repository("A", &fix, &fixing(bad)));
        images.refused(bad, TaskNotFound, "task", || store.stop_task(bad));
        images.refused(bad, TaskNotFound, "task", || store.wait_task(bad, Some(Duration::ZERO)));
    }
    images.slow_export("mine", "slow");
    fails(TaskIdInUse, store.export_image("A", snapshot, &images.file("out"), "raw", &export("mine")));
    fails(TaskIdInUse, store.fix_storage_repository("A", &fix, &fixing("mine")));
    let create = CreateOptions { task_id: Some("mine".into()), ..CreateOptions::default() };
    let copy = CopyOptions { task_id: Some("mine".into()), ..CopyOptions::default() };
    let remove = RemoveOptions { task_id: Some("mine".into()), ..RemoveOptions::default() };
    std::fs::write(images.file("source"), [1; 512]).unwrap();
    unchanged(&images.scene.repo("A"), "names in use", || {
        fails(TaskIdInUse, store.create_virtual_disk("A", Some(SIZE), None, "{}", &create));
        fails(TaskIdInUse, store.create_snapshot("A", &images.disk, "{}", &create));
        fails(TaskIdInUse, store.copy_image("A", &images.disk, None, "{}", &copy));
        fails(TaskIdInUse, store.import_image("A", &images.file("source"), "raw", "{}", &create));
        fails(TaskIdInUse, store.remove_image("A", &images.disk, &remove));
    });
    // It runs: waiting for it takes longer than nothing; stopped, it says so, and may be stopped again.
    fails(Timeout, store.wait_task("mine", Some(Duration::ZERO)));
    let wait = WaitOptions::default();
    fails(Timeout, store.wait_image("A", snapshot, Some(Duration::from_millis(10)), &wait));
    store.stop_task("mine").unwrap();
    fails(Stopped, store.wait_task("mine", None));
    unchanged(&images.scene.repo("A"), "stopping what has ended", || store.stop_task("mine")).unwrap();
    assert!(!images.files.join("slow").exists() && !images.files.join("slow.part").exists());
}

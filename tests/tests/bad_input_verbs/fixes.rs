//! Fixes that nobody listed: cut, edited, forged with a right checksum, of another repository, stale. Whatever such a
//! fix says, nothing is lost by it: it is refused, or succeeds and does nothing.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use vdsmstore_core::ErrorKind::FixRefused;
use vdsmstore_core::options::{
    AutoFix, CheckOptions, CreateOptions, FixOptions, ForceOptions, FormatOptions, RemoveOptions,
};
use vdsmstore_core::{Fix, Result, Store};
use vdsmstore_tests::scene::{bytes, fails, performance};
use vdsmstore_tests::tree::unchanged;
use vdsmstore_tests::{PATIENCE, at};

use super::bad_input_common::{Images, NOWHERE};

const TYPES: [&str; 4] = ["mend", "clean", "merge", "optimize"];

fn listed(store: &Store) -> Vec<Fix> {
    store.check_storage_repository("A", &CheckOptions::default()).unwrap()
}

fn fix(store: &Store, fix: &Fix) -> Result<()> {
    let task = store.fix_storage_repository("A", fix, &FixOptions::default())?;
    store.wait_task(&task, Some(PATIENCE))
}

/// The checksum of a fix's data, as anybody can compute it.
fn sum(data: &Value) -> String {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let list = |key: &str| data[key].as_array().cloned().unwrap_or_default();
    let mut parts = vec![text(&data["version"]), text(&data["repository"]), text(&data["action"])];
    parts.extend(list("ids").iter().map(text));
    parts.push("observed".into());
    parts.extend(list("observed").iter().map(|pair| format!("{}@{}", text(&pair[0]), pair[1])));
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// A fix with a right checksum.
fn forged(repository: &Value, fix_type: &str, image: Option<&str>, action: &str, ids: &[&str]) -> Fix {
    let mut data =
        json!({"version": 1, "repository": repository, "action": action, "ids": ids, "observed": []});
    data["sum"] = sum(&data).into();
    let cost = json!({"read": 0, "write": 0, "frees": 0, "needs": 0});
    let whole = json!({"type": fix_type, "imageId": image, "description": "", "cost": cost, "data": data});
    serde_json::from_value(whole).unwrap()
}

/// Names in a room of the repository, in whatever shard.
fn names(repo: &Path, room: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut places = vec![repo.join(room)];
    while let Some(place) = places.pop() {
        for entry in fs::read_dir(place).unwrap().map(|entry| entry.unwrap()) {
            if entry.file_type().unwrap().is_dir() {
                places.push(entry.path());
            } else {
                found.push(entry.file_name().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn data_that_was_cut_or_edited() {
    let images = Images::new();
    let store = images.store();
    let [good] = &listed(store)[..] else { panic!("one fix: the disk that is only intended") };
    assert_eq!(sum(&good.data), good.data["sum"], "the checksum is computed in another way now");
    let mut wrong = vec![
        ("null", Value::Null),
        ("a truth", json!(true)),
        ("a number", json!(1e300)),
        ("a text", json!("mend")),
        ("a path", json!("../..")),
        ("a list", json!([good.data.clone()])),
        ("nothing", json!({})),
        ("long", json!("x".repeat(1 << 20))),
        ("many", json!(vec![0; 100_000])),
        ("deep", (0..100).fold(json!(1), |inner, _| json!([inner]))),
    ];
    let values = [
        json!(null),
        json!(0),
        json!(2),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(true),
        json!(""),
        json!("1"),
        json!("../.."),
        json!("format"),
        json!("Mend"),
        json!("clean-image"),
        json!(NOWHERE),
        json!([]),
        json!([NOWHERE]),
        json!(["../.."]),
        json!([1]),
        json!([[NOWHERE, 1]]),
        json!([[1, NOWHERE]]),
        json!(vec![NOWHERE; 1000]),
        json!({}),
    ];
    for key in ["version", "repository", "action", "ids", "observed", "sum", "more", ""] {
        for value in &values {
            let mut data = good.data.clone();
            data[key] = value.clone();
            if data != good.data {
                wrong.push((key, data));
            }
        }
        let mut data = good.data.clone();
        if data.as_object_mut().unwrap().remove(key).is_some() {
            wrong.push((key, data));
        }
    }
    let mut refused = 0;
    for (what, data) in wrong {
        // As it is, and with a checksum that is right.
        let mut signed = data.clone();
        if signed.is_object() && what != "sum" {
            signed["sum"] = sum(&signed).into();
        }
        for data in [data, signed] {
            let changed = Fix { data: data.clone(), ..good.clone() };
            // What was observed is never a reason to act: another observation, well signed, is the same fix.
            let same = what == "observed"
                && data["sum"] == sum(&data)
                && {
                    let valid = |pair: &Value| pair[0].is_string() && pair[1].is_u64();
                    let pairs = data["observed"].as_array().cloned().unwrap_or_default();
                    pairs.iter().all(valid) && data["observed"].is_array()
                }
                && data.to_string().len() <= 16 << 10;
            if same {
                continue;
            }
            let text = data.to_string();
            images.refused(&format!("{what}: {text:.200}"), FixRefused, "refused", || {
                store.fix_storage_repository("A", &changed, &FixOptions::default())
            });
            refused += 1;
        }
    }
    println!("{refused} fixes refused");
    assert!(refused > 250 && store.list_tasks().unwrap().is_empty(), "{refused}");
    assert_eq!(listed(store), std::slice::from_ref(good));
    fix(store, good).unwrap();
    assert!(listed(store).is_empty());
}

#[test]
fn types_and_images_that_are_not_those_of_the_data() {
    let images = Images::new();
    let store = images.store();
    let [good] = &listed(store)[..] else { panic!("one fix") };
    for fix_type in TYPES {
        for image in [None, Some(NOWHERE), Some(images.disk.as_str()), Some(images.broken.as_str())] {
            if fix_type == "mend" && image == Some(images.broken.as_str()) {
                continue;
            }
            let mut whole = serde_json::to_value(good).unwrap();
            whole["type"] = fix_type.into();
            whole["imageId"] = image.into();
            let wrong: Fix = serde_json::from_value(whole).unwrap();
            images.refused(fix_type, FixRefused, "refused", || {
                store.fix_storage_repository("A", &wrong, &FixOptions::default())
            });
        }
    }
    // The text and the price are for people and priorities.
    let told = Fix { description: "rm -rf /".into(), cost: vdsmstore_core::Cost::default(), ..good.clone() };
    fix(store, &told).unwrap();
}

/// Every action on every object that there is, each well signed: nothing that is wanted goes.
#[test]
fn actions_that_the_objects_do_not_need() {
    let images = Images::new();
    let (store, scene) = (images.store(), &images.scene);
    store.set_image_user_data("A", &images.disk, "\"mine\"").unwrap();
    let child = scene.create(
        "A",
        None,
        Some(&images.snapshot),
        &CreateOptions { auto_fix: AutoFix::Optimized, ..performance() },
    );
    vdsmstore_tests::settle(store, "A", &child);
    let nonce = listed(store)[0].data["repository"].clone();
    let repo = scene.repo("A");
    let mut ids: Vec<String> = names(&repo, "data");
    let blobs: Vec<String> = names(&repo, "blobs");
    assert!(ids.len() >= 2 && !blobs.is_empty(), "{ids:?} {blobs:?}");
    ids.extend(blobs.iter().flat_map(|name| name.split('.').map(str::to_owned)));
    ids.extend(
        [&images.disk, &images.snapshot, &images.broken, &child, &NOWHERE.to_owned()].map(Clone::clone),
    );
    ids.retain(|id| uuid::Uuid::try_parse(id).is_ok());
    ids.sort_unstable();
    ids.dedup();
    let single =
        ["mend", "optimize", "merge", "clean-image", "clean-volume", "clean-object", "clean-progress"];
    let double = ["clean-child", "clean-holder", "clean-blob"];
    let (mut refused, mut idle) = (0, 0);
    let mut attempt = |fix_type: &str, image: Option<&str>, action: &str, ids: &[&str]| {
        let wrong = forged(&nonce, fix_type, image, action, ids);
        let what = format!("{fix_type} {image:?} {action} {ids:?}");
        match unchanged(&repo, &what, || fix(store, &wrong)) {
            Ok(()) => idle += 1,
            Err(error) => {
                assert_eq!(error.kind(), FixRefused, "{what}: {error:?}");
                refused += 1;
            }
        }
    };
    for id in &ids {
        for action in single {
            if action == "mend" && *id == images.broken {
                continue;
            }
            for fix_type in TYPES {
                for image in [None, Some(id.as_str())] {
                    attempt(fix_type, image, action, &[id]);
                }
            }
        }
        for other in &ids {
            for action in double {
                for image in [id, other] {
                    attempt("clean", Some(image), action, &[id, other]);
                }
            }
        }
    }
    attempt("clean", None, "sweep", &[]);
    println!("{} objects: {refused} fixes refused, {idle} did nothing", ids.len());
    assert!(refused > 300 && idle > 50, "{refused} {idle}");
    for id in [&images.disk, &images.snapshot, &child] {
        assert!(scene.read("A", id) == bytes(1, 4), "{id}");
    }
    assert_eq!(store.get_image_info("A", &images.disk).unwrap().user_data.get(), "\"mine\"");
    assert_eq!(listed(store).len(), 1, "{:?}", listed(store));
}

#[test]
fn fixes_of_another_repository() {
    let images = Images::new();
    let store = images.store();
    let [good] = &listed(store)[..] else { panic!("one fix") };
    images.refused("B", FixRefused, "another repository", || {
        store.fix_storage_repository("B", good, &FixOptions::default())
    });
    // Also of one that was at the same place before.
    let place = images.scene.root.path().join("C");
    let fresh = || {
        fs::create_dir(&place).unwrap();
        store.format_storage_repository("localfs-1.0", &at(&place), &FormatOptions::default()).unwrap();
        store.connect_storage_repository("C", "localfs-1.0", &at(&place)).unwrap();
    };
    fresh();
    let off =
        CreateOptions { auto_fix: AutoFix::Off, image_id: Some(NOWHERE.into()), ..CreateOptions::default() };
    store.create_virtual_disk("C", Some(512), None, "{}", &off).unwrap();
    let former = store.check_storage_repository("C", &CheckOptions::default()).unwrap().remove(0);
    store.disconnect_storage_repository("C", &ForceOptions::default()).unwrap();
    fs::remove_dir_all(&place).unwrap();
    fresh();
    store.create_virtual_disk("C", Some(512), None, "{}", &off).unwrap();
    let result =
        unchanged(&place, "former", || store.fix_storage_repository("C", &former, &FixOptions::default()));
    fails(FixRefused, result);
}

#[test]
fn fixes_that_are_stale() {
    let images = Images::new();
    let (store, scene) = (images.store(), &images.scene);
    let later = RemoveOptions { auto_fix: AutoFix::Off, ..RemoveOptions::default() };
    let [mend] = &listed(store)[..] else { panic!("one fix") };
    // The image that was to be completed is to go.
    store.remove_image("A", &images.broken, &later).unwrap();
    images.refused("completing what was removed", FixRefused, "stale", || {
        store.fix_storage_repository("A", mend, &FixOptions::default())
    });
    let clean: Vec<Fix> = listed(store);
    assert!(clean.iter().all(|fix| fix.fix_type != mend.fix_type), "{clean:?}");
    for one in &clean {
        fix(store, one).unwrap();
    }
    // Once more, and what was to be completed: nothing is there any more.
    for one in clean.iter().chain([mend]) {
        unchanged(&scene.repo("A"), "again", || fix(store, one)).unwrap();
    }
    // A snapshot that was to be cleaned has been brought back.
    let copy =
        store.copy_image("B", &images.snapshot, None, "{}", &vdsmstore_core::options::CopyOptions::default());
    vdsmstore_tests::settle(store, "B", &copy.unwrap().to_string());
    store.remove_image("A", &images.snapshot, &later).unwrap();
    let going = listed(store);
    assert!(!going.is_empty());
    let back =
        store.copy_image("A", &images.snapshot, None, "{}", &vdsmstore_core::options::CopyOptions::default());
    vdsmstore_tests::settle(store, "A", &back.unwrap().to_string());
    for one in &going {
        let result = unchanged(&scene.repo("A"), "what came back", || fix(store, one));
        assert!(result.as_ref().is_ok_and(|()| true) || result.unwrap_err().kind() == FixRefused);
    }
    assert!(scene.read("A", &images.snapshot) == bytes(1, 4) && scene.read("A", &images.disk) == bytes(1, 4));
}

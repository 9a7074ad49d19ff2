//! What is unfinished, found and done; and the work that is limited, stopped and gone on with.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{NOWHERE, Place};
use serde_json::{Value, json};

const MIB: usize = 1 << 20;

/// A disk whose removed snapshot waits to be merged.
fn mergeable(place: &Place) -> String {
    let disk = place.id(&["image", "create", "A", "16M"]);
    place.write(&disk, "0", &vec![1; 4 * MIB]);
    let first = place.id(&["image", "copy", "A", &disk, "--snapshot"]);
    let second = place.id(&["image", "copy", "A", &disk, "--base", &first]);
    place.write(&second, "8M", &vec![2; MIB]);
    place.ok(&["image", "remove", "A", &first]);
    second
}

#[test]
fn a_clean_repository_needs_nothing() {
    let place = Place::new();
    assert_eq!(place.ok(&["repo", "check", "A"]), "nothing is left to do\n");
    assert_eq!(place.json(&["repo", "check", "A", "--exact"]), json!([]));
    assert_eq!(place.ok(&["repo", "fix", "A", "--all"]), "");
    let report = place.json(&["repo", "fix", "A", "--all"]);
    assert_eq!((&report["left"], &report["done"]), (&json!([]), &json!([])));
}

#[test]
fn what_a_check_lists_is_done() {
    let place = Place::new();
    let disk = mergeable(&place);
    let listed = place.json(&["repo", "check", "A"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["type"], "merge");
    let table = place.ok(&["repo", "check", "A", "--exact"]);
    assert!(table.starts_with("TYPE") && table.lines().count() == 2, "{table}");
    assert_eq!(place.ok(&["repo", "fix", "A", "--all", "--dry-run"]).lines().count(), 2);
    assert_eq!(place.ok(&["repo", "fix", "A", "--all", "--type", "clean", "--type", "mend"]), "");
    assert_eq!(place.json(&["repo", "check", "A"]), listed, "nothing was done so far");

    let done = place.ok(&["repo", "fix", "A", "--all", "--type", "merge"]);
    assert!(done.starts_with("done: merge"), "{done}");
    assert_eq!(place.json(&["repo", "check", "A"]), json!([]));
    assert_eq!(place.json(&["image", "info", "A", &disk])["depth"], 1);
    assert_eq!(place.read("A", &disk, "0", "4M"), vec![1; 4 * MIB]);
    assert_eq!(place.read("A", &disk, "8M", "1M"), vec![2; MIB]);
}

#[test]
fn a_fix_is_passed_on_as_json() {
    let place = Place::new();
    mergeable(&place);
    let listed = place.ok(&["--json", "repo", "check", "A"]);
    std::fs::write(place.path("fixes.json"), &listed).unwrap();
    let one: Vec<Value> = serde_json::from_str(&listed).unwrap();
    let ran = place.run_with(&["repo", "fix", "A", "-"], one[0].to_string().as_bytes());
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(place.json(&["repo", "check", "A"]), json!([]));
    // What has been done already is no failure, what is no fix is one, and so is one of another repository.
    place.ok(&["repo", "fix", "A", "fixes.json"]);
    assert_eq!(place.error(1, &["repo", "fix", "B", "fixes.json"])["kind"], "FixRefused");
    std::fs::write(place.path("fixes.json"), "{\"type\": \"merge\"}").unwrap();
    assert_eq!(place.error(2, &["repo", "fix", "A", "fixes.json"])["kind"], "InvalidParameter");
    assert_eq!(place.run(&["repo", "fix", "A", "none.json"]).code, 1);
}

#[test]
fn what_is_in_use_is_left_for_later() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "0", &vec![3; MIB]);
    let copy = place.id(&["image", "copy", "B", &disk, "--no-wait"]);
    // Its source is away: a mend that waits for it.
    std::fs::rename(place.path("A"), place.path("away")).unwrap();
    let ran = place.run(&["repo", "fix", "B", "--all"]);
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("left for later: complete virtual disk"), "{}", ran.err);
    std::fs::rename(place.path("away"), place.path("A")).unwrap();
    place.ok(&["repo", "fix", "B", "--all"]);
    assert_eq!(place.read("B", &copy, "0", "1M"), vec![3; MIB]);
}

#[test]
fn a_watch_goes_on_until_it_is_interrupted() {
    let place = Place::new();
    let mut child = place.start(&["repo", "fix", "B", "--all", "--watch", "0.2"]);
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "0", &vec![4; MIB]);
    let copy = place.id(&["image", "copy", "B", &disk, "--no-wait"]);
    place.ok(&["image", "wait", "B", &copy, "--timeout", "30"]);
    assert_eq!(place.read("B", &copy, "0", "1M"), vec![4; MIB]);
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

#[test]
fn a_limit_is_obeyed() {
    let place = Place::new();
    let bytes: Vec<u8> = (0..4 * MIB).map(|i| (i % 251) as u8 | 1).collect();
    std::fs::write(place.path("disk.raw"), &bytes).unwrap();
    let start = Instant::now();
    let disk = place.id(&["image", "import", "A", "disk.raw", "-f", "raw", "--bandwidth", "4M"]);
    assert!(start.elapsed() > Duration::from_millis(500), "{:?}", start.elapsed());
    assert!(place.run(&["image", "read", "A", &disk]).out == bytes);
    assert_eq!(place.run(&["image", "copy", "B", &disk, "--bandwidth", "0"]).code, 2);
}

/// Starts a copy that takes long, and waits until it has begun; the program and the copy's id.
fn slow_copy(place: &Place, disk: &str) -> (std::process::Child, String) {
    let mut child = place.start(&["image", "copy", "B", disk, "--bandwidth", "1M"]);
    let mut id = String::new();
    BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut id).unwrap();
    (child, id.trim_end().to_owned())
}

#[test]
fn work_is_stopped_and_gone_on_with() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    let bytes: Vec<u8> = (0..8 * MIB).map(|i| (i % 241) as u8 | 1).collect();
    place.write(&disk, "0", &bytes);
    let (child, copy) = slow_copy(&place, &disk);
    let stopped = place.json(&["image", "stop", "B", &copy]);
    assert_eq!(stopped["stopped"], true);
    let ran = common::ended(child.wait_with_output().unwrap());
    assert_eq!(ran.code, 130, "{}", ran.err);
    assert_eq!(place.json(&["image", "status", "B", &copy])["status"], "broken");
    let ran = place.run(&["image", "stop", "B", &copy]);
    assert_eq!(ran.code, 0);
    assert!(ran.err.contains("no command"), "{}", ran.err);

    let report = place.json(&["repo", "fix", "B", "--all", "--bandwidth", "1G"]);
    assert_eq!(report["done"][0]["type"], "mend", "{report}");
    assert!(place.run(&["image", "read", "B", &copy]).out == bytes);
    assert_eq!(place.json(&["image", "stop", "B", &copy])["stopped"], false);
    assert_eq!(place.error(1, &["image", "stop", "B", NOWHERE])["kind"], "ImageNotFound");
}

#[test]
fn a_disk_grows() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "0", b"kept");
    place.ok(&["image", "resize", "A", &disk, "10M"]);
    assert_eq!(place.json(&["image", "info", "A", &disk])["size"], 10 << 20);
    assert_eq!(place.read("A", &disk, "0", "6"), b"kept\0\0");
    assert_eq!(place.error(1, &["image", "resize", "A", &disk, "4M"])["kind"], "InvalidSize");
}

#[test]
fn an_image_leaves_as_a_file() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "1M", &vec![5; MIB]);
    let export = ["image", "export", "A", &disk, "out.raw", "--format", "raw"];
    place.ok(&export);
    let bytes = std::fs::read(place.path("out.raw")).unwrap();
    assert!(bytes.len() == 4 * MIB && bytes[MIB..2 * MIB].iter().all(|byte| *byte == 5));
    assert_eq!(place.error(1, &export)["kind"], "InvalidParameter");
    place.ok(&[&export[..], &["--overwrite"]].concat());
    let path = place.json(&["image", "export", "A", &disk, "out.qcow2", "-f", "qcow2"]);
    assert_eq!(path["path"], place.path("out.qcow2").to_str().unwrap());
    assert_eq!(place.run(&["image", "export", "A", &disk, "x"]).code, 2, "a format is needed");
    let back = place.id(&["image", "import", "B", "out.qcow2", "-f", "qcow2"]);
    assert!(place.run(&["image", "read", "B", &back]).out == bytes);

    // An interrupted one leaves nothing.
    let mut slow =
        place.start(&["image", "export", "A", &disk, "slow.raw", "-f", "raw", "--bandwidth", "100K"]);
    std::thread::sleep(Duration::from_millis(700));
    assert!(Command::new("kill").args(["-INT", &slow.id().to_string()]).status().unwrap().success());
    assert_eq!(slow.wait().unwrap().code(), Some(130));
    let left = std::fs::read_dir(place.folder.path()).unwrap();
    let names: Vec<String> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert!(!names.iter().any(|name| name.starts_with("slow")), "{names:?}");
}

#[test]
fn differences_are_listed_and_measured() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    place.write(&disk, "1M", &vec![6; MIB]);
    let before = place.id(&["image", "snapshot", "A", &disk]);
    place.write(&disk, "4M", &vec![7; MIB]);
    let difference = json!([{"offset": 4 * MIB, "length": MIB, "kind": "data"}]);
    assert_eq!(place.json(&["image", "diff", "A", &disk, &before]), difference);
    assert_eq!(place.ok(&["image", "diff", "A", &before]), "1048576 1048576 data\n");
    assert_eq!(place.json(&["image", "diff", "A", &disk, &disk]), json!([]));
    let whole = place.json(&["image", "measure", "A", &disk]);
    assert_eq!((&whole["required"], &whole["fullyAllocated"]), (&json!(2 * MIB), &json!(8 * MIB)));
    let measured = place.json(&["image", "measure", "A", &disk, "--base", &before, "-f", "qcow2"]);
    let required = measured["required"].as_u64().unwrap();
    assert!((MIB as u64..2 * MIB as u64).contains(&required), "{measured}");
    assert!(place.ok(&["image", "measure", "A", &disk]).contains("required"));
}

#[test]
fn another_strategy_is_another_best_representation() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    place.write(&disk, "0", &vec![8; MIB]);
    let base = place.id(&["image", "copy", "A", &disk, "--snapshot"]);
    let copy = place.id(&["image", "copy", "A", &disk, "--base", &base]);
    place.ok(&["image", "set-strategy", "A", &copy, "performance"]);
    assert_eq!(place.json(&["image", "status", "A", &copy])["status"], "degraded");
    place.ok(&["repo", "fix", "A", "--all", "--type", "optimize"]);
    let info = place.json(&["image", "info", "A", &copy]);
    assert_eq!((&info["depth"], &info["strategy"]), (&json!(1), &json!("performance")));
    assert_eq!(place.read("A", &copy, "0", "1M"), vec![8; MIB]);
}

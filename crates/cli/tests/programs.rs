//! Images that other programs use, and drawings.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::Place;
use serde_json::json;

#[test]
fn a_prepared_image_belongs_to_its_user() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    let line = place.ok(&["image", "prepare", "A", &disk]);
    let (format, path) = line.trim_end().split_once(' ').unwrap();
    assert!(["raw", "qcow2"].contains(&format) && std::path::Path::new(path).is_file(), "{line}");
    assert_eq!(place.json(&["image", "prepare", "A", &disk])["path"], path, "once more is the same");
    assert_eq!(place.json(&["image", "info", "A", &disk])["prepared"]["mode"], "prepare");
    let error = place.error(1, &["image", "remove", "A", &disk]);
    assert_eq!((&error["kind"], &error["code"]), (&json!("ImageInUse"), &json!(203)));
    place.ok(&["image", "teardown", "A", &disk]);
    assert_eq!(place.json(&["image", "info", "A", &disk])["prepared"], json!(null));
    place.ok(&["image", "remove", "A", &disk]);
}

#[test]
fn a_program_has_the_image_for_its_life() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    let prepare = ["image", "prepare", "A", &disk, "--exec"];
    let exec = |arguments: &[&str]| place.run(&[&prepare[..], arguments].concat());

    let script = "test \"$1\" = \"$VDSMSTORE_PATH\" && test \"$2\" = \"$VDSMSTORE_FORMAT\" && test \"$3\" = -r \
                  && test \"$VDSMSTORE_REPO\" = A && printf hello | dd of=\"$1\" conv=notrunc status=none";
    let ran = exec(&["sh", "-c", script, "sh", "{path}", "{format}", "-r"]);
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    assert_eq!(place.json(&["image", "info", "A", &disk])["prepared"], json!(null));
    assert_eq!(place.read("A", &disk, "0", "5"), b"hello");

    assert_eq!(exec(&["sh", "-c", "exit 7"]).code, 7);
    assert_eq!(exec(&["sh", "-c", "kill -TERM $$"]).code, 128 + 15);
    let ran = exec(&["/no/such/program"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("/no/such/program"), "{}", ran.err);
    assert_eq!(place.json(&["image", "info", "A", &disk])["prepared"], json!(null));
}

#[test]
fn a_signal_is_for_the_program() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    let script = "trap 'exit 5' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = place.start(&["image", "prepare", "A", &disk, "--exec", "sh", "-c", script]);
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let kill = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(5));
    assert_eq!(place.json(&["image", "info", "A", &disk])["prepared"], json!(null));
}

#[test]
fn a_snapshot_is_prepared_for_reading_only() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "0", b"x");
    let snapshot = place.id(&["image", "snapshot", "A", &disk]);
    assert_eq!(place.error(1, &["image", "prepare", "A", &snapshot])["kind"], "ReadOnlyImage");
    let prepared = place.json(&["image", "prepare", "A", &snapshot, "--read-only"]);
    assert_eq!(prepared["readOnly"], true);
    assert!(prepared["blockdev"].is_object() && prepared["libvirt"].is_string());
}

#[test]
fn graphs_are_drawn() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M", "--user-data", "{\"name\": \"web & db\"}"]);
    place.write(&disk, "0", b"x");
    let snapshot = place.id(&["image", "snapshot", "A", &disk]);
    let text = place.ok(&["graph", "A"]);
    assert!(text.contains(&snapshot) && text.contains("web & db"), "{text}");
    assert!(place.ok(&["graph", "A", "--format", "dot"]).starts_with("digraph \"A\" {\n"));
    place.ok(&["graph", "A", "-f", "svg", "-o", "picture.svg"]);
    let picture = std::fs::read_to_string(place.path("picture.svg")).unwrap();
    assert!(picture.starts_with("<svg ") && picture.contains("web &amp; db"), "{picture}");
    let nodes = place.json(&["graph", "A"]);
    assert!(nodes.as_array().unwrap().iter().any(|node| node["imageId"] == disk.as_str()), "{nodes}");
    assert_eq!(place.ok(&["graph", "B"]), "");
}

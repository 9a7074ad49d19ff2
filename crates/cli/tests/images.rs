//! Images from the command line: made, written, read, copied, removed.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::process::Command;

use common::{NOWHERE, Place};
use serde_json::json;

const MIB: usize = 1 << 20;

#[test]
fn what_is_written_is_read() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    let bytes: Vec<u8> = (0..3 * MIB).map(|i| (i % 251) as u8).collect();
    place.write(&disk, "1M", &bytes);
    assert_eq!(place.read("A", &disk, "1M", "3M"), bytes);
    let all = place.run(&["image", "read", "A", &disk]).out;
    assert_eq!(all.len(), 8 * MIB);
    assert!(all[..MIB].iter().chain(&all[4 * MIB..]).all(|byte| *byte == 0));
    let ran = place.run_with(&["image", "write", "A", &disk, "--length", "5", "--json"], b"0123456789");
    let said: serde_json::Value = serde_json::from_slice(&ran.out).unwrap();
    assert_eq!((ran.code, &said["bytes"]), (0, &json!(5)));
    assert_eq!(place.read("A", &disk, "0", "7"), b"01234\0\0");
}

#[test]
fn outside_of_an_image_is_refused() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "1M"]);
    for range in [["--offset", "2M"], ["--length", "2M"]] {
        let error = place.error(1, &["image", "read", "A", &disk, range[0], range[1]]);
        assert_eq!(error["kind"], "InvalidParameter");
    }
    assert_eq!(place.run_with(&["image", "write", "A", &disk, "--offset", "1M"], b"x").code, 1);
    assert_eq!(place.error(1, &["image", "create", "A", "1000"])["kind"], "InvalidSize");
}

#[test]
fn a_closed_pipe_is_no_error() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "64M"]);
    for arguments in [&["image", "read", "A", &disk][..], &["image", "list", "A"]] {
        let mut child = place.start(arguments);
        let mut stdout = child.stdout.take().unwrap();
        if arguments[1] == "read" {
            stdout.read_exact(&mut [0; 10]).unwrap();
        }
        drop(stdout);
        let ran = common::ended(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    }
}

#[test]
fn snapshots_keep_what_was_there() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M", "--user-data", "{\"name\": \"vm\"}"]);
    place.write(&disk, "0", b"before");
    let snapshot = place.id(&["image", "snapshot", "A", &disk]);
    place.write(&disk, "0", b"after!");
    assert_eq!(place.read("A", &snapshot, "0", "6"), b"before");
    assert_eq!(place.read("A", &disk, "0", "6"), b"after!");
    let second = place.id(&["image", "create", "A", "--base", &snapshot]);
    assert_eq!(place.read("A", &second, "0", "6"), b"before");
    let larger = place.id(&["image", "create", "A", "16M", "--base", &snapshot]);
    assert_eq!(place.json(&["image", "info", "A", &larger])["size"], 16 << 20);
    place.ok(&["image", "remove", "A", &snapshot]);
    assert_eq!(place.read("A", &second, "0", "6"), b"before");
    assert_eq!(place.error(1, &["image", "info", "A", &snapshot])["kind"], "ImageNotFound");
    let error = place.error(1, &["image", "snapshot", "A", NOWHERE]);
    assert_eq!(error["code"], 268);
}

#[test]
fn a_copy_with_a_base_is_small() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "32M"]);
    place.write(&disk, "0", &vec![7; 8 * MIB]);
    let monday = place.id(&["image", "copy", "B", &disk]);
    assert_ne!(monday, disk);
    place.write(&disk, "16M", &vec![8; MIB]);
    let tuesday = place.id(&["image", "copy", "B", &disk, "--base", &monday]);
    let info = place.json(&["image", "info", "B", &tuesday]);
    assert!(info["allocated"].as_u64().unwrap() < 2 * MIB as u64, "{info}");
    for (image, there) in [(&monday, 0), (&tuesday, 8)] {
        assert_eq!(place.read("B", image, "0", "8M"), vec![7; 8 * MIB]);
        assert_eq!(place.read("B", image, "16M", "1M"), vec![there; MIB]);
    }
    let backup = place.id(&["image", "copy", "B", &disk, "--snapshot"]);
    assert_eq!(place.json(&["image", "info", "B", &backup])["mutable"], false);
}

#[test]
fn a_snapshot_keeps_its_id_in_another_repository() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "4M"]);
    place.write(&disk, "0", b"golden");
    let snapshot = place.id(&["image", "snapshot", "A", &disk]);
    assert_eq!(place.id(&["image", "copy", "B", &snapshot]), snapshot);
    assert_eq!(place.read("B", &snapshot, "0", "6"), b"golden");
    let error = place.error(1, &["image", "copy", "B", &disk, "--only", "B"]);
    assert_eq!(error["kind"], "ImageNotFound", "it is looked for in B only");
    let hint = format!("{disk}=B");
    assert_eq!(place.error(1, &["image", "copy", "B", &disk, "--hint", &hint])["kind"], "ImageNotFound");
    let elsewhere = place.id(&["image", "create", "B", "--base", &snapshot]);
    assert_eq!(place.read("B", &elsewhere, "0", "6"), b"golden");
}

#[test]
fn files_are_imported() {
    let place = Place::new();
    let mut bytes = vec![0; 3 * MIB];
    bytes[MIB..MIB + 6].copy_from_slice(b"import");
    std::fs::write(place.path("disk.raw"), &bytes).unwrap();
    let disk = place.id(&["image", "import", "A", "disk.raw", "--format", "raw"]);
    assert_eq!(place.run(&["image", "read", "A", &disk]).out, bytes);
    let ran = place.run(&["image", "import", "A", "nothing.raw", "-f", "raw"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("nothing.raw"), "{}", ran.err);
}

#[test]
fn images_are_listed() {
    let place = Place::new();
    assert_eq!(place.ok(&["image", "list", "A"]), "");
    let mut disks: Vec<String> = (0..3).map(|_| place.id(&["image", "create", "A", "1M"])).collect();
    disks.sort();
    let snapshot = place.id(&["image", "snapshot", "A", &disks[0], "--user-data", "{\"name\": \"s\"}"]);
    assert_eq!(place.ok(&["image", "list", "A"]).lines().count(), 4);
    assert_eq!(place.json(&["image", "list", "A", "--kind", "disk"]), json!(disks));
    assert_eq!(place.ok(&["image", "list", "A", "--kind", "snapshot"]), format!("{snapshot}\n"));
    let after = place.json(&["image", "list", "A", "--kind", "disk", "--after", &disks[0], "--limit", "1"]);
    assert_eq!(after, json!([disks[1]]));
    let details = place.ok(&["image", "list", "A", "-l"]);
    assert!(details.lines().any(|line| line.starts_with(&snapshot) && line.ends_with(" s")), "{details}");
    assert_eq!(place.json(&["image", "list", "A", "-l"]).as_array().unwrap().len(), 4);
    let info = place.json(&["repo", "info", "A"]);
    assert_eq!((&info["virtualDisks"], &info["snapshots"]), (&json!(3), &json!(1)));
    assert!(place.ok(&["repo", "info", "A"]).contains("virtual disks: 3\n"));
}

#[test]
fn user_data_comes_back_as_it_was() {
    let place = Place::new();
    let text = "{ \"b\" : 1.50, \"a\":[\"ä\"]}";
    let disk = place.id(&["image", "create", "A", "1M", "--user-data", text]);
    assert!(place.ok(&["image", "info", "A", &disk]).ends_with(&format!("user data: {text}\n")));
    std::fs::write(place.path("data.json"), "[1, 2]").unwrap();
    place.ok(&["image", "set-userdata", "A", &disk, "@data.json"]);
    assert_eq!(place.json(&["image", "info", "A", &disk])["userData"], json!([1, 2]));
    assert_eq!(place.error(1, &["image", "set-userdata", "A", &disk, "{"])["kind"], "InvalidParameter");
    assert_eq!(place.run(&["image", "set-userdata", "A", &disk, "@none.json"]).code, 1);
}

#[test]
fn a_chosen_id_can_be_asked_for_again() {
    let place = Place::new();
    let id = "12345678-1234-4234-8234-123456789ABC";
    let arguments = ["image", "create", "A", "1M", "--image-id", id];
    assert_eq!(place.id(&arguments), id.to_lowercase());
    assert_eq!(place.id(&arguments), id.to_lowercase());
    assert_eq!(place.error(1, &["image", "create", "A", "2M", "--image-id", id])["kind"], "ImageExists");
    let status = place.json(&["image", "create", "A", "1M", "--image-id", id]);
    assert_eq!((&status["imageId"], &status["status"]), (&json!(id.to_lowercase()), &json!("optimized")));
    assert_eq!(
        place.error(1, &["image", "create", "A", "1M", "--image-id", "7"])["kind"],
        "InvalidParameter"
    );
}

#[test]
fn work_can_be_left_to_others() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    place.write(&disk, "0", &vec![9; 4 * MIB]);
    let chosen = "12345678-1234-4234-8234-123456789abc";
    assert_eq!(place.id(&["image", "copy", "B", &disk, "--image-id", chosen, "--no-wait"]), chosen);
    assert_eq!(place.json(&["image", "status", "B", chosen])["status"], "broken");
    assert!(place.ok(&["image", "status", "B", chosen]).contains("broken"));
    let error = place.error(1, &["image", "wait", "B", chosen, "--timeout", "0.1"]);
    assert_eq!(error["kind"], "Timeout");

    // A wait that nobody ends is ended by a signal.
    let child = place.start(&["image", "wait", "B", chosen]);
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ran = common::ended(child.wait_with_output().unwrap());
    assert_eq!((ran.code, ran.err.as_str()), (130, "vdsmstore: interrupted\n"));
}

#[test]
fn interrupted_work_stops_in_order() {
    let place = Place::new();
    interrupted_copy(&place);
}

#[test]
fn interrupted_work_goes_on() {
    let place = Place::new();
    let (disk, bytes, chosen) = interrupted_copy(&place);
    place.ok(&["repo", "fix", "B", "--all"]);
    assert_eq!(
        place.id(&["image", "copy", "B", &disk, "--image-id", &chosen]),
        chosen,
        "the same call again"
    );
    assert_eq!(place.ok(&["image", "wait", "B", &chosen, "--optimized"]), "optimized\n");
    assert!(place.read("B", &chosen, "0", "192M") == bytes);
}

/// The disk, what it holds, and the copy that was interrupted.
fn interrupted_copy(place: &Place) -> (String, Vec<u8>, String) {
    let disk = place.id(&["image", "create", "A", "256M"]);
    let bytes = [vec![1; 100 * MIB], vec![2; 92 * MIB]].concat();
    place.write(&disk, "0", &bytes);
    let chosen = "12345678-1234-4234-8234-123456789abc";
    let arguments = ["image", "copy", "B", &disk, "--image-id", chosen];
    let mut child = place.start(&arguments);
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    stdout.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), chosen, "the id is printed at once");
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    let ran = common::ended(child.wait_with_output().unwrap());
    // On a fast machine the copy may have been done already.
    assert!(ran.code == 130 || ran.code == 0, "{} {}", ran.code, ran.err);
    if ran.code == 130 {
        assert!(ran.err.contains("repo fix B --all"), "{}", ran.err);
        assert_eq!(place.json(&["image", "status", "B", chosen])["status"], "broken");
    }
    (disk, bytes, chosen.to_owned())
}

#[test]
fn extents_tell_data_from_holes() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "8M"]);
    place.write(&disk, "1M", &vec![1; MIB]);
    let extents = place.json(&["image", "extents", "A", &disk]);
    let extents = extents.as_array().unwrap();
    let mut end = 0;
    for extent in extents {
        assert_eq!(extent["offset"], end, "{extents:?}");
        end += extent["length"].as_u64().unwrap();
    }
    assert_eq!(end, 8 << 20);
    assert!(extents.contains(&json!({"offset": MIB, "length": MIB, "kind": "data"})), "{extents:?}");
    let lines = place.ok(&["image", "extents", "A", &disk, "--offset", "1M", "--length", "512K"]);
    assert_eq!(lines, "1048576 524288 data\n");
    assert_eq!(place.json(&["image", "extents", "A", &disk, "--length", "0"]), json!([]));
}

#[test]
fn an_export_to_the_output() {
    let place = Place::new();
    let disk = place.id(&["image", "create", "A", "3M"]);
    place.write(&disk, "65000", &[7; 1000]);
    let ran = place.run(&["--json", "image", "export", "A", &disk, "-", "-f", "raw"]);
    let mut expected = vec![0; 3 << 20];
    expected[65000..66000].fill(7);
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out == expected);
    let refused = place.run(&["image", "export", "A", &disk, "-", "-f", "qcow2"]);
    assert_eq!((refused.code, refused.out.len()), (1, 0), "{}", refused.err);
}

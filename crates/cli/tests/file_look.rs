//! `file check`, `info`, `map`, `measure` and `compare`, side by side with `qemu-img`.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::Place;
use serde_json::Value;
use tempfile::TempDir;

fn place() -> Place {
    Place { folder: TempDir::new().unwrap() }
}

/// Runs a QEMU tool in the directory; its status and output.
fn tool(place: &Place, program: &str, arguments: &[&str]) -> (i32, Vec<u8>) {
    let output = Command::new(program).args(arguments).current_dir(place.folder.path()).output().unwrap();
    (output.status.code().unwrap(), output.stdout)
}

fn qemu(place: &Place, line: &str) {
    let arguments: Vec<&str> = line.split(' ').collect();
    assert_eq!(tool(place, "qemu-img", &arguments).0, 0, "{line}");
}

fn io(place: &Place, file: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", "qcow2"];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(file);
    assert_eq!(tool(place, "qemu-io", &arguments).0, 0, "{commands:?}");
}

fn qemu_json(place: &Place, arguments: &[&str]) -> Value {
    serde_json::from_slice(&tool(place, "qemu-img", arguments).1).unwrap()
}

/// A chain of three: raw, qcow2, qcow2.
fn chain() -> Place {
    let place = place();
    qemu(&place, "create -q -f raw base 1M");
    assert_eq!(tool(&place, "qemu-io", &["-f", "raw", "-c", "write -q -P 1 64k 128k", "base"]).0, 0);
    qemu(&place, "create -q -f qcow2 -b base -F raw mid 2M");
    io(&place, "mid", &["write -q -P 2 512k 64k", "write -q -z 768k 64k", "write -q -c -P 9 1536k 64k"]);
    qemu(&place, "create -q -f qcow2 -b mid -F qcow2 top 3M");
    io(&place, "top", &["write -q -P 3 0 64k", "write -q -P 4 2560k 64k"]);
    place
}

const BELOW: [&str; 2] = ["--backing=mid:qcow2", "--backing=base:raw"];

#[test]
fn check_has_the_numbers_and_statuses_of_qemu() {
    let place = place();
    qemu(&place, "create -q -f qcow2 -o cluster_size=4k image 4M");
    io(&place, "image", &["write -q 0 400k", "write -q -c 1M 64k"]);
    let sound = std::fs::read(place.path("image")).unwrap();
    let compare = |what: &str, status: i32| {
        let (code, json) = tool(&place, "qemu-img", &["check", "-f", "qcow2", "--output=json", "image"]);
        let ran = place.run(&["--json", "file", "check", "-f", "qcow2", "image"]);
        assert_eq!((code, ran.code), (status, status), "{what}: {}", ran.err);
        if status == 1 {
            return;
        }
        let ours: Value = serde_json::from_slice(&ran.out).unwrap();
        let theirs: Value = serde_json::from_slice(&json).unwrap();
        for (name, value) in theirs.as_object().unwrap() {
            assert_eq!(&ours[name], value, "{what}: {name}");
        }
        assert_eq!(ours["findings"].as_array().unwrap().is_empty(), status == 0, "{what}");
        assert_eq!(place.run(&["file", "check", "-f", "qcow2", "image"]).code, status);
    };
    let damage = |at: u64, value: u64| {
        let mut bytes = sound.clone();
        bytes[at as usize..][..8].copy_from_slice(&value.to_be_bytes());
        // Refcounts beyond the end of the file count for nothing.
        bytes.resize(bytes.len().max(320 * 4096), 0);
        std::fs::write(place.path("image"), bytes).unwrap();
    };
    let be64 = |at: u64| u64::from_be_bytes(sound[at as usize..][..8].try_into().unwrap());
    let (l1, block) = (be64(40), be64(be64(48)));
    compare("sound", 0);
    // Four refcounts more, behind all that is there.
    damage(block + 600, 0x0001_0001_0001_0001);
    compare("leaks", 3);
    damage(l1, be64(l1) & !(1 << 63));
    compare("a mark", 2);
    damage(0, 0);
    compare("no image", 1);

    // Both repair it.
    damage(block + 600, 0x0001_0001_0001_0001);
    let repaired = place.run(&["--json", "file", "check", "-f", "qcow2", "-r", "leaks", "image"]);
    assert_eq!(repaired.code, 0);
    let value: Value = serde_json::from_slice(&repaired.out).unwrap();
    assert!(value["leaks-fixed"].as_u64().unwrap() >= 4, "{value}");
    compare("repaired", 0);
    damage(l1, be64(l1) & !(1 << 63));
    assert_eq!(place.run(&["file", "check", "-f", "qcow2", "-r", "all", "image"]).code, 0);
    compare("repaired", 0);
}

#[test]
fn only_qcow2_is_checked_and_the_format_is_needed() {
    let place = place();
    qemu(&place, "create -q -f raw image 1M");
    assert_eq!(place.run(&["file", "check", "-f", "raw", "image"]).code, 1);
    for command in ["check", "info", "map"] {
        assert_eq!(place.run(&["file", command, "image"]).code, 2, "{command}");
        assert_eq!(place.run(&["file", command, "-f", "vmdk", "image"]).code, 2, "{command}");
        assert_eq!(place.run(&["file", command, "-f", "qcow2", "image"]).code, 1, "{command}");
        assert_eq!(place.run(&["file", command, "-f", "raw", "nowhere"]).code, 1, "{command}");
    }
}

#[test]
fn info_says_what_qemu_says() {
    let place = chain();
    qemu(&place, "create -q -f qcow2 -o compat=0.10,cluster_size=4k old 1M");
    qemu(&place, "snapshot -c one old");
    qemu(&place, "create -q -f qcow2 -o compression_type=zstd,extended_l2=on,refcount_bits=8 new 1M");
    qemu(&place, "bitmap --add new b");
    for (file, format) in
        [("base", "raw"), ("mid", "qcow2"), ("top", "qcow2"), ("old", "qcow2"), ("new", "qcow2")]
    {
        let theirs = qemu_json(&place, &["info", "-f", format, "--output=json", file]);
        let ours = place.json(&["file", "info", "-f", format, file]);
        let mut compared = 0;
        for name in [
            "virtual-size",
            "filename",
            "format",
            "actual-size",
            "cluster-size",
            "dirty-flag",
            "backing-filename",
            "backing-filename-format",
        ] {
            assert_eq!(ours.get(name), theirs.get(name), "{file}: {name}");
            compared += u64::from(ours.get(name).is_some());
        }
        assert!(compared >= 5);
        if let Some(data) = ours.pointer("/format-specific/data").and_then(Value::as_object) {
            for (name, value) in data {
                let theirs = theirs.pointer(&format!("/format-specific/data/{name}"));
                let implied = name == "compression-type" && theirs.is_none();
                assert!(implied || theirs == Some(value), "{file}: {name} {value} {theirs:?}");
            }
        }
        let names = |value: &Value| -> Vec<Value> {
            value["snapshots"].as_array().into_iter().flatten().map(|s| s["name"].clone()).collect()
        };
        assert_eq!(names(&ours), names(&theirs));
    }
    assert!(place.ok(&["file", "info", "-f", "qcow2", "top"]).contains("mid"));
}

#[test]
fn map_says_what_qemu_says() {
    let place = chain();
    let theirs = qemu_json(&place, &["map", "-f", "qcow2", "--output=json", "top"]);
    let ours = place.json(&["file", "map", "-f", "qcow2", BELOW[0], BELOW[1], "top"]);
    assert_eq!(ours, theirs);
    let theirs = qemu_json(&place, &["map", "-f", "raw", "--output=json", "base"]);
    assert_eq!(place.json(&["file", "map", "-f", "raw", "base"]), theirs);
    // A chain is not followed, and not left out by a slip.
    for below in [&[][..], &BELOW[..1]] {
        let mut arguments = vec!["file", "map", "-f", "qcow2"];
        arguments.extend(below);
        arguments.push("top");
        let ran = place.run(&arguments);
        assert!(ran.code == 1 && ran.err.contains("--backing"), "{} {}", ran.code, ran.err);
    }
    let text = place.ok(&["file", "map", "-f", "raw", "base"]);
    assert!(text.contains("65536 131072 0 data 65536\n"), "{text}");
}

#[test]
fn measure_says_what_qemu_says() {
    let place = chain();
    qemu(&place, "create -q -f qcow2 large 300G");
    io(&place, "large", &["write -q 10G 3M", "write -q 200G 100k"]);
    for output in ["raw", "qcow2"] {
        for (file, below) in [("top", &BELOW[..]), ("large", &[])] {
            let theirs = qemu_json(&place, &["measure", "-f", "qcow2", "-O", output, "--output=json", file]);
            let mut arguments = vec!["file", "measure", "-f", "qcow2", "-O", output, file];
            arguments.extend(below);
            let ours = place.json(&arguments);
            for name in ["required", "fully-allocated"] {
                assert_eq!(ours[name], theirs[name], "{file} {output} {name}");
            }
        }
    }
}

/// What `b3sum`, the program of BLAKE3's authors, says of bytes.
fn b3sum(place: &Place, bytes: &[u8]) -> Vec<u8> {
    std::fs::write(place.path("bytes"), bytes).unwrap();
    let (status, text) = tool(place, "b3sum", &["--raw", "bytes"]);
    assert_eq!(status, 0);
    text
}

#[test]
fn a_hash_is_that_of_what_a_disk_reads_as() {
    let place = chain();
    qemu(&place, "convert -f qcow2 -O raw top same");
    qemu(&place, "convert -f qcow2 -O qcow2 top packed -c");
    let hash = |arguments: &[&str]| {
        let ran = place.run(&[&["file", "hash"][..], arguments].concat());
        assert_eq!(ran.code, 0, "{}", ran.err);
        String::from_utf8(ran.out).unwrap().trim().to_owned()
    };
    let same = hash(&["-f", "raw", "same"]);
    assert_eq!(hash(&["-f", "qcow2", BELOW[0], BELOW[1], "top"]), same);
    assert_eq!(hash(&["-f", "qcow2", "packed"]), same);
    // As docs/formats/manifest.md says.
    let bytes = std::fs::read(place.path("same")).unwrap();
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    let (mut map, mut hashes) = (vec![0u8; bytes.len().div_ceil(1 << 20).div_ceil(8)], Vec::new());
    for (index, block) in bytes.chunks(1 << 20).enumerate().filter(|(_, block)| !zero(block)) {
        map[index / 8] |= 1 << (index % 8);
        let of = |unit| if zero(unit) { vec![0; 32] } else { b3sum(&place, unit) };
        let units: Vec<u8> = block.chunks(64 << 10).flat_map(of).collect();
        hashes.extend(b3sum(&place, &units));
    }
    assert!(!hashes.is_empty());
    let size = (bytes.len() as u64).to_le_bytes();
    let manifest = [b"vdsmhash", &size[..], &(1u64 << 20).to_le_bytes(), &map, &hashes].concat();
    std::fs::write(place.path("bytes"), manifest).unwrap();
    let root = String::from_utf8(tool(&place, "b3sum", &["--no-names", "bytes"]).1).unwrap();
    assert_eq!(same, root.trim());
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(place.path("same")).unwrap(),
        b"x",
        70_000,
    )
    .unwrap();
    assert_ne!(hash(&["-f", "raw", "same"]), same);
}

#[test]
fn compare_has_the_statuses_of_qemu() {
    let place = chain();
    qemu(&place, "convert -f qcow2 -O raw top same");
    qemu(&place, "convert -f qcow2 -O qcow2 top packed -c");
    std::fs::copy(place.path("same"), place.path("longer")).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(place.path("longer")).unwrap();
    file.set_len(4 << 20).unwrap();
    std::fs::copy(place.path("same"), place.path("different")).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(place.path("different")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"x", 70_000).unwrap();
    for (other, format, strict, expected) in [
        ("same", "raw", false, 0),
        ("packed", "qcow2", false, 0),
        ("longer", "raw", false, 0),
        ("longer", "raw", true, 1),
        ("different", "raw", false, 1),
        ("nowhere", "raw", false, 2),
    ] {
        let mut theirs = vec!["compare", "-q", "-f", "qcow2", "-F", format, "top", other];
        let mut ours = vec!["file", "compare", "-f", "qcow2", "-F", format, BELOW[0], BELOW[1], "top", other];
        if strict {
            theirs.push("-s");
            ours.push("-s");
        }
        assert_eq!(tool(&place, "qemu-img", &theirs).0, expected, "{other} {strict}");
        let ran = place.run(&ours);
        assert_eq!(ran.code, expected, "{other} {strict}: {}", ran.err);
    }
    let value: Value = serde_json::from_slice(
        &place.run(&["--json", "file", "compare", "-f", "raw", "-F", "raw", "same", "different"]).out,
    )
    .unwrap();
    assert_eq!(value["difference"], "they differ at 70000");
    // Allocated in the one only: the same bytes, but not strictly.
    qemu(&place, "create -q -f qcow2 a 1M");
    qemu(&place, "create -q -f qcow2 b 1M");
    io(&place, "b", &["write -q -P 0 64k 64k"]);
    let files = ["-f", "qcow2", "-F", "qcow2", "a", "b"];
    for (strict, expected) in [(&[][..], 0), (&["-s"][..], 1)] {
        let theirs = [&["compare", "-q"][..], &files, strict].concat();
        let ours = [&["file", "compare"][..], &files, strict].concat();
        assert_eq!(
            (tool(&place, "qemu-img", &theirs).0, place.run(&ours).code),
            (expected, expected),
            "{strict:?}"
        );
    }
}

#[test]
fn a_file_that_qemu_writes_is_in_use() {
    let place = place();
    qemu(&place, "create -q -f qcow2 image 1M");
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2", "image"])
        .current_dir(place.folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // Its prompt says that it has opened the image.
    let mut prompt = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    for arguments in
        [&["check", "-f", "qcow2"][..], &["check", "-f", "qcow2", "-r", "all"], &["map", "-f", "qcow2"]]
    {
        let mut all = vec!["file"];
        all.extend(arguments);
        all.push("image");
        let error = place.error(1, &all);
        assert_eq!(error["kind"], "ImageInUse", "{arguments:?}");
    }
    drop(child.stdin.take());
    child.wait().unwrap();
    assert_eq!(place.run(&["file", "check", "-f", "qcow2", "image"]).code, 0);
}

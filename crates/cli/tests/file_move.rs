//! `file create`, `convert`, `commit` and `rebase`: what comes out is judged by `qemu-img`.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

use common::Place;
use tempfile::TempDir;

fn place() -> Place {
    Place { folder: TempDir::new().unwrap() }
}

fn tool(place: &Place, program: &str, arguments: &[&str]) -> i32 {
    let output = Command::new(program).args(arguments).current_dir(place.folder.path()).output().unwrap();
    output.status.code().unwrap()
}

fn qemu(place: &Place, line: &str) {
    let arguments: Vec<&str> = line.split(' ').collect();
    assert_eq!(tool(place, "qemu-img", &arguments), 0, "{line}");
}

fn io(place: &Place, format: &str, file: &str, commands: &[&str]) {
    let mut arguments = vec!["-f", format];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    arguments.push(file);
    assert_eq!(tool(place, "qemu-io", &arguments), 0, "{commands:?}");
}

fn ours(place: &Place, line: &str) -> i32 {
    let arguments: Vec<&str> = line.split(' ').collect();
    place.run(&arguments).code
}

fn done(place: &Place, line: &str) {
    let arguments: Vec<&str> = line.split(' ').collect();
    place.ok(&arguments);
}

/// A raw base and an overlay of ours, larger than it, and a copy of what the overlay reads as.
fn overlay() -> Place {
    let place = place();
    qemu(&place, "create -q -f raw base 1M");
    io(&place, "raw", "base", &["write -q -P 1 64k 256k"]);
    done(&place, "file create -f qcow2 -b base -F raw top 2M");
    io(
        &place,
        "qcow2",
        "top",
        &["write -q -P 2 128k 64k", "write -q -z 256k 64k", "write -q -P 3 1536k 10k"],
    );
    qemu(&place, "convert -f qcow2 -O raw top before");
    place
}

#[test]
fn what_is_created_is_what_qemu_would_open() {
    let place = overlay();
    qemu(&place, "check -q -f qcow2 top");
    done(&place, "file create -f raw plain 3M");
    assert_eq!(std::fs::metadata(place.path("plain")).unwrap().len(), 3 << 20);
    done(&place, "file create -f raw -o preallocation=falloc full 3M");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(place.path("full")).unwrap());
    assert!(blocks * 512 >= 3 << 20);
    done(&place, "file create -f qcow2 -o compression_type=zstd packed 3M");
    let info = place.json(&["file", "info", "-f", "qcow2", "packed"]);
    assert_eq!(info["format-specific"]["data"]["compression-type"], "zstd");
    // An existing file stays; what is not there is refused by name.
    assert_eq!(ours(&place, "file create -f raw plain 4M"), 1);
    assert_eq!(std::fs::metadata(place.path("plain")).unwrap().len(), 3 << 20);
    for wrong in [
        "file create -f qcow2 -o cluster_size=4096 new 1M",
        "file create -f qcow2 -o nonsense=1 new 1M",
        "file create -f qcow2 -b base new 1M",
        "file create -f raw -b base -F raw new 1M",
        "file create new 1M",
        "file create -f qcow2 new much",
    ] {
        assert_eq!(ours(&place, wrong), 2, "{wrong}");
        assert!(!place.path("new").exists(), "{wrong}");
    }
}

#[test]
fn converted_files_are_the_same() {
    let place = overlay();
    let below = "--backing base:raw";
    for (how, format) in [
        ("-O raw", "raw"),
        ("-O raw -o preallocation=falloc", "raw"),
        ("-O qcow2", "qcow2"),
        ("-O qcow2 -c", "qcow2"),
        ("-O qcow2 -c -o compression_type=zstd", "qcow2"),
    ] {
        done(&place, &format!("file convert -f qcow2 {below} {how} top out"));
        if format == "qcow2" {
            qemu(&place, "check -q -f qcow2 out");
        }
        qemu(&place, &format!("compare -q -f raw -F {format} before out"));
    }
    // Back again, over a file that is there.
    done(&place, "file convert -f raw -O qcow2 before out");
    qemu(&place, "compare -q -f raw -F qcow2 before out");
    assert_eq!(ours(&place, &format!("file convert -f qcow2 {below} -O raw -c top out")), 2);
    assert_eq!(ours(&place, "file convert -f qcow2 -O raw top out"), 1, "its backing file was not given");
    assert_eq!(ours(&place, "file convert -f raw -O raw nowhere out"), 1);
    qemu(&place, "compare -q -f raw -F qcow2 before out");
    let names = std::fs::read_dir(place.folder.path()).unwrap();
    let left = names.filter(|name| name.as_ref().unwrap().file_name().to_string_lossy().ends_with("part"));
    assert_eq!(left.count(), 0);
}

#[test]
fn commit_writes_into_the_file_below() {
    let place = overlay();
    std::fs::copy(place.path("top"), place.path("copy")).unwrap();
    assert_eq!(ours(&place, "file commit -f qcow2 --backing base:raw top"), 2, "-d must be said");
    assert_eq!(ours(&place, "file commit -f qcow2 -d top"), 2);
    done(&place, "file commit -f qcow2 -d --backing base:raw top");
    qemu(&place, "compare -q -f raw -F raw before base");
    qemu(&place, "compare -q -f raw -F qcow2 before top");
    assert_eq!(std::fs::read(place.path("top")).unwrap(), std::fs::read(place.path("copy")).unwrap());

    // As QEMU does it.
    let place = overlay();
    qemu(&place, "commit -q -d -f qcow2 top");
    qemu(&place, "compare -q -f raw -F raw before base");

    // Into a qcow2 file with one below it.
    let place = overlay();
    done(&place, "file create -f qcow2 -b top -F qcow2 third 2M");
    io(&place, "qcow2", "third", &["write -q -P 7 0 32k", "write -q -z 1536k 64k"]);
    qemu(&place, "convert -f qcow2 -O raw third before");
    done(&place, "file commit -f qcow2 -d --backing top:qcow2 --backing base:raw third");
    qemu(&place, "check -q -f qcow2 top");
    qemu(&place, "compare -q -f raw -F qcow2 before top");
}

#[test]
fn rebase_keeps_what_the_disk_reads_as() {
    let place = overlay();
    // Another base: in part the same, longer.
    qemu(&place, "create -q -f raw other 1536k");
    io(
        &place,
        "raw",
        "other",
        &["write -q -P 1 64k 128k", "write -q -P 9 512k 64k", "write -q -P 8 1200k 64k"],
    );
    done(&place, "file rebase -f qcow2 --backing base:raw -b other -F raw top");
    qemu(&place, "check -q -f qcow2 top");
    qemu(&place, "compare -q -f raw -F qcow2 before top");
    let info = place.json(&["file", "info", "-f", "qcow2", "top"]);
    assert_eq!(info["backing-filename"], "other");

    // On nothing: flattened.
    done(&place, "file rebase -f qcow2 --backing other:raw -b  top");
    std::fs::remove_file(place.path("base")).unwrap();
    std::fs::remove_file(place.path("other")).unwrap();
    qemu(&place, "compare -q -f raw -F qcow2 before top");
    // And back onto something else.
    qemu(&place, "create -q -f raw third 2M");
    io(&place, "raw", "third", &["write -q -P 5 0 2M"]);
    done(&place, "file rebase -f qcow2 -b third -F raw top");
    qemu(&place, "compare -q -f raw -F qcow2 before top");

    // Only the name.
    done(&place, "file rebase -f qcow2 -u -b elsewhere -F qcow2 top");
    let info = place.json(&["file", "info", "-f", "qcow2", "top"]);
    assert_eq!(
        (&info["backing-filename"], &info["backing-filename-format"]),
        (&"elsewhere".into(), &"qcow2".into())
    );
    for wrong in ["file rebase -f qcow2 -u -b x top", "file rebase -f raw -u -b x -F raw third"] {
        assert_eq!(ours(&place, wrong), 2, "{wrong}");
    }
    assert_eq!(ours(&place, "file rebase -f qcow2 -b third -F raw top"), 1, "the old chain must be given");

    // One that QEMU made; and one whose header cannot be changed, which is found out before anything is copied.
    qemu(&place, "create -q -f qcow2 -b third -F raw theirs 1M");
    qemu(&place, "create -q -f raw fourth 1M");
    qemu(&place, "convert -q -f qcow2 -O raw theirs before");
    done(&place, "file rebase -f qcow2 --backing third:raw -b fourth -F raw theirs");
    qemu(&place, "check -q -f qcow2 theirs");
    qemu(&place, "compare -q -f raw -F qcow2 before theirs");
    qemu(&place, "create -q -f qcow2 -o compat=0.10 -b third -F raw old 1M");
    let was = std::fs::read(place.path("old")).unwrap();
    assert_eq!(ours(&place, "file rebase -f qcow2 --backing third:raw -b fourth -F raw old"), 1);
    assert!(std::fs::read(place.path("old")).unwrap() == was, "it was changed");
}

#[test]
fn each_means_gives_the_same_and_is_explained() {
    let place = place();
    qemu(&place, "create -q -f raw from 24M");
    let writes =
        ["write -q -P 1 0 9M", "write -q -P 2 10M 64k", "write -q -z 12M 1M", "write -q -P 3 23M 1M"];
    io(&place, "raw", "from", &writes);
    std::fs::File::options()
        .append(true)
        .open(place.path("from"))
        .unwrap()
        .set_len((24 << 20) + 1000)
        .unwrap();
    for format in ["raw", "qcow2"] {
        for means in ["any", "threads", "cached"] {
            // What is in the page cache would be done through it.
            assert_eq!(tool(&place, "sync", &["from"]), 0);
            assert_eq!(tool(&place, "dd", &["if=from", "iflag=nocache", "count=0", "status=none"]), 0);
            let line = format!("file convert --explain -f raw -O {format} from to");
            let mut command = place.command(&line.split(' ').collect::<Vec<_>>());
            let output = command.env("VDSMSTORE_IO", means).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("copy what is not zero\n"), "{text}");
            let bytes = |name: &str| -> u64 {
                let line = text.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
                line.unwrap().parse().unwrap()
            };
            let (direct, cached) = (bytes("direct"), bytes("cached"));
            assert!(direct + cached + bytes("cloned") >= 10 << 20, "{text}");
            assert_eq!(direct > 0, means != "cached" && bytes("cloned") == 0, "{means}: {text}");
            qemu(&place, &format!("compare -q -f raw -F {format} from to"));
        }
    }
    let value = place.json(&["file", "convert", "--explain", "-f", "raw", "-O", "raw", "from", "to"]);
    assert_eq!(value["plan"][0]["start"], 0);
    assert!(value["means"]["direct"].is_u64());
}

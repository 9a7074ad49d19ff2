//! What the program makes of its arguments and its config file.
#![allow(missing_docs, clippy::unwrap_used)]

mod common;

use common::{NOWHERE, Place};

#[test]
fn wrong_usage_is_status_2() {
    let place = Place::new();
    for wrong in [
        &["image"][..],
        &["image", "create", "A"],
        &["image", "create", "A", "1.5G"],
        &["image", "create", "A", "1G", "--hint", "x"],
        &["image", "create", "A", "1G", "--no-wait", "--optimized"],
        &["image", "copy", "A", NOWHERE, "--partial"],
        &["image", "import", "A", "file"],
        &["image", "import", "A", "file", "-f", "raw", "--bandwidth", "0"],
        &["image", "export", "A", NOWHERE, "file"],
        &["image", "resize", "A", NOWHERE],
        &["image", "set-strategy", "A", NOWHERE, "fast"],
        &["image", "snapshot", "A", NOWHERE, "--bandwidth", "1M"],
        &["repo", "fix", "A"],
        &["repo", "fix", "A", "--all", "fix.json"],
        &["repo", "fix", "A", "fix.json", "--watch", "1"],
        &["repo", "fix", "A", "--all", "--type", "all"],
        &["repo", "fix", "A", "--all", "--watch", "1", "--dry-run"],
        &["image", "fly"],
        &["--repo", "A", "repo", "list"],
        &["repo", "list", "--repo", "A=localfs-1.0:/a", "--repo", "A=localfs-1.0:/b"],
        &["repo", "format", "A", "--mode", "9"],
        &["graph", "A", "--json", "--format", "svg"],
    ] {
        let ran = place.run(wrong);
        assert_eq!(ran.code, 2, "{wrong:?}");
        assert!(ran.out.is_empty() && !ran.err.is_empty(), "{wrong:?}");
        let error = place.error(2, wrong);
        assert_eq!(error["kind"], "InvalidParameter", "{wrong:?}");
        assert_eq!(error["code"], 1000);
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let place = Place::new();
    let version = place.ok(&["--version"]);
    assert_eq!(version, format!("vdsmstore {}\n", env!("CARGO_PKG_VERSION")));
    let help = place.ok(&["image", "--help"]);
    assert!(
        help.contains("snapshot") && !help.contains("extend"),
        "what is not built is not in the help: {help}"
    );
    assert!(!place.ok(&["--help"]).contains("generate"));
}

#[test]
fn all_repositories_count_wherever_they_stand() {
    let place = Place::new();
    let (a, b) = (place.path("A"), place.path("B"));
    let (a, b) = (format!("X=localfs-1.0:{}", a.display()), format!("Y=localfs-1.0:{}", b.display()));
    let ran = place.command(&["--repo", &a, "repo", "--repo", &b, "list", "--repo", "Z=localfs-1.0:Z"]);
    let ran = common::ended({ ran }.env("VDSMSTORE_CONFIG", "").output().unwrap());
    let out = String::from_utf8(ran.out).unwrap();
    let rows: Vec<Vec<&str>> = out.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows.len(), 3, "{out}");
    assert_eq!((rows[0][0], rows[0][2]), ("X", "ok"));
    assert_eq!((rows[1][0], rows[1][2]), ("Y", "ok"));
    assert_eq!(rows[2][0], "Z");
    assert_ne!(rows[2][2], "ok");
}

#[test]
fn a_broken_config_file_is_named() {
    let place = Place::new();
    for (text, what) in [("[", "config.toml"), ("[repositories.C]\npath = '/c'\n", "repositories.C")] {
        std::fs::write(place.path("config.toml"), text).unwrap();
        let error = place.error(2, &["repo", "list"]);
        assert!(error["message"].as_str().unwrap().contains(what), "{error}");
    }
    std::fs::remove_file(place.path("config.toml")).unwrap();
    let error = place.error(2, &["repo", "list"]);
    assert!(error["message"].as_str().unwrap().contains("config.toml"), "{error}");
}

#[test]
fn the_config_file_in_the_home_folder_counts() {
    let place = Place::new();
    std::fs::create_dir(place.path(".config")).unwrap();
    std::fs::rename(place.path("config.toml"), place.path(".config/vdsmstore.toml")).unwrap();
    let mut command = place.command(&["image", "list", "A"]);
    let ran = command.env_remove("VDSMSTORE_CONFIG").env("HOME", place.folder.path()).output().unwrap();
    assert_eq!(ran.status.code(), Some(0));
}

#[test]
fn an_unknown_repository_is_said_so() {
    let place = Place::new();
    let ran = place.run(&["image", "list", "Q"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.starts_with("vdsmstore: no repository \"Q\""), "{}", ran.err);
    let error = place.error(1, &["image", "list", "Q"]);
    assert_eq!((&error["code"], &error["details"]["repoId"]), (&358.into(), &"Q".into()));
}

#[test]
fn formatting_twice_is_refused() {
    let place = Place::new();
    let error = place.error(1, &["repo", "format", "A"]);
    assert_eq!(error["kind"], "RepositoryExists");
    std::fs::create_dir(place.path("C")).unwrap();
    std::fs::write(place.path("C/file"), "x").unwrap();
    let error = place.error(1, &["repo", "format", "C", "--repo", "C=localfs-1.0:C"]);
    assert_eq!(error["kind"], "NotEmpty");
    let error = place.error(1, &["image", "list", "C", "--repo", "C=localfs-1.0:C"]);
    assert_eq!(error["kind"], "NotARepository");
    let error = place.error(1, &["image", "list", "C", "--repo", "C=floppy-1.0:C"]);
    assert_eq!(error["kind"], "FormatUnsupported");
}

#[test]
fn man_pages_and_completions_are_written() {
    let place = Place::new();
    for what in ["man", "completions"] {
        let folder = place.path(what);
        std::fs::create_dir(&folder).unwrap();
        place.ok(&["generate", what, folder.to_str().unwrap()]);
    }
    let page = std::fs::read_to_string(place.path("man/vdsmstore-image-copy.1")).unwrap();
    assert!(page.contains("partial"));
    assert!(place.path("completions/vdsmstore.bash").exists());
}

//! Runs the program with two repositories in a scratch directory.
#![allow(dead_code, missing_docs, clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

pub struct Place {
    pub folder: TempDir,
}

pub struct Ran {
    pub code: i32,
    pub out: Vec<u8>,
    pub err: String,
}

impl Place {
    /// Two empty repositories, A and B, in a config file.
    pub fn new() -> Self {
        Self::within(TempDir::new().unwrap())
    }

    /// The same in a directory.
    pub fn within(folder: TempDir) -> Self {
        let place = Self { folder };
        let mut config = String::new();
        for name in ["A", "B"] {
            let path = place.path(name);
            std::fs::create_dir(&path).unwrap();
            config += &["[repositories.", name, "]\nformat = \"localfs-1.0\"\npath = '"].concat();
            config += &[path.to_str().unwrap(), "'\n"].concat();
        }
        std::fs::write(place.path("config.toml"), config).unwrap();
        place.ok(&["repo", "format", "A"]);
        place.ok(&["repo", "format", "B"]);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, not started yet.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vdsmstore"));
        command.args(arguments).current_dir(self.folder.path());
        command.env("VDSMSTORE_CONFIG", self.path("config.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn start(&self, arguments: &[&str]) -> Child {
        self.command(arguments).spawn().unwrap()
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        ended(self.start(arguments).wait_with_output().unwrap())
    }

    pub fn run_with(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut child = self.command(arguments).stdin(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let ran = ended(child.wait_with_output().unwrap());
        let _ = writer.join().unwrap();
        ran
    }

    /// What it prints, which must be all it says.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{arguments:?}");
        String::from_utf8(ran.out).unwrap()
    }

    /// The id it prints.
    pub fn id(&self, arguments: &[&str]) -> String {
        let out = self.ok(arguments);
        let id = out.strip_suffix('\n').unwrap().to_owned();
        assert!(id.len() == 36 && !id.contains('\n'), "{id}");
        id
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        serde_json::from_str(&self.ok(&all)).unwrap()
    }

    /// The error it ends with, as JSON.
    pub fn error(&self, code: i32, arguments: &[&str]) -> Value {
        let mut all = vec!["--json"];
        all.extend(arguments);
        let ran = self.run(&all);
        assert_eq!(ran.code, code, "{arguments:?} {}", ran.err);
        let value: Value = serde_json::from_str(&ran.err).unwrap();
        value["error"].clone()
    }

    pub fn write(&self, image: &str, offset: &str, bytes: &[u8]) {
        let ran = self.run_with(&["image", "write", "A", image, "--offset", offset], bytes);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    }

    pub fn read(&self, repo: &str, image: &str, offset: &str, length: &str) -> Vec<u8> {
        let ran = self.run(&["image", "read", repo, image, "--offset", offset, "--length", length]);
        assert_eq!((ran.code, ran.err.as_str()), (0, ""));
        ran.out
    }
}

pub fn ended(output: Output) -> Ran {
    let Output { status, stdout, stderr } = output;
    Ran { code: status.code().unwrap_or(-1), out: stdout, err: String::from_utf8(stderr).unwrap() }
}

pub const NOWHERE: &str = "00000000-0000-4000-8000-000000000000";

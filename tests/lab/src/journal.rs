//! Says what was acknowledged: in a file, and by marks in the log of the device.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::state::{Mark, State};

/// The file, and whoever makes the marks.
pub struct Journal {
    file: File,
    marker: Option<Marker>,
    pub marks: u64,
}

struct Marker {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Journal {
    pub fn new(path: &Path, device: Option<&str>) -> Journal {
        let marker = device.map(|device| {
            let mut child = Command::new("/lab/marker")
                .arg(device)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("/lab/marker");
            let input = child.stdin.take().unwrap();
            let output = BufReader::new(child.stdout.take().unwrap());
            Marker { child, input, output }
        });
        Journal { file: File::create(path).expect("the journal"), marker, marks: 0 }
    }

    /// From here on in the log, this is so.
    pub fn mark(&mut self, done: &str, state: &State) {
        self.marks += 1;
        let mark = Mark { number: self.marks, done: done.to_owned(), state: state.clone() };
        writeln!(self.file, "{}", serde_json::to_string(&mark).unwrap()).unwrap();
        if let Some(marker) = &mut self.marker {
            writeln!(marker.input, "{}", self.marks).unwrap();
            let mut line = String::new();
            marker.output.read_line(&mut line).unwrap();
            assert_eq!(line.trim(), self.marks.to_string(), "the mark was not made");
        }
    }

    pub fn finish(self) {
        self.file.sync_all().unwrap();
        if let Some(mut marker) = self.marker {
            drop(marker.input);
            assert!(marker.child.wait().unwrap().success(), "the marker failed");
        }
    }
}

/// All marks in order.
pub fn read(path: &Path) -> Vec<Mark> {
    let file = BufReader::new(File::open(path).expect("the journal"));
    file.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect()
}

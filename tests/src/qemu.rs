//! QEMU processes that have an image's file open.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// A `qemu-nbd` that has a file open; killed when dropped.
#[derive(Debug)]
pub struct Nbd {
    child: Child,
    directory: TempDir,
}

impl Nbd {
    /// Starts one and waits until it has the file open.
    pub fn start(path: &str, format: &str, read_only: bool) -> Nbd {
        let directory = tempfile::tempdir().expect("a directory");
        let socket = directory.path().join("socket");
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format", format, "--socket"]).arg(&socket);
        if read_only {
            command.arg("--read-only");
        }
        let mut child = command.arg(path).stderr(Stdio::piped()).spawn().expect("qemu-nbd");
        let deadline = Instant::now() + Duration::from_secs(20);
        // It listens before it opens the file, and greets after.
        while !greets(&socket) {
            if child.try_wait().expect("qemu-nbd").is_some() || Instant::now() > deadline {
                let _ = child.kill();
                let output = child.wait_with_output().expect("qemu-nbd");
                panic!("qemu-nbd {path}: {}", String::from_utf8_lossy(&output.stderr));
            }
            thread::sleep(Duration::from_millis(5));
        }
        Nbd { child, directory }
    }

    /// The address of the export for QEMU's tools.
    pub fn uri(&self) -> String {
        let socket: PathBuf = self.directory.path().join("socket");
        format!("nbd+unix:///?socket={}", socket.display())
    }

    /// Ends it.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Nbd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn greets(socket: &Path) -> bool {
    let Ok(mut stream) = UnixStream::connect(socket) else { return false };
    let mut greeting = [0; 8];
    let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
    stream.read_exact(&mut greeting).is_ok() && greeting == *b"NBDMAGIC"
}

/// Runs `qemu-io` commands on a file.
pub fn qemu_io(path: &str, format: &str, read_only: bool, commands: &[&str]) -> Output {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]);
    if read_only {
        command.arg("-r");
    }
    for text in commands {
        command.args(["-c", text]);
    }
    command.arg(path).output().expect("qemu-io")
}

/// Whether `qemu-io` could do all of it. (Its exit status tells only since QEMU 2.12, and not of verification.)
pub fn qemu_io_works(path: &str, format: &str, read_only: bool, commands: &[&str]) -> bool {
    let output = qemu_io(path, format, read_only, commands);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success() && !text.contains("failed") && !text.contains("error")
}

/// Whether `qemu-io` is refused the file because of its locks.
pub fn qemu_io_locked_out(path: &str, format: &str, read_only: bool) -> bool {
    let output = qemu_io(path, format, read_only, &["read 0 512"]);
    !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("lock")
}

//! Export: an image written to a file outside, which gets its name only when it is whole.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{FlockOperation, OFlags, Timespec};
use rustix::io::Errno;
use vdsmstore_io::qcow2::Compression;
use vdsmstore_io::{
    Control, Device, FileDevice, Format, Image, Layer, Target, compress, execute,
    plan::{self, Part},
    qcow2, stream, without,
};

use crate::job::{Env, Job, Step};
use crate::repo::Repo;
use crate::{Error, ErrorKind, Result};

use super::chain::OpenChain;
use super::fill::{LONG_STEP, Limit, STEP};

/// For what may lie at a path: neither followed nor waited for.
const UNFOLLOWED: i32 = (OFlags::NOFOLLOW.bits() | OFlags::NONBLOCK.bits()).cast_signed();

/// What a pipe has room for, if it may: 1 MiB is what everybody may ask for (pipe(7)).
const PIPE: usize = 1 << 20;
/// How often it is looked whether somebody reads from a pipe.
const READER: Duration = Duration::from_millis(50);
/// How often it is asked whether the work is cancelled, while a pipe is full.
const CANCEL: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

/// A file to be made, or a pipe to be written to.
pub(crate) struct Destination {
    path: PathBuf,
    /// The name until it is whole.
    part: PathBuf,
    format: Format,
    overwrite: bool,
    /// It is a pipe that is there already.
    pipe: bool,
}

fn failed(what: &'static str, path: &Path, error: std::io::Error) -> Error {
    vdsmstore_io::Error::os(what, error).with_path(path).into()
}

impl Destination {
    /// Judges a path: absolute, in a directory that exists and is no repository's, free unless it may be overwritten.
    pub fn new(path: &str, format: Format, overwrite: bool, repos: &[Arc<Repo>]) -> Result<Self> {
        let invalid = |message: String| {
            Error::new(ErrorKind::InvalidParameter, message).with("parameter", "path").with("path", path)
        };
        let file = PathBuf::from(path);
        let directory = path.ends_with('/') || path.ends_with("/.");
        if !file.is_absolute() || path.contains('\0') || file.file_name().is_none() || directory {
            return Err(invalid(format!("export path {path:?} is not the absolute path of a file")));
        }
        if !file.parent().is_some_and(Path::is_dir) {
            return Err(invalid(format!("export path {path:?} is in no directory")));
        }
        let parent = file.parent().unwrap_or(Path::new("/"));
        if let Some(repo) = repos.iter().find(|repo| repo.driver.contains(parent)) {
            return Err(invalid(format!("export path {path:?} is in repository {:?}", repo.id)));
        }
        // What is open in this process may be named by `/dev/fd/N`, which is a symbolic link.
        let pipe = fs::metadata(&file).is_ok_and(|found| found.file_type().is_fifo());
        if pipe && format != Format::Raw {
            return Err(invalid(format!("export path {path:?} is a pipe, which takes raw bytes only")));
        }
        match fs::symlink_metadata(&file) {
            _ if pipe => {}
            Ok(_) if !overwrite => {
                return Err(invalid(format!("export path {path:?} exists; overwrite is not set")));
            }
            Ok(found) if !found.is_file() => {
                return Err(invalid(format!("export path {path:?} is no regular file")));
            }
            _ => {}
        }
        let mut part = file.clone().into_os_string();
        part.push(".part");
        Ok(Self { path: file, part: part.into(), format, overwrite, pipe })
    }

    /// A file that only one export at a time may write. Where there are no such locks, all may.
    fn locked(&self, file: fs::File) -> Result<fs::File> {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if !without!("export.lock") => {
                let path = self.path.to_string_lossy();
                let message = format!("export path {path:?} is being written by another export");
                Err(Error::new(ErrorKind::InvalidParameter, message)
                    .with("parameter", "path")
                    .with("path", path))
            }
            _ => Ok(file),
        }
    }

    /// Gives the whole file its name, durably.
    fn publish(&self) -> Result<()> {
        if self.overwrite || without!("export.compare") {
            fs::rename(&self.part, &self.path)
                .map_err(|error| failed("cannot rename to", &self.path, error))?;
        } else {
            // Fails if somebody made a file of that name meanwhile.
            fs::hard_link(&self.part, &self.path)
                .map_err(|error| failed("cannot link to", &self.path, error))?;
            fs::remove_file(&self.part).map_err(|error| failed("cannot remove", &self.part, error))?;
        }
        let parent = self.path.parent().unwrap_or(Path::new("/"));
        if without!("export.flush.name") {
            return Ok(());
        }
        let directory = fs::File::open(parent).map_err(|error| failed("cannot open", parent, error))?;
        directory.sync_all().map_err(|error| failed("cannot make durable", parent, error))
    }
}

/// The job that writes the file.
pub(crate) struct Export {
    destination: Destination,
    source: Image,
    output: Option<Output>,
    /// The file of the target, locked for as long as it is written.
    part: Option<fs::File>,
    /// How the file is compressed.
    compress: Option<Compression>,
    position: u64,
    limit: Limit,
}

/// Where the bytes go.
enum Output {
    File(Image),
    /// Somebody reads from it.
    Pipe(fs::File),
}

impl Export {
    /// Writes an open image.
    pub fn new(
        opened: &OpenChain,
        destination: Destination,
        compress: Option<Compression>,
        bandwidth: Option<u64>,
    ) -> Result<Self> {
        let source = opened.image(false)?;
        let limit = Limit::new(bandwidth);
        Ok(Self { destination, source, output: None, part: None, compress, position: 0, limit })
    }

    fn create(&mut self) -> Result<Image> {
        let part = &self.destination.part;
        // Left over from an export that was killed, unless one that lives writes it.
        let _former = match OpenOptions::new().write(true).custom_flags(UNFOLLOWED).open(part) {
            Ok(former) => Some(self.destination.locked(former)?),
            Err(_) => None,
        };
        match fs::remove_file(part) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(failed("cannot remove", part, error));
            }
            _ => {}
        }
        let device = FileDevice::create_new(part)?;
        let file = device.file().try_clone().map_err(|error| failed("cannot open again", part, error))?;
        self.part = Some(self.destination.locked(file)?);
        let (format, size) = (self.destination.format, self.source.size());
        match format {
            Format::Raw => device.set_len(size)?,
            Format::Qcow2 => {
                let compression = self.compress.unwrap_or(Compression::Deflate);
                qcow2::create_with(
                    &device,
                    &qcow2::CreateOptions { size, backing: None, preallocate_metadata: false },
                    &qcow2::Layout { compression, ..qcow2::Layout::default() },
                )?;
            }
        }
        Ok(Image::open(vec![Layer { device: Arc::new(device), format, size }], true)?)
    }

    /// Waits until somebody reads from the pipe.
    fn open_pipe(&self) -> Result<Option<fs::File>> {
        let path = &self.destination.path;
        let opened =
            OpenOptions::new().write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open(path);
        match opened {
            Err(error) if error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) => Ok(None),
            Err(error) => Err(failed("cannot open", path, error)),
            Ok(pipe) => {
                // Fewer turns; a pipe that stays small works, too.
                let _ = rustix::pipe::fcntl_setpipe_size(&pipe, PIPE);
                Ok(Some(pipe))
            }
        }
    }

    /// None: nobody reads from the pipe yet.
    fn open(&mut self) -> Result<Option<Output>> {
        if self.destination.pipe {
            return Ok(self.open_pipe()?.map(Output::Pipe));
        }
        self.create().map(Output::File).map(Some)
    }

    fn copy(&mut self, env: &Env<'_>) -> Result<Step> {
        let (size, position) = (self.source.size(), self.position);
        if self.output.is_none() {
            env.task.set_stage("1/1", 0, size);
            self.output = self.open()?;
        }
        let Some(output) = &self.output else { return Ok(Step::Later(READER)) };
        if position >= size {
            if let Output::File(target) = output {
                if !without!("export.flush") {
                    target.flush()?;
                }
                self.destination.publish()?;
            }
            // Who reads from a pipe learns that this was all.
            self.output = None;
            return Ok(Step::Done);
        }
        if let Some(pause) = self.limit.pause() {
            return Ok(Step::Later(pause.min(Duration::from_secs(1))));
        }
        let length = STEP.min(self.limit.step()).min(size - position);
        let (source, path) = (&self.source, &self.destination.path);
        let (length, spent) = env.moves(|control| match output {
            Output::Pipe(pipe) => {
                let mut sink = |bytes: &[u8]| write_all(pipe, path, bytes, control);
                let outcome = stream(source, position, length, control, &mut sink)?;
                Ok((length, outcome.read.max(length)))
            }
            // Steps are whole clusters, 64 KiB.
            Output::File(target) if self.compress.is_some() => {
                Ok((length, compress(source, target, position, length, control)?.read))
            }
            Output::File(target) => {
                let empty = Target { backed: false, known_zero: true };
                let part = Part {
                    length: LONG_STEP.min(size - position),
                    moved: STEP.min(self.limit.step()),
                    align: Limit::SMALLEST,
                    units: false,
                };
                let plan = plan::copy_part(source, None, empty, position, &part)?;
                let outcome = execute(&plan, source, None, target, control)?;
                Ok((plan.length(), outcome.read + outcome.offloaded))
            }
        })?;
        self.limit.spend(spent);
        self.position += length;
        env.task.set_done(self.position);
        Ok(Step::Again)
    }
}

/// Writes to a pipe that does not block, until it took all or the work is cancelled.
fn write_all(
    mut pipe: &fs::File,
    path: &Path,
    mut bytes: &[u8],
    control: &Control<'_>,
) -> vdsmstore_io::Result<()> {
    use std::io::Write as _;
    let failed = |error| vdsmstore_io::Error::os("cannot write to", error).with_path(path);
    while !bytes.is_empty() {
        if (control.cancel)() {
            return Err(vdsmstore_io::Error::new(vdsmstore_io::ErrorKind::Cancelled, "cancelled"));
        }
        match pipe.write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut ready = [PollFd::new(pipe, PollFlags::OUT)];
                match rustix::event::poll(&mut ready, Some(&CANCEL)) {
                    Ok(_) | Err(Errno::INTR) => {}
                    Err(error) => return Err(failed(error.into())),
                }
            }
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(())
}

impl Job for Export {
    fn step(&mut self, env: &Env<'_>) -> Result<Step> {
        self.copy(env)
    }

    fn failed(&mut self, _: &Error) {
        self.output = None;
        if self.part.take().is_some() {
            // It is nobody's: an export begins anew.
            let _ = fs::remove_file(&self.destination.part);
        }
    }
}

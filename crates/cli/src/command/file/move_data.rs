//! `file convert`

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::{Action, Image, Layer, Move, Outcome as Moved, Plan, Target, compress, execute, plan};

use super::create::{Options, create};
use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::FileConvert;
use crate::config::usage;
use crate::output::local;
use crate::session::Outcome;

/// A file that is not whole yet; removed unless it got its name.
struct Unfinished(Option<PathBuf>);

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Nothing else can be done about it.
            let _ = fs::remove_file(path);
        }
    }
}

pub fn convert(context: &Context, arguments: &FileConvert) -> Result<Outcome> {
    let mut options = Options::parse(&arguments.options, arguments.output)?;
    options.flushed_later = true;
    if arguments.compress && arguments.output != FileFormat::Qcow2 {
        return Err(usage("-c: only qcow2 files are compressed"));
    }
    let source = open::image(&arguments.file, false)?;
    let size = source.size();
    let temporary = beside(&arguments.target)?;
    // A running guest would go on with the old file.
    if arguments.target.exists() {
        open::device(&arguments.target, true)?;
    }
    let device = create(&temporary, arguments.output, size, None, &options)?;
    let mut unfinished = Unfinished(Some(temporary.clone()));
    let format = open::format(arguments.output);
    let target = Image::open(vec![Layer { device, format, size }], true)?;
    let mut plan = Plan::default();
    let moved = context.with_control(|control| {
        let moved = if arguments.compress {
            compress(&source, &target, 0, size, control)?
        } else {
            let known = Target { backed: false, known_zero: true };
            plan = match plan::clone(&source, &target)? {
                Some(plan) => plan,
                None => plan::copy(&source, None, known, 0, size)?,
            };
            execute(&plan, &source, None, &target, control)?
        };
        target.flush()?;
        Ok(moved)
    })?;
    drop((target, source));
    fs::rename(&temporary, &arguments.target).map_err(|error| local(arguments.target.display(), error))?;
    unfinished.0 = None;
    sync_directory(&arguments.target)?;
    if context.out.json() {
        let name = arguments.target.display().to_string();
        let mut value = json!({ "filename": name, "format": format.to_string(), "virtual-size": size });
        if arguments.explain {
            let step =
                |step: &Move| json!({ "start": step.offset, "length": step.length, "action": action(step) });
            value["plan"] = plan.moves().iter().map(step).collect();
            value["means"] =
                means(&moved).into_iter().map(|(name, bytes)| (name.to_owned(), json!(bytes))).collect();
        }
        context.out.value(&value)?;
    } else if arguments.explain {
        for step in plan.moves() {
            context.out.line(&format!("{:>16} {:>16}  {}", step.offset, step.length, action(step)))?;
        }
        for (name, bytes) in means(&moved) {
            context.out.line(&format!("{name}: {bytes}"))?;
        }
    }
    Ok(Outcome::Done)
}

/// What is to be done with the bytes of a step.
fn action(step: &Move) -> &'static str {
    match step.action {
        Action::Copy => "copy",
        Action::CopyNonZero => "copy what is not zero",
        Action::Zero => "zero",
        Action::Compare => "copy what differs",
    }
}

/// Bytes by the means that moved them.
fn means(moved: &Moved) -> [(&'static str, u64); 5] {
    let Moved { cloned, offloaded, direct, zeroed, .. } = *moved;
    [
        ("cloned", cloned),
        ("offloaded", offloaded),
        ("direct", direct),
        ("cached", moved.cached()),
        ("zeroed", zeroed),
    ]
}

/// A name in the same directory that nobody has.
fn beside(target: &Path) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| {
        Error::new(ErrorKind::InvalidParameter, format!("{} is no file name", target.display()))
    })?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.part", std::process::id()));
    Ok(target.with_file_name(hidden))
}

/// Makes a new name durable.
fn sync_directory(path: &Path) -> Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory).and_then(|file| file.sync_all()).map_err(|error| local(directory.display(), error))
}

/// The layers of a chain below another top one.
pub fn under(top: Layer, below: &[Layer]) -> Vec<Layer> {
    let below = below.iter().map(|layer| Layer { device: Arc::clone(&layer.device), ..*layer });
    std::iter::once(top).chain(below).collect()
}

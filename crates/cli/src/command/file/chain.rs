//! `file commit` and `file rebase`

use std::path::PathBuf;

use serde_json::json;
use vdsmstore_core::Result;
use vdsmstore_io::qcow2::{self, Backing};
use vdsmstore_io::{Image, Layer, RunKind, diff, execute, plan};

use super::move_data::under;
use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::{Below, FileCommit, FileRebase};
use crate::config::usage;
use crate::session::Outcome;

/// Bytes that are copied at once.
const CHUNK: u64 = 1 << 20;

/// `file commit`
pub fn commit(context: &Context, arguments: &FileCommit) -> Result<Outcome> {
    let file = &arguments.file;
    let Some((first, rest)) = file.backing.split_first() else {
        return Err(usage("commit: the file to write into is given with --backing PATH:FORMAT"));
    };
    // The one below is written, and nobody may read it meanwhile.
    let base = open::layer(&first.path, first.format, true)?;
    let below = open::layers(rest)?;
    let top = open::layer(&file.file, file.format, false)?;
    let size = top.size;
    let target = Image::open(under(clone(&base), &below), true)?;
    if target.size() < size {
        target.grow(size)?;
    }
    let mut lower = vec![Layer { size: base.size, ..base }];
    lower.extend(below);
    let source = Image::open(under(top, &lower), false)?;
    let moves = plan::layer(&source, 0, 0, size)?;
    let done = context.with_control(|control| {
        let done = execute(&moves, &source, None, &target, control)?;
        target.flush()?;
        Ok(done)
    })?;
    let value = json!({ "written": done.written + done.cloned + done.offloaded, "zeroed": done.zeroed });
    if context.out.json() {
        context.out.value(&value)?;
    }
    Ok(Outcome::Done)
}

fn clone(layer: &Layer) -> Layer {
    Layer { device: std::sync::Arc::clone(&layer.device), ..*layer }
}

/// `file rebase`
pub fn rebase(context: &Context, arguments: &FileRebase) -> Result<Outcome> {
    let file = &arguments.file;
    if file.format != FileFormat::Qcow2 {
        return Err(usage("rebase: only qcow2 files have backing files"));
    }
    let backing = match (arguments.name.as_str(), arguments.new_format) {
        ("", None) => None,
        ("", Some(_)) => return Err(usage("rebase: -F without a name")),
        (_, None) => return Err(usage("rebase: the format of the new backing file is needed: -F FORMAT")),
        (name, Some(format)) => Some(Backing { name: name.to_owned(), format: open::format(format) }),
    };
    let (device, copied) = if arguments.unsafe_mode {
        let device = open::device(&file.file, true)?;
        let device: std::sync::Arc<dyn vdsmstore_io::Device> = device;
        (device, 0)
    } else {
        let old = open::chain(file, true)?;
        // What cannot be changed is found out before anything is copied.
        let device = std::sync::Arc::clone(&old[0].device);
        qcow2::check_set_backing(&*device, backing.as_ref())?;
        let new = new_chain(arguments)?;
        (device, keep_content(context, &old, &new)?)
    };
    qcow2::set_backing(&*device, backing.as_ref())?;
    if context.out.json() {
        context.out.value(&json!({ "copied": copied }))?;
    }
    Ok(Outcome::Done)
}

fn new_chain(arguments: &FileRebase) -> Result<Vec<Layer>> {
    if !arguments.new_backing.is_empty() {
        return open::layers(&arguments.new_backing);
    }
    let named = arguments.new_format.map(|format| Below { path: PathBuf::from(&arguments.name), format });
    let below: Vec<Below> = named.into_iter().collect();
    let layers = open::layers(&below)?;
    if let (Some(layer), Some(below)) = (layers.first(), below.first()) {
        open::check_complete(layer, &below.path, false)?;
    }
    Ok(layers)
}

/// The largest cluster of a qcow2 file.
const MAX_CLUSTER: u64 = 2 << 20;

/// Copies into the top layer what the new chain shows otherwise than the old one, where the top has nothing itself.
/// Returns the bytes.
fn keep_content(context: &Context, old: &[Layer], new: &[Layer]) -> Result<u64> {
    let size = old[0].size;
    let empty = |layers: &[Layer]| layers.is_empty();
    let open_below = |layers: &[Layer]| -> Result<Option<Image>> {
        if empty(layers) {
            return Ok(None);
        }
        let layers = layers.iter().map(clone).collect();
        Ok(Some(Image::open(layers, false)?))
    };
    let (before, after) = (open_below(&old[1..])?, open_below(new)?);
    // Over nothing a zero needs no cluster; over what comes it does.
    let flat = before.is_none();
    let below = if flat { new } else { &old[1..] };
    let image = Image::open(old[..1].iter().chain(below).map(clone).collect(), true)?;
    let mut copied = 0;
    let mut buffer = vec![0; CHUNK as usize];
    let mut keep = |offset: u64, length: u64| -> Result<()> {
        let end = offset.saturating_add(length).min(size);
        let mut at = offset;
        while at < end {
            context.interrupt.check()?;
            let run = image.run(at, (end - at).min(CHUNK))?;
            let own = match run.kind {
                RunKind::Data { layer, .. } | RunKind::Compressed { layer } | RunKind::Zero { layer } => {
                    layer == 0
                }
                RunKind::Hole => false,
            };
            if !own {
                if flat || run.kind.is_zero() {
                    image.write_zeroes(at, run.length)?;
                } else {
                    let bytes = &mut buffer[..run.length as usize];
                    image.read(at, bytes)?;
                    image.write(at, bytes)?;
                }
                copied += run.length;
            }
            at += run.length;
        }
        Ok(())
    };
    let mut ranges = Vec::new();
    let mut note = |offset: u64, length: u64, _zero: bool| {
        ranges.push((offset, length));
        Ok(())
    };
    match (&before, &after) {
        (Some(before), after) => {
            let length = before.size().max(after.as_ref().map_or(0, Image::size)).min(size);
            diff_all(before, after.as_ref(), length, &mut note)?;
        }
        (None, Some(after)) => {
            let length = after.size().min(size);
            diff(after, None, 0, length, &mut note)?;
        }
        (None, None) => {}
    }
    for (offset, length) in ranges {
        // A cluster that was begun would be taken for the file's own: whole ones, of whatever size.
        let whole = if flat { MAX_CLUSTER } else { 1 };
        let start = offset - offset % whole;
        keep(start, (offset + length).next_multiple_of(whole) - start)?;
    }
    image.flush()?;
    Ok(copied)
}

/// What differs between two disks of any sizes.
fn diff_all(
    before: &Image,
    after: Option<&Image>,
    length: u64,
    note: &mut dyn FnMut(u64, u64, bool) -> vdsmstore_io::Result<()>,
) -> Result<()> {
    let common = before.size().min(length);
    diff(before, after, 0, common, note)?;
    // What only the new one has must not show.
    if let Some(after) = after.filter(|after| after.size() > common) {
        diff(after, None, common, after.size().min(length) - common, note)?;
    }
    Ok(())
}

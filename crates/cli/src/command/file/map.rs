//! `file map` and `file measure`

use serde_json::json;
use vdsmstore_core::Result;
use vdsmstore_io::{Format, Image, Layer, RunKind};

use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::{FileMap, FileMeasure};
use crate::output::{pairs, put};
use crate::session::Outcome;
use crate::size::human;

/// What new qcow2 files are made with: the size of clusters, and of refcounts in bits.
const CLUSTER: u64 = 65536;
const REFCOUNT_BITS: u64 = 16;
/// Bytes of an entry of a table.
const ENTRY: u64 = 8;

/// A part of the map; the fields are those of `qemu-img map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    pub start: u64,
    pub length: u64,
    pub depth: usize,
    pub present: bool,
    pub zero: bool,
    pub compressed: bool,
    pub offset: Option<u64>,
}

/// What is needed of the layers to describe holes.
pub struct Shape(Vec<(Format, u64)>);

impl Shape {
    pub fn of(layers: &[Layer]) -> Shape {
        Shape(layers.iter().map(|layer| (layer.format, layer.size)).collect())
    }

    /// A hole belongs to the layer that says last that there is nothing: the lowest, or the one over which nothing lies
    /// any more. In a raw file it has a place all the same.
    fn hole(&self, start: u64, length: u64) -> Part {
        let deeper = self.0.iter().skip(1).take_while(|(_, size)| start < *size).count();
        let raw = self.0.get(deeper).is_some_and(|(format, _)| *format == Format::Raw);
        let offset = raw.then_some(start);
        Part { start, length, depth: deeper, present: raw, zero: true, compressed: false, offset }
    }

    /// Calls `visit` with the parts of the whole disk, adjacent ones of the same kind merged.
    pub fn visit(&self, image: &Image, visit: &mut dyn FnMut(Part) -> Result<()>) -> Result<()> {
        let mut last: Option<Part> = None;
        let mut at = 0;
        while at < image.size() {
            let run = image.run(at, image.size() - at)?;
            let (start, length) = (run.offset, run.length);
            let part = |depth, zero, compressed, offset| Part {
                start,
                length,
                depth,
                present: true,
                zero,
                compressed,
                offset,
            };
            let part = match run.kind {
                RunKind::Data { layer, device_offset, .. } => part(layer, false, false, Some(device_offset)),
                RunKind::Compressed { layer } => part(layer, false, true, None),
                RunKind::Zero { layer } => part(layer, true, false, None),
                RunKind::Hole => self.hole(start, length),
            };
            at += length;
            match &mut last {
                Some(last) if follows(last, &part) => last.length += part.length,
                _ => {
                    if let Some(done) = last.replace(part) {
                        visit(done)?;
                    }
                }
            }
        }
        last.map_or(Ok(()), visit)
    }
}

fn follows(last: &Part, next: &Part) -> bool {
    let merged = Part { start: next.start, length: next.length, offset: next.offset, ..*last };
    merged == *next && last.offset.map(|offset| offset + last.length) == next.offset
}

/// `file map`
pub fn run(context: &Context, arguments: &FileMap) -> Result<Outcome> {
    let layers = open::chain(&arguments.file, false)?;
    let shape = Shape::of(&layers);
    let image = Image::open(layers, false)?;
    let mut printed = 0;
    shape.visit(&image, &mut |part| {
        context.interrupt.check()?;
        let mut text = String::new();
        if context.out.json() {
            let mut value = json!({
                "start": part.start, "length": part.length, "depth": part.depth, "present": part.present,
                "zero": part.zero, "data": !part.zero, "compressed": part.compressed,
            });
            if let Some(offset) = part.offset {
                value["offset"] = json!(offset);
            }
            put!(text, "{}{value}", if printed == 0 { "[" } else { ",\n" });
        } else {
            let kind = match part {
                Part { compressed: true, .. } => "compressed",
                Part { zero: false, .. } => "data",
                Part { present: true, .. } => "zero",
                _ => "hole",
            };
            put!(text, "{} {} {} {kind}", part.start, part.length, part.depth);
            if let Some(offset) = part.offset.filter(|_| !part.zero) {
                put!(text, " {offset}");
            }
            text.push('\n');
        }
        printed += 1;
        context.out.bytes(text.as_bytes())
    })?;
    if context.out.json() {
        context.out.line(if printed == 0 { "[]" } else { "]" })?;
    }
    Ok(Outcome::Done)
}

/// `file measure`
pub fn measure(context: &Context, arguments: &FileMeasure) -> Result<Outcome> {
    let image = open::image(&arguments.file, false)?;
    let size = image.size();
    let (required, full) = match arguments.output {
        FileFormat::Raw => (size, size),
        FileFormat::Qcow2 => {
            let tables = table_bytes(size);
            (tables + data_clusters(&image)? * CLUSTER, tables + size.next_multiple_of(CLUSTER))
        }
    };
    let value = json!({ "required": required, "fully-allocated": full });
    context.out.either(&value, || {
        let line = |bytes: u64| format!("{bytes} ({})", human(bytes));
        pairs(&[("required size", line(required)), ("fully allocated size", line(full))])
    })?;
    Ok(Outcome::Done)
}

/// Clusters of the copy that have anything in them.
fn data_clusters(image: &Image) -> Result<u64> {
    let (mut clusters, mut counted) = (0, 0);
    for run in image.runs(0, image.size()) {
        let run = run?;
        if !run.kind.is_zero() {
            let first = (run.offset / CLUSTER).max(counted);
            counted = (run.offset + run.length).div_ceil(CLUSTER);
            clusters += counted.saturating_sub(first);
        }
    }
    Ok(clusters)
}

/// Bytes of the header and of all tables of a full image.
fn table_bytes(size: u64) -> u64 {
    let per_table = CLUSTER / ENTRY;
    let data = size.div_ceil(CLUSTER);
    let l2 = data.div_ceil(per_table);
    let l1 = l2.div_ceil(per_table);
    let counted = 1 + l1 + l2 + data;
    // Blocks and their table count themselves.
    let (mut blocks, mut table) = (0, 0);
    loop {
        let needed = (counted + blocks + table).div_ceil(CLUSTER * 8 / REFCOUNT_BITS);
        let needed_table = needed.div_ceil(per_table);
        if (needed, needed_table) == (blocks, table) {
            return (1 + l1 + l2 + blocks + table) * CLUSTER;
        }
        (blocks, table) = (needed, needed_table);
    }
}

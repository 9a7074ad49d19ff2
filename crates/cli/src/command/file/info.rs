//! `file info`

use std::os::unix::fs::MetadataExt;

use serde_json::{Map, Value, json};
use vdsmstore_core::Result;
use vdsmstore_io::qcow2;

use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::FileInfo;
use crate::output::{local, pairs};
use crate::session::Outcome;
use crate::size::human;

pub fn run(context: &Context, arguments: &FileInfo) -> Result<Outcome> {
    let device = open::device(&arguments.file, false)?;
    let name = arguments.file.display().to_string();
    let metadata = device.file().metadata().map_err(|error| local(&name, error))?;
    let format = open::format(arguments.format);
    let mut map = Map::new();
    let mut put = |name: &str, value: Value| map.insert(name.to_owned(), value);
    put("virtual-size", json!(open::size(&*device, format)?));
    put("filename", json!(name));
    put("format", json!(format.to_string()));
    put("actual-size", json!(metadata.blocks() * 512));
    put("dirty-flag", json!(false));
    if arguments.format == FileFormat::Qcow2 {
        let info = qcow2::info(&*device)?;
        put("cluster-size", json!(info.cluster_size));
        put("dirty-flag", json!(info.dirty));
        if let Some(backing) = &info.backing {
            put("backing-filename", json!(backing));
        }
        if let Some(format) = &info.backing_format {
            put("backing-filename-format", json!(format));
        }
        if info.snapshots > 0 {
            let list = qcow2::snapshots(&*device)?;
            let list = list.iter().map(|s| json!({ "id": s.id, "name": s.name })).collect();
            put("snapshots", Value::Array(list));
        }
        put("format-specific", json!({ "type": "qcow2", "data": specific(&device, &info)? }));
    }
    context.out.either(&map, || text(&map))?;
    Ok(Outcome::Done)
}

fn specific(device: &vdsmstore_io::FileDevice, info: &qcow2::Info) -> Result<Map<String, Value>> {
    let mut data = Map::new();
    let mut put = |name: &str, value: Value| data.insert(name.to_owned(), value);
    put("compat", json!(if info.version == 2 { "0.10" } else { "1.1" }));
    put("compression-type", json!(if info.zstd { "zstd" } else { "zlib" }));
    put("refcount-bits", json!(info.refcount_bits));
    if info.version > 2 {
        put("corrupt", json!(info.corrupt));
        put("extended-l2", json!(info.extended_l2));
    }
    if let Some(name) = &info.data_file_name {
        put("data-file", json!(name));
    }
    if info.encrypted {
        put("encrypted", json!(true));
    }
    if info.bitmaps {
        let bitmaps = qcow2::bitmaps(device)?;
        let bitmaps = bitmaps.iter().map(|bitmap| {
            let mut flags = Vec::new();
            if !bitmap.consistent {
                flags.push("in-use");
            }
            if bitmap.enabled {
                flags.push("auto");
            }
            json!({ "name": bitmap.name, "granularity": bitmap.granularity, "flags": flags })
        });
        put("bitmaps", bitmaps.collect());
    }
    Ok(data)
}

fn text(map: &Map<String, Value>) -> String {
    let mut lines = Vec::new();
    for (name, value) in map {
        let value = match value {
            Value::Number(number) if name.ends_with("size") => {
                format!("{number} ({})", human(number.as_u64().unwrap_or(0)))
            }
            Value::String(text) => text.clone(),
            Value::Object(object) => object.get("data").map(ToString::to_string).unwrap_or_default(),
            other => other.to_string(),
        };
        lines.push((name.as_str(), value));
    }
    pairs(&lines)
}

//! `file check`

use serde_json::{Map, json};
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::qcow2::{self, Repair, Report};

use super::{Context, open};
use crate::args::FileFormat;
use crate::args::file::{FileCheck, RepairWhat};
use crate::output::put;
use crate::session::Outcome;

/// So many findings are printed.
const SHOWN: usize = 50;

pub fn run(context: &Context, arguments: &FileCheck) -> Result<Outcome> {
    if arguments.format != FileFormat::Qcow2 {
        return Err(Error::new(ErrorKind::UnsupportedOperation, "only qcow2 files can be checked"));
    }
    let device = open::device(&arguments.file, arguments.repair.is_some())?;
    let report = match arguments.repair {
        None => qcow2::check(&*device)?,
        Some(RepairWhat::Leaks) => qcow2::repair(&*device, Repair::Leaks)?,
        Some(RepairWhat::All) => qcow2::repair(&*device, Repair::All)?,
    };
    if context.out.json() {
        context.out.value(&as_json(&report, &arguments.file.display().to_string()))?;
    } else {
        context.out.bytes(as_text(&report).as_bytes())?;
    }
    Ok(match &report {
        Report { check_errors: 1.., .. } => Outcome::Status(1),
        Report { corruptions: 1.., .. } | Report { overlaps: 1.., .. } => Outcome::Status(2),
        Report { leaks: 1.., .. } => Outcome::Status(3),
        _ => Outcome::Done,
    })
}

/// The names are those of `qemu-img check`, which leaves out what is 0; `overlaps` and `findings` are ours.
fn as_json(report: &Report, file: &str) -> Map<String, serde_json::Value> {
    let mut map = Map::new();
    let mut put = |name: &str, number: u64| {
        if number > 0 {
            map.insert(name.to_owned(), json!(number));
        }
    };
    put("image-end-offset", report.image_end_offset);
    put("total-clusters", report.total_clusters);
    put("allocated-clusters", report.allocated_clusters);
    put("fragmented-clusters", report.fragmented_clusters);
    put("compressed-clusters", report.compressed_clusters);
    put("corruptions", report.corruptions);
    put("leaks", report.leaks);
    put("corruptions-fixed", report.corruptions_fixed);
    put("leaks-fixed", report.leaks_fixed);
    put("overlaps", report.overlaps);
    put("bitmaps-in-use", report.bitmaps_in_use);
    map.insert("check-errors".to_owned(), json!(report.check_errors));
    map.insert("filename".to_owned(), json!(file));
    map.insert("format".to_owned(), json!("qcow2"));
    let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
    map.insert("findings".to_owned(), json!(findings));
    map
}

fn as_text(report: &Report) -> String {
    let mut text = String::new();
    for finding in report.findings.iter().take(SHOWN) {
        put!(text, "{finding}\n");
    }
    let all = report.corruptions + report.leaks + report.check_errors + report.overlaps;
    if all > SHOWN as u64 {
        put!(text, "and more\n");
    }
    if report.corruptions_fixed + report.leaks_fixed > 0 {
        put!(text, "repaired: {} corruptions, {} leaks\n", report.corruptions_fixed, report.leaks_fixed);
    }
    if report.dirty || report.marked_corrupt {
        let what = if report.marked_corrupt { "corrupt" } else { "left open" };
        put!(text, "the image is marked as {what}\n");
    }
    if report.is_clean() {
        put!(text, "nothing is wrong\n");
    } else {
        put!(
            text,
            "{} corruptions, {} leaked clusters, {} overlaps, {} parts that could not be checked\n",
            report.corruptions,
            report.leaks,
            report.overlaps,
            report.check_errors
        );
    }
    put!(
        text,
        "{} of {} clusters allocated, {} of them fragmented, {} compressed; the image ends at {}\n",
        report.allocated_clusters,
        report.total_clusters,
        report.fragmented_clusters,
        report.compressed_clusters,
        report.image_end_offset
    );
    text
}

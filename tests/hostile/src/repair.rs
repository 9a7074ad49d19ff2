//! Checking and repairing an image that may be anything.

use std::sync::Arc;

use vdsmstore_io::qcow2::{self, Problem, Repair, Report, Severity};
use vdsmstore_io::{Format, Image, ImageOptions, Layer, Result};

use crate::device::Bytes;
use crate::read::check_kind;
use crate::{Choices, bounded};

/// Places of the disk that are compared.
const SAMPLES: u64 = 30;

/// What the disk reads as in some places; None where it cannot be read.
fn samples(device: &Arc<Bytes>, choices: &[u64]) -> Option<Vec<Option<Vec<u8>>>> {
    let info = qcow2::info(&**device).ok()?;
    let layer = Layer { device: Arc::clone(device) as _, format: Format::Qcow2, size: info.size };
    let image = Image::open_with(vec![layer], &ImageOptions::default()).ok()?;
    let read = |place: &u64| {
        let at = place % info.size.max(1);
        let mut buffer = vec![0; 600.min(info.size - at.min(info.size)) as usize];
        image.read(at, &mut buffer).ok().map(|()| buffer)
    };
    Some(choices.iter().map(read).collect())
}

fn looked(device: &Bytes) -> Option<Report> {
    let told = |result: Result<Report>| result.map_err(|error| check_kind(&error)).ok();
    let report = told(qcow2::check(device))?;
    assert_eq!(told(qcow2::check(device)).as_ref(), Some(&report), "it is another one the second time");
    Some(report)
}

/// Corruptions but for marks: where a refcount was set right, an entry that nothing can be done about may have a wrong one.
/// None where not all findings were kept: with a leak less among them there is room for one corruption more.
fn corruptions(report: &Report) -> Option<usize> {
    if report.findings.len() >= Report::MAX_FINDINGS {
        return None;
    }
    let counts = |problem: &Problem| !matches!(problem, Problem::Copied { .. });
    let worst = report.findings.iter().filter(|finding| finding.severity == Severity::Corruption);
    Some(worst.filter(|finding| counts(&finding.problem)).count())
}

/// A check, then both repairs: nothing gets worse, what could be read reads the same, and a second repair after one that
/// left no corruption has nothing to do.
pub fn repair(bytes: &[u8]) {
    bounded(bytes, || {
        let device = Bytes::patient(bytes, 1);
        let Some(mut before) = looked(&device) else { return };
        let mut choices = Choices::new(bytes);
        let places: Vec<u64> = (0..SAMPLES).map(|_| choices.below(1 << 40)).collect();
        let content = samples(&device, &places);
        let mut last = None;
        for what in [Repair::Leaks, Repair::All, Repair::All] {
            let told = match qcow2::repair(&*device, what) {
                Ok(told) => told,
                Err(error) => return check_kind(&error),
            };
            let Some(after) = looked(&device) else { panic!("{what:?}: it cannot be checked any more") };
            assert_eq!(
                (told.corruptions, told.leaks, told.check_errors),
                (after.corruptions, after.leaks, after.check_errors),
                "{what:?}: something else is left than it tells"
            );
            if let (Some(were), Some(are)) = (corruptions(&before), corruptions(&after)) {
                assert!(are <= were, "{what:?}: {were} corruptions became {are}");
            }
            let done = last == Some(what) && before.corruptions == 0;
            assert!(
                !done || after == before,
                "{what:?}: there was something left to do: {before:?}, then {after:?}"
            );
            last = Some(what);
            before = after;
            let (Some(content), Some(now)) = (&content, samples(&device, &places)) else { continue };
            for ((place, old), new) in places.iter().zip(content).zip(now) {
                assert!(old.is_none() || *old == new, "{what:?}: other bytes at {place:#x}");
            }
        }
    });
}

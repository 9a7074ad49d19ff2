//! `file compare`

use serde_json::json;
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::{Image, compare};

use super::map::{Part, Shape};
use super::{Context, open};
use crate::args::file::{FileCompare, OneFile};
use crate::output::report;
use crate::session::Outcome;

/// The disks could not be compared; 1 means that they differ.
const FAILED: u8 = 2;

pub fn run(context: &Context, arguments: &FileCompare) -> Result<Outcome> {
    match differs(context, arguments) {
        Ok(difference) => {
            let value = json!({ "same": difference.is_none(), "difference": difference });
            context.out.either(&value, || match &difference {
                None => "the same".to_owned(),
                Some(difference) => difference.clone(),
            })?;
            Ok(if difference.is_none() { Outcome::Done } else { Outcome::Status(1) })
        }
        Err(error) if error.kind() == ErrorKind::Stopped => Err(error),
        Err(error) => {
            report(context.out.json(), &error);
            Ok(Outcome::Status(FAILED))
        }
    }
}

/// What differs first, if anything.
fn differs(context: &Context, arguments: &FileCompare) -> Result<Option<String>> {
    let other = OneFile {
        file: arguments.other.clone(),
        format: arguments.other_format,
        backing: arguments.other_backing.clone(),
    };
    let (ours, theirs) = (open::chain(&arguments.file, false)?, open::chain(&other, false)?);
    let shapes = (Shape::of(&ours), Shape::of(&theirs));
    let (ours, theirs) = (Image::open(ours, false)?, Image::open(theirs, false)?);
    if arguments.strict {
        if ours.size() != theirs.size() {
            return Ok(Some(format!("their sizes are {} and {}", ours.size(), theirs.size())));
        }
        if let Some(offset) = allocation_differs(&(&shapes.0, &ours), &(&shapes.1, &theirs))? {
            return Ok(Some(format!("what is allocated differs at {offset}")));
        }
    }
    let offset = context.with_control(|control| compare(&ours, &theirs, control))?;
    Ok(offset.map(|offset| format!("they differ at {offset}")))
}

/// Where the one has a place for its bytes and the other has none, or only one says that they are zeroes.
fn allocation_differs(ours: &(&Shape, &Image), theirs: &(&Shape, &Image)) -> Result<Option<u64>> {
    let (ours, theirs) = (kinds(ours)?, kinds(theirs)?);
    let mut places: Vec<u64> = ours.iter().chain(&theirs).map(|(start, ..)| *start).collect();
    places.sort_unstable();
    places.dedup();
    let at = |kinds: &[(u64, bool, bool)], place: u64| {
        let index = kinds.partition_point(|(start, ..)| *start <= place);
        index.checked_sub(1).and_then(|index| kinds.get(index)).map(|(_, present, zero)| (*present, *zero))
    };
    Ok(places.into_iter().find(|place| at(&ours, *place) != at(&theirs, *place)))
}

fn kinds((shape, image): &(&Shape, &Image)) -> Result<Vec<(u64, bool, bool)>> {
    let mut kinds = Vec::new();
    shape.visit(image, &mut |Part { start, present, zero, .. }| {
        kinds.push((start, present, zero));
        // A list, not a stream: a map of a million parts is more than anybody compares so.
        if kinds.len() > 1_000_000 {
            return Err(Error::new(ErrorKind::UnsupportedOperation, "more than a million parts"));
        }
        Ok(())
    })?;
    Ok(kinds)
}

//! `image export`, `diff` and `measure`.

use serde_json::json;
use vdsmstore_core::options::{ExportOptions, MeasureOptions};
use vdsmstore_core::{Error, ErrorKind, Result};

use crate::args::{Compress, ImageDiff, ImageExport, ImageMeasure};
use crate::command::bytes::Merged;
use crate::command::make::{absolute, format_name};
use crate::output::pairs;
use crate::session::{Outcome, Session, task_id};
use crate::size::human;

/// Extents that are asked for at a time.
const EXTENTS: usize = 4096;

/// `image export`
pub fn export(session: &Session, arguments: &ImageExport) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    let to_pipe = arguments.file.as_os_str() == "-";
    let path = if to_pipe { "/dev/stdout".to_owned() } else { absolute(&arguments.file)? };
    session.connect(repo)?;
    let task = task_id(None);
    let options = ExportOptions {
        overwrite: arguments.overwrite,
        compress: arguments.compress.map(|how| compress_name(how).to_owned()),
        task_id: Some(task.clone()),
        bandwidth: arguments.bandwidth,
    };
    session.store.export_image(repo, image, &path, format_name(arguments.format), &options)?;
    let _offer = session.offer_to_stop(repo, image);
    session.wait_tasks(&task).map_err(|error| {
        let error = match error.kind() {
            ErrorKind::Stopped => Error::new(ErrorKind::Stopped, format!("interrupted; {path} was not made")),
            _ => error.context(format!("{path} was not made")),
        };
        error.with("repoId", repo.as_str()).with("imageId", image.as_str()).with("path", path.as_str())
    })?;
    if session.out.json() && !to_pipe {
        session.out.value(&json!({ "repoId": repo, "imageId": image, "path": path }))?;
    }
    Ok(Outcome::Done)
}

fn compress_name(how: Compress) -> &'static str {
    match how {
        Compress::Zstd => "zstd",
        Compress::Deflate => "deflate",
    }
}

/// `image diff`
pub fn diff(session: &Session, arguments: &ImageDiff) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let mut difference = session.store.diff_images(repo, image, arguments.base.as_deref())?;
    let mut found = Merged::default();
    while !session.out.closed() {
        session.interrupt.check()?;
        let batch = difference.next_batch(EXTENTS)?;
        if batch.is_empty() {
            break;
        }
        for extent in batch {
            found.push(session, extent, u64::MAX)?;
        }
    }
    found.end(session)?;
    Ok(Outcome::Done)
}

/// `image measure`
pub fn measure(session: &Session, arguments: &ImageMeasure) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let options =
        MeasureOptions { format: format_name(arguments.format).to_owned(), verify: arguments.verify };
    let found = session.store.measure_image(repo, image, arguments.base.as_deref(), &options)?;
    session.out.either(&found, || {
        let line = |bytes: u64| format!("{bytes} ({})", human(bytes));
        pairs(&[
            ("required", line(found.required)),
            ("fully allocated", line(found.fully_allocated)),
            ("read", line(found.read)),
        ])
    })?;
    Ok(Outcome::Done)
}

//! `file hash`

use serde_json::json;
use vdsmstore_core::{Error, ErrorKind, Result};
use vdsmstore_io::{Image, hash};

use super::{Context, open};
use crate::args::file::OneFile;
use crate::session::Outcome;

pub fn run(context: &Context, arguments: &OneFile) -> Result<Outcome> {
    let image = Image::open(open::chain(arguments, false)?, false)?;
    let manifest = context.with_control(|control| hash::hash(&image, control))?.ok_or_else(|| {
        Error::new(ErrorKind::InvalidSize, "a disk of more than 16 TiB cannot be hashed")
            .with("path", arguments.file.to_string_lossy())
    })?;
    let root = manifest.root();
    let value = json!({ "hash": root, "size": manifest.size(), "blockSize": manifest.block_size() });
    context.out.either(&value, || root.clone())?;
    Ok(Outcome::Done)
}

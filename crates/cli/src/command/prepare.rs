//! `image prepare`, and programs that run with an image.

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use vdsmstore_core::options::{ForceOptions, PrepareOptions};
use vdsmstore_core::{PreparedImage, Result};

use crate::args::{ImagePrepare, OneImage};
use crate::output::local;
use crate::session::{Outcome, Session};

/// `image prepare`
pub fn prepare(session: &Session, arguments: &ImagePrepare) -> Result<Outcome> {
    let OneImage { repo, image } = &arguments.image;
    session.connect(repo)?;
    let options = PrepareOptions { read_only: arguments.read_only };
    let prepared = session.store.prepare_image(repo, image, &options)?;
    let Some((program, rest)) = arguments.exec.split_first() else {
        session.out.either(&prepared, || format!("{} {}", prepared.format, prepared.path))?;
        return Ok(Outcome::Done);
    };
    let result = execute(session, &arguments.image, &prepared, program, rest);
    let released = session.store.teardown_image(repo, image, &ForceOptions::default());
    let status = result?;
    released?;
    Ok(Outcome::Status(status))
}

fn execute(
    session: &Session,
    image: &OneImage,
    prepared: &PreparedImage,
    program: &OsString,
    arguments: &[OsString],
) -> Result<u8> {
    session.interrupt.check()?;
    let blockdev = prepared.blockdev.to_string();
    let replaced = |argument: &OsString| match argument.to_str() {
        Some(text) if text.contains('{') => text
            .replace("{path}", &prepared.path)
            .replace("{format}", &prepared.format)
            .replace("{blockdev}", &blockdev)
            .replace("{libvirt}", &prepared.libvirt)
            .into(),
        _ => argument.clone(),
    };
    let mut child = Command::new(program)
        .args(arguments.iter().map(replaced))
        .env("VDSMSTORE_REPO", &image.repo)
        .env("VDSMSTORE_IMAGE", &image.image)
        .env("VDSMSTORE_PATH", &prepared.path)
        .env("VDSMSTORE_FORMAT", &prepared.format)
        .env("VDSMSTORE_BLOCKDEV", &blockdev)
        .env("VDSMSTORE_LIBVIRT", &prepared.libvirt)
        .spawn()
        .map_err(|error| local(program.display(), error))?;
    session.interrupt.for_child(Some(child.id()));
    let status = child.wait();
    session.interrupt.for_child(None);
    status.map(code_of).map_err(|error| local(program.display(), error))
}

/// As a shell says it.
fn code_of(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

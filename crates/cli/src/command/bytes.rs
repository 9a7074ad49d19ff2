//! `image read`, `write` and `extents`.

use std::io::{self, Read};

use serde_json::json;
use vdsmstore_core::{Error, ErrorKind, Extent, ExtentKind, Image, Result};

use crate::args::{ImageRead, ImageWrite};
use crate::output::local;
use crate::session::{Outcome, Session};

const CHUNK: usize = 1 << 20;
const EXTENTS: usize = 4096;

/// `image read`
pub fn read(session: &Session, arguments: &ImageRead) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let image = session.store.open_image(repo, image, false)?;
    let mut offset = arguments.offset;
    let mut left = length(&image, offset, arguments.length)?;
    let mut buffer = vec![0; CHUNK];
    while left > 0 && !session.out.closed() {
        session.interrupt.check()?;
        let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        image.read(offset, &mut buffer[..count])?;
        session.out.bytes(&buffer[..count])?;
        offset = offset.saturating_add_unsigned(count as u64);
        left -= count as u64;
    }
    image.close()?;
    Ok(Outcome::Done)
}

/// `image write`
pub fn write(session: &Session, arguments: &ImageWrite) -> Result<Outcome> {
    let (repo, id) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let image = session.store.open_image(repo, id, true)?;
    let result = write_all(session, &image, arguments);
    let closed = image.close();
    let bytes = result?;
    closed?;
    if session.out.json() {
        session.out.value(&json!({ "repoId": repo, "imageId": id, "bytes": bytes }))?;
    }
    Ok(Outcome::Done)
}

fn write_all(session: &Session, image: &Image, arguments: &ImageWrite) -> Result<u64> {
    let mut input: Box<dyn Read> = match arguments.length {
        Some(length) => Box::new(io::stdin().lock().take(u64::try_from(length).unwrap_or(0))),
        None => Box::new(io::stdin().lock()),
    };
    let (mut buffer, mut total) = (vec![0; CHUNK], 0);
    loop {
        session.interrupt.check()?;
        let count = fill(&mut input, &mut buffer).map_err(|error| local("standard input", error))?;
        if count == 0 {
            break;
        }
        let offset = arguments.offset.checked_add_unsigned(total).unwrap_or(i64::MAX);
        image.write(offset, &buffer[..count])?;
        total += count as u64;
    }
    image.flush()?;
    Ok(total)
}

/// Reads until the buffer is full or the input ends.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match input.read(&mut buffer[done..]) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

/// `image extents`
pub fn extents(session: &Session, arguments: &ImageRead) -> Result<Outcome> {
    let (repo, image) = (&arguments.image.repo, &arguments.image.image);
    session.connect(repo)?;
    let image = session.store.open_image(repo, image, false)?;
    let end = arguments.offset.unsigned_abs() + length(&image, arguments.offset, arguments.length)?;
    let mut found = Merged::default();
    let mut offset = arguments.offset;
    while offset.unsigned_abs() < end && !session.out.closed() {
        session.interrupt.check()?;
        let batch = image.extents(offset, EXTENTS)?;
        let Some(last) = batch.last() else { break };
        let next = last.offset.saturating_add(last.length);
        if next <= offset.unsigned_abs() {
            return Err(Error::new(ErrorKind::Internal, "the list of extents does not advance"));
        }
        for extent in batch {
            found.push(session, extent, end)?;
        }
        offset = i64::try_from(next).unwrap_or(i64::MAX);
    }
    found.end(session)?;
    image.close()?;
    Ok(Outcome::Done)
}

/// Prints extents; runs that go over the end of a batch are one.
#[derive(Default)]
pub struct Merged {
    pending: Option<Extent>,
    printed: u64,
}

impl Merged {
    /// The next one; what lies beyond `end` is left out.
    pub fn push(&mut self, session: &Session, mut extent: Extent, end: u64) -> Result<()> {
        if extent.offset >= end {
            return Ok(());
        }
        extent.length = extent.length.min(end - extent.offset);
        match &mut self.pending {
            Some(last) if last.kind == extent.kind && last.offset + last.length == extent.offset => {
                last.length += extent.length;
                Ok(())
            }
            pending => {
                let last = pending.replace(extent);
                last.map_or(Ok(()), |last| self.print(session, last))
            }
        }
    }

    fn print(&mut self, session: &Session, extent: Extent) -> Result<()> {
        let before = if self.printed == 0 { "[\n  " } else { ",\n  " };
        self.printed += 1;
        if session.out.json() {
            return session.out.bytes(format!("{before}{}", json!(extent)).as_bytes());
        }
        let kind = match extent.kind {
            ExtentKind::Data => "data",
            ExtentKind::Zero => "zero",
            ExtentKind::Hole => "hole",
        };
        session.out.line(&format!("{} {} {kind}", extent.offset, extent.length))
    }

    /// That was all.
    pub fn end(mut self, session: &Session) -> Result<()> {
        if let Some(last) = self.pending.take() {
            self.print(session, last)?;
        }
        match (session.out.json(), self.printed) {
            (false, _) => Ok(()),
            (true, 0) => session.out.line("[]"),
            (true, _) => session.out.line("\n]"),
        }
    }
}

/// The bytes from the offset on: as many as asked for, else all.
fn length(image: &Image, offset: i64, length: Option<i64>) -> Result<u64> {
    let size = image.size()?;
    let rest = size.checked_sub(offset.unsigned_abs());
    let wanted = length.map_or(rest, |length| Some(length.unsigned_abs()));
    match (rest, wanted) {
        (Some(rest), Some(wanted)) if wanted <= rest => Ok(wanted),
        _ => {
            let message = format!("the range is outside the image, whose size is {size} bytes");
            Err(Error::new(ErrorKind::InvalidParameter, message).with("size", size))
        }
    }
}

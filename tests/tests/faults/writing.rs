//! Writing, flushing, closing: which bytes may be there afterwards.

use vdsmstore_core::{Error, ErrorKind, Image, Result, Store};

use crate::operation::Run;
use crate::scene::NAMES;

/// One write: offset, length, and the byte that fills it.
#[derive(Clone, Copy, Debug)]
struct Write {
    at: usize,
    length: usize,
    byte: u8,
    /// It came back well.
    acknowledged: bool,
}

/// What was written to one image.
#[derive(Clone, Debug, Default)]
pub struct Writes {
    /// Where.
    image: Option<(usize, String)>,
    all: Vec<Write>,
    /// So many came before the last flush that came back well.
    flushed: usize,
    /// A flush failed.
    pub poisoned: bool,
}

/// Bytes that overlap each other, and clusters in part.
const FIRST: &[(usize, usize, u8)] =
    &[(0, 65536, 0x91), (100_000, 5000, 0x92), (131_072, 196_608, 0), (600_000, 512, 0x93)];
const SECOND: &[(usize, usize, u8)] = &[(102_000, 70_000, 0x94), (0, 131_072, 0), (590_000, 30_000, 0x95)];

pub fn run(run: &mut Run<'_>, id: &str) -> Result<()> {
    let store = run.store;
    run_in(run, store, 0, id)
}

/// Writes, flushes, twice, and closes. After a write that fails it goes on; after a flush that fails it must not.
pub fn run_in(run: &mut Run<'_>, store: &Store, repo: usize, id: &str) -> Result<()> {
    let writes = &mut run.writes;
    writes.image = Some((repo, id.to_owned()));
    let image = store.open_image(NAMES[repo], id, true)?;
    let mut first = Ok(());
    for part in [FIRST, SECOND] {
        for &(at, length, byte) in part {
            let (offset, bytes) = (at as i64, length as i64);
            let result = match byte {
                // The flush of a crowded image is none of ours.
                0 if length > 150_000 => image.discard(offset, bytes),
                0 => image.write_zeroes(offset, bytes),
                byte => image.write(offset, &vec![byte; length]),
            };
            writes.all.push(Write { at, length, byte, acknowledged: result.is_ok() });
            first = first.and(result);
        }
        match image.flush() {
            Ok(()) => writes.flushed = writes.all.len(),
            Err(error) => {
                writes.poisoned = true;
                refuses(&image);
                let closed = image.close();
                assert!(closed.is_err(), "an image whose flush failed is closed as if nothing were");
                return first.and(Err(error));
            }
        }
    }
    let closed = image.close();
    if closed.is_ok() {
        writes.flushed = writes.all.len();
    }
    first.and(closed)
}

/// Nothing that it says of durability could be believed.
fn refuses(image: &Image) {
    let refused = |what: &str, result: Result<()>| {
        let error: Error = result.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::IoError, "{what}: {error:?}");
        assert!(error.message().contains("an earlier flush failed"), "{what}: {error:?}");
    };
    refused("a write after a failed flush", image.write(0, &[1; 512]));
    refused("zeroes after a failed flush", image.write_zeroes(0, 512));
    refused("a flush after a failed flush", image.flush());
}

impl Writes {
    /// Whether the content may be this one: what was flushed is there, of the rest any part.
    pub fn allow(
        &self,
        image: &(usize, String),
        before: &[u8],
        found: &[u8],
    ) -> std::result::Result<(), usize> {
        if self.image.as_ref() != Some(image) {
            let differs = || found.iter().zip(before).position(|(one, other)| one != other).unwrap_or(0);
            return if found[..before.len()] == *before { Ok(()) } else { Err(differs()) };
        }
        let mut allowed: Vec<u16> = vec![1; before.len()];
        for (index, write) in self.all.iter().enumerate() {
            let sure = write.acknowledged && index < self.flushed;
            for mask in &mut allowed[write.at..write.at + write.length] {
                *mask = if sure { 0 } else { *mask } | 2 << index;
            }
        }
        let fits = |at: usize| {
            let mask = allowed[at];
            mask & 1 != 0 && found[at] == before[at]
                || self.all.iter().enumerate().any(|(n, write)| mask & 2 << n != 0 && found[at] == write.byte)
        };
        (0..before.len()).find(|at| !fits(*at)).map_or(Ok(()), Err)
    }
}

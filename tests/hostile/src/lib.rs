//! What is done with bytes that may be anything, and what must hold whatever they are: no panic, no end without data or an
//! error, no more steps and memory than the bytes are worth. Fuzz targets call these functions, and so does the
//! regression test over everything that fuzzers ever found.

mod device;
mod read;
mod repair;
mod write;

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

pub use read::read;
pub use repair::repair;
pub use write::write;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Caches have 16 MiB, and some tables that are allowed are held whole.
const MEMORY: usize = 32 << 20;

/// Bytes as those of a record or a fix.
pub fn records(bytes: &[u8]) {
    bounded(bytes, || {
        vdsmstore_core::hostile::records(bytes);
    });
}

/// A target by its name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    match name {
        "read" => Some(read),
        "write" => Some(write),
        "repair" => Some(repair),
        "records" => Some(records),
        _ => None,
    }
}

/// Does the work; it may take so much memory at most. One at a time, for memory is counted for the whole process.
fn bounded(bytes: &[u8], work: impl FnOnce()) {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    work();
    let peak = HEAP.peak_usage().saturating_sub(before);
    assert!(peak <= MEMORY + 16 * bytes.len(), "{peak} bytes of memory for {} bytes", bytes.len());
}

/// Numbers that follow from the bytes: the same bytes always do the same.
struct Choices(u64);

impl Choices {
    fn new(bytes: &[u8]) -> Choices {
        let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        });
        Choices(hash | 1)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % limit.max(1)
    }
}

//! Storage that moves bytes by itself: in pieces, not to the end, or not at all.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

mod common;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use common::*;
use vdsmstore_io::plan::{self, Target};
use vdsmstore_io::qcow2::{self, CreateOptions};
use vdsmstore_io::{
    Control, Device, DeviceExtent, DeviceId, Error, ErrorKind, Format, Image, Layer, Offload, Outcome, Power,
    SimDevice, SimStorage, compare, execute,
};

/// Not a multiple of a block: the end is left to others.
const SIZE: u64 = 24 * MIB + 1536;
/// One of them is longer than a request; pieces that are too small for the server; its last block is cut short.
const DATA: [(u64, u64); 4] =
    [(0, 18 * MIB), (19 * MIB, 64 * KIB), (20 * MIB, 512 * KIB), (22 * MIB, 2 * MIB + 1536)];

/// How many bytes the storage moves: it is told which request this is, from 1, and how, where and how many are wanted.
type Answer = Box<dyn FnMut(u64, Offload, u64, u64) -> u64 + Send>;

/// A device on storage that answers so.
struct Served {
    device: SimDevice,
    answer: Mutex<Answer>,
    requests: AtomicU64,
    /// Offers clones too, as an NFS client does for a server that cannot.
    clones: bool,
}

impl std::fmt::Debug for Served {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

impl Device for Served {
    fn id(&self) -> DeviceId {
        self.device.id()
    }
    fn name(&self) -> String {
        self.device.name()
    }
    fn len(&self) -> vdsmstore_io::Result<u64> {
        self.device.len()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> vdsmstore_io::Result<()> {
        self.device.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, buffer: &[u8]) -> vdsmstore_io::Result<()> {
        self.device.write_at(offset, buffer)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> vdsmstore_io::Result<()> {
        self.device.write_zeroes(offset, length)
    }
    fn set_len(&self, length: u64) -> vdsmstore_io::Result<()> {
        self.device.set_len(length)
    }
    fn allocate(&self, offset: u64, length: u64) -> vdsmstore_io::Result<()> {
        self.device.allocate(offset, length)
    }
    fn flush(&self) -> vdsmstore_io::Result<()> {
        self.device.flush()
    }
    fn extent(&self, offset: u64, length: u64) -> vdsmstore_io::Result<DeviceExtent> {
        self.device.extent(offset, length)
    }
    fn can_offload(&self, how: Offload, _: &dyn Device) -> bool {
        how == Offload::Copy || self.clones
    }
    fn offload(
        &self,
        how: Offload,
        offset: u64,
        source: &dyn Device,
        source_offset: u64,
        length: u64,
    ) -> vdsmstore_io::Result<u64> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let moved = (self.answer.lock().unwrap())(number, how, offset, length).min(length);
        let mut bytes = vec![0; usize::try_from(moved).unwrap()];
        source.read_at(source_offset, &mut bytes)?;
        self.device.write_at(offset, &bytes)?;
        Ok(moved)
    }
}

struct Case {
    from: Arc<SimStorage>,
    source: Image,
    to: Arc<Served>,
    target: Image,
    plan: plan::Plan,
}

fn sim(storage: &Arc<SimStorage>, name: &str, writable: bool) -> SimDevice {
    SimDevice::new(Arc::clone(storage), Power::new(), name.into(), writable)
}

fn case(format: Format, clones: bool, answer: Answer) -> Case {
    let from = SimStorage::new(1, 1);
    let fill = sim(&from, "from", true);
    fill.set_len(SIZE).unwrap();
    let mut random = Random::new(7);
    for (at, length) in DATA {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        random.fill(&mut bytes);
        fill.write_at(at, &bytes).unwrap();
    }
    // Zeroes that were written: they are moved as they are.
    fill.write_at(MIB, &vec![0; 2 << 20]).unwrap();
    let device = sim(&SimStorage::new(1, 2), "to", true);
    match format {
        Format::Raw => device.set_len(SIZE).unwrap(),
        Format::Qcow2 => {
            let new = CreateOptions { size: SIZE, backing: None, preallocate_metadata: false };
            qcow2::create(&device, &new).unwrap();
        }
    }
    let to = Arc::new(Served { device, answer: Mutex::new(answer), requests: AtomicU64::new(0), clones });
    let layer = |device: Arc<dyn Device>, format| vec![Layer { device, format, size: SIZE }];
    let source = Image::open(layer(Arc::new(sim(&from, "from", false)), Format::Raw), false).unwrap();
    let target = Image::open(layer(Arc::clone(&to) as Arc<dyn Device>, format), true).unwrap();
    let plan = plan::copy(&source, None, Target { backed: false, known_zero: true }, 0, SIZE).unwrap();
    Case { from, source, to, target, plan }
}

impl Case {
    fn run(&self, cancel: &(dyn Fn() -> bool + Sync)) -> Result<Outcome, Error> {
        let progress = AtomicU64::new(0);
        let add = |bytes| {
            progress.fetch_add(bytes, Ordering::Relaxed);
        };
        let control = Control { cancel, progress: &add, threads: 2 };
        let outcome = execute(&self.plan, &self.source, None, &self.target, &control)?;
        assert_eq!(progress.into_inner(), SIZE);
        Ok(outcome)
    }

    /// It is the same, and nothing is left over in the file.
    fn judge(&self, format: Format) {
        self.target.flush().unwrap();
        let control = Control { cancel: &|| false, progress: &|_| {}, threads: 2 };
        assert_eq!(compare(&self.source, &self.target, &control).unwrap(), None);
        if format == Format::Qcow2 {
            let report = qcow2::check(&*self.to).unwrap();
            assert!(report.is_clean(), "{report:?}");
        }
    }

    fn requests(&self) -> u64 {
        self.to.requests.load(Ordering::Relaxed)
    }
}

const FORMATS: [Format; 2] = [Format::Raw, Format::Qcow2];
/// What is worth a request, in whole clusters.
const LARGE: u64 = 20 * MIB;

#[test]
fn a_server_copies_what_is_worth_a_request() {
    for format in FORMATS {
        let longest = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&longest);
        let case = case(
            format,
            false,
            Box::new(move |_, _, _, length| {
                seen.fetch_max(length, Ordering::Relaxed);
                length
            }),
        );
        let outcome = case.run(&|| false).unwrap();
        assert_eq!((outcome.offloaded, outcome.cloned), (LARGE, 0), "{format}: {outcome:?}");
        // The end of the file is in a unit of its own, which is read whole.
        assert_eq!(outcome.read, 64 * KIB + 512 * KIB + 1536, "{format}: {outcome:?}");
        assert_eq!(longest.load(Ordering::Relaxed), 16 * MIB);
        case.judge(format);
    }
}

#[test]
fn short_copies_are_continued() {
    for format in FORMATS {
        // Neither whole clusters nor whole blocks.
        let case = case(format, false, Box::new(|_, _, _, _| MIB + 333));
        let outcome = case.run(&|| false).unwrap();
        assert_eq!(outcome.offloaded, LARGE, "{format}: {outcome:?}");
        assert!(case.requests() >= LARGE / MIB);
        case.judge(format);
    }
}

#[test]
fn what_a_server_refuses_in_the_middle_is_written() {
    for format in FORMATS {
        let case = case(format, false, Box::new(|number, _, _, _| if number < 18 { MIB + 333 } else { 0 }));
        let outcome = case.run(&|| false).unwrap();
        // A raw file keeps the whole blocks that came of the second 2 MiB, and more is asked for; clusters that were placed
        // together are kept together.
        let expected = if format == Format::Raw { (17 * MIB, 19) } else { (16 * MIB, 18) };
        assert_eq!((outcome.offloaded, case.requests()), expected, "{format}: {outcome:?}");
        case.judge(format);
    }
}

#[test]
fn a_client_that_offers_clones_for_a_server_that_cannot() {
    for format in FORMATS {
        let case =
            case(format, true, Box::new(|_, how, _, length| if how == Offload::Copy { length } else { 0 }));
        let outcome = case.run(&|| false).unwrap();
        assert_eq!((outcome.offloaded, outcome.cloned), (LARGE, 0), "{format}: {outcome:?}");
        case.judge(format);
    }
}

/// Of the disk, in whole blocks: what is cloned where holes are, too.
const BLOCKS: u64 = SIZE / 4096 * 4096;

#[test]
fn a_raw_file_is_cloned_with_its_holes() {
    let mut case = case(Format::Raw, true, Box::new(|_, _, _, length| length));
    case.plan = plan::clone(&case.source, &case.target).unwrap().unwrap();
    let outcome = case.run(&|| false).unwrap();
    assert_eq!((outcome.cloned, outcome.read, case.requests()), (BLOCKS, SIZE - BLOCKS, 1), "{outcome:?}");
    case.judge(Format::Raw);
}

#[test]
fn holes_of_what_is_not_cloned_are_not_read() {
    // The first 8 MiB are cloned, and no more; the server may copy the rest, but no holes.
    for copies in [false, true] {
        let mut case = case(
            Format::Raw,
            true,
            Box::new(move |number, how, _, length| match how {
                Offload::Clone if number == 1 => 8 * MIB,
                Offload::Copy if copies => length,
                _ => 0,
            }),
        );
        case.plan = plan::clone(&case.source, &case.target).unwrap().unwrap();
        let outcome = case.run(&|| false).unwrap();
        let data: u64 = DATA.iter().map(|(_, length)| length).sum();
        assert_eq!((outcome.cloned, outcome.offloaded > 0), (8 * MIB, copies), "{outcome:?}");
        assert_eq!(outcome.cloned + outcome.offloaded + outcome.read, data, "{outcome:?}");
        case.judge(Format::Raw);
    }
}

#[test]
fn only_raw_files_are_cloned_as_a_whole() {
    for (format, clones) in [(Format::Raw, false), (Format::Qcow2, true)] {
        let case = case(format, clones, Box::new(|_, _, _, length| length));
        assert!(plan::clone(&case.source, &case.target).unwrap().is_none());
    }
    // Where the source has nothing for long, nothing is planned.
    let case = case(Format::Raw, true, Box::new(|_, _, _, length| length));
    sim(&case.from, "from", true).write_zeroes(0, 20 * MIB).unwrap();
    let plan = plan::clone(&case.source, &case.target).unwrap().unwrap();
    assert_eq!((plan.moves().len(), plan.moves()[0].offset, plan.length()), (1, 20 * MIB, SIZE));
    assert_eq!(plan.moved_bytes(), SIZE - 20 * MIB);
}

#[test]
fn a_source_that_becomes_shorter_is_an_error() {
    for format in FORMATS {
        let from = Arc::new(Mutex::new(None::<Arc<SimStorage>>));
        let cut = Arc::clone(&from);
        let case = case(
            format,
            false,
            Box::new(move |number, _, _, length| {
                if number == 1 {
                    return length;
                }
                if let Some(from) = cut.lock().unwrap().take() {
                    sim(&from, "from", true).set_len(10 * MIB + 512).unwrap();
                }
                // As at the end of a file.
                0
            }),
        );
        *from.lock().unwrap() = Some(Arc::clone(&case.from));
        let error = case.run(&|| false).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ShortRead, "{format}: {error:?}");
        assert!(error.to_string().contains("from"), "{format}: {error}");
    }
}

#[test]
fn no_copy_is_asked_for_after_a_cancel() {
    for format in FORMATS {
        let case = Arc::new(case(format, false, Box::new(|_, _, _, _| 3 * MIB)));
        let when = AtomicU64::new(0);
        let cancel = || {
            let now = case.requests() >= 3;
            if now {
                when.fetch_max(case.requests(), Ordering::Relaxed);
            }
            now
        };
        let error = case.run(&cancel).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{format}: {error:?}");
        assert_eq!((case.requests(), when.load(Ordering::Relaxed)), (3, 3), "{format}");
        // What was begun is given back, and is done again.
        case.run(&|| false).unwrap();
        case.judge(format);
    }
}

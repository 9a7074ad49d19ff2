//! A reader that has looked up where its bytes are, and has not read them yet: nobody gives that place to others.
#![cfg(feature = "sim")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use vdsmstore_io::qcow2::{self, CreateOptions};
use vdsmstore_io::{
    Device, DeviceExtent, DeviceId, Format, Image, Layer, Power, Result, RunKind, SimDevice, SimStorage,
};

const CLUSTER: u64 = 65536;
const SIZE: u64 = 16 * CLUSTER;
/// Longer than what others do in the meantime takes; so long a reader waits for those who rightly wait for it.
const MEANWHILE: Duration = Duration::from_millis(400);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reader {
    /// The next read at that offset is to be held.
    Awaited(u64),
    Held,
    GoesOn,
}

/// A device on which one read is held.
#[derive(Debug)]
struct Holding {
    device: SimDevice,
    reader: Mutex<Reader>,
    changed: Condvar,
}

impl Holding {
    fn set(&self, reader: Reader) {
        *self.reader.lock().unwrap() = reader;
        self.changed.notify_all();
    }

    /// Whether it came to that before the time was over.
    fn wait(&self, reader: Reader, time: Duration) -> bool {
        let now = self.reader.lock().unwrap();
        let (_now, timeout) = self.changed.wait_timeout_while(now, time, |now| *now != reader).unwrap();
        !timeout.timed_out()
    }
}

impl Device for Holding {
    fn id(&self) -> DeviceId {
        self.device.id()
    }

    fn name(&self) -> String {
        self.device.name()
    }

    fn len(&self) -> Result<u64> {
        self.device.len()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let is_held = *self.reader.lock().unwrap() == Reader::Awaited(offset);
        if is_held {
            self.set(Reader::Held);
            self.wait(Reader::GoesOn, MEANWHILE);
        }
        self.device.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, buffer: &[u8]) -> Result<()> {
        self.device.write_at(offset, buffer)
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> Result<()> {
        self.device.write_zeroes(offset, length)
    }

    fn set_len(&self, length: u64) -> Result<()> {
        self.device.set_len(length)
    }

    fn allocate(&self, offset: u64, length: u64) -> Result<()> {
        self.device.allocate(offset, length)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush()
    }

    fn extent(&self, offset: u64, length: u64) -> Result<DeviceExtent> {
        self.device.extent(offset, length)
    }
}

/// While a reader is held, its cluster is discarded, `frees` makes it free, and other data is written.
fn beside_a_reader(frees: fn(&Image)) {
    let device = SimDevice::new(SimStorage::new(1, 1), Power::new(), "image".into(), true);
    let options = CreateOptions { size: SIZE, backing: None, preallocate_metadata: false };
    qcow2::create(&device, &options).unwrap();
    let (reader, changed) = (Mutex::new(Reader::GoesOn), Condvar::new());
    let device = Arc::new(Holding { device, reader, changed });
    let layer = Layer { device: Arc::clone(&device) as Arc<dyn Device>, format: Format::Qcow2, size: SIZE };
    let image = Image::open(vec![layer], true).unwrap();
    image.write(0, &vec![1; CLUSTER as usize]).unwrap();
    image.flush().unwrap();
    let RunKind::Data { device_offset, .. } = image.run(0, CLUSTER).unwrap().kind else {
        panic!("it was written")
    };
    device.set(Reader::Awaited(device_offset));
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let mut data = vec![0; CLUSTER as usize];
            image.read(0, &mut data).unwrap();
            data
        });
        assert!(device.wait(Reader::Held, Duration::from_secs(20)), "nobody read the data");
        image.discard(0, CLUSTER).unwrap();
        let start = Instant::now();
        frees(&image);
        let waited = start.elapsed();
        image.write(8 * CLUSTER, &vec![2; CLUSTER as usize]).unwrap();
        device.set(Reader::GoesOn);
        let data = reading.join().unwrap();
        // Discarded meanwhile: what was there before, or zeroes; nothing else.
        assert!(data.iter().all(|byte| *byte < 2), "who read at 0 got what was written elsewhere");
        assert!(waited > MEANWHILE / 2, "nobody had to wait for the reader: {waited:?}");
    });
    // The scene is the right one: without a reader the place is used again.
    let now = image.run(8 * CLUSTER, CLUSTER).unwrap().kind;
    assert!(matches!(now, RunKind::Data { device_offset: at, .. } if at == device_offset), "{now:?}");
}

#[test]
fn a_flush_gives_away_no_place_that_is_being_read() {
    beside_a_reader(|image| image.flush().unwrap());
}

#[test]
fn a_growing_disk_gives_away_no_place_that_is_being_read() {
    beside_a_reader(|image| image.grow(SIZE + CLUSTER).unwrap());
}

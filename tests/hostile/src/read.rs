//! Opening an image that may be anything, and reading all there is.

use std::sync::Arc;

use vdsmstore_io::{Device, Error, ErrorKind, Format, Image, ImageOptions, Layer, qcow2};

use crate::device::Bytes;
use crate::{Choices, bounded};

/// Steps over the map, and clusters read on the way.
const STEPS: u64 = 100;
const PIECE: u64 = 70_000;

/// Errors that bad bytes may lead to.
pub fn check_kind(error: &Error) {
    let kinds = [ErrorKind::Corrupt, ErrorKind::Unsupported, ErrorKind::ShortRead, ErrorKind::NoSpace];
    assert!(kinds.contains(&error.kind()), "{error:?}");
}

/// The image as only layer, over another, under another, and with an external data file; its lists.
pub fn read(bytes: &[u8]) {
    // A base with something in it.
    let below: Vec<u8> = (0..30_000u32).map(|at| (at % 251) as u8).collect();
    let mut buffer = vec![0; PIECE as usize];
    bounded(bytes, || {
        let device = Bytes::new(bytes, 1);
        let info = match qcow2::info(&*device) {
            Ok(info) => info,
            Err(error) => return check_kind(&error),
        };
        lists(&*device, info.size);
        let layer =
            |device: &Arc<Bytes>, format, size| Layer { device: Arc::clone(device) as _, format, size };
        let (base, size) = (Bytes::new(&below, 2), info.size);
        let mut choices = Choices::new(bytes);
        walk(open(vec![layer(&device, Format::Qcow2, size)], &[]), &mut choices, &mut buffer);
        let layers = vec![layer(&device, Format::Qcow2, size), layer(&base, Format::Raw, below.len() as u64)];
        walk(open(layers, &[]), &mut choices, &mut buffer);
        if info.data_file {
            let data: Arc<dyn Device> = Bytes::new(&below, 3);
            walk(open(vec![layer(&device, Format::Qcow2, size)], &[(0, data)]), &mut choices, &mut buffer);
        }
        let top = Bytes::new(&[], 4);
        let options = qcow2::CreateOptions { size: 1 << 20, backing: None, preallocate_metadata: false };
        assert!(qcow2::create(&*top, &options).is_ok());
        let layers = vec![layer(&top, Format::Qcow2, 1 << 20), layer(&device, Format::Qcow2, size)];
        walk(open(layers, &[]), &mut choices, &mut buffer);
    });
}

fn lists(device: &dyn Device, size: u64) {
    match qcow2::snapshots(device) {
        Ok(snapshots) => assert!(snapshots.len() <= 65536),
        Err(error) => check_kind(&error),
    }
    let bitmaps = qcow2::bitmaps(device).unwrap_or_else(|error| {
        check_kind(&error);
        Vec::new()
    });
    // Many names may lead to the same bits.
    for bitmap in bitmaps.iter().take(4) {
        let (mut end, mut ranges) = (0, 0);
        let result = qcow2::visit_bitmap(device, &bitmap.name, &mut |offset, length| {
            assert!(length > 0 && offset >= end && offset + length <= size, "{offset} {length}");
            end = offset + length + 1;
            ranges += 1;
            if ranges > 10_000 { Err(Error::new(ErrorKind::Cancelled, "enough")) } else { Ok(()) }
        });
        if let Err(error) = result
            && error.kind() != ErrorKind::Cancelled
        {
            check_kind(&error);
        }
    }
}

fn open(layers: Vec<Layer>, data_files: &[(usize, Arc<dyn Device>)]) -> Option<Image> {
    match Image::open_with(layers, &ImageOptions { data_files, ..ImageOptions::default() }) {
        Ok(image) => Some(image),
        Err(error) => {
            check_kind(&error);
            None
        }
    }
}

/// Along the map from the begin, and in some other places; a damaged cluster does not end it.
fn walk(image: Option<Image>, choices: &mut Choices, buffer: &mut [u8]) {
    let Some(image) = image else { return };
    let size = image.size();
    let mut at = 0;
    for step in 0..STEPS {
        if at >= size || step % 4 == 3 {
            at = choices.below(size);
        }
        if at >= size {
            return;
        }
        let length = match image.run(at, size - at) {
            Ok(run) => {
                assert!(run.offset == at && run.length > 0 && run.length <= size - at);
                run.length
            }
            Err(error) => {
                check_kind(&error);
                512.min(size - at)
            }
        };
        let part = length.min(buffer.len() as u64);
        if let Err(error) = image.read(at, &mut buffer[..part as usize]) {
            check_kind(&error);
        }
        at += length;
    }
}

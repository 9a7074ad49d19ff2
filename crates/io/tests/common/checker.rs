//! The check, on bytes: nothing worse than leaks may be found.

use std::fmt;

use vdsmstore_io::qcow2::{self, Report};
use vdsmstore_io::{Device, DeviceExtent, DeviceId, Error, ErrorKind, Result};

/// What the check finds worse than a leak; the whole report otherwise.
pub fn check(bytes: &[u8]) -> std::result::Result<Report, String> {
    let report = qcow2::check(&Bytes(bytes)).map_err(|error| error.to_string())?;
    let sound = report.corruptions == 0 && report.check_errors == 0 && report.overlaps == 0;
    if sound && !report.dirty && !report.marked_corrupt {
        return Ok(report);
    }
    let findings: Vec<String> = report.findings.iter().take(10).map(ToString::to_string).collect();
    Err(format!("dirty {}, {}", report.dirty, findings.join("; ")))
}

/// Bytes that cannot be written.
struct Bytes<'a>(&'a [u8]);

impl fmt::Debug for Bytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

fn read_only() -> Result<()> {
    Err(Error::new(ErrorKind::ReadOnly, "only bytes"))
}

impl Device for Bytes<'_> {
    fn id(&self) -> DeviceId {
        DeviceId { domain: 0, object: 0 }
    }

    fn name(&self) -> String {
        "bytes".into()
    }

    fn len(&self) -> Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = usize::try_from(offset).ok().and_then(|at| self.0.get(at..at + buffer.len()));
        let bytes = range.ok_or_else(|| Error::new(ErrorKind::ShortRead, "beyond the end"))?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buffer: &[u8]) -> Result<()> {
        read_only()
    }

    fn write_zeroes(&self, _offset: u64, _length: u64) -> Result<()> {
        read_only()
    }

    fn set_len(&self, _length: u64) -> Result<()> {
        read_only()
    }

    fn allocate(&self, _offset: u64, _length: u64) -> Result<()> {
        read_only()
    }

    fn flush(&self) -> Result<()> {
        Ok(())
    }

    fn extent(&self, _offset: u64, length: u64) -> Result<DeviceExtent> {
        Ok(DeviceExtent { length, data: true })
    }
}

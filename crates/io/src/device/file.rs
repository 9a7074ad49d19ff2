//! Files and block devices.

/// A file or block device.
#[derive(Debug)]
pub struct FileDevice;

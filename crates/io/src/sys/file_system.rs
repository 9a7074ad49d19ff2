//! On what a file lies.

use std::fs::File;

// include/uapi/linux/magic.h.
const XFS_SUPER_MAGIC: u64 = 0x5846_5342;
const BTRFS_SUPER_MAGIC: u64 = 0x9123_683e;
const NFS_SUPER_MAGIC: u64 = 0x6969;

/// File systems of which something has to be known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileSystem {
    Xfs,
    Btrfs,
    /// Of any version.
    Nfs,
    Other,
}

impl FileSystem {
    pub fn of(file: &File) -> FileSystem {
        match rustix::fs::fstatfs(file).map_or(0, |stat| stat.f_type.cast_unsigned() & 0xffff_ffff) {
            XFS_SUPER_MAGIC => FileSystem::Xfs,
            BTRFS_SUPER_MAGIC => FileSystem::Btrfs,
            NFS_SUPER_MAGIC => FileSystem::Nfs,
            _ => FileSystem::Other,
        }
    }
}

//! What a check says.

use std::fmt;

/// The result of a check. The numbers are those of `qemu-img check`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// What is wrong: data may be lost, or will be when the image is written.
    pub corruptions: u64,
    /// Clusters whose refcount is larger than the number of references to them: lost space, no danger.
    pub leaks: u64,
    /// What could not be looked at; the other numbers then tell only a part.
    pub check_errors: u64,
    /// Clusters that hold a table and something else too; most of them count as corruptions for their refcounts as well.
    pub overlaps: u64,
    /// Clusters of the disk.
    pub total_clusters: u64,
    /// Those of them that have a place in the file.
    pub allocated_clusters: u64,
    /// Those of the allocated ones that are compressed.
    pub compressed_clusters: u64,
    /// Those of the allocated ones that do not follow their predecessor in the file, and all compressed ones.
    pub fragmented_clusters: u64,
    /// Where the last used cluster of the file ends.
    pub image_end_offset: u64,
    /// The header says that refcounts may be wrong.
    pub dirty: bool,
    /// The header says that the image is corrupt.
    pub marked_corrupt: bool,
    /// Bitmaps that are not in step with the data, because whoever wrote last did not finish.
    pub bitmaps_in_use: u64,
    /// Corruptions that a repair has removed.
    pub corruptions_fixed: u64,
    /// Leaks that a repair has removed.
    pub leaks_fixed: u64,
    /// The first [`Self::MAX_FINDINGS`] findings; the numbers count all.
    pub findings: Vec<Finding>,
}

impl Report {
    /// So many findings are kept.
    pub const MAX_FINDINGS: usize = 1000;

    /// Nothing was found at all.
    pub fn is_clean(&self) -> bool {
        self.corruptions == 0 && self.leaks == 0 && self.check_errors == 0 && self.overlaps == 0
    }

    pub(super) fn corruption(&mut self, number: u64, problem: Problem, offset: u64) {
        self.corruptions += number;
        self.push(Severity::Corruption, problem, offset);
    }

    pub(super) fn leak(&mut self, problem: Problem, offset: u64) {
        self.leaks += 1;
        self.push(Severity::Leak, problem, offset);
    }

    pub(super) fn check_error(&mut self, number: u64, problem: Problem, offset: u64) {
        self.check_errors += number;
        self.push(Severity::CheckError, problem, offset);
    }

    pub(super) fn overlap(&mut self, part: Part, offset: u64) {
        self.overlaps += 1;
        self.push(Severity::Overlap, Problem::Overlap { part }, offset);
    }

    fn push(&mut self, severity: Severity, problem: Problem, offset: u64) {
        if self.findings.len() < Self::MAX_FINDINGS {
            self.findings.push(Finding { severity, problem, offset });
        }
    }
}

/// One thing that a check found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Finding {
    /// As what it counts.
    pub severity: Severity,
    /// What it is.
    pub problem: Problem,
    /// Where in the file lies what is wrong, or what a wrong entry points to.
    pub offset: u64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:#x}: {}", self.severity, self.offset, self.problem)
    }
}

/// As what a finding counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Severity {
    /// In [`Report::corruptions`].
    Corruption,
    /// In [`Report::leaks`].
    Leak,
    /// In [`Report::check_errors`].
    CheckError,
    /// In [`Report::overlaps`].
    Overlap,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Corruption => "corruption",
            Severity::Leak => "leak",
            Severity::CheckError => "not checked",
            Severity::Overlap => "overlap",
        })
    }
}

/// What clusters are used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Part {
    /// The first cluster.
    Header,
    /// The L1 table of the disk or of an internal snapshot.
    L1,
    /// An L2 table.
    L2,
    /// Data of the disk.
    Data,
    /// Compressed data of the disk.
    Compressed,
    /// The refcount table.
    RefcountTable,
    /// A block of refcounts.
    RefcountBlock,
    /// The table of internal snapshots.
    Snapshots,
    /// The directory of the bitmaps.
    BitmapDirectory,
    /// The table of a bitmap.
    BitmapTable,
    /// The bits of a bitmap.
    BitmapData,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Part::Header => "header",
            Part::L1 => "L1 table",
            Part::L2 => "L2 table",
            Part::Data => "data cluster",
            Part::Compressed => "compressed data",
            Part::RefcountTable => "refcount table",
            Part::RefcountBlock => "refcount block",
            Part::Snapshots => "snapshot table",
            Part::BitmapDirectory => "bitmap directory",
            Part::BitmapTable => "bitmap table",
            Part::BitmapData => "bitmap data",
        })
    }
}

/// What is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The refcount of a cluster is not the number of references to it.
    Refcount {
        /// What the image says.
        refcount: u64,
        /// What it should say.
        references: u64,
    },
    /// More references to a cluster than a refcount of this image can say.
    Overflow,
    /// It reaches beyond the end of the file by a cluster or more.
    BeyondEnd {
        /// What it is.
        part: Part,
        /// Its length in bytes.
        length: u64,
    },
    /// It does not begin at a cluster.
    Unaligned {
        /// What it is.
        part: Part,
    },
    /// An entry has bits that must be 0.
    ReservedBits {
        /// What the entry points to.
        part: Part,
        /// The entry.
        entry: u64,
    },
    /// The entry does not say whether the refcount is 1.
    Copied {
        /// What the entry points to.
        part: Part,
        /// The entry.
        entry: u64,
    },
    /// Compressed clusters in an image with an external data file.
    CompressedInDataFile,
    /// The subclusters of a cluster contradict each other or the cluster.
    Subclusters {
        /// Their bits.
        bitmap: u64,
    },
    /// The cluster of a refcount block has other uses too.
    SharedBlock {
        /// Its references.
        references: u64,
    },
    /// Internal snapshots in an image with an external data file.
    SnapshotsWithDataFile {
        /// How many.
        snapshots: u32,
    },
    /// The entry of an internal snapshot lacks fields that version 3 demands.
    SnapshotIncomplete,
    /// The L1 table of an internal snapshot is larger than any can be.
    SnapshotTooLarge {
        /// Its entries.
        entries: u64,
    },
    /// A table that cannot be understood or read.
    Unreadable {
        /// Which.
        part: Part,
        /// Why.
        reason: &'static str,
    },
    /// The cluster belongs to a table and to something else.
    Overlap {
        /// What came second.
        part: Part,
    },
}

impl Problem {
    /// Whether no table of the disk is concerned, but a cluster of it or a bitmap.
    pub(super) fn leaves_tables(&self) -> bool {
        match self {
            Problem::BeyondEnd { part, .. }
            | Problem::Unaligned { part }
            | Problem::ReservedBits { part, .. } => {
                use Part::{BitmapData, BitmapDirectory, BitmapTable, Compressed, Data};
                matches!(part, Data | Compressed | BitmapDirectory | BitmapTable | BitmapData)
            }
            Problem::Overflow | Problem::CompressedInDataFile | Problem::Subclusters { .. } => true,
            _ => false,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Refcount { refcount, references } => {
                write!(f, "refcount {refcount}, references {references}")
            }
            Problem::Overflow => f.write_str("more references than a refcount can count"),
            Problem::BeyondEnd { part, length } => {
                write!(f, "{part} of {length} bytes reaches beyond the end of the file")
            }
            Problem::Unaligned { part } => write!(f, "{part} is not aligned to a cluster"),
            Problem::ReservedBits { part, entry } => {
                write!(f, "reserved bits in the entry {entry:#x} of a {part}")
            }
            Problem::Copied { part, entry } => {
                write!(f, "the entry {entry:#x} of a {part} does not say whether its refcount is 1")
            }
            Problem::CompressedInDataFile => f.write_str("compressed cluster in an external data file"),
            Problem::Subclusters { bitmap } => write!(f, "impossible subclusters {bitmap:#x}"),
            Problem::SharedBlock { references } => {
                write!(f, "refcount block with {references} references")
            }
            Problem::SnapshotsWithDataFile { snapshots } => {
                write!(f, "{snapshots} internal snapshots with an external data file")
            }
            Problem::SnapshotIncomplete => f.write_str("incomplete entry of an internal snapshot"),
            Problem::SnapshotTooLarge { entries } => {
                write!(f, "L1 table of an internal snapshot with {entries} entries")
            }
            Problem::Unreadable { part, reason } => write!(f, "{part}: {reason}"),
            Problem::Overlap { part } => write!(f, "{part} shares a cluster with a table"),
        }
    }
}

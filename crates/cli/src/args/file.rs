//! `file ...`: jobs on plain files.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, Subcommand, ValueEnum};

use super::FileFormat;
use crate::size;

const CHAIN_HELP: &str = "The format of a file is never guessed, and no file is opened because another one names it: \
                          what lies below FILE is given with --backing, as often as there are layers, the uppermost \
                          first.";

/// `file ...`
#[derive(Debug, Subcommand)]
#[command(after_help = CHAIN_HELP)]
pub enum FileCommand {
    /// Show what a file says of itself.
    Info(FileInfo),
    /// Check the tables of a qcow2 file, or repair them.
    Check(FileCheck),
    /// List where the bytes of a disk lie.
    Map(FileMap),
    /// Tell how large a file with a copy of a disk would be.
    Measure(FileMeasure),
    /// Copy a disk to another file, in that or another format.
    Convert(FileConvert),
    /// Compare what two disks read as.
    Compare(FileCompare),
    /// Print one hash of what a disk reads as, whatever its format (BLAKE3, of blocks).
    Hash(OneFile),
    /// Make an empty image.
    Create(FileCreate),
    /// Write what an overlay holds into the file below it; the overlay stays as it is.
    Commit(FileCommit),
    /// Put an overlay on another file.
    Rebase(FileRebase),
}

/// A file below another one, and its format.
#[derive(Clone, Debug)]
pub struct Below {
    pub path: PathBuf,
    pub format: FileFormat,
}

impl FromStr for Below {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, format) = text.rsplit_once(':').ok_or("PATH:FORMAT is needed")?;
        let format = FileFormat::from_str(format, false).map_err(|_| "the format is raw or qcow2")?;
        Ok(Below { path: path.into(), format })
    }
}

/// A file, and what lies below it.
#[derive(Debug, Args)]
pub struct OneFile {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format, which is never guessed.
    #[arg(short = 'f', value_name = "FORMAT", value_enum)]
    pub format: FileFormat,
    /// A file below it, from top to bottom; may be repeated.
    #[arg(long, value_name = "PATH:FORMAT")]
    pub backing: Vec<Below>,
}

/// `file info`
#[derive(Debug, Args)]
pub struct FileInfo {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format, which is never guessed.
    #[arg(short = 'f', value_name = "FORMAT", value_enum)]
    pub format: FileFormat,
}

/// `file check`
#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: 0 nothing was found, 2 the image is corrupt, 3 it has leaked clusters, 1 it could \
                        not be checked; after a repair, what is left counts."
)]
pub struct FileCheck {
    /// The file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Its format: only qcow2 files have anything to check.
    #[arg(short = 'f', value_name = "FORMAT", value_enum)]
    pub format: FileFormat,
    /// Repair what can be repaired; nobody else may use the file meanwhile.
    #[arg(short = 'r', value_name = "WHAT", value_enum)]
    pub repair: Option<RepairWhat>,
}

/// `-r`
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RepairWhat {
    /// Lost space, and marks, if nothing worse is found.
    Leaks,
    /// Everything that can be repaired without changing what the disk reads as.
    All,
}

/// `file map`
#[derive(Debug, Args)]
#[command(after_help = CHAIN_HELP)]
pub struct FileMap {
    #[command(flatten)]
    pub file: OneFile,
}

/// `file measure`
#[derive(Debug, Args)]
#[command(after_help = CHAIN_HELP)]
pub struct FileMeasure {
    #[command(flatten)]
    pub file: OneFile,
    /// The format of the copy.
    #[arg(short = 'O', value_name = "FORMAT", value_enum)]
    pub output: FileFormat,
}

/// `file convert`
#[derive(Debug, Args)]
#[command(
    after_help = "OPTIONS of qcow2: compression_type=zlib|zstd; of raw: preallocation=off|falloc. TARGET has its \
                        name only when it is whole; a file of that name is then replaced."
)]
pub struct FileConvert {
    #[command(flatten)]
    pub file: OneFile,
    /// The new file.
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Its format.
    #[arg(short = 'O', value_name = "FORMAT", value_enum)]
    pub output: FileFormat,
    /// Compress it (qcow2).
    #[arg(short = 'c')]
    pub compress: bool,
    /// Say what is to be moved, and afterwards by which means it was.
    #[arg(long)]
    pub explain: bool,
    /// How it is made: NAME=VALUE, with commas between.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
}

/// `file compare`
#[derive(Debug, Args)]
#[command(
    after_help = "If one disk is longer, the rest of it must read as zeroes. Exit status: 0 they are the same, 1 \
                        they differ, 2 they could not be compared."
)]
pub struct FileCompare {
    #[command(flatten)]
    pub file: OneFile,
    /// The file to compare it with.
    #[arg(value_name = "OTHER")]
    pub other: PathBuf,
    /// Its format.
    #[arg(short = 'F', value_name = "FORMAT", value_enum)]
    pub other_format: FileFormat,
    /// A file below the other one, from top to bottom; may be repeated.
    #[arg(long, value_name = "PATH:FORMAT")]
    pub other_backing: Vec<Below>,
    /// Sizes, and what is allocated, must be the same too.
    #[arg(short = 's')]
    pub strict: bool,
}

/// `file create`
#[derive(Debug, Args)]
#[command(
    after_help = "OPTIONS of qcow2: compression_type=zlib|zstd; of raw: preallocation=off|falloc. The backing file \
                        is not opened: its name is written down as it is given."
)]
pub struct FileCreate {
    /// The new file; there must be none of that name.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Virtual size: bytes, or with K, M, G or T.
    #[arg(value_name = "SIZE", value_parser = size::parse)]
    pub size: i64,
    /// Its format.
    #[arg(short = 'f', value_name = "FORMAT", value_enum)]
    pub format: FileFormat,
    /// The backing file (qcow2).
    #[arg(short = 'b', value_name = "NAME", requires = "backing_format")]
    pub backing: Option<String>,
    /// Its format.
    #[arg(short = 'F', value_name = "FORMAT", value_enum, requires = "backing")]
    pub backing_format: Option<FileFormat>,
    /// How it is made: NAME=VALUE, with commas between.
    #[arg(short = 'o', value_name = "OPTIONS", value_delimiter = ',')]
    pub options: Vec<String>,
}

/// `file commit`
#[derive(Debug, Args)]
#[command(after_help = CHAIN_HELP)]
pub struct FileCommit {
    #[command(flatten)]
    pub file: OneFile,
    /// Leave the overlay as it is; it is not emptied in any case, so that this must be said.
    #[arg(short = 'd', required = true)]
    pub keep: bool,
}

/// `file rebase`
#[derive(Debug, Args)]
#[command(
    after_help = "What the disk reads as stays the same: where the new chain differs from the old one, its data is \
                        copied into FILE first. With -u only the name is changed. Refused for version 2, extended L2 \
                        entries and external data files."
)]
pub struct FileRebase {
    #[command(flatten)]
    pub file: OneFile,
    /// The new backing file's name as it is written down; empty: none.
    #[arg(short = 'b', value_name = "NAME")]
    pub name: String,
    /// Its format.
    #[arg(short = 'F', value_name = "FORMAT", value_enum)]
    pub new_format: Option<FileFormat>,
    /// A file of the new chain, from top to bottom; may be repeated. Default: the one that -b names, from the current
    /// directory.
    #[arg(long, value_name = "PATH:FORMAT", conflicts_with = "unsafe_mode")]
    pub new_backing: Vec<Below>,
    /// Only change the name.
    #[arg(short = 'u', id = "unsafe_mode")]
    pub unsafe_mode: bool,
}

//! The log of a log-writes device: Documentation/admin-guide/device-mapper/log-writes.rst of the kernel.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

const MAGIC: u64 = 0x006a_7366_7773_6872;
const FLUSH: u64 = 1;
const FUA: u64 = 1 << 1;
const DISCARD: u64 = 1 << 2;
const MARK: u64 = 1 << 3;
/// Of an entry before its data.
const HEAD: usize = 32;

/// The log, with its entries in order.
pub struct Log {
    file: File,
    pub entries: Vec<Entry>,
}

/// A write, or a mark. An entry is there once it was complete; a write that was not forced is there from the next
/// flush on.
#[derive(Clone, Debug)]
pub struct Entry {
    /// In bytes.
    pub offset: u64,
    pub length: u64,
    flags: u64,
    /// Where in the log its data is.
    data: u64,
    pub mark: Option<u64>,
}

impl Entry {
    /// All entries before it were durable when it was complete.
    pub fn is_flush(&self) -> bool {
        self.flags & FLUSH != 0
    }

    /// It is durable itself.
    pub fn is_forced(&self) -> bool {
        self.flags & FUA != 0
    }

    pub fn is_discard(&self) -> bool {
        self.flags & DISCARD != 0
    }

    pub fn is_write(&self) -> bool {
        self.length > 0 && !self.is_discard()
    }
}

fn word(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

impl Log {
    pub fn read(path: &Path) -> Log {
        let file = File::open(path).expect("the log");
        let mut head = [0; 512];
        file.read_exact_at(&mut head, 0).unwrap();
        assert_eq!((word(&head, 0), word(&head, 8)), (MAGIC, 1), "no log of version 1");
        let count = word(&head, 16);
        let sector = word(&head, 24) & 0xffff_ffff;
        let mut entries = Vec::new();
        let mut at = sector;
        for _ in 0..count {
            let mut head = [0; 512];
            file.read_exact_at(&mut head, at).unwrap();
            let (flags, length) = (word(&head, 16), word(&head, 8) * sector);
            let text = &head[HEAD..HEAD + word(&head, 24) as usize];
            let mark = (flags & MARK != 0).then(|| std::str::from_utf8(text).ok()?.parse().ok()).flatten();
            let entry = Entry { offset: word(&head, 0) * sector, length, flags, data: at + sector, mark };
            at += sector + if entry.is_write() { length } else { 0 };
            entries.push(entry);
        }
        Log { file, entries }
    }

    pub fn data(&self, entry: &Entry) -> Vec<u8> {
        let mut data = vec![0; entry.length as usize];
        self.file.read_exact_at(&mut data, entry.data).unwrap();
        data
    }
}

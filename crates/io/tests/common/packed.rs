//! What the tests of compressed clusters share: content that compresses in parts, entries planted by hand.

use std::fs;
use std::path::Path;

use flate2::{Compress, Compression, FlushCompress};

use super::{Random, qemu};

/// As QEMU names it.
pub const DEFLATE: &str = "zlib";
pub const ZSTD: &str = "zstd";
pub const COMPRESSED: u64 = 1 << 62;

/// Zeroes, noise, text and constants in pieces of all sizes.
pub fn mixture(random: &mut Random, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    let mut at = 0;
    while at < bytes.len() {
        let part = (1 + random.below(40_000) as usize).min(bytes.len() - at);
        let piece = &mut bytes[at..at + part];
        match random.below(5) {
            0 => {}
            1 => random.fill(piece),
            2 => piece.fill(random.next() as u8),
            _ => {
                let word = random.next().to_string();
                for (index, byte) in piece.iter_mut().enumerate() {
                    *byte = word.as_bytes()[index % word.len()] ^ (index / 4000) as u8;
                }
            }
        }
        at += part;
    }
    bytes
}

/// A compressed image of these bytes, as QEMU makes it.
pub fn qemu_compressed(path: &Path, bytes: &[u8], cluster_size: u64, compression: &str) {
    let raw = path.with_extension("source");
    fs::write(&raw, bytes).unwrap();
    let options = format!("cluster_size={cluster_size},compression_type={compression}");
    let (from, to) = (raw.to_str().unwrap(), path.to_str().unwrap());
    qemu("qemu-img", &["convert", "-c", "-f", "raw", "-O", "qcow2", "-o", &options, from, to]);
    fs::remove_file(raw).unwrap();
}

fn be64(bytes: &[u8], at: u64) -> u64 {
    u64::from_be_bytes(bytes[at as usize..][..8].try_into().unwrap())
}

/// The image's cluster size in bits.
pub fn cluster_bits(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[20..24].try_into().unwrap())
}

/// Where the L2 entry of a guest cluster lies in the file.
pub fn entry_at(bytes: &[u8], cluster: u64) -> u64 {
    let bits = cluster_bits(bytes);
    let per_table = 1 << (bits - 3);
    let l2 = be64(bytes, be64(bytes, 40) + cluster / per_table * 8) & 0x00ff_ffff_ffff_fe00;
    assert_ne!(l2, 0);
    l2 + cluster % per_table * 8
}

pub fn entry(bytes: &[u8], cluster: u64) -> u64 {
    be64(bytes, entry_at(bytes, cluster))
}

pub fn set_entry(bytes: &mut [u8], cluster: u64, entry: u64) {
    let at = entry_at(bytes, cluster) as usize;
    bytes[at..at + 8].copy_from_slice(&entry.to_be_bytes());
}

/// Clusters of the guest that are compressed.
pub fn count_compressed(bytes: &[u8], clusters: u64) -> u64 {
    (0..clusters).filter(|cluster| entry(bytes, *cluster) & COMPRESSED != 0).count() as u64
}

/// A descriptor for so many bytes at that place.
pub fn descriptor(bits: u32, host: u64, length: u64) -> u64 {
    let further = (host + length - 1) / 512 - host / 512;
    COMPRESSED | further << (62 - (bits - 8)) | host
}

/// Puts a stream at the end of the file, at an offset that is a multiple of nothing, and makes a cluster of it.
pub fn plant(bytes: &mut Vec<u8>, cluster: u64, stream: &[u8]) {
    bytes.extend([0x55; 77]);
    let host = bytes.len() as u64;
    bytes.extend(stream);
    let entry = descriptor(cluster_bits(bytes), host, stream.len() as u64);
    set_entry(bytes, cluster, entry);
}

pub fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::with_capacity(bytes.len() + 1000);
    let mut encoder = Compress::new_with_window_bits(Compression::default(), false, 12);
    encoder.compress_vec(bytes, &mut stream, FlushCompress::Finish).unwrap();
    stream
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut stream = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
    zstd_safe::compress(&mut stream, bytes, 3).unwrap();
    stream
}

pub fn pack(bytes: &[u8], compression: &str) -> Vec<u8> {
    if compression == ZSTD { zstd(bytes) } else { deflate(bytes) }
}

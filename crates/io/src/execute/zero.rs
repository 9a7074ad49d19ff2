//! Looking for zeroes, as fast as memory is read.

/// Whether all bytes are 0.
pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    /// Wide enough for the compiler to use vectors, small enough to stop early.
    const STRIDE: usize = 256;
    let mut chunks = bytes.chunks_exact(STRIDE);
    chunks.by_ref().all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
        && chunks.remainder().iter().all(|byte| *byte == 0)
}

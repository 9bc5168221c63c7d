//! Where keys and etags get their randomness from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A source of unpredictable bytes. The server hands in the operating system's, tests a seeded one.
pub trait Entropy: Send + Sync + 'static {
    fn fill(&self, bytes: &mut [u8]);
}

/// A new shared access key of 32 bytes, base64.
pub(super) fn new_key(entropy: &dyn Entropy) -> String {
    let mut key = [0; 32];
    entropy.fill(&mut key);
    STANDARD.encode(key)
}

/// A new etag: opaque text that differs from every earlier one of the same record.
pub(super) fn new_etag(entropy: &dyn Entropy) -> String {
    let mut etag = [0; 9];
    entropy.fill(&mut etag);
    STANDARD.encode(etag)
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::atomic::{AtomicU64, Ordering};

    /// Different bytes each time, the same in each run.
    #[derive(Default)]
    pub struct Counting(AtomicU64);

    impl super::Entropy for Counting {
        fn fill(&self, bytes: &mut [u8]) {
            for chunk in bytes.chunks_mut(8) {
                let next = self.0.fetch_add(1, Ordering::Relaxed) + 1;
                let mixed = next.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes();
                chunk.copy_from_slice(&mixed[..chunk.len()]);
            }
        }
    }
}

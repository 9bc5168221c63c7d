//! The placement hint in a client's first destination connection id.
//!
//! ```text
//!   0  2 bytes   0xF0 0x8E
//!   2  8 bytes   model::device_hash of the device id, big endian
//!  10  10 bytes  random, so that the id stays unpredictable (RFC 9000 s7.2: at least 8 bytes)
//! ```
//!
//! The hub accepts such a connection on the shard that owns the device's partition, so that the way from packet to log
//! never leaves a thread. A missing or wrong hint costs a hop between threads, not correctness.

const MARK: [u8; 2] = [0xf0, 0x8e];
/// The longest connection id QUIC version 1 allows.
pub const CONNECTION_ID_BYTES: usize = 20;

/// The first destination connection id of a client of a device with this hash.
pub fn encode(device_hash: u64, random: [u8; 10]) -> [u8; CONNECTION_ID_BYTES] {
    let mut id = [0; CONNECTION_ID_BYTES];
    id[..2].copy_from_slice(&MARK);
    id[2..10].copy_from_slice(&device_hash.to_be_bytes());
    id[10..].copy_from_slice(&random);
    id
}

/// The device hash in a connection id; `None` when the client gave no hint.
pub fn decode(connection_id: &[u8]) -> Option<u64> {
    let id: &[u8; CONNECTION_ID_BYTES] = connection_id.try_into().ok()?;
    (id[..2] == MARK).then(|| u64::from_be_bytes(id[2..10].try_into().expect("eight bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hint_comes_back_and_other_ids_are_none() {
        assert_eq!(decode(&encode(0x1234, [7; 10])), Some(0x1234));
        assert_eq!(decode(&[0xf0, 0x8e, 1]), None);
        assert_eq!(decode(&[1; 20]), None);
    }
}

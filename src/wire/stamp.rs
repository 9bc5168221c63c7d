//! What the hub adds to a batch: who sent it and under which epoch. It stands beside the device's bytes in the log
//! record, never inside them, so that a device cannot set any of it.
//!
//! ```text
//!   0  u64  sequence of the batch's first message in the device's epoch; 0 when the door has no such sequence
//!   8  rkyv archive of `Origin`, the same for every batch of a session
//! ```

use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Serialize};

/// Who sent a batch.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    pub device_id: String,
    /// Empty for the device itself.
    pub module_id: String,
    pub generation: u64,
    /// Epoch of the device's sequences; 0 when the door has none.
    pub epoch: u64,
    /// `iothub-connection-auth-method`, JSON text.
    pub auth_method: String,
}

/// Bytes before the origin.
pub const FIRST_BYTES: usize = 8;

/// The stamp of one session, ready to be completed for each batch.
#[derive(Clone, Debug)]
pub struct StampTemplate(Vec<u8>);

impl StampTemplate {
    pub fn new(origin: &Origin) -> Self {
        let archive = rkyv::to_bytes::<Failure>(origin).expect("an origin fits in memory");
        Self([&[0; FIRST_BYTES], &archive[..]].concat())
    }

    /// The stamp of a batch that starts at `first_sequence`.
    pub fn with(&mut self, first_sequence: u64) -> &[u8] {
        self.0[..FIRST_BYTES].copy_from_slice(&first_sequence.to_le_bytes());
        &self.0
    }
}

/// Bytes that are not a stamp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a valid stamp")]
pub struct StampError;

/// A stamp as read back from a log record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    pub first_sequence: u64,
    pub origin: Origin,
}

impl Stamp {
    /// # Errors
    /// `StampError` when the bytes are not what [`StampTemplate`] writes.
    pub fn read(bytes: &[u8]) -> Result<Self, StampError> {
        let (first, archive) = bytes.split_first_chunk::<FIRST_BYTES>().ok_or(StampError)?;
        let archived = rkyv::api::low::access::<rkyv::Archived<Origin>, Failure>(archive).map_err(|_| StampError)?;
        let origin = rkyv::deserialize::<Origin, Failure>(archived).map_err(|_| StampError)?;
        Ok(Self {
            first_sequence: u64::from_le_bytes(*first),
            origin,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_comes_back_as_it_was_written() {
        let origin = Origin {
            device_id: "dev-01".into(),
            module_id: String::new(),
            generation: 637_540_164_221_770_949,
            epoch: 2,
            auth_method: r#"{"scope":"device"}"#.into(),
        };
        let mut template = StampTemplate::new(&origin);
        let stamp = Stamp::read(template.with(41)).unwrap();
        assert_eq!(
            stamp,
            Stamp {
                first_sequence: 41,
                origin
            }
        );
        assert_eq!(Stamp::read(&[0; 12]), Err(StampError));
    }
}

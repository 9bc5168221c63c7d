//! A batch: many messages in one frame, each an archive of its own, so that any sub-range is a valid batch again.
//!
//! ```text
//! body of an Append frame (little endian)
//!   0  u64  sequence of the first message in the device's epoch, from 1
//!   8  u32  count of messages, from 1
//!  12  u32  zero
//!  16  the payload, stored in the log and handed to consumers as it is:
//!        count x u32   end of each archive, relative to the end of this table
//!        archives      back to back (see `wire::message`)
//! ```

use bytes::Bytes;

use super::frame::{self, FLAG_SKIP, Kind};
use super::message::{self, MessageError, MessageRef, ROOT_BYTES};
use crate::model::Message;

/// Bytes before the payload in the body of an Append frame.
pub const PREFIX_BYTES: usize = 16;
const END_BYTES: usize = 4;

/// Why a batch is refused. Nothing of it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("batch of {bytes} bytes is too short for its count of {count} messages")]
    Truncated { bytes: usize, count: u32 },
    #[error("batch without messages, or numbered from 0")]
    Empty,
    #[error("batch of {count} messages exceeds {count_max}")]
    TooMany { count: u32, count_max: u32 },
    #[error("message {index}: its end is out of order or out of the batch")]
    Ends { index: u32 },
    #[error("message {index}: {cause}")]
    Message { index: u32, cause: MessageError },
    #[error("{bytes} bytes after the last message")]
    Trailing { bytes: usize },
}

/// What a door accepts; announced to the client in the welcome.
#[derive(Clone, Copy, Debug)]
pub struct BatchLimits {
    /// Counted bytes of one message.
    pub message_bytes_max: usize,
    /// Messages of one batch.
    pub count_max: u32,
}

/// A batch whose every message was checked.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Sequence of the first message in the device's epoch.
    pub first_sequence: u64,
    pub count: u32,
    /// A gap before `first_sequence` is meant.
    pub skip: bool,
    /// Table of ends and archives.
    pub payload: Bytes,
}

impl Batch {
    /// Checks the body of an Append frame, without copying it. Cost: about 20 ns a message.
    ///
    /// # Errors
    /// The first fault found, with the message's index; the session is closed with the fault's code.
    pub fn check(body: &Bytes, flags: u16, limits: &BatchLimits) -> Result<Self, BatchError> {
        let (first_sequence, count) = prefix(body)?;
        if count > limits.count_max {
            return Err(BatchError::TooMany {
                count,
                count_max: limits.count_max,
            });
        }
        let payload = body.slice(PREFIX_BYTES..);
        let read = Payload::new(&payload, count)?;
        let mut start = 0;
        for index in 0..count {
            let end = read.end(index);
            if end < start + ROOT_BYTES || end > read.archives.len() {
                return Err(BatchError::Ends { index });
            }
            let fault = |cause| BatchError::Message { index, cause };
            let counted = MessageRef::check(&read.archives[start..end])
                .map_err(fault)?
                .counted_bytes();
            if counted > limits.message_bytes_max {
                return Err(fault(MessageError::TooLarge {
                    bytes: counted,
                    bytes_max: limits.message_bytes_max,
                }));
            }
            start = end;
        }
        if start != read.archives.len() {
            return Err(BatchError::Trailing {
                bytes: read.archives.len() - start,
            });
        }
        Ok(Self {
            first_sequence,
            count,
            skip: flags & FLAG_SKIP != 0,
            payload,
        })
    }

    /// The same batch without its first `skipped` messages (fewer than `count`), copied.
    #[must_use]
    pub fn without_first(&self, skipped: u32) -> Self {
        assert!(skipped < self.count, "a batch keeps at least one message");
        let read = Payload::new(&self.payload, self.count).expect("the batch was checked when it was made");
        let cut = if skipped == 0 { 0 } else { read.end(skipped - 1) };
        let mut payload = Vec::with_capacity(self.payload.len());
        for index in skipped..self.count {
            payload.extend_from_slice(&((read.end(index) - cut) as u32).to_le_bytes());
        }
        payload.extend_from_slice(&read.archives[cut..]);
        Self {
            first_sequence: self.first_sequence + u64::from(skipped),
            count: self.count - skipped,
            skip: self.skip,
            payload: payload.into(),
        }
    }

    /// Sequence of the last message.
    pub fn last_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count) - 1
    }
}

fn prefix(body: &[u8]) -> Result<(u64, u32), BatchError> {
    let Some((prefix, _)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(BatchError::Truncated {
            bytes: body.len(),
            count: 0,
        });
    };
    let first_sequence = u64::from_le_bytes(prefix[..8].try_into().expect("8 of 16 bytes"));
    let count = u32::from_le_bytes(prefix[8..12].try_into().expect("4 of 16 bytes"));
    // A sequence that overflows could wrap into one that is already stored.
    if count == 0 || first_sequence == 0 || first_sequence.checked_add(u64::from(count)).is_none() {
        return Err(BatchError::Empty);
    }
    Ok((first_sequence, count))
}

/// A payload as it stands in the log, cut into its messages.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    count: u32,
    ends: &'a [u8],
    archives: &'a [u8],
}

impl<'a> Payload<'a> {
    /// # Errors
    /// `BatchError::Truncated` when the table of ends does not fit.
    pub fn new(payload: &'a [u8], count: u32) -> Result<Self, BatchError> {
        let truncated = BatchError::Truncated {
            bytes: payload.len(),
            count,
        };
        let ends_bytes = (count as usize).checked_mul(END_BYTES).ok_or(truncated)?;
        let (ends, archives) = payload.split_at_checked(ends_bytes).ok_or(truncated)?;
        Ok(Self { count, ends, archives })
    }

    fn end(&self, index: u32) -> usize {
        let at = index as usize * END_BYTES;
        u32::from_le_bytes(self.ends[at..at + END_BYTES].try_into().expect("four bytes")) as usize
    }

    /// Each message, checked; for readers, to whom the bytes come from outside.
    pub fn messages(self) -> impl Iterator<Item = Result<MessageRef<'a>, BatchError>> {
        self.pieces().enumerate().map(|(index, archive)| {
            let index = index as u32;
            let archive = archive.ok_or(BatchError::Ends { index })?;
            MessageRef::check(archive).map_err(|cause| BatchError::Message { index, cause })
        })
    }

    /// The archives of a payload that was checked.
    ///
    /// # Panics
    /// When it was not.
    pub fn archives(self) -> impl Iterator<Item = &'a [u8]> {
        self.pieces().map(|archive| archive.expect("the payload was checked"))
    }

    fn pieces(self) -> impl Iterator<Item = Option<&'a [u8]>> {
        let mut start = 0;
        (0..self.count).map(move |index| {
            let end = self.end(index);
            let archive = self.archives.get(start..end);
            start = end;
            archive
        })
    }
}

/// Room before the archives for their ends, so that a payload need not be copied to be put together.
const GAP_BYTES: usize = 256 * END_BYTES;
/// Payloads below this are copied into memory of their size: they may wait for long, and copying is cheap.
const COPIED_BYTES_MAX: usize = 4 * 1024;

/// Collects messages and writes them as one Append frame. Reusable: what finishes it leaves it empty.
#[derive(Debug, Default)]
pub struct BatchBuilder {
    ends: Vec<u8>,
    /// After `GAP_BYTES` that are free; without them when there are none.
    archives: Vec<u8>,
    /// What the batches before needed.
    capacity: usize,
}

impl BatchBuilder {
    pub fn push(&mut self, message: &Message) {
        message::encode(message, self.archives());
        self.close_message();
    }

    /// A message with the properties of this one and another body.
    pub fn push_parts(&mut self, message: &Message, body: &[u8]) {
        message::encode_parts(message, body, self.archives());
        self.close_message();
    }

    /// A message that is only a body.
    pub fn push_body(&mut self, body: &[u8]) {
        message::encode_body(body, self.archives());
        self.close_message();
    }

    /// A message that was encoded before.
    pub fn push_archive(&mut self, archive: &[u8]) {
        self.archives().extend_from_slice(archive);
        self.close_message();
    }

    fn archives(&mut self) -> &mut Vec<u8> {
        if self.archives.is_empty() {
            self.archives.reserve(self.capacity);
            self.archives.resize(GAP_BYTES, 0);
        }
        &mut self.archives
    }

    fn close_message(&mut self) {
        let bytes = self.archives.len() - GAP_BYTES;
        let end = u32::try_from(bytes).expect("a batch is bounded far below 4 GiB");
        self.ends.extend_from_slice(&end.to_le_bytes());
    }

    pub fn count(&self) -> u32 {
        (self.ends.len() / END_BYTES) as u32
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Bytes of the frame's body if finished now.
    pub fn body_bytes(&self) -> usize {
        PREFIX_BYTES + self.ends.len() + self.written().len()
    }

    fn written(&self) -> &[u8] {
        self.archives.get(GAP_BYTES..).unwrap_or_default()
    }

    /// Appends the Append frame to `into` and empties the builder.
    pub fn finish(&mut self, first_sequence: u64, skip: bool, into: &mut Vec<u8>) {
        assert!(!self.is_empty(), "a batch has at least one message");
        into.extend_from_slice(&frame::header(
            Kind::Append,
            if skip { FLAG_SKIP } else { 0 },
            self.body_bytes(),
        ));
        into.extend_from_slice(&first_sequence.to_le_bytes());
        into.extend_from_slice(&self.count().to_le_bytes());
        into.extend_from_slice(&[0; 4]);
        into.extend_from_slice(&self.ends);
        into.extend_from_slice(self.written());
        self.ends.clear();
        self.archives.clear();
    }

    /// Only the payload, for callers that have no frame to send. Archives of a large one are not copied.
    pub fn finish_payload(&mut self) -> Bytes {
        let payload = match GAP_BYTES.checked_sub(self.ends.len()) {
            Some(start) if self.written().len() > COPIED_BYTES_MAX => {
                self.capacity = self.archives.len();
                let mut payload = std::mem::take(&mut self.archives);
                payload[start..GAP_BYTES].copy_from_slice(&self.ends);
                Bytes::from(payload).slice(start..)
            }
            Some(_) | None => [&self.ends[..], self.written()].concat().into(),
        };
        self.ends.clear();
        self.archives.clear();
        payload
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::{Decoder, HEADER_BYTES};
    use proptest::prelude::*;

    const LIMITS: BatchLimits = BatchLimits {
        message_bytes_max: 1000,
        count_max: 100,
    };

    fn body_of(bodies: &[&[u8]], first_sequence: u64) -> Bytes {
        let mut builder = BatchBuilder::default();
        for body in bodies {
            builder.push_body(body);
        }
        let mut frame = Vec::new();
        builder.finish(first_sequence, false, &mut frame);
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(frame.into());
        decoder.poll_frame().unwrap().unwrap().body
    }

    fn bodies(batch: &Batch) -> Vec<Vec<u8>> {
        let payload = Payload::new(&batch.payload, batch.count).unwrap();
        payload
            .messages()
            .map(|message| message.unwrap().body().to_vec())
            .collect()
    }

    #[test]
    fn every_sub_range_is_a_valid_batch() {
        let body = body_of(&[b"one", b"", b"three", b"four"], 7);
        let batch = Batch::check(&body, 0, &LIMITS).unwrap();
        assert_eq!((batch.first_sequence, batch.last_sequence()), (7, 10));
        for skipped in 0..4 {
            let rest = batch.without_first(skipped);
            assert_eq!(rest.first_sequence, 7 + u64::from(skipped));
            assert_eq!(bodies(&rest), bodies(&batch)[skipped as usize..]);
        }
    }

    #[test]
    fn faults_are_named_with_their_message() {
        let good = body_of(&[b"one", b"two"], 1).to_vec();
        let check = |change: &dyn Fn(&mut Vec<u8>), expected: BatchError| {
            let mut bytes = good.clone();
            change(&mut bytes);
            assert_eq!(Batch::check(&bytes.into(), 0, &LIMITS).unwrap_err(), expected);
        };
        check(&|b| b.truncate(10), BatchError::Truncated { bytes: 10, count: 0 });
        check(&|b| b[8] = 0, BatchError::Empty);
        check(&|b| b[0] = 0, BatchError::Empty);
        check(&|b| b[..8].fill(0xff), BatchError::Empty);
        check(
            &|b| b[8] = 101,
            BatchError::TooMany {
                count: 101,
                count_max: 100,
            },
        );
        check(
            &|b| b[8] = 60,
            BatchError::Truncated {
                bytes: good.len() - PREFIX_BYTES,
                count: 60,
            },
        );
        check(&|b| b[16] = 5, BatchError::Ends { index: 0 });
        check(&|b| b[20] = 255, BatchError::Ends { index: 1 });
        check(&|b| b.push(0), BatchError::Trailing { bytes: 1 });
        // The body's offset of the first message points out of its archive.
        check(
            &|b| b[24 + 3 + 16 + 3] = 0x7f,
            BatchError::Message {
                index: 0,
                cause: MessageError::Archive,
            },
        );
        let large = body_of(&[&[0; 1001]], 1);
        assert_eq!(
            Batch::check(&large, 0, &LIMITS).unwrap_err(),
            BatchError::Message {
                index: 0,
                cause: MessageError::TooLarge {
                    bytes: 1001,
                    bytes_max: 1000
                }
            }
        );
    }

    #[test]
    fn a_finished_builder_is_empty_again() {
        let mut builder = BatchBuilder::default();
        builder.push_body(b"x");
        let mut frame = Vec::new();
        builder.finish(1, true, &mut frame);
        assert!(builder.is_empty());
        assert_eq!(frame.len(), HEADER_BYTES + PREFIX_BYTES + 4 + 1 + ROOT_BYTES);
    }

    #[test]
    fn payloads_of_all_sizes_are_put_together_alike() {
        let mut builder = BatchBuilder::default();
        for (count, bytes) in [
            (1, 10),
            (3, 3000),
            (256, 100),
            (257, 100),
            (1000, 20),
            (2, 0),
            (1, 200_000),
        ] {
            let body = |n: usize| vec![n as u8; bytes];
            (0..count).for_each(|n| builder.push_body(&body(n)));
            let payload = builder.finish_payload();
            assert!(builder.is_empty());
            let read = Payload::new(&payload, count as u32).unwrap();
            for (n, message) in read.messages().enumerate() {
                assert_eq!(message.unwrap().body(), body(n), "{count} of {bytes}");
            }
        }
    }

    proptest! {
        #[test]
        fn mutated_batches_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = body_of(&[b"one", b"two", b"three"], 1).to_vec();
            let at = at.index(bytes.len());
            bytes[at] = to;
            if let Ok(batch) = Batch::check(&bytes.into(), 0, &LIMITS) {
                prop_assert_eq!(bodies(&batch).len() as u32, batch.count);
            }
        }
    }
}

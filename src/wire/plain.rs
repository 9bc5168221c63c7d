//! The plain encoding of a batch, for producers without rkyv. The hub transcodes it into archives at the door.
//!
//! ```text
//! body of an AppendPlain frame (little endian)
//!   0  u64  sequence of the first message in the device's epoch, from 1
//!   8  u32  count of messages, from 1
//!  12  u32  zero
//!  16  count times:
//!        u16  count of system properties, each: u8 key, u32 bytes, value in UTF-8
//!        u16  count of application properties, each: u16 bytes, name, u32 bytes, value in UTF-8
//!        u32  bytes of the body, body
//! ```

use bytes::Bytes;

use super::batch::{BatchBuilder, BatchError, PREFIX_BYTES};
use super::message::MessageError;
use crate::model::{Message, SystemKey};

/// Rewrites the body of an AppendPlain frame as the body of an Append frame. What comes out still has to pass
/// [`super::batch::Batch::check`], which enforces the limits.
///
/// # Errors
/// `BatchError` with the index of the first message that cannot be read.
pub fn transcode(body: &[u8]) -> Result<Bytes, BatchError> {
    let Some((prefix, rest)) = body.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(BatchError::Truncated {
            bytes: body.len(),
            count: 0,
        });
    };
    let count = u32::from_le_bytes(prefix[8..12].try_into().expect("4 of 16 bytes"));
    let mut reader = Reader(rest);
    let mut builder = BatchBuilder::default();
    for index in 0..count {
        let message = reader.message().map_err(|cause| BatchError::Message { index, cause })?;
        builder.push(&message);
    }
    if !reader.0.is_empty() {
        return Err(BatchError::Trailing { bytes: reader.0.len() });
    }
    Ok([&prefix[..], &builder.finish_payload()].concat().into())
}

/// Appends the plain encoding of one message, for clients and tests.
pub fn encode(message: &Message, into: &mut Vec<u8>) {
    into.extend_from_slice(&(message.system.len() as u16).to_le_bytes());
    for (key, value) in &message.system {
        into.push(*key as u8);
        into.extend_from_slice(&(value.len() as u32).to_le_bytes());
        into.extend_from_slice(value.as_bytes());
    }
    into.extend_from_slice(&(message.properties.len() as u16).to_le_bytes());
    for (name, value) in &message.properties {
        into.extend_from_slice(&(name.len() as u16).to_le_bytes());
        into.extend_from_slice(name.as_bytes());
        into.extend_from_slice(&(value.len() as u32).to_le_bytes());
        into.extend_from_slice(value.as_bytes());
    }
    into.extend_from_slice(&(message.body.len() as u32).to_le_bytes());
    into.extend_from_slice(&message.body);
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], MessageError> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or(MessageError::Archive)?;
        self.0 = rest;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<usize, MessageError> {
        let mut bytes = [0; 8];
        bytes[..N].copy_from_slice(self.take(N)?);
        Ok(u64::from_le_bytes(bytes) as usize)
    }

    fn text(&mut self, bytes: usize) -> Result<String, MessageError> {
        std::str::from_utf8(self.take(bytes)?)
            .map(str::to_owned)
            .map_err(|_| MessageError::Archive)
    }

    fn message(&mut self) -> Result<Message, MessageError> {
        // Lists grow as their entries arrive: a claimed count allocates nothing.
        let mut message = Message::default();
        for _ in 0..self.number::<2>()? {
            let number = self.number::<1>()? as u8;
            let key = SystemKey::from_number(number).ok_or(MessageError::SystemKey { key: number })?;
            let bytes = self.number::<4>()?;
            message.system.push((key, self.text(bytes)?));
        }
        for _ in 0..self.number::<2>()? {
            let bytes = self.number::<2>()?;
            let name = self.text(bytes)?;
            let bytes = self.number::<4>()?;
            message.properties.push((name, self.text(bytes)?));
        }
        let bytes = self.number::<4>()?;
        message.body = self.take(bytes)?.to_vec();
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::batch::{Batch, BatchLimits, Payload};
    use proptest::prelude::*;

    fn plain(messages: &[Message]) -> Vec<u8> {
        let mut body = [&1u64.to_le_bytes()[..], &(messages.len() as u32).to_le_bytes(), &[0; 4]].concat();
        messages.iter().for_each(|message| encode(message, &mut body));
        body
    }

    fn sample() -> Vec<Message> {
        vec![
            Message::new("a").system(SystemKey::MessageId, "1").property("k", "v"),
            Message::new("").system(SystemKey::UserId, "ü"),
        ]
    }

    #[test]
    fn plain_batches_become_the_same_messages() {
        let body = transcode(&plain(&sample())).unwrap();
        let limits = BatchLimits {
            message_bytes_max: 100,
            count_max: 10,
        };
        let batch = Batch::check(&body, 0, &limits).unwrap();
        let payload = Payload::new(&batch.payload, batch.count).unwrap();
        let messages: Vec<_> = payload
            .messages()
            .map(|message| message.unwrap().to_message())
            .collect();
        assert_eq!(messages, sample());
    }

    #[test]
    fn faults_are_named() {
        let mut bytes = plain(&sample());
        bytes.push(0);
        assert_eq!(transcode(&bytes), Err(BatchError::Trailing { bytes: 1 }));
        bytes.truncate(bytes.len() - 4);
        assert_eq!(
            transcode(&bytes),
            Err(BatchError::Message {
                index: 1,
                cause: MessageError::Archive
            })
        );
        bytes[18] = 99;
        assert_eq!(
            transcode(&bytes),
            Err(BatchError::Message {
                index: 0,
                cause: MessageError::SystemKey { key: 99 }
            })
        );
    }

    proptest! {
        #[test]
        fn mutated_plain_batches_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>()) {
            let mut bytes = plain(&sample());
            let at = at.index(bytes.len());
            bytes[at] = to;
            let _ = transcode(&bytes);
        }
    }
}

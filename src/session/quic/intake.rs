//! From the telemetry stream's bytes to batches, without a socket: decoding, checking, and joining small frames.
//!
//! A device that sends one message a frame would otherwise cost a log record, a queue slot and an acknowledgement
//! each; frames that are read together and follow each other directly become one batch.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::wire::batch::{Batch, BatchBuilder, BatchError, BatchLimits, Payload};
use crate::wire::close::CloseCode;
use crate::wire::control::{CONTROL_BYTES_MAX, Control, ControlError, Renew};
use crate::wire::frame::{Decoder, Frame, FrameError, Kind};
use crate::wire::message::MessageError;
use crate::wire::plain;

/// Batches up to this size are joined; larger ones already are cheap per message.
const JOIN_BYTES_MAX: usize = 4 * 1024;
/// A joined batch grows no further than this.
const JOINED_BYTES_MAX: usize = 64 * 1024;

/// Why the stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("a {0:?} frame has no place here")]
    Unexpected(Kind),
}

impl IntakeError {
    pub fn close_code(self) -> CloseCode {
        match self {
            Self::Frame(FrameError::Version { .. } | FrameError::Kind { .. }) => CloseCode::UnsupportedVersion,
            Self::Frame(FrameError::Flags { .. }) => CloseCode::MalformedFrame,
            Self::Frame(FrameError::TooLarge { .. }) => CloseCode::FrameTooLarge,
            Self::Batch(BatchError::Message {
                cause: MessageError::TooLarge { .. },
                ..
            }) => CloseCode::MessageTooLarge,
            Self::Batch(BatchError::Message {
                cause: MessageError::Archive | MessageError::SystemKey { .. },
                ..
            }) => CloseCode::InvalidMessage,
            Self::Batch(BatchError::TooMany { .. }) => CloseCode::FrameTooLarge,
            Self::Batch(
                BatchError::Truncated { .. }
                | BatchError::Empty
                | BatchError::Ends { .. }
                | BatchError::Trailing { .. },
            ) => CloseCode::MalformedFrame,
            Self::Control(_) => CloseCode::MalformedFrame,
            Self::Unexpected(_) => CloseCode::UnexpectedFrame,
        }
    }
}

/// What a device sent besides batches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Renew(Renew),
    Goodbye,
}

/// Holds at most one incomplete frame and the batches that the caller has not taken yet.
#[derive(Debug)]
pub struct Intake {
    decoder: Decoder,
    limits: BatchLimits,
    batches: VecDeque<Batch>,
    join: BatchBuilder,
    /// First sequence and following sequence of the batch being joined.
    joining: Option<(u64, u64)>,
}

impl Intake {
    /// `decoder` may hold bytes that followed the hello.
    pub fn new(mut decoder: Decoder, batch_bytes_max: u32, limits: BatchLimits) -> Self {
        decoder.set_body_bytes_max(batch_bytes_max.max(CONTROL_BYTES_MAX));
        Self {
            decoder,
            limits,
            batches: VecDeque::new(),
            join: BatchBuilder::default(),
            joining: None,
        }
    }

    pub fn feed(&mut self, bytes: Bytes) {
        self.decoder.feed(bytes);
    }

    /// Reads what was fed; batches come out of `poll_batch`, and frames read before it is called may be joined. Control
    /// frames are returned in order, and end the reading until the call is repeated.
    ///
    /// # Errors
    /// `IntakeError`: batches before the fault may still be taken, nothing after it is read.
    pub fn read(&mut self) -> Result<Option<Said>, IntakeError> {
        while let Some(Frame { kind, flags, body }) = self.decoder.poll_frame()? {
            let is_batch = matches!(kind, Kind::Append | Kind::AppendPlain);
            if !is_batch && body.len() > CONTROL_BYTES_MAX as usize {
                // The decoder's bound is that of batches: here any frame may come next.
                return Err(IntakeError::Frame(FrameError::TooLarge {
                    bytes: body.len() as u32,
                    bytes_max: CONTROL_BYTES_MAX,
                }));
            }
            match kind {
                Kind::Append => self.take(Batch::check(&body, flags, &self.limits)?),
                Kind::AppendPlain => {
                    let body: Bytes = plain::transcode(&body)?;
                    self.take(Batch::check(&body, flags, &self.limits)?);
                }
                Kind::Renew => return Ok(Some(Said::Renew(Renew::from_body(&body)?))),
                Kind::Goodbye => return Ok(Some(Said::Goodbye)),
                kind => return Err(IntakeError::Unexpected(kind)),
            }
        }
        Ok(None)
    }

    /// The next batch in order.
    pub fn poll_batch(&mut self) -> Option<Batch> {
        if self.batches.is_empty() {
            self.close_joined();
        }
        self.batches.pop_front()
    }

    fn take(&mut self, batch: Batch) {
        let following = batch.last_sequence() + 1;
        if batch.skip || batch.payload.len() > JOIN_BYTES_MAX {
            self.close_joined();
            self.batches.push_back(batch);
            return;
        }
        let first = match self.joining {
            Some((first, next)) if next == batch.first_sequence && self.join.body_bytes() < JOINED_BYTES_MAX => first,
            Some(_) | None => {
                self.close_joined();
                batch.first_sequence
            }
        };
        let payload = Payload::new(&batch.payload, batch.count).expect("the batch was checked");
        payload.archives().for_each(|archive| self.join.push_archive(archive));
        self.joining = Some((first, following));
    }

    fn close_joined(&mut self) {
        if let Some((first_sequence, _)) = self.joining.take() {
            let count = self.join.count();
            let payload = self.join.finish_payload();
            self.batches.push_back(Batch {
                first_sequence,
                count,
                skip: false,
                payload,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Message;
    use crate::wire::frame;

    const LIMITS: BatchLimits = BatchLimits {
        message_bytes_max: 1 << 18,
        count_max: 1000,
    };

    fn intake() -> Intake {
        Intake::new(Decoder::new(CONTROL_BYTES_MAX), 1 << 20, LIMITS)
    }

    fn append(first: u64, bodies: &[&[u8]], skip: bool) -> Bytes {
        let mut builder = BatchBuilder::default();
        bodies.iter().for_each(|body| builder.push_body(body));
        let mut frame = Vec::new();
        builder.finish(first, skip, &mut frame);
        frame.into()
    }

    fn read(intake: &mut Intake) -> Vec<(u64, u32, bool)> {
        assert_eq!(intake.read().unwrap(), None);
        std::iter::from_fn(|| intake.poll_batch())
            .map(|b| (b.first_sequence, b.count, b.skip))
            .collect()
    }

    #[test]
    fn small_frames_that_follow_each_other_are_joined() {
        let mut intake = intake();
        for n in 1..=5 {
            intake.feed(append(n, &[b"x"], false));
        }
        intake.feed(append(7, &[b"after a gap"], false));
        intake.feed(append(9, &[b"a", b"b"], true));
        intake.feed(append(11, &[&[0; 8000]], false));
        intake.feed(append(12, &[b"y"], false));
        assert_eq!(
            read(&mut intake),
            [
                (1, 5, false),
                (7, 1, false),
                (9, 2, true),
                (11, 1, false),
                (12, 1, false)
            ]
        );
    }

    #[test]
    fn joined_messages_keep_their_order_and_bytes() {
        let mut intake = intake();
        intake.feed(append(1, &[b"one", b"two"], false));
        intake.feed(append(3, &[b"three"], false));
        intake.read().unwrap();
        let batch = intake.poll_batch().unwrap();
        let payload = Payload::new(&batch.payload, batch.count).unwrap();
        let bodies: Vec<_> = payload.messages().map(|m| m.unwrap().body().to_vec()).collect();
        assert_eq!(bodies, [&b"one"[..], b"two", b"three"]);
        assert!(
            Batch::check(
                &[&[1, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0], &batch.payload[..]]
                    .concat()
                    .into(),
                0,
                &LIMITS
            )
            .is_ok()
        );
    }

    #[test]
    fn plain_batches_are_taken_too() {
        let mut body = [&1u64.to_le_bytes()[..], &1u32.to_le_bytes(), &[0; 4]].concat();
        plain::encode(&Message::new("plain"), &mut body);
        let mut intake = intake();
        intake.feed(
            [&frame::header(Kind::AppendPlain, 0, body.len())[..], &body]
                .concat()
                .into(),
        );
        assert_eq!(read(&mut intake), [(1, 1, false)]);
    }

    #[test]
    fn batches_before_a_fault_are_kept_and_frames_out_of_place_refused() {
        let mut intake = intake();
        intake.feed(append(1, &[b"x"], false));
        intake.feed(Bytes::copy_from_slice(&frame::header(Kind::Welcome, 0, 0)));
        let error = intake.read().unwrap_err();
        assert_eq!(error, IntakeError::Unexpected(Kind::Welcome));
        assert_eq!(error.close_code(), CloseCode::UnexpectedFrame);
        assert_eq!(intake.poll_batch().unwrap().first_sequence, 1);
    }
}

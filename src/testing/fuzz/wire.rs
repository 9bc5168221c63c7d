//! The native protocol's parsers.

use super::owned;
use crate::session::quic::fuzz::Intake;
use crate::wire::batch::{Batch, BatchLimits, Payload};
use crate::wire::control::{
    Ack, CONTROL_BYTES_MAX, Checkpoint, CheckpointStored, Control, Credit, Failed, Goodbye, Hello, Renew, Renewed,
    Request, Response, Subscribe, Subscribed, Welcome,
};
use crate::wire::device;
use crate::wire::frame::{Decoder, HEADER_BYTES};
use crate::wire::plain as plain_encoding;
use crate::wire::stamp::{Stamp, StampTemplate};

const LIMITS: BatchLimits = BatchLimits {
    message_bytes_max: 4096,
    count_max: 64,
};
const FRAME_BYTES_MAX: u32 = 64 * 1024;

/// Sequence and archive of every message, and how the reading ended.
type Taken = (Vec<(u64, Vec<u8>)>, Option<String>);

/// A device's stream gives the same messages and the same end however it is cut.
pub(super) fn intake(input: &[u8]) {
    let whole = take(input, input.len().max(1));
    let piece = usize::from(input.first().copied().unwrap_or(0)) % 61 + 1;
    assert_eq!(take(input, piece), whole, "in pieces of {piece} bytes");
}

fn take(input: &[u8], piece: usize) -> Taken {
    let mut intake = Intake::new(Decoder::new(CONTROL_BYTES_MAX), FRAME_BYTES_MAX, LIMITS);
    let mut messages = Vec::new();
    for bytes in input.chunks(piece) {
        intake.feed(bytes::Bytes::copy_from_slice(bytes));
        loop {
            let said = intake.read();
            while let Some(batch) = intake.poll_batch() {
                let payload = Payload::new(&batch.payload, batch.count).expect("checked at the door");
                let read = payload
                    .messages()
                    .map(|message| message.expect("checked at the door").to_message());
                assert_eq!(read.count(), batch.count as usize);
                messages.extend((batch.first_sequence..).zip(payload.archives().map(<[u8]>::to_vec)));
            }
            match said {
                Ok(None) => break,
                Ok(Some(_)) => {}
                Err(error) => return (messages, Some(error.to_string())),
            }
        }
    }
    (messages, None)
}

/// The first two bytes are the frame's flags.
pub(super) fn batch(input: &[u8]) {
    let Some((flags, body)) = input.split_first_chunk() else {
        return;
    };
    let Ok(batch) = Batch::check(&owned(body), u16::from_le_bytes(*flags), &LIMITS) else {
        return;
    };
    assert!(batch.count > 0 && batch.count <= LIMITS.count_max);
    assert!(
        batch.last_sequence() < u64::MAX,
        "the sequence after the last one can be counted"
    );
    let payload = Payload::new(&batch.payload, batch.count).expect("it was checked");
    let archives: Vec<_> = payload.archives().collect();
    for message in payload.messages() {
        let message = message.expect("it was checked");
        assert_eq!(message.counted_bytes(), message.to_message().counted_bytes());
        assert!(message.counted_bytes() <= LIMITS.message_bytes_max);
    }
    for skipped in 0..batch.count {
        let rest = batch.without_first(skipped);
        assert_eq!(rest.last_sequence(), batch.last_sequence());
        let payload = Payload::new(&rest.payload, rest.count).expect("a part of a batch is one");
        assert!(payload.archives().eq(archives[skipped as usize..].iter().copied()));
        assert!(payload.messages().all(|message| message.is_ok()));
    }
}

/// What a plain batch says comes out of the archives it becomes.
pub(super) fn plain(input: &[u8]) {
    let Ok(body) = plain_encoding::transcode(input) else {
        return;
    };
    let limits = BatchLimits {
        message_bytes_max: usize::MAX,
        count_max: u32::MAX,
    };
    let Ok(batch) = Batch::check(&body, 0, &limits) else {
        return;
    };
    let payload = Payload::new(&batch.payload, batch.count).expect("it was checked");
    let mut again = input[..16].to_vec();
    for message in payload.messages() {
        plain_encoding::encode(&message.expect("it was checked").to_message(), &mut again);
    }
    assert_eq!(again, input);
}

/// The first byte chooses the frame.
pub(super) fn control(input: &[u8]) {
    const CHECKS: [fn(&[u8]); 28] = [
        check::<Hello>,
        check::<Welcome>,
        check::<Goodbye>,
        check::<Renew>,
        check::<Renewed>,
        check::<Ack>,
        check::<Subscribe>,
        check::<Subscribed>,
        check::<Credit>,
        check::<Checkpoint>,
        check::<CheckpointStored>,
        check::<Failed>,
        check::<Request>,
        check::<Response>,
        check::<device::Ready>,
        check::<device::CommandsOpen>,
        check::<device::Command>,
        check::<device::Settle>,
        check::<device::Settled>,
        check::<device::TwinOpen>,
        check::<device::Desired>,
        check::<device::TwinGet>,
        check::<device::TwinDocument>,
        check::<device::Report>,
        check::<device::Reported>,
        check::<device::MethodsOpen>,
        check::<device::Invoke>,
        check::<device::Answer>,
    ];
    if let Some((&which, body)) = input.split_first() {
        CHECKS[usize::from(which) % CHECKS.len()](body);
    }
}

fn check<T: Control + PartialEq + std::fmt::Debug>(body: &[u8]) {
    if let Ok(value) = T::from_body(body) {
        assert_eq!(T::from_body(&value.to_frame()[HEADER_BYTES..]), Ok(value));
    }
}

pub(super) fn stamp(input: &[u8]) {
    if let Ok(stamp) = Stamp::read(input) {
        let mut template = StampTemplate::new(&stamp.origin);
        assert_eq!(Stamp::read(template.with(stamp.first_sequence)), Ok(stamp));
    }
}

//! Counts the events of one link; of most of them it reads the frame's header and a few fields of the transfer only.

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use forebay::proto::amqp::frame::HEADER_BYTES;
use forebay::proto::amqp::performative::{Performative, find};
use forebay::proto::amqp::value::{Fields, Reader, Value};

/// Events from one whose sequence number is read to the next. A number says how many came before it, so a gap between
/// shows at the next look.
const LOOK_EVERY: u64 = 64;
// AMQP 1.0 s2.7.5, s2.7.4, s3.2.3.
const TRANSFER: u64 = 0x14;
const FLOW: u64 = 0x13;
const MESSAGE_ANNOTATIONS: u64 = 0x72;

/// A partition's events from `first` on, `wanted` of them.
#[derive(Debug)]
pub struct Sink {
    first: u64,
    wanted: u64,
    /// Events that are complete.
    pub events: u64,
    /// Frames that carried them.
    pub transfers: u64,
    /// All bytes that came.
    pub bytes: u64,
    /// The hub's number of the last complete delivery.
    pub last_complete: Option<u32>,
    /// The delivery whose frames are coming.
    delivery: Option<u32>,
    is_inside: bool,
}

impl Sink {
    pub fn new(first: u64, wanted: u64) -> Self {
        Self {
            first,
            wanted,
            events: 0,
            transfers: 0,
            bytes: 0,
            last_complete: None,
            delivery: None,
            is_inside: false,
        }
    }

    pub fn is_full(&self) -> bool {
        self.events >= self.wanted
    }

    /// Takes all whole frames.
    ///
    /// # Errors
    /// An event is missing or out of order, or the hub ends the link.
    pub fn take(&mut self, input: &mut BytesMut) -> anyhow::Result<()> {
        let mut taken = 0;
        while let Some(header) = input[taken..].first_chunk::<HEADER_BYTES>() {
            let size = u32::from_be_bytes([header[0], header[1], header[2], header[3]]) as usize;
            let body = usize::from(header[4]) * 4;
            ensure!(
                (HEADER_BYTES..=size).contains(&body),
                "a frame of {size} bytes with its body at {body}"
            );
            let Some(frame) = input[taken..].get(..size) else {
                break;
            };
            if body < size {
                self.frame(&frame[body..])?;
            }
            taken += size;
        }
        self.bytes += taken as u64;
        input.advance(taken);
        Ok(())
    }

    fn frame(&mut self, body: &[u8]) -> anyhow::Result<()> {
        let mut reader = Reader::new(body);
        let Value::Described(described) = reader.value()? else {
            bail!("a frame without a performative");
        };
        match described.descriptor()?.as_descriptor() {
            Some(TRANSFER) => {}
            Some(FLOW) => return Ok(()),
            _ => bail!("the hub ends the link: {:?}", Performative::read(body)?.0),
        }
        let Value::List(list) = described.value()? else {
            bail!("a transfer without fields");
        };
        let mut fields = Fields::new(&list);
        // The handle, then after the number: tag, format, settled.
        fields.skip(1)?;
        let delivery = fields.uint()?;
        fields.skip(3)?;
        let is_more = fields.boolean()?.unwrap_or(false);
        self.transfers += 1;
        if !self.is_inside {
            self.delivery = delivery;
            if self.events.is_multiple_of(LOOK_EVERY) || self.events + 1 == self.wanted {
                self.look(reader.rest())?;
            }
        }
        self.is_inside = is_more;
        if !is_more {
            self.events += 1;
            self.last_complete = self.delivery;
        }
        Ok(())
    }

    fn look(&self, message: &[u8]) -> anyhow::Result<()> {
        let found = sequence_number(message).context("an event has no sequence number")?;
        let expected = self.first + self.events;
        ensure!(
            found == expected,
            "event {} of the link has the number {found}, not {expected}",
            self.events
        );
        Ok(())
    }
}

/// Of an event's first frame.
fn sequence_number(message: &[u8]) -> Option<u64> {
    let mut reader = Reader::new(message);
    loop {
        let Value::Described(section) = reader.value().ok()? else {
            return None;
        };
        if section.descriptor().ok()?.as_descriptor() == Some(MESSAGE_ANNOTATIONS) {
            let Value::Map(map) = section.value().ok()? else {
                return None;
            };
            return u64::try_from(find(&map, "x-opt-sequence-number")?.as_integer()?).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay::proto::amqp::frame::{self, FrameKind};
    use forebay::proto::amqp::message::MessageWriter;
    use forebay::proto::amqp::performative::Transfer;

    use super::*;

    fn event(into: &mut Vec<u8>, sequence: u64, frames: u64) {
        let mut message = Vec::new();
        let mut writer = MessageWriter::new(&mut message);
        writer.annotations(1, |map| {
            map.symbol("x-opt-sequence-number");
            map.long(sequence as i64);
        });
        writer.data(b"body");
        for index in 0..frames {
            let transfer = Transfer {
                delivery_id: (index == 0).then_some(sequence as u32),
                more: index + 1 < frames,
                ..Transfer::default()
            };
            frame::put(into, FrameKind::Amqp, 0, |body| {
                Performative::Transfer(transfer).write(body);
                // Later frames carry more of the body, which nobody reads.
                body.extend(if index == 0 { &message[..] } else { b"rest" });
            });
        }
    }

    #[test]
    fn events_count_when_they_are_complete_however_they_arrive() {
        let mut bytes = Vec::new();
        event(&mut bytes, 5, 1);
        event(&mut bytes, 6, 3);
        event(&mut bytes, 7, 1);
        for cut in 0..bytes.len() {
            let mut sink = Sink::new(5, 3);
            let mut input = BytesMut::from(&bytes[..cut]);
            sink.take(&mut input).unwrap();
            assert!(!sink.is_full(), "cut at {cut}");
            input.extend_from_slice(&bytes[cut..]);
            sink.take(&mut input).unwrap();
            assert!(sink.is_full() && input.is_empty(), "cut at {cut}");
            assert_eq!((sink.events, sink.transfers, sink.last_complete), (3, 5, Some(7)));
            assert_eq!(sink.bytes, bytes.len() as u64);
        }
    }

    #[test]
    fn a_missing_or_repeated_event_shows_at_the_next_look() {
        let read = |numbers: &mut dyn Iterator<Item = u64>, wanted| {
            let mut input = BytesMut::new();
            for number in numbers {
                let mut bytes = Vec::new();
                event(&mut bytes, number, 1);
                input.extend_from_slice(&bytes);
            }
            Sink::new(0, wanted).take(&mut input)
        };
        assert!(read(&mut (0..200), 200).is_ok());
        assert!(read(&mut (0..200).filter(|number| *number != 70), 199).is_err());
        assert!(read(&mut (0..200).map(|number| number.min(198)), 200).is_err());
        assert!(read(&mut (1..200), 199).is_err());
    }

    #[test]
    fn the_hubs_farewell_is_told() {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, FrameKind::Amqp, 0, |body| {
            Performative::End(None).write(body)
        });
        let error = Sink::new(0, 1).take(&mut BytesMut::from(&bytes[..])).unwrap_err();
        assert!(error.to_string().contains("ends the link"), "{error}");
    }
}

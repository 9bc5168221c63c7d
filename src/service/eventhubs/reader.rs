//! One reader: from its place in the log to its link, as far as credit and room go.

use std::sync::Arc;

use bytes::Bytes;

use super::EventHubs;
use super::event::{EventWriter, LastEnqueued, of_offset};
use super::seats::Seat;
use crate::amqp::{Link, Sending};
use crate::log::record::Record;
use crate::log::{Cursor, DiskStorage, PartitionView, ReadError, SeekError, Start};
use crate::model::{ConsumerGroup, PartitionId, SequenceNumber, UtcMillis};
use crate::proto::amqp::performative::SenderSettles;
use crate::proto::amqp::selector::{Position, Selector};
use crate::proto::amqp::value::Value;
use crate::proto::amqp::{Accept, Attach, Condition, Error};
use crate::shard::readers::Reading;
use crate::shard::router::Partition;
use crate::wire::batch::Payload;
use crate::wire::message::MessageRef;

/// Log bytes taken at a time: a slice of the mapping, so that more costs nothing but the pages.
const CHUNK_BYTES: usize = 256 * 1024;
// Built-in endpoint sections 4.3 and 4.5.
const RUNTIME_METRIC: &str = "com.microsoft:enable-receiver-runtime-metric";
const LEVEL: &str = "com.microsoft:epoch";
const NAME: &str = "com.microsoft:receiver-name";
/// A name is for people who read errors.
const NAME_BYTES_MAX: usize = 128;

/// An opened reader that has not begun.
pub(super) struct Reader {
    hub: Arc<EventHubs>,
    partition: Arc<Partition<DiskStorage>>,
    cursor: Cursor<DiskStorage>,
    seat: Seat,
    reading: Reading,
    writer: EventWriter,
    /// What was read and is not sent yet.
    rest: Rest,
    tells_last: bool,
    accept: Option<Accept>,
}

/// Records that were read, from the one that is being sent.
#[derive(Default)]
struct Rest {
    bytes: Bytes,
    /// Nothing below it was asked for.
    from: SequenceNumber,
}

/// Judges what a client asks for, and takes its place.
///
/// # Errors
/// What the client is to be told.
pub(super) fn open(
    hub: &Arc<EventHubs>,
    group: ConsumerGroup,
    id: PartitionId,
    attach: &Attach,
) -> Result<Reader, Error> {
    let argument = |text: String| Error::new(Condition::ARGUMENT_ERROR, text);
    let filter = attach.source.as_ref().and_then(|source| source.filter.as_deref());
    let selector = Selector::read(filter).map_err(|error| argument(error.to_string()))?;
    let level = match attach.property(LEVEL) {
        None | Some(Value::Null) => None,
        Some(value) => Some(
            value
                .as_integer()
                .ok_or_else(|| argument(format!("{LEVEL} is not a number")))?,
        ),
    };
    let partition = hub.router.partition(id).expect("it was found before").clone();
    let cursor = seek(&partition.view, &selector)?;
    let name = match attach.property(NAME) {
        Some(Value::String(name)) if name.len() <= NAME_BYTES_MAX => name.to_owned(),
        _ => attach.name.chars().take(NAME_BYTES_MAX).collect(),
    };
    let (seat, displaced) = hub.seats.take(&group, id, &name, level)?;
    (0..displaced).for_each(|_| hub.observer.displaced());
    let tells_last = attach
        .desired_capabilities
        .iter()
        .any(|wanted| wanted == RUNTIME_METRIC);
    let accept = Accept {
        // Built-in endpoint section 4.3: as it is asked for; settled where it is all the same.
        sender_settles: (attach.sender_settles == SenderSettles::Mixed).then_some(SenderSettles::Settled),
        // The place in the log never depends on them.
        tracks_outcomes: false,
        offered_capabilities: if tells_last {
            vec![RUNTIME_METRIC.to_owned()]
        } else {
            Vec::new()
        },
        ..Accept::default()
    };
    Ok(Reader {
        hub: hub.clone(),
        reading: hub.readers.enter(&group, id, cursor.position()),
        partition,
        cursor,
        seat,
        writer: EventWriter::default(),
        rest: Rest::default(),
        tells_last,
        accept: Some(accept),
    })
}

/// A cursor where the selector points. What is gone is passed over: the oldest there is comes first.
fn seek(view: &Arc<PartitionView<DiskStorage>>, selector: &Selector) -> Result<Cursor<DiskStorage>, Error> {
    let start = start_of(selector).ok_or_else(|| invalid(selector, view.durable()))?;
    match view.cursor(start) {
        Ok(cursor) => Ok(cursor),
        Err(SeekError::Retained { .. }) => view.cursor(Start::Earliest).map_err(|error| unreadable(&error)),
        Err(SeekError::Beyond { next, .. }) => Err(invalid(selector, next)),
        Err(SeekError::Read(error)) => Err(unreadable(&error)),
    }
}

/// Where in the log a selector begins; `None` for an offset that no event carried.
// Built-in endpoint section 4.4.
pub fn start_of(selector: &Selector) -> Option<Start> {
    let from = |number: i64| {
        let first = if selector.is_inclusive {
            number
        } else {
            number.saturating_add(1)
        };
        u64::try_from(first).map_or(Start::Earliest, |first| Start::Sequence(SequenceNumber(first)))
    };
    Some(match &selector.position {
        Position::Earliest => Start::Earliest,
        Position::Latest => Start::Latest,
        Position::Offset(text) => from(of_offset(text)?),
        Position::Sequence(number) => from(*number),
        Position::Time(ms) if selector.is_inclusive => Start::Time(UtcMillis(*ms)),
        Position::Time(ms) => Start::Time(UtcMillis(ms.saturating_add(1))),
    })
}

fn invalid(selector: &Selector, next: SequenceNumber) -> Error {
    let last = i64::try_from(next.0).unwrap_or(i64::MAX) - 1;
    let text = match &selector.position {
        Position::Sequence(number) => format!(
            "The supplied sequence number '{number}' is invalid. The last sequence number in the system is '{last}'"
        ),
        Position::Offset(offset) => {
            format!("The supplied offset '{offset}' is invalid. The last offset in the system is '{last}'")
        }
        Position::Earliest | Position::Latest | Position::Time(_) => "The supplied position is invalid.".to_owned(),
    };
    Error::new(Condition::ARGUMENT_ERROR, text)
}

fn unreadable(error: &(impl std::fmt::Display + ?Sized)) -> Error {
    Error::new(Condition::INTERNAL_ERROR, error.to_string())
}

impl Reader {
    /// Serves the link until it ends.
    pub async fn run(mut self, link: Link) {
        link.accept(self.accept.take().expect("it was made with the reader"));
        let mut is_new = true;
        loop {
            match self.send(&link, is_new) {
                Ok(()) => {}
                Err(error) => return link.end(error),
            }
            is_new = false;
            let waits_for_more = link.can_send();
            if waits_for_more {
                link.drained();
            }
            tokio::select! {
                () = link.changed() => {}
                () = self.partition.durable_past(self.cursor.position()), if waits_for_more => {}
                lost = self.seat.lost() => return link.end(lost),
            }
            if link.is_detached() {
                return;
            }
            // A reader that is sent as much as it takes must still hear of a newer one.
            if let Some(lost) = self.seat.loss() {
                return link.end(lost);
            }
        }
    }

    /// Sends what there is, as far as credit and room go.
    fn send(&mut self, link: &Link, is_new: bool) -> Result<(), Error> {
        let mut sent = Sent::default();
        let mut result = Ok(());
        while link.can_send() {
            if self.rest.bytes.is_empty() && !self.read(is_new)? {
                break;
            }
            let last = self.tells_last.then(|| self.last_enqueued(link));
            let sending = link.send_all(|sending| self.send_rest(sending, last.as_ref(), &mut sent));
            result = sending.unwrap_or(Ok(()));
            if result.is_err() {
                break;
            }
        }
        if sent.events > 0 {
            self.hub.observer.delivered(sent.bytes, sent.events);
            self.reading.at(sent.next);
        }
        result
    }

    /// Takes the next records from the log; whether there were any.
    fn read(&mut self, is_new: bool) -> Result<bool, Error> {
        loop {
            match self.cursor.read(CHUNK_BYTES) {
                Ok(None) => return Ok(false),
                Ok(Some(chunk)) => {
                    self.rest = Rest {
                        bytes: chunk.bytes,
                        from: chunk.first_wanted,
                    };
                    return Ok(true);
                }
                // Retention was faster: the oldest there is comes next, and its number shows the gap.
                Err(ReadError::Retained { .. }) => {
                    self.cursor.seek(Start::Earliest).map_err(|error| unreadable(&error))?;
                }
                // A client that comes back to the place where it was told of the damage goes on behind it: what is lost
                // stays lost, and its other events wait.
                Err(ReadError::Damaged(damage)) if is_new => {
                    tracing::error!(%damage, "a reader goes on behind records that are lost");
                    let next = Start::Sequence(damage.next);
                    self.cursor.seek(next).map_err(|error| unreadable(&error))?;
                }
                Err(error @ (ReadError::Damaged(_) | ReadError::Io(_))) => return Err(unreadable(&error)),
            }
        }
    }

    fn send_rest(
        &mut self,
        sending: &mut Sending<'_>,
        last: Option<&LastEnqueued>,
        sent: &mut Sent,
    ) -> Result<(), Error> {
        while !self.rest.bytes.is_empty() {
            let record = Record::parse(&self.rest.bytes).map_err(|error| unreadable(&error))?;
            let header = record.header;
            self.writer
                .begin(&header, record.stamp)
                .map_err(|error| unreadable(&error))?;
            let payload = Payload::new(record.payload, header.count).map_err(|error| unreadable(&error))?;
            let skipped = self.rest.from.0.saturating_sub(header.first.0);
            let mut sequence = SequenceNumber(header.first.0 + skipped);
            for archive in payload.archives().skip(usize::try_from(skipped).unwrap_or(usize::MAX)) {
                if !sending.can_send() {
                    self.rest.from = sequence;
                    return Ok(());
                }
                let message = MessageRef::check(archive).map_err(|error| unreadable(&error))?;
                let writer = &self.writer;
                let mut bytes = 0;
                sending.send(&sequence.0.to_be_bytes(), |out| {
                    let before = out.len();
                    writer.write(sequence, &message, last, out);
                    bytes = out.len() - before;
                });
                sent.bytes += bytes as u64;
                sent.events += 1;
                sequence = sequence.plus(1);
                sent.next = sequence;
            }
            self.rest.from = header.next();
            let record_bytes = header.padded_bytes().min(self.rest.bytes.len());
            self.rest.bytes = self.rest.bytes.slice(record_bytes..);
        }
        Ok(())
    }

    fn last_enqueued(&self, link: &Link) -> LastEnqueued {
        let (sequence, time) = last_of(&self.partition.view);
        LastEnqueued {
            sequence,
            time,
            retrieved: link.visited().door.clock.now(),
        }
    }
}

/// The sequence number and enqueued time of the last durable event; -1 and the first second of time for none.
pub(super) fn last_of(view: &Arc<PartitionView<DiskStorage>>) -> (i64, UtcMillis) {
    let durable = view.durable();
    let Some(last) = durable.0.checked_sub(1) else {
        return (-1, NEVER);
    };
    let time = view
        .cursor(Start::Sequence(SequenceNumber(last)))
        .ok()
        .and_then(|mut cursor| cursor.read(1).ok()?)
        .and_then(|chunk| Some(Record::parse(&chunk.bytes).ok()?.header.enqueued_time));
    (i64::try_from(last).unwrap_or(i64::MAX), time.unwrap_or(NEVER))
}

/// 0001-01-01, as Event Hubs says "never".
pub(super) const NEVER: UtcMillis = UtcMillis(-62_135_596_800_000);

#[derive(Default)]
struct Sent {
    bytes: u64,
    events: u64,
    next: SequenceNumber,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_begin_where_the_contract_says() {
        let check = |text: &str, expected: Option<Start>| {
            assert_eq!(start_of(&Selector::parse(text).unwrap()), expected, "{text}");
        };
        let sequence = |n| Some(Start::Sequence(SequenceNumber(n)));
        check("amqp.annotation.x-opt-offset > '-1'", Some(Start::Earliest));
        check("amqp.annotation.x-opt-offset > '@latest'", Some(Start::Latest));
        check("amqp.annotation.x-opt-offset > '41'", sequence(42));
        check("amqp.annotation.x-opt-offset >= '41'", sequence(41));
        check("amqp.annotation.x-opt-offset > 'x'", None);
        check("amqp.annotation.x-opt-sequence-number > '-1'", sequence(0));
        check("amqp.annotation.x-opt-sequence-number >= '-1'", Some(Start::Earliest));
        check("amqp.annotation.x-opt-sequence-number > '-9'", Some(Start::Earliest));
        check(
            "amqp.annotation.x-opt-sequence-number > 9223372036854775807",
            sequence(i64::MAX as u64),
        );
        check(
            "amqp.annotation.x-opt-enqueued-time > '7'",
            Some(Start::Time(UtcMillis(8))),
        );
        check(
            "amqp.annotation.x-opt-enqueued-time >= '7'",
            Some(Start::Time(UtcMillis(7))),
        );
    }
}

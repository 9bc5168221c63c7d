//! The live tail: what arrives, filtered, by long polling.
//!
//! ```text
//!   request ── at: where each partition was read to ──> read ── found or more to look at ──> answer, at
//!                                                        ^  |
//!                                                        |  nothing
//!                                                        +── wait for a partition to grow, at most WAIT
//! ```
//!
//! The place stands in the browser, not here: one that is slow, gone or asleep costs nothing between its requests, and
//! goes on where it was after a restart of the hub. What one request reads and answers is bounded; a live reader that
//! falls behind skips to the newest and is told how much it missed. No consumer group is involved.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use actix_web::HttpResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;
use serde_json::json;

use super::Console;
use super::denied::Denied;
use super::serve::{Call, json_answer};
use crate::hub::Permissions;
use crate::log::record::{Record, RecordHeader};
use crate::log::{DiskStorage, ReadError, SeekError, Start};
use crate::model::{PartitionId, SequenceNumber, UtcMillis};
use crate::shard::router::{Partition, Router};
use crate::wire::batch::Payload;
use crate::wire::message::MessageRef;
use crate::wire::stamp::Stamp;

/// Requests that read or wait at a time.
pub const TAILS_MAX: usize = 8;
/// How long a request waits for something to show.
const WAIT: Duration = Duration::from_secs(15);
/// What has come by then after the first message goes with it.
const GATHER: Duration = Duration::from_millis(100);
/// Bytes of log read for one answer, over all partitions.
const SCAN_BYTES_MAX: usize = 2 << 20;
/// Messages of one answer.
const MESSAGES_MAX: usize = 200;
/// Bytes of one answer, about.
const ANSWER_BYTES_MAX: usize = 256 * 1024;
/// A live reader that is further behind in a partition skips to the newest.
const LIVE_LAG_MAX: u64 = 1_000;
/// How many of the newest it is shown then.
const LIVE_KEPT: u64 = 50;
/// Of a body, and of a property's name or value, that are shown.
const BODY_BYTES_MAX: usize = 4 * 1024;
const VALUE_BYTES_MAX: usize = 512;
const PROPERTIES_MAX: usize = 64;

/// Where a partition was read to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    partition: PartitionId,
    next: u64,
}

/// What a reader wants to see.
#[derive(Clone, Debug, Default)]
struct Filter {
    /// In the id of the device, in lower case; empty: any.
    device: String,
    /// In the body, or in a property's name or value; empty: any.
    text: String,
    /// Skips to the newest rather than show everything.
    is_live: bool,
}

/// One message as the page shows it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    partition: u16,
    sequence: u64,
    time: i64,
    device_id: String,
    module_id: String,
    /// Of the message; less may be shown.
    body_bytes: usize,
    body: String,
    /// The body is no text: base64 of its first bytes.
    is_base64: bool,
    properties: Vec<(String, String)>,
    system: Vec<(&'static str, String)>,
}

#[derive(Debug, Default)]
struct Batch {
    messages: Vec<Shown>,
    bytes: usize,
    /// Messages that were looked at.
    scanned: u64,
    /// Messages that were passed over unseen: too far behind, gone, or damaged.
    skipped: u64,
    /// There is more to read at once.
    has_more: bool,
}

impl Console {
    pub(super) async fn tail(&self, call: &Call<'_>, token: &str) -> Result<HttpResponse, Denied> {
        let _place = self.tails.try_acquire().map_err(|_| Denied::tails())?;
        let router = &self.parts.router;
        let mut places = places(call, router)?;
        let filter = Filter {
            device: call.query("device").unwrap_or_default().to_ascii_lowercase(),
            text: call.query("text").unwrap_or_default(),
            is_live: call.query("live").is_some(),
        };
        let deadline = Instant::now() + WAIT;
        loop {
            let (shared, wanted) = (router.clone(), filter.clone());
            let batch;
            (places, batch) = self
                .walk(move || {
                    let mut places = places;
                    let batch = read(&shared, &mut places, &wanted);
                    (places, batch)
                })
                .await?;
            let is_over = Instant::now() >= deadline;
            if !batch.messages.is_empty() || batch.has_more || batch.skipped > 0 || batch.scanned > 0 || is_over {
                return Ok(json_answer(&json!({
                    "at": written(&places),
                    "messages": batch.messages,
                    "scanned": batch.scanned,
                    "skipped": batch.skipped,
                    "more": batch.has_more,
                })));
            }
            let grown = grown(router, &places);
            if tokio::time::timeout_at(deadline.into(), grown).await.is_ok() {
                tokio::time::sleep(GATHER).await;
            }
            // Whoever waited may have been signed out meanwhile.
            if !self.is_signed_in(token, Permissions::SERVICE_CONNECT) {
                return Err(Denied::session());
            }
        }
    }
}

/// Where a request begins: where it says it was, or as a new reader.
fn places(call: &Call<'_>, router: &Router<DiskStorage>) -> Result<Vec<Place>, Denied> {
    let only: Option<u16> = match call.query("partition").filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| Denied::body("partition is no number"))?),
    };
    if only.is_some_and(|only| only >= router.partition_count()) {
        let last = router.partition_count() - 1;
        return Err(Denied::body(format_args!("the hub has partitions 0 to {last}")));
    }
    let is_wanted = |partition: PartitionId| only.is_none_or(|only| only == partition.0);
    if let Some(at) = call.query("at") {
        let places = parsed(&at).ok_or_else(|| Denied::body("at is no place of this hub"))?;
        let is_known = |place: &Place| router.partition(place.partition).is_some();
        if places.len() > router.partitions().len() || !places.iter().all(is_known) {
            return Err(Denied::body("at is no place of this hub"));
        }
        return Ok(places.into_iter().filter(|place| is_wanted(place.partition)).collect());
    }
    let from = call.query("from").unwrap_or_default();
    let start = match from.split_once(':') {
        None if from.is_empty() || from == "latest" => Start::Latest,
        None if from == "earliest" => Start::Earliest,
        Some(("time", ms)) => Start::Time(UtcMillis(
            ms.parse().map_err(|_| Denied::body("from: the time is no number"))?,
        )),
        None | Some(_) => return Err(Denied::body("from is none of latest, earliest and time:{milliseconds}")),
    };
    let partitions = router.partitions().iter();
    Ok(partitions
        .filter(|partition| is_wanted(partition.view.partition()))
        .map(|partition| {
            // Damage on the way to a time: everything from there on is behind it.
            let cursor = partition.view.cursor(start);
            let next = cursor.map_or_else(|_| partition.view.durable(), |cursor| cursor.position());
            Place {
                partition: partition.view.partition(),
                next: next.0,
            }
        })
        .collect())
}

/// `0-17.1-4`: partition and next sequence number.
fn written(places: &[Place]) -> String {
    let texts = places.iter().map(|place| format!("{}-{}", place.partition, place.next));
    texts.collect::<Vec<_>>().join(".")
}

fn parsed(text: &str) -> Option<Vec<Place>> {
    let mut places: Vec<Place> = Vec::new();
    for part in text.split('.') {
        let (partition, next) = part.split_once('-')?;
        let place = Place {
            partition: PartitionId(partition.parse().ok()?),
            next: next.parse().ok()?,
        };
        if places.iter().any(|known| known.partition == place.partition) {
            return None;
        }
        places.push(place);
    }
    Some(places)
}

/// Completes when one of the partitions has something behind its place.
async fn grown(router: &Router<DiskStorage>, places: &[Place]) {
    let mut waiting: Vec<Pin<Box<dyn Future<Output = ()> + '_>>> = Vec::with_capacity(places.len());
    for place in places {
        if let Some(partition) = router.partition(place.partition) {
            waiting.push(Box::pin(partition.durable_past(SequenceNumber(place.next))));
        }
    }
    poll_fn(|context| {
        let is_grown = waiting.iter_mut().any(|one| one.as_mut().poll(context).is_ready());
        if is_grown { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Reads each partition from its place, a fair share of what one answer may hold.
fn read(router: &Router<DiskStorage>, places: &mut [Place], filter: &Filter) -> Batch {
    let mut batch = Batch::default();
    let shares = places.len().max(1);
    for place in places.iter_mut() {
        let Some(partition) = router.partition(place.partition) else {
            continue;
        };
        let room = Room {
            scan_bytes: SCAN_BYTES_MAX / shares,
            messages: (MESSAGES_MAX / shares).max(1) + batch.messages.len(),
            answer_bytes: ANSWER_BYTES_MAX / shares + batch.bytes,
        };
        read_partition(partition, place, filter, &room, &mut batch);
    }
    batch
        .messages
        .sort_by_key(|message| (message.time, message.partition, message.sequence));
    batch
}

/// Up to where a batch may grow by one partition.
struct Room {
    scan_bytes: usize,
    messages: usize,
    answer_bytes: usize,
}

fn read_partition(
    partition: &Partition<DiskStorage>,
    place: &mut Place,
    filter: &Filter,
    room: &Room,
    batch: &mut Batch,
) {
    let view = &partition.view;
    let durable = view.durable().0;
    if filter.is_live && durable.saturating_sub(place.next) > LIVE_LAG_MAX {
        batch.skipped += durable - LIVE_KEPT - place.next;
        place.next = durable - LIVE_KEPT;
    }
    let mut scanned_bytes = 0;
    loop {
        let mut cursor = match view.cursor(Start::Sequence(SequenceNumber(place.next))) {
            Ok(cursor) => cursor,
            // Retention was faster.
            Err(SeekError::Retained { first }) => {
                batch.skipped += first.0.saturating_sub(place.next);
                place.next = first.0;
                continue;
            }
            // The place is of another life of the data.
            Err(SeekError::Beyond { next, .. }) => {
                place.next = next.0;
                return;
            }
            Err(SeekError::Read(_)) => return,
        };
        loop {
            match cursor.read(room.scan_bytes) {
                Ok(None) => return,
                Ok(Some(chunk)) => {
                    scanned_bytes += chunk.bytes.len();
                    let mut bytes = &chunk.bytes[..];
                    while let Ok(record) = Record::parse(bytes) {
                        if !take(&record, place, filter, room, batch) {
                            batch.has_more = true;
                            return;
                        }
                        bytes = bytes.get(record.header.padded_bytes()..).unwrap_or_default();
                    }
                    // A record that could not be read is passed over with the chunk.
                    place.next = place.next.max(chunk.next.0);
                    if scanned_bytes >= room.scan_bytes {
                        batch.has_more |= view.durable().0 > place.next;
                        return;
                    }
                }
                Err(ReadError::Retained { first }) => {
                    batch.skipped += first.0.saturating_sub(place.next);
                    place.next = first.0;
                    break;
                }
                Err(ReadError::Damaged(damage)) if damage.next.0 > place.next => {
                    batch.skipped += damage.next.0 - place.next;
                    place.next = damage.next.0;
                    break;
                }
                Err(ReadError::Damaged(_) | ReadError::Io(_)) => return,
            }
        }
    }
}

/// Looks at a record's messages from the place on; false when the batch has no room for the next one.
fn take(record: &Record<'_>, place: &mut Place, filter: &Filter, room: &Room, batch: &mut Batch) -> bool {
    let header = record.header;
    let (Ok(stamp), Ok(payload)) = (Stamp::read(record.stamp), Payload::new(record.payload, header.count)) else {
        place.next = place.next.max(header.next().0);
        return true;
    };
    let origin = stamp.origin;
    let is_device = filter.device.is_empty() || origin.device_id.to_ascii_lowercase().contains(&filter.device);
    if !is_device {
        batch.scanned += header.next().0.saturating_sub(place.next);
        place.next = place.next.max(header.next().0);
        return true;
    }
    let skipped = usize::try_from(place.next.saturating_sub(header.first.0)).unwrap_or(usize::MAX);
    for message in payload.messages().skip(skipped) {
        if batch.messages.len() >= room.messages || batch.bytes >= room.answer_bytes {
            return false;
        }
        batch.scanned += 1;
        if let Ok(message) = message
            && has_text(&message, &filter.text)
        {
            let shown = show(&message, place, &header, &origin.device_id, &origin.module_id);
            batch.bytes += shown.bytes();
            batch.messages.push(shown);
        }
        place.next += 1;
    }
    place.next = place.next.max(header.next().0);
    true
}

fn has_text(message: &MessageRef<'_>, text: &str) -> bool {
    let wanted = text.as_bytes();
    wanted.is_empty()
        || message.body().windows(wanted.len()).any(|window| window == wanted)
        || message
            .properties()
            .any(|(name, value)| name.contains(text) || value.contains(text))
        || message.system().any(|(_, value)| value.contains(text))
}

fn show(message: &MessageRef<'_>, place: &Place, header: &RecordHeader, device: &str, module: &str) -> Shown {
    let body = message.body();
    let (text, is_base64) = match std::str::from_utf8(body) {
        Ok(text) => (cut(text, BODY_BYTES_MAX).to_owned(), false),
        Err(_) => (STANDARD.encode(&body[..body.len().min(BODY_BYTES_MAX)]), true),
    };
    let short = |text: &str| cut(text, VALUE_BYTES_MAX).to_owned();
    Shown {
        partition: place.partition.0,
        sequence: place.next,
        time: header.enqueued_time.0,
        device_id: device.to_owned(),
        module_id: module.to_owned(),
        body_bytes: body.len(),
        body: text,
        is_base64,
        properties: message
            .properties()
            .take(PROPERTIES_MAX)
            .map(|(name, value)| (short(name), short(value)))
            .collect(),
        system: message
            .system()
            .map(|(key, value)| (key.name(), short(value)))
            .collect(),
    }
}

impl Shown {
    /// In the answer, about.
    fn bytes(&self) -> usize {
        let properties = self.properties.iter().map(|(name, value)| name.len() + value.len() + 8);
        let system = self.system.iter().map(|(name, value)| name.len() + value.len() + 8);
        200 + self.device_id.len() + self.module_id.len() + self.body.len() + properties.chain(system).sum::<usize>()
    }
}

/// At most so many bytes of a text, whole characters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_come_back_as_they_were_written() {
        let place = |partition, next| Place {
            partition: PartitionId(partition),
            next,
        };
        let places = [place(0, 17), place(3, u64::MAX)];
        assert_eq!(written(&places), "0-17.3-18446744073709551615");
        assert_eq!(parsed(&written(&places)).unwrap(), places);
        for text in ["", "0", "0-", "-1", "0-x", "0-1.", "0-1.0-2", "70000-1", "0-1-2"] {
            assert_eq!(parsed(text), None, "{text}");
        }
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("aéb", 2), "a");
        assert_eq!(cut("aéb", 3), "aé");
        assert_eq!(cut("ab", 9), "ab");
    }
}

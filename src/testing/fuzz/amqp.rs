//! What reads AMQP from outside.

use crate::proto::amqp::address::Address;
use crate::proto::amqp::message::BATCH_FORMAT;
use crate::proto::amqp::selector::Selector;
use crate::proto::amqp::{Accept, Connection, DeliveryState, Event, Limits};
use crate::session::amqp::fuzz::telemetry;

const MESSAGE_BYTES_MAX: usize = 4096;
const COUNTED_BYTES_MAX: usize = 256;
/// Rounds of one input: a peer that grants credit is sent something each time.
const EVENTS_MAX: usize = 1000;

fn limits() -> Limits {
    Limits {
        container_id: "hub".to_owned(),
        mechanisms: &["ANONYMOUS", "PLAIN"],
        frame_bytes_max: 1024,
        sessions_max: 3,
        links_max: 4,
        session_window: 8,
        message_bytes_max: MESSAGE_BYTES_MAX,
        assembling_bytes_max: 2 * MESSAGE_BYTES_MAX,
        idle_timeout_ms: 60_000,
    }
}

/// A connection says and does the same however its bytes are cut.
pub(super) fn connection(input: &[u8]) {
    let whole = talk(input, input.len().max(1));
    let piece = usize::from(input.first().copied().unwrap_or(0)) % 61 + 1;
    let cut = talk(input, piece);
    assert_eq!(cut.0, whole.0, "in pieces of {piece} bytes");
    assert_eq!(cut.1, whole.1, "in pieces of {piece} bytes");
}

/// What happened, and what the hub said to it.
fn talk(input: &[u8], piece: usize) -> (Vec<Event>, Vec<u8>) {
    let mut connection = Connection::new(limits());
    let mut events = Vec::new();
    let mut said = Vec::new();
    for bytes in input.chunks(piece) {
        connection.input().extend_from_slice(bytes);
        while events.len() < EVENTS_MAX
            && let Some(event) = connection.poll_event()
        {
            answer(&mut connection, &event);
            events.push(event);
            said.append(connection.output());
        }
        said.append(connection.output());
    }
    assert!(connection.links() <= limits().links_max);
    (events, said)
}

/// What a server that takes everything does.
fn answer(connection: &mut Connection, event: &Event) {
    match event {
        Event::Sasl(init) => connection.sasl_outcome(init.mechanism == "ANONYMOUS"),
        Event::Attached(link, attach) => {
            connection.accept(
                *link,
                Accept {
                    credit: 3,
                    tracks_outcomes: attach.handle % 2 == 0,
                    ..Accept::default()
                },
            );
        }
        Event::Delivered(link, delivery) => {
            assert!(delivery.payload.len() <= MESSAGE_BYTES_MAX);
            connection.dispose(*link, delivery.id, delivery.id, DeliveryState::Accepted);
            connection.grant(*link, 3);
        }
        Event::Settled(link, settled) if !settled.is_final => {
            connection.settle(*link, settled.id, DeliveryState::Accepted);
        }
        Event::Flow(link) if connection.can_send(*link) => {
            let credit = connection.credit(*link);
            connection.send(*link, b"tag", |out| out.extend([0; 700]));
            assert_eq!(connection.credit(*link), credit - 1);
            connection.drained(*link);
        }
        Event::Opened { .. }
        | Event::Settled(..)
        | Event::Flow(_)
        | Event::Detached(_)
        | Event::Closed(_)
        | Event::Failed(_) => {}
    }
}

/// One message, or, if the first byte is odd, a batch: what is taken keeps the limits and has each name once.
pub(super) fn message(input: &[u8]) {
    let Some((how, payload)) = input.split_first() else {
        return;
    };
    let format = if how & 1 == 1 { BATCH_FORMAT } else { 0 };
    let Ok(messages) = telemetry(payload, format, COUNTED_BYTES_MAX) else {
        return;
    };
    let bytes: usize = messages.iter().map(crate::model::Message::counted_bytes).sum();
    assert!(bytes <= COUNTED_BYTES_MAX);
    for message in &messages {
        let mut keys: Vec<_> = message.system.iter().map(|(key, _)| *key).collect();
        keys.sort_unstable();
        assert!(keys.windows(2).all(|pair| pair[0] != pair[1]), "{keys:?}");
        let mut names: Vec<_> = message
            .properties
            .iter()
            .map(|(name, _)| name.to_ascii_lowercase())
            .collect();
        names.sort_unstable();
        assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
    }
}

/// A link's address means the same with a slash before it; a filter is read or not.
pub(super) fn address(input: &[u8]) {
    let _ = Selector::read(Some(input));
    let Ok(text) = std::str::from_utf8(input) else { return };
    let address = Address::parse(text);
    if !text.contains("://") {
        assert_eq!(Address::parse(&format!("/{text}")), address);
    }
}

//! What the HTTPS port reads by itself: the handshake and the frames of WebSockets.

use bytes::BytesMut;

use crate::http::websocket::frame::{Decoder, Event, Violation};
use crate::http::websocket::handshake::{Protocol, accept, choose};

/// A client's frames mean the same however they are cut.
pub(super) fn frames(input: &[u8]) {
    let whole = read(input, input.len().max(1));
    assert!(whole.data.len() <= input.len());
    for size in [1, 3, 64] {
        assert_eq!(read(input, size), whole, "in pieces of {size}");
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Read {
    data: Vec<u8>,
    others: Vec<Event>,
    end: Option<Violation>,
}

fn read(input: &[u8], size: usize) -> Read {
    let mut decoder = Decoder::default();
    let (mut data, mut others) = (Vec::new(), Vec::new());
    let mut end = None;
    'input: for piece in input.chunks(size) {
        let mut piece = BytesMut::from(piece);
        loop {
            match decoder.next(&mut piece) {
                Ok(Some(Event::Data(bytes))) => data.extend_from_slice(&bytes),
                Ok(Some(event)) => others.push(event),
                Ok(None) => break,
                Err(violation) => {
                    end = Some(violation);
                    break 'input;
                }
            }
        }
        assert!(piece.is_empty(), "nothing is left lying");
    }
    Read { data, others, end }
}

/// The headers of a request for a WebSocket: the sub-protocols, or the key.
pub(super) fn handshake(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some((protocol, name)) = choose(text, |protocol| protocol == Protocol::Amqp) {
        assert_eq!(Protocol::of(name), Some(protocol));
        assert!(text.split(',').any(|offered| offered.trim() == name));
    }
    if let Some(proof) = accept(text) {
        assert_eq!(proof.len(), 28);
    }
}

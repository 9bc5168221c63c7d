//! Frames as bytes (RFC 6455 s5): what clients send is read without waiting for a frame's end, so that no frame needs
//! memory, however long it says it is.

use bytes::{BufMut, Bytes, BytesMut};

/// Longest binary message, in one frame or many. It is passed on as it comes; the bound tells a stream of bytes from a
/// client that lost its count.
pub const MESSAGE_BYTES_MAX: u64 = 4 << 20;
/// RFC 6455 s5.5.
const CONTROL_BYTES_MAX: u64 = 125;
/// Of a client's frame: two bytes, the longest length, the mask.
const HEADER_BYTES_MAX: usize = 14;
/// What [`binary`] needs in front of its bytes.
pub const BINARY_HEADER_BYTES: usize = 4;

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// The next bytes of the stream.
    Data(BytesMut),
    /// To be answered with the same bytes.
    Ping(Bytes),
    /// The last frame; with the client's code if it gave one.
    Close(Option<u16>),
}

/// What no client may send; the connection ends with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    #[error("{0}")]
    Protocol(&'static str),
    #[error("a text frame, where only binary ones are understood")]
    Text,
    #[error("a message of more than {MESSAGE_BYTES_MAX} bytes")]
    TooBig,
    #[error("a reason that is not UTF-8")]
    NotUtf8,
}

impl Violation {
    /// Of the close frame that tells of it.
    // RFC 6455 s7.4.1.
    pub fn code(self) -> u16 {
        match self {
            Self::Protocol(_) => 1002,
            Self::Text => 1003,
            Self::NotUtf8 => 1007,
            Self::TooBig => 1009,
        }
    }
}

/// Reads a client's frames.
#[derive(Debug, Default)]
pub struct Decoder {
    /// The header that is being read, and with it the payload of a control frame.
    head: Vec<u8>,
    /// Bytes of the data frame that are still to come, and the mask of the next four of them.
    left: u64,
    mask: [u8; 4],
    /// Bytes of the fragments so far; `None` between two messages.
    message: Option<u64>,
}

impl Decoder {
    /// Takes from `input` until something is complete; `None` once it is used up.
    ///
    /// # Errors
    /// The client broke the protocol; the decoder must not be used again.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            if input.is_empty() {
                return Ok(None);
            }
            if self.left > 0 {
                return Ok(Some(Event::Data(self.data(input))));
            }
            let missing = self.needed()? - self.head.len();
            let taken = input.split_to(missing.min(input.len()));
            self.head.extend_from_slice(&taken);
            if self.head.len() == self.needed()? {
                let event = self.frame();
                self.head.clear();
                if let Some(event) = event? {
                    return Ok(Some(event));
                }
            }
        }
    }

    fn data(&mut self, input: &mut BytesMut) -> BytesMut {
        let count = usize::try_from(self.left).map_or(input.len(), |left| left.min(input.len()));
        let mut data = input.split_to(count);
        unmask(&mut data, self.mask);
        self.mask.rotate_left(count % 4);
        self.left -= count as u64;
        data
    }

    /// Bytes that make the header, and a control frame whole; as far as can be told yet.
    fn needed(&self) -> Result<usize, Violation> {
        let [first, second, ..] = self.head[..] else {
            return Ok(2);
        };
        check(first, second)?;
        let length = second & !MASKED;
        let header = match length {
            127 => HEADER_BYTES_MAX,
            126 => 8,
            _ => 6,
        };
        // The check above holds a control frame's length in one byte.
        let payload = if is_control(first) { usize::from(length) } else { 0 };
        Ok(header + payload)
    }

    /// What the frame in `head` says.
    fn frame(&mut self) -> Result<Option<Event>, Violation> {
        let (first, length) = (self.head[0], self.head[1] & !MASKED);
        let (length, rest) = match length {
            127 => {
                let (length, rest) = self.head[2..].split_first_chunk().expect("the header is whole");
                (u64::from_be_bytes(*length), rest)
            }
            126 => {
                let (length, rest) = self.head[2..].split_first_chunk().expect("the header is whole");
                (u64::from(u16::from_be_bytes(*length)), rest)
            }
            length => (u64::from(length), &self.head[2..]),
        };
        let (&mask, payload) = rest.split_first_chunk().expect("the header is whole");
        if is_control(first) {
            let mut payload = BytesMut::from(payload);
            unmask(&mut payload, mask);
            return match opcode(first) {
                PING => Ok(Some(Event::Ping(payload.freeze()))),
                CLOSE => Ok(Some(Event::Close(close_code(&payload)?))),
                // Asked for or not, an answer changes nothing.
                _ => Ok(None),
            };
        }
        let before = match (opcode(first), self.message) {
            (CONTINUATION, Some(bytes)) => bytes,
            (CONTINUATION, None) => return Err(Violation::Protocol("a fragment of no message")),
            (_, None) => 0,
            (_, Some(_)) => return Err(Violation::Protocol("a message inside another")),
        };
        let bytes = before.saturating_add(length);
        if bytes > MESSAGE_BYTES_MAX {
            return Err(Violation::TooBig);
        }
        self.message = (first & FIN == 0).then_some(bytes);
        (self.left, self.mask) = (length, mask);
        Ok(None)
    }
}

/// Whether a frame may begin like this.
fn check(first: u8, second: u8) -> Result<(), Violation> {
    // RFC 6455 s5.1: a server closes when a frame is not masked.
    if second & MASKED == 0 {
        return Err(Violation::Protocol("a frame without a mask"));
    }
    // RFC 6455 s5.2: set bits belong to extensions, and none is ever agreed on.
    if first & 0x70 != 0 {
        return Err(Violation::Protocol("a frame of an extension"));
    }
    match opcode(first) {
        CONTINUATION | BINARY => Ok(()),
        TEXT => Err(Violation::Text),
        CLOSE | PING | PONG if first & FIN == 0 => Err(Violation::Protocol("a control frame in fragments")),
        CLOSE | PING | PONG if u64::from(second & !MASKED) > CONTROL_BYTES_MAX => {
            Err(Violation::Protocol("a control frame of more than 125 bytes"))
        }
        CLOSE | PING | PONG => Ok(()),
        _ => Err(Violation::Protocol("a frame of an unknown kind")),
    }
}

fn opcode(first: u8) -> u8 {
    first & 0x0f
}

fn is_control(first: u8) -> bool {
    first & 0x08 != 0
}

// RFC 6455 s5.5.1, s7.4: a code of two bytes, then a reason; some codes never travel.
fn close_code(payload: &[u8]) -> Result<Option<u16>, Violation> {
    let Some((code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(None),
            _ => Err(Violation::Protocol("half a close code")),
        };
    };
    let code = u16::from_be_bytes(*code);
    if !matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999) {
        return Err(Violation::Protocol("a close code that has no meaning"));
    }
    match std::str::from_utf8(reason) {
        Ok(_) => Ok(Some(code)),
        Err(_) => Err(Violation::NotUtf8),
    }
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = bytes.as_chunks_mut::<8>();
    for chunk in chunks {
        *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes();
    }
    for (byte, mask) in rest.iter_mut().zip(mask.into_iter().cycle()) {
        *byte ^= mask;
    }
}

/// A frame of what stands behind the first [`BINARY_HEADER_BYTES`] of `bytes`, at most 65,535.
pub fn binary(mut bytes: BytesMut) -> Bytes {
    let length = bytes.len() - BINARY_HEADER_BYTES;
    let short = u8::try_from(length).ok().filter(|length| *length < 126);
    if let Some(length) = short {
        let mut frame = bytes.split_off(2);
        frame[..2].copy_from_slice(&[FIN | BINARY, length]);
        return frame.freeze();
    }
    let length = u16::try_from(length).expect("what is read at a time is shorter");
    bytes[..2].copy_from_slice(&[FIN | BINARY, 126]);
    bytes[2..4].copy_from_slice(&length.to_be_bytes());
    bytes.freeze()
}

pub fn ping() -> Bytes {
    control(PING, &[])
}

pub fn pong(payload: &[u8]) -> Bytes {
    control(PONG, payload)
}

/// The last frame; the answer to a close without a code has none.
pub fn close(code: Option<u16>) -> Bytes {
    match code {
        Some(code) => control(CLOSE, &code.to_be_bytes()),
        None => control(CLOSE, &[]),
    }
}

fn control(opcode: u8, payload: &[u8]) -> Bytes {
    let length = u8::try_from(payload.len()).expect("a control frame was read, or is short");
    let mut frame = BytesMut::with_capacity(2 + payload.len());
    frame.put_slice(&[FIN | opcode, length]);
    frame.put_slice(payload);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

    /// A client's frame with this first byte.
    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            length @ 0..126 => frame.push(MASKED | length as u8),
            length @ 126..65_536 => {
                frame.push(MASKED | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(MASKED | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&MASK);
        let at = frame.len();
        frame.extend_from_slice(payload);
        unmask(&mut frame[at..], MASK);
        frame
    }

    /// All bytes of data, all other events, and how it ended; cut into pieces of this size.
    fn read(input: &[u8], piece: usize) -> (Vec<u8>, Vec<Event>, Option<Violation>) {
        let (mut data, mut others) = (Vec::new(), Vec::new());
        let mut decoder = Decoder::default();
        for piece in input.chunks(piece) {
            let mut piece = BytesMut::from(piece);
            loop {
                match decoder.next(&mut piece) {
                    Ok(Some(Event::Data(bytes))) => data.extend_from_slice(&bytes),
                    Ok(Some(event)) => others.push(event),
                    Ok(None) => break,
                    Err(violation) => return (data, others, Some(violation)),
                }
            }
        }
        (data, others, None)
    }

    #[test]
    fn the_examples_of_the_specification_are_read() {
        // RFC 6455 s5.7, where the text frame is made a binary one.
        let hello = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&hello, 64), (b"Hello".to_vec(), vec![], None));
        let pong = [0x8a, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(read(&pong, 64), (vec![], vec![], None));
        let mut hello = BytesMut::from(&[0; 4][..]);
        hello.put_slice(b"Hello");
        assert_eq!(binary(hello)[..], [0x82, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        let mut longer = BytesMut::from(&[0; 4][..]);
        longer.put_bytes(7, 256);
        assert_eq!(binary(longer)[..6], [0x82, 0x7e, 0x01, 0x00, 7, 7]);
        assert_eq!(super::pong(b"Hello")[..], [0x8a, 0x05, 0x48, 0x65, 0x6c, 0x6c, 0x6f]);
        assert_eq!(close(Some(1000))[..], [0x88, 0x02, 0x03, 0xe8]);
        assert_eq!(close(None)[..], [0x88, 0x00]);
    }

    #[test]
    fn each_violation_has_its_code() {
        let check = |input: &[u8], code: u16| {
            let (data, others, violation) = read(input, 1);
            assert_eq!(violation.map(Violation::code), Some(code), "{input:x?}");
            assert!(data.is_empty() && others.is_empty(), "{input:x?}");
        };
        check(&[0x82, 0x05], 1002);
        check(&masked(0xc2, b"compressed"), 1002);
        check(&masked(0x83, b""), 1002);
        check(&masked(0x8b, b""), 1002);
        check(&masked(0x09, b"half a ping"), 1002);
        check(&[0x89, 0xfe], 1002);
        check(&masked(0x80, b"goes on"), 1002);
        check(&[masked(0x02, b""), masked(0x82, b"")].concat(), 1002);
        check(&masked(0x81, b"text"), 1003);
        check(&masked(0x01, b"text"), 1003);
        check(&masked(0x88, &[3]), 1002);
        check(&masked(0x88, &1005_u16.to_be_bytes()), 1002);
        check(&masked(0x88, &999_u16.to_be_bytes()), 1002);
        check(&masked(0x88, &[0x03, 0xe8, 0xff]), 1007);
        let announced = |length: u64| [&[0x82, 0xff][..], &length.to_be_bytes(), &MASK].concat();
        check(&announced(MESSAGE_BYTES_MAX + 1), 1009);
        check(&announced(u64::MAX), 1009);
        assert_eq!(read(&announced(MESSAGE_BYTES_MAX), 1), (vec![], vec![], None));
    }

    #[test]
    fn fragments_are_counted_together() {
        let quarter = vec![0; MESSAGE_BYTES_MAX as usize / 4];
        let mut input = masked(0x02, &quarter);
        for _ in 0..3 {
            input.extend(masked(0x00, &quarter));
        }
        let (data, _, violation) = read(&input, 4096);
        assert_eq!((data.len() as u64, violation), (MESSAGE_BYTES_MAX, None));
        input.extend(masked(0x80, b"x"));
        assert_eq!(read(&input, 4096).2, Some(Violation::TooBig));
    }

    #[test]
    fn control_frames_may_stand_between_fragments() {
        let input = [
            masked(0x02, b"one"),
            masked(0x89, b"are you there"),
            masked(0x00, b""),
            masked(0x8a, b""),
            masked(0x80, b"two"),
            masked(0x82, b"three"),
            masked(0x88, &[0x03, 0xe9, b'b', b'y', b'e']),
        ];
        let expected = [
            Event::Ping(Bytes::from_static(b"are you there")),
            Event::Close(Some(1001)),
        ];
        for piece in [1, 2, 3, 7, 1000] {
            let (data, others, violation) = read(&input.concat(), piece);
            assert_eq!((&data[..], violation), (&b"onetwothree"[..], None));
            assert_eq!(others, expected);
        }
    }

    proptest! {
        #[test]
        fn a_stream_comes_out_as_it_was_however_it_is_cut(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..400), 0..8),
            piece in 1_usize..300,
        ) {
            let input: Vec<u8> = parts.iter().flat_map(|part| masked(0x82, part)).collect();
            let (data, others, violation) = read(&input, piece);
            prop_assert_eq!(data, parts.concat());
            prop_assert!(others.is_empty() && violation.is_none());
        }
    }
}

//! The fixed frame header and the decoder that cuts a byte stream into frames.

use bytes::{Bytes, BytesMut};

/// The frame version this build speaks. A hello names the range a client speaks; see [`super::control::Hello`].
pub const VERSION: u8 = 1;
/// Bytes of a frame header.
pub const HEADER_BYTES: usize = 8;

/// What a frame's body is. Numbers are never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Client: who I am; the first frame of a connection's first stream.
    Hello = 0x01,
    /// Hub: you are in; what is stored of you and what the limits are.
    Welcome = 0x02,
    /// Hub: the session is about to end, and why. Client: I am done, nothing follows.
    Goodbye = 0x03,
    /// Client: a new SAS token for the running session.
    Renew = 0x04,
    /// Hub: the new token is in force.
    Renewed = 0x05,
    /// Device: a batch of rkyv-archived messages.
    Append = 0x10,
    /// Device: a batch of messages in the plain length-prefixed encoding.
    AppendPlain = 0x11,
    /// Hub: everything up to a sequence is stored at the hub's durability level.
    Ack = 0x12,
    /// Consumer: opens a cursor on a partition; the first frame of a further stream.
    Subscribe = 0x20,
    /// Hub: the cursor stands.
    Subscribed = 0x21,
    /// Hub: whole log records, back to back.
    Deliver = 0x22,
    /// Consumer: this many more bytes may be delivered.
    Credit = 0x23,
    /// Consumer: processed up to here.
    Checkpoint = 0x24,
    /// Hub: the checkpoint is durable.
    CheckpointStored = 0x25,
    /// Hub: this stream's request or subscription failed.
    Failed = 0x26,
    /// Service: a management request; the only frame of its stream.
    Request = 0x30,
    /// Hub: its answer.
    Response = 0x31,
    /// Hub: a device's stream is in force; the bodies from here on are in [`super::device`].
    Ready = 0x3f,
    /// Device: opens the stream of messages to it.
    CommandsOpen = 0x40,
    /// Hub: a locked message.
    Command = 0x41,
    /// Device: ends its lock.
    Settle = 0x42,
    /// Hub: the settlement is durable, or refused.
    Settled = 0x43,
    /// Device: opens the stream of its twin.
    TwinOpen = 0x48,
    /// Hub: the desired properties changed.
    Desired = 0x49,
    /// Device: asks for its twin.
    TwinGet = 0x4a,
    /// Hub: the twin.
    TwinDocument = 0x4b,
    /// Device: changes its reported properties.
    Report = 0x4c,
    /// Hub: the change is durable, or refused.
    Reported = 0x4d,
    /// Device: opens the stream of direct methods.
    MethodsOpen = 0x50,
    /// Hub: a method is called.
    Invoke = 0x51,
    /// Device: its result.
    Answer = 0x52,
}

impl Kind {
    const ALL: [Self; 31] = [
        Self::Hello,
        Self::Welcome,
        Self::Goodbye,
        Self::Renew,
        Self::Renewed,
        Self::Append,
        Self::AppendPlain,
        Self::Ack,
        Self::Subscribe,
        Self::Subscribed,
        Self::Deliver,
        Self::Credit,
        Self::Checkpoint,
        Self::CheckpointStored,
        Self::Failed,
        Self::Request,
        Self::Response,
        Self::Ready,
        Self::CommandsOpen,
        Self::Command,
        Self::Settle,
        Self::Settled,
        Self::TwinOpen,
        Self::Desired,
        Self::TwinGet,
        Self::TwinDocument,
        Self::Report,
        Self::Reported,
        Self::MethodsOpen,
        Self::Invoke,
        Self::Answer,
    ];

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Flag of an append: the gap between the last sequence stored and this batch's first is meant; the device gave up on
/// the messages between. Without it a gap is refused.
pub const FLAG_SKIP: u16 = 1;

/// What a frame header must satisfy before a byte of the body is buffered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("frame version {version}; this hub speaks version {VERSION} (ALPN forebay/1)")]
    Version { version: u8 },
    #[error("frame kind {kind:#04x} is unknown in version {VERSION}")]
    Kind { kind: u8 },
    #[error("frame body of {bytes} bytes exceeds {bytes_max}")]
    TooLarge { bytes: u32, bytes_max: u32 },
    #[error("flags {flags:#06x} are not defined for frame kind {kind:#04x}")]
    Flags { kind: u8, flags: u16 },
}

/// One frame, cut out of the stream. The body is contiguous and not checked yet.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: Kind,
    pub flags: u16,
    pub body: Bytes,
}

/// Writes a frame header for a body of `body_bytes`.
pub fn header(kind: Kind, flags: u16, body_bytes: usize) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(body_bytes).expect("frame bodies are bounded far below 4 GiB by their makers");
    let [l0, l1, l2, l3] = length.to_le_bytes();
    let [f0, f1] = flags.to_le_bytes();
    [l0, l1, l2, l3, kind as u8, VERSION, f0, f1]
}

/// Frames up to this size that arrive in one piece are handed out as a slice of it; their taker copies what it keeps. A
/// larger one would keep a whole receive buffer alive for as long as it is on its way.
const SLICE_BYTES_MAX: usize = 4 * 1024;
/// What is allocated for an announced frame before more of it has arrived. The system gives pages only when they
/// are written, so a frame that never comes costs none.
const AHEAD_BYTES_MAX: usize = 64 * 1024;

/// Cuts frames out of a byte stream. Holds at most one incomplete frame: `HEADER_BYTES + body_bytes_max` bytes; nothing
/// when the stream is idle between frames.
#[derive(Debug)]
pub struct Decoder {
    body_bytes_max: u32,
    header: [u8; HEADER_BYTES],
    header_bytes: usize,
    /// Fed and not read yet.
    input: Bytes,
    /// The checked header of the frame whose body is still incomplete.
    pending: Option<(Kind, u16, usize)>,
    body: BytesMut,
}

impl Decoder {
    pub fn new(body_bytes_max: u32) -> Self {
        Self {
            body_bytes_max,
            header: [0; HEADER_BYTES],
            header_bytes: 0,
            input: Bytes::new(),
            pending: None,
            body: BytesMut::new(),
        }
    }

    /// Raises or lowers the bound for frames whose header has not been read yet.
    pub fn set_body_bytes_max(&mut self, body_bytes_max: u32) {
        self.body_bytes_max = body_bytes_max;
    }

    /// Cheapest when everything fed before has been read.
    pub fn feed(&mut self, bytes: Bytes) {
        self.input = if self.input.is_empty() {
            bytes
        } else {
            [&self.input[..], &bytes].concat().into()
        };
    }

    /// The next whole frame; `None` until more bytes are fed.
    ///
    /// # Errors
    /// The stream cannot be read on: close the connection with the error's code.
    pub fn poll_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some((kind, flags, body_bytes)) = self.poll_header()? else {
            return Ok(None);
        };
        let whole = self.body.is_empty() && self.input.len() >= body_bytes && body_bytes <= SLICE_BYTES_MAX;
        let body = if whole {
            self.input.split_to(body_bytes)
        } else {
            let missing = body_bytes - self.body.len();
            let arrived = self.input.split_to(missing.min(self.input.len()));
            if self.body.capacity() - self.body.len() < arrived.len() {
                // Room for all of it at once, so that bytes are moved only once; but a client that announces a large frame
                // and sends little of it must not make the hub hold memory for it.
                let ahead = AHEAD_BYTES_MAX.max(self.body.len()).max(arrived.len());
                self.body.reserve(missing.min(ahead));
            }
            self.body.extend_from_slice(&arrived);
            if self.body.len() < body_bytes {
                return Ok(None);
            }
            std::mem::take(&mut self.body).freeze()
        };
        self.pending = None;
        Ok(Some(Frame { kind, flags, body }))
    }

    /// Bytes that were fed and are in no frame handed out.
    pub fn buffered_bytes(&self) -> usize {
        self.header_bytes + self.body.len() + self.input.len()
    }

    fn poll_header(&mut self) -> Result<Option<(Kind, u16, usize)>, FrameError> {
        if self.pending.is_none() {
            // Not `advance`: an emptied slice would keep its receive buffer.
            let arrived = self
                .input
                .split_to((HEADER_BYTES - self.header_bytes).min(self.input.len()));
            self.header[self.header_bytes..][..arrived.len()].copy_from_slice(&arrived);
            self.header_bytes += arrived.len();
            if self.header_bytes == HEADER_BYTES {
                self.pending = Some(check_header(&self.header, self.body_bytes_max)?);
                self.header_bytes = 0;
            }
        }
        Ok(self.pending)
    }
}

fn check_header(header: &[u8; HEADER_BYTES], body_bytes_max: u32) -> Result<(Kind, u16, usize), FrameError> {
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    // The version comes first: what the other fields mean is the version's business.
    if header[5] != VERSION {
        return Err(FrameError::Version { version: header[5] });
    }
    let kind = Kind::from_number(header[4]).ok_or(FrameError::Kind { kind: header[4] })?;
    let flags = u16::from_le_bytes([header[6], header[7]]);
    let flags_defined = match kind {
        Kind::Append | Kind::AppendPlain => FLAG_SKIP,
        _ => 0,
    };
    if flags & !flags_defined != 0 {
        return Err(FrameError::Flags {
            kind: kind as u8,
            flags,
        });
    }
    if length > body_bytes_max {
        return Err(FrameError::TooLarge {
            bytes: length,
            bytes_max: body_bytes_max,
        });
    }
    Ok((kind, flags, length as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame_bytes(kind: Kind, body: &[u8]) -> Vec<u8> {
        [&header(kind, 0, body.len())[..], body].concat()
    }

    #[test]
    fn kinds_and_numbers_agree() {
        for kind in Kind::ALL {
            assert_eq!(Kind::from_number(kind as u8), Some(kind));
        }
    }

    #[test]
    fn frames_come_out_whole_however_the_stream_is_cut() {
        let stream = [
            frame_bytes(Kind::Ack, b"first"),
            frame_bytes(Kind::Goodbye, b""),
            frame_bytes(Kind::Ack, b"x"),
        ]
        .concat();
        for step in 1..stream.len() {
            let mut decoder = Decoder::new(64);
            let mut bodies = Vec::new();
            for piece in stream.chunks(step) {
                decoder.feed(Bytes::copy_from_slice(piece));
                while let Some(frame) = decoder.poll_frame().unwrap() {
                    bodies.push((frame.kind, frame.body.to_vec()));
                }
            }
            assert_eq!(
                bodies,
                [
                    (Kind::Ack, b"first".to_vec()),
                    (Kind::Goodbye, vec![]),
                    (Kind::Ack, b"x".to_vec())
                ],
                "step {step}"
            );
            assert_eq!(decoder.buffered_bytes(), 0);
        }
    }

    #[test]
    fn bad_headers_are_refused_before_their_body_arrives() {
        let check = |header: [u8; 8], expected: FrameError| {
            let mut decoder = Decoder::new(100);
            decoder.feed(Bytes::copy_from_slice(&header));
            assert_eq!(decoder.poll_frame().unwrap_err(), expected);
        };
        check([0, 0, 0, 0, 0x10, 2, 0, 0], FrameError::Version { version: 2 });
        check([0, 0, 0, 0, 0x7f, 1, 0, 0], FrameError::Kind { kind: 0x7f });
        check(
            [101, 0, 0, 0, 0x10, 1, 0, 0],
            FrameError::TooLarge {
                bytes: 101,
                bytes_max: 100,
            },
        );
        check([0, 0, 0, 0, 0x10, 1, 2, 0], FrameError::Flags { kind: 0x10, flags: 2 });
        check([0, 0, 0, 0, 0x12, 1, 1, 0], FrameError::Flags { kind: 0x12, flags: 1 });
    }

    #[test]
    fn an_announced_frame_takes_room_for_what_arrives() {
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(Bytes::copy_from_slice(&header(Kind::Append, 0, 1 << 20)));
        assert!(decoder.poll_frame().unwrap().is_none());
        assert_eq!(decoder.body.capacity(), 0);
        decoder.feed(Bytes::from_static(&[1; 100]));
        assert!(decoder.poll_frame().unwrap().is_none());
        assert_eq!(decoder.body.capacity(), AHEAD_BYTES_MAX);
        for _ in 0..10 {
            decoder.feed(vec![1; 10_000].into());
            assert!(decoder.poll_frame().unwrap().is_none());
            assert!(decoder.body.capacity() <= (2 * decoder.body.len()).max(AHEAD_BYTES_MAX));
        }
    }

    #[test]
    fn large_frames_do_not_keep_the_receive_buffer() {
        let large = vec![7; SLICE_BYTES_MAX + 1];
        let input: Bytes = [frame_bytes(Kind::Append, &large), frame_bytes(Kind::Ack, b"x")]
            .concat()
            .into();
        let mut decoder = Decoder::new(1 << 20);
        decoder.feed(input.clone());
        let first = decoder.poll_frame().unwrap().unwrap();
        assert_eq!(first.body, large);
        drop(decoder);
        assert!(input.is_unique(), "the large frame still holds the buffer it came in");
    }
}

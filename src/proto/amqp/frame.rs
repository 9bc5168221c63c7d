//! Frames: where one ends, which kind it is, which channel it is for.
//!
//! ```text
//!   0  u32  size      of the whole frame
//!   4  u8   doff      where the body begins, in words of 4 bytes, at least 2
//!   5  u8   type      0 AMQP, 1 SASL
//!   6  u16  channel   of AMQP frames
//! ```

use bytes::{Buf as _, Bytes, BytesMut};

pub const HEADER_BYTES: usize = 8;
/// A peer's frames may be at least this large.
// AMQP 1.0 s2.4.1.
pub const FRAME_BYTES_MIN: u32 = 512;
pub const PROTOCOL_HEADER_BYTES: usize = 8;
pub const AMQP_HEADER: [u8; 8] = *b"AMQP\x00\x01\x00\x00";
pub const SASL_HEADER: [u8; 8] = *b"AMQP\x03\x01\x00\x00";

/// Which protocol a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    Amqp,
    Sasl,
}

/// One frame without its header. An empty body is a heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: FrameKind,
    pub channel: u16,
    pub body: Bytes,
}

/// Why the bytes cannot be cut into frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {bytes} bytes exceeds {bytes_max}")]
    TooLarge { bytes: u32, bytes_max: u32 },
    #[error("a frame of {bytes} bytes with its body at {body}")]
    Header { bytes: u32, body: usize },
    #[error("no frame has the type {0}")]
    Kind(u8),
}

/// Takes the first frame from `input` if all of it is there.
///
/// # Errors
/// `FrameError`: nothing after it can be read.
pub fn take(input: &mut BytesMut, bytes_max: u32) -> Result<Option<Frame>, FrameError> {
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let bytes = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
    let body = usize::from(header[4]) * 4;
    if bytes > bytes_max {
        return Err(FrameError::TooLarge { bytes, bytes_max });
    }
    if body < HEADER_BYTES || body > bytes as usize {
        return Err(FrameError::Header { bytes, body });
    }
    let kind = match header[5] {
        0 => FrameKind::Amqp,
        1 => FrameKind::Sasl,
        other => return Err(FrameError::Kind(other)),
    };
    let channel = u16::from_be_bytes([header[6], header[7]]);
    if input.len() < bytes as usize {
        return Ok(None);
    }
    let mut frame = input.split_to(bytes as usize).freeze();
    frame.advance(body);
    Ok(Some(Frame {
        kind,
        channel,
        body: frame,
    }))
}

/// Appends a frame whose body is what `write` appends.
pub fn put(into: &mut Vec<u8>, kind: FrameKind, channel: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = begin(into, kind, channel);
    write(into);
    finish(into, start);
}

/// Appends the header of a frame whose length comes later.
pub(super) fn begin(into: &mut Vec<u8>, kind: FrameKind, channel: u16) -> usize {
    let start = into.len();
    into.extend([0, 0, 0, 0, 2, kind as u8]);
    into.extend(channel.to_be_bytes());
    start
}

pub(super) fn finish(into: &mut [u8], start: usize) {
    let bytes = u32::try_from(into.len() - start).expect("a frame is bounded");
    into[start..start + 4].copy_from_slice(&bytes.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_out_whole_however_they_arrive() {
        let mut bytes = Vec::new();
        put(&mut bytes, FrameKind::Amqp, 3, |body| body.extend(b"body"));
        put(&mut bytes, FrameKind::Sasl, 0, |_| ());
        for cut in 0..bytes.len() {
            let mut input = BytesMut::from(&bytes[..cut]);
            let mut frames = Vec::new();
            while let Some(frame) = take(&mut input, 512).unwrap() {
                frames.push(frame);
            }
            input.extend_from_slice(&bytes[cut..]);
            while let Some(frame) = take(&mut input, 512).unwrap() {
                frames.push(frame);
            }
            assert_eq!(frames.len(), 2, "cut at {cut}");
            assert_eq!((frames[0].channel, &frames[0].body[..]), (3, &b"body"[..]));
            assert_eq!(frames[1].kind, FrameKind::Sasl);
        }
    }

    #[test]
    fn headers_that_cannot_be_are_refused_at_once() {
        let refuse = |header: [u8; 8], error| {
            assert_eq!(take(&mut BytesMut::from(&header[..]), 512), Err(error));
        };
        refuse(
            [0, 0, 2, 1, 2, 0, 0, 0],
            FrameError::TooLarge {
                bytes: 513,
                bytes_max: 512,
            },
        );
        refuse([0, 0, 0, 7, 2, 0, 0, 0], FrameError::Header { bytes: 7, body: 8 });
        refuse([0, 0, 0, 8, 1, 0, 0, 0], FrameError::Header { bytes: 8, body: 4 });
        refuse([0, 0, 0, 8, 3, 0, 0, 0], FrameError::Header { bytes: 8, body: 12 });
        refuse([0, 0, 0, 8, 2, 2, 0, 0], FrameError::Kind(2));
    }
}

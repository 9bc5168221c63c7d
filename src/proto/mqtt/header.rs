//! The fixed header that every packet begins with.

use super::error::Error;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    Connect = 1,
    ConnAck,
    Publish,
    PubAck,
    PubRec,
    PubRel,
    PubComp,
    Subscribe,
    SubAck,
    Unsubscribe,
    UnsubAck,
    PingReq,
    PingResp,
    Disconnect,
    Auth,
}

impl Kind {
    const ALL: [Self; 15] = [
        Self::Connect,
        Self::ConnAck,
        Self::Publish,
        Self::PubAck,
        Self::PubRec,
        Self::PubRel,
        Self::PubComp,
        Self::Subscribe,
        Self::SubAck,
        Self::Unsubscribe,
        Self::UnsubAck,
        Self::PingReq,
        Self::PingResp,
        Self::Disconnect,
        Self::Auth,
    ];
}

/// The longest body a header can name.
const BODY_BYTES_MAX: usize = 268_435_455;

/// Known before the rest of a packet has come, so that a large one can be refused at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub kind: Kind,
    /// The low half of the first byte.
    pub flags: u8,
    pub header_bytes: usize,
    pub body_bytes: usize,
}

impl Header {
    /// `Ok(None)`: more bytes are needed.
    ///
    /// # Errors
    /// `Error::Header`, `Error::Length`.
    #[inline]
    pub fn read(bytes: &[u8]) -> Result<Option<Self>, Error> {
        let Some((&first, rest)) = bytes.split_first() else {
            return Ok(None);
        };
        let kind = usize::from(first >> 4).checked_sub(1).and_then(|at| Kind::ALL.get(at));
        let (Some(&kind), flags) = (kind, first & 0x0f) else {
            return Err(Error::Header { first });
        };
        // MQTT 3.1.1 [MQTT-2.2.2-2].
        let is_valid = match kind {
            Kind::Publish => true,
            Kind::PubRel | Kind::Subscribe | Kind::Unsubscribe => flags == 0b0010,
            _ => flags == 0,
        };
        if !is_valid {
            return Err(Error::Header { first });
        }
        let Some((body_bytes, length_bytes)) = read_length(rest)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            kind,
            flags,
            header_bytes: 1 + length_bytes,
            body_bytes: body_bytes as usize,
        }))
    }

    pub fn packet_bytes(&self) -> usize {
        self.header_bytes + self.body_bytes
    }
}

/// A number of one to four bytes and how many they are. `Ok(None)`: more bytes are needed.
// MQTT 3.1.1 s2.2.3.
#[inline]
pub(super) fn read_length(bytes: &[u8]) -> Result<Option<(u32, usize)>, Error> {
    let mut value = 0;
    for (at, byte) in bytes.iter().take(4).enumerate() {
        value |= u32::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((value, at + 1)));
        }
    }
    if bytes.len() >= 4 { Err(Error::Length) } else { Ok(None) }
}

/// Appends such a number. None is larger than a header's.
pub(super) fn write_length(mut value: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
    }
}

pub(super) fn write_header(kind: Kind, flags: u8, body_bytes: usize, out: &mut Vec<u8>) -> Result<(), Error> {
    if body_bytes > BODY_BYTES_MAX {
        return Err(Error::TooLarge);
    }
    out.push((kind as u8) << 4 | flags);
    write_length(body_bytes, out);
    Ok(())
}

//! Reading and writing the fields packets are made of.

use std::num::NonZeroU16;

use super::error::Error;
use super::header::read_length;

/// A packet's body, read from its beginning.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    #[inline]
    pub fn take(&mut self, count: usize) -> Result<&'a [u8], Error> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    #[inline]
    pub fn u8(&mut self) -> Result<u8, Error> {
        let (first, rest) = self.0.split_first().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(*first)
    }

    #[inline]
    pub fn u16(&mut self) -> Result<u16, Error> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(u16::from_be_bytes(*bytes))
    }

    pub fn u32(&mut self) -> Result<u32, Error> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Error::Truncated)?;
        self.0 = rest;
        Ok(u32::from_be_bytes(*bytes))
    }

    // MQTT 3.1.1 [MQTT-2.3.1-1].
    #[inline]
    pub fn packet_id(&mut self) -> Result<NonZeroU16, Error> {
        NonZeroU16::new(self.u16()?).ok_or(Error::PacketId)
    }

    #[inline]
    pub fn binary(&mut self) -> Result<&'a [u8], Error> {
        let count = self.u16()?;
        self.take(usize::from(count))
    }

    // MQTT 3.1.1 [MQTT-1.5.3-1], [MQTT-1.5.3-2].
    #[inline]
    pub fn text(&mut self) -> Result<&'a str, Error> {
        let text = std::str::from_utf8(self.binary()?).map_err(|_| Error::Text)?;
        if has_any(text, [0]) {
            return Err(Error::Text);
        }
        Ok(text)
    }

    pub fn length(&mut self) -> Result<u32, Error> {
        let (value, bytes) = read_length(self.0)?.ok_or(Error::Truncated)?;
        self.0 = &self.0[bytes..];
        Ok(value)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn end(self) -> Result<(), Error> {
        match self.0.len() {
            0 => Ok(()),
            bytes => Err(Error::Trailing { bytes }),
        }
    }
}

/// Whether one of these stands in the text. Looks at every byte, without a branch for each: a topic is short, and seldom has
/// one.
#[inline]
pub(super) fn has_any<const N: usize>(text: &str, wanted: [u8; N]) -> bool {
    let is_wanted = |byte| wanted.iter().fold(false, |is, wanted| is | (*wanted == byte));
    text.bytes().fold(false, |has, byte| has | is_wanted(byte))
}

pub(super) fn write_binary(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), Error> {
    let count = u16::try_from(bytes.len()).map_err(|_| Error::TooLarge)?;
    out.extend_from_slice(&count.to_be_bytes());
    out.extend_from_slice(bytes);
    Ok(())
}

/// Bytes that a length takes.
pub(super) fn length_bytes(value: usize) -> usize {
    match value {
        0..=0x7f => 1,
        0x80..=0x3fff => 2,
        0x4000..=0x1f_ffff => 3,
        _ => 4,
    }
}

//! PUBLISH: a message.

use std::num::NonZeroU16;

use super::bytes::{Reader, has_any, write_binary};
use super::error::Error;
use super::header::{Header, Kind, write_header};
use super::properties::{Place, Properties, Property};
use super::{QoS, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish<'a> {
    pub is_dup: bool,
    pub qos: QoS,
    pub is_retain: bool,
    /// Empty only with a topic alias.
    pub topic: &'a str,
    /// With QoS 1 and 2.
    pub packet_id: Option<NonZeroU16>,
    pub properties: Properties<'a>,
    pub payload: &'a [u8],
}

const DUP: u8 = 0b1000;
const RETAIN: u8 = 0b0001;

impl<'a> Publish<'a> {
    #[inline]
    pub(super) fn read(header: &Header, body: &'a [u8], version: Version) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let qos = QoS::from_bits(header.flags >> 1 & 0b11)?;
        let is_dup = header.flags & DUP != 0;
        // MQTT 3.1.1 [MQTT-3.3.1-2].
        if is_dup && qos == QoS::AtMostOnce {
            return Err(Error::Duplicate);
        }
        let topic = reader.text()?;
        // MQTT 3.1.1 [MQTT-3.3.2-2].
        if has_any(topic, [b'+', b'#']) {
            return Err(Error::Topic);
        }
        let packet_id = match qos {
            QoS::AtMostOnce => None,
            QoS::AtLeastOnce | QoS::ExactlyOnce => Some(reader.packet_id()?),
        };
        let properties = match version {
            Version::V3 => Properties::NONE,
            Version::V5 => Properties::read(&mut reader, Place::Packet(Kind::Publish))?,
        };
        // MQTT 3.1.1 [MQTT-4.7.3-1], MQTT 5 s3.3.2.1.
        let has_alias = || {
            properties
                .iter()
                .any(|property| matches!(property, Property::TopicAlias(_)))
        };
        if topic.is_empty() && !has_alias() {
            return Err(Error::Topic);
        }
        Ok(Self {
            is_dup,
            qos,
            is_retain: header.flags & RETAIN != 0,
            topic,
            packet_id,
            properties,
            payload: reader.0,
        })
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        self.write_head(version, self.payload.len(), out)?;
        out.extend_from_slice(self.payload);
        Ok(())
    }

    /// Appends all that stands before the payload, for a sender that holds this elsewhere.
    ///
    /// # Errors
    /// `TooLarge`; `PacketId` if there is none for a QoS that needs one.
    pub fn write_head(&self, version: Version, payload_bytes: usize, out: &mut Vec<u8>) -> Result<(), Error> {
        let needs_id = self.qos != QoS::AtMostOnce;
        if needs_id != self.packet_id.is_some() {
            return Err(Error::PacketId);
        }
        let flags = (u8::from(self.is_dup) * DUP) | (self.qos as u8) << 1 | (u8::from(self.is_retain) * RETAIN);
        let id_bytes = if needs_id { 2 } else { 0 };
        let properties_bytes = match version {
            Version::V3 => 0,
            Version::V5 => self.properties.written_bytes(),
        };
        let body_bytes = 2 + self.topic.len() + id_bytes + properties_bytes + payload_bytes;
        write_header(Kind::Publish, flags, body_bytes, out)?;
        write_binary(self.topic.as_bytes(), out)?;
        if let Some(id) = self.packet_id {
            out.extend_from_slice(&id.get().to_be_bytes());
        }
        if version == Version::V5 {
            self.properties.write(out);
        }
        Ok(())
    }
}

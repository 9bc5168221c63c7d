//! Any packet.

use std::num::NonZeroU16;

use super::Version;
use super::bytes::Reader;
use super::connect::{ConnAck, Connect};
use super::error::{Error, Reason};
use super::header::{Header, Kind, write_header};
use super::properties::{Place, Properties};
use super::publish::Publish;
use super::subscribe::{self, Filter, SubAck, Subscribe, UnsubAck, Unsubscribe};

/// A packet that borrows from the bytes it came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    Connect(Connect<'a>),
    ConnAck(ConnAck<'a>),
    Publish(Publish<'a>),
    PubAck(Ack<'a>),
    PubRec(Ack<'a>),
    PubRel(Ack<'a>),
    PubComp(Ack<'a>),
    Subscribe(Subscribe<'a>),
    SubAck(SubAck<'a>),
    Unsubscribe(Unsubscribe<'a>),
    UnsubAck(UnsubAck<'a>),
    PingReq,
    PingResp,
    Disconnect(Disconnect<'a>),
    Auth(Auth<'a>),
}

impl<'a> Packet<'a> {
    /// The packet the bytes begin with, and how many of them it took; `Ok(None)`: more are needed. `version` is the
    /// connection's; a CONNECT says its own. How large a packet may be is the caller's to ask of its [`Header`] first.
    ///
    /// # Errors
    /// `Error`.
    #[inline]
    pub fn decode(bytes: &'a [u8], version: Version) -> Result<Option<(Self, usize)>, Error> {
        let Some(header) = Header::read(bytes)? else {
            return Ok(None);
        };
        let used = header.packet_bytes();
        match bytes.get(header.header_bytes..used) {
            Some(body) => Ok(Some((Self::read(&header, body, version)?, used))),
            None => Ok(None),
        }
    }

    #[inline]
    fn read(header: &Header, body: &'a [u8], version: Version) -> Result<Self, Error> {
        let ack = |kind| Ack::read(kind, body, version);
        Ok(match header.kind {
            Kind::Publish => Self::Publish(Publish::read(header, body, version)?),
            Kind::PubAck => Self::PubAck(ack(Kind::PubAck)?),
            Kind::Connect => Self::Connect(Connect::read(body)?),
            Kind::ConnAck => Self::ConnAck(ConnAck::read(body, version)?),
            Kind::PubRec => Self::PubRec(ack(Kind::PubRec)?),
            Kind::PubRel => Self::PubRel(ack(Kind::PubRel)?),
            Kind::PubComp => Self::PubComp(ack(Kind::PubComp)?),
            Kind::Subscribe => Self::Subscribe(Subscribe::read(body, version)?),
            Kind::SubAck => Self::SubAck(SubAck::read(body, version)?),
            Kind::Unsubscribe => Self::Unsubscribe(Unsubscribe::read(body, version)?),
            Kind::UnsubAck => Self::UnsubAck(UnsubAck::read(body, version)?),
            Kind::PingReq => Reader(body).end().map(|()| Self::PingReq)?,
            Kind::PingResp => Reader(body).end().map(|()| Self::PingResp)?,
            Kind::Disconnect => Self::Disconnect(Disconnect::read(body, version)?),
            Kind::Auth => Self::Auth(Auth::read(body, version)?),
        })
    }

    /// Appends the packet.
    ///
    /// # Errors
    /// `TooLarge`; what MQTT 3.1.1 does not have; a field that contradicts another. What was appended then is no packet.
    pub fn encode(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        match self {
            Self::Connect(connect) => connect.write(out),
            Self::ConnAck(ack) => ack.write(version, out),
            Self::Publish(publish) => publish.write(version, out),
            Self::PubAck(ack) => ack.write(Kind::PubAck, version, out),
            Self::PubRec(ack) => ack.write(Kind::PubRec, version, out),
            Self::PubRel(ack) => ack.write(Kind::PubRel, version, out),
            Self::PubComp(ack) => ack.write(Kind::PubComp, version, out),
            Self::Subscribe(subscribe) => subscribe.write(version, out),
            Self::SubAck(ack) => ack.write(version, out),
            Self::Unsubscribe(unsubscribe) => unsubscribe.write(version, out),
            Self::UnsubAck(ack) => ack.write(version, out),
            Self::PingReq => write_header(Kind::PingReq, 0, 0, out),
            Self::PingResp => write_header(Kind::PingResp, 0, 0, out),
            Self::Disconnect(disconnect) => disconnect.write(version, out),
            Self::Auth(auth) => auth.write(version, out),
        }
    }

    /// Appends a SUBSCRIBE.
    ///
    /// # Errors
    /// `TooLarge`, `NoFilters`.
    pub fn encode_subscribe(
        packet_id: NonZeroU16,
        properties: &Properties<'_>,
        filters: &[Filter<'_>],
        version: Version,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        subscribe::write_subscribe(packet_id, properties, filters, version, out)
    }

    /// Appends an UNSUBSCRIBE.
    ///
    /// # Errors
    /// `TooLarge`, `NoFilters`.
    pub fn encode_unsubscribe(
        packet_id: NonZeroU16,
        properties: &Properties<'_>,
        filters: &[&str],
        version: Version,
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        subscribe::write_unsubscribe(packet_id, properties, filters, version, out)
    }
}

/// PUBACK and the three of QoS 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    pub packet_id: NonZeroU16,
    /// In MQTT 3.1.1 always success.
    pub reason: Reason,
    pub properties: Properties<'a>,
}

impl<'a> Ack<'a> {
    pub fn new(packet_id: NonZeroU16, reason: Reason) -> Self {
        Self {
            packet_id,
            reason,
            properties: Properties::NONE,
        }
    }

    #[inline]
    fn read(kind: Kind, body: &'a [u8], version: Version) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        let (mut reason, mut properties) = (Reason::SUCCESS, Properties::NONE);
        // MQTT 5 s3.4.2.1: what is left out is success, and nothing beside.
        if version == Version::V5 && !reader.is_empty() {
            reason = Reason(reader.u8()?);
            if !reader.is_empty() {
                properties = Properties::read(&mut reader, Place::Packet(kind))?;
            }
        }
        reader.end()?;
        Ok(Self {
            packet_id,
            reason,
            properties,
        })
    }

    #[inline]
    fn write(&self, kind: Kind, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        let flags = if kind == Kind::PubRel { 0b0010 } else { 0 };
        let id = self.packet_id.get().to_be_bytes();
        let is_plain = self.properties.is_empty();
        if version == Version::V3 || (is_plain && self.reason == Reason::SUCCESS) {
            out.extend_from_slice(&[(kind as u8) << 4 | flags, 2, id[0], id[1]]);
            return Ok(());
        }
        let properties_bytes = if is_plain { 0 } else { self.properties.written_bytes() };
        write_header(kind, flags, 3 + properties_bytes, out)?;
        out.extend_from_slice(&[id[0], id[1], self.reason.0]);
        if !is_plain {
            self.properties.write(out);
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disconnect<'a> {
    /// In MQTT 3.1.1 always success.
    pub reason: Reason,
    pub properties: Properties<'a>,
}

/// Enhanced authentication, MQTT 5's alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Auth<'a> {
    pub reason: Reason,
    pub properties: Properties<'a>,
}

impl<'a> Disconnect<'a> {
    fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let (reason, properties) = match version {
            Version::V3 => Reader(body).end().map(|()| (Reason::SUCCESS, Properties::NONE))?,
            Version::V5 => read_reason(Kind::Disconnect, body)?,
        };
        Ok(Self { reason, properties })
    }

    fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        match version {
            Version::V3 => write_header(Kind::Disconnect, 0, 0, out),
            Version::V5 => write_reason(Kind::Disconnect, self.reason, &self.properties, out),
        }
    }
}

impl<'a> Auth<'a> {
    fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        if version == Version::V3 {
            return Err(Error::Header {
                first: (Kind::Auth as u8) << 4,
            });
        }
        let (reason, properties) = read_reason(Kind::Auth, body)?;
        Ok(Self { reason, properties })
    }

    fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        match version {
            Version::V3 => Err(Error::Header {
                first: (Kind::Auth as u8) << 4,
            }),
            Version::V5 => write_reason(Kind::Auth, self.reason, &self.properties, out),
        }
    }
}

// MQTT 5 s3.14.2.1, s3.15.2.1: what is left out is success, and nothing beside.
fn read_reason(kind: Kind, body: &[u8]) -> Result<(Reason, Properties<'_>), Error> {
    let mut reader = Reader(body);
    let (mut reason, mut properties) = (Reason::SUCCESS, Properties::NONE);
    if !reader.is_empty() {
        reason = Reason(reader.u8()?);
    }
    if !reader.is_empty() {
        properties = Properties::read(&mut reader, Place::Packet(kind))?;
    }
    reader.end()?;
    Ok((reason, properties))
}

fn write_reason(kind: Kind, reason: Reason, properties: &Properties<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
    let is_plain = properties.is_empty();
    if is_plain && reason == Reason::SUCCESS {
        return write_header(kind, 0, 0, out);
    }
    let properties_bytes = if is_plain { 0 } else { properties.written_bytes() };
    write_header(kind, 0, 1 + properties_bytes, out)?;
    out.push(reason.0);
    if !is_plain {
        properties.write(out);
    }
    Ok(())
}

//! SUBSCRIBE, UNSUBSCRIBE and their answers.

use std::num::NonZeroU16;

use super::bytes::{Reader, write_binary};
use super::error::Error;
use super::header::{Kind, write_header};
use super::properties::{Place, Properties};
use super::{QoS, Version};

/// What a client wants to hear of. The options beside the QoS are MQTT 5's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filter<'a> {
    pub filter: &'a str,
    pub qos: QoS,
    pub no_local: bool,
    pub retain_as_published: bool,
    /// 0 to 2.
    pub retain_handling: u8,
}

const NO_LOCAL: u8 = 1 << 2;
const RETAIN_AS_PUBLISHED: u8 = 1 << 3;

impl<'a> Filter<'a> {
    pub fn new(filter: &'a str, qos: QoS) -> Self {
        Self {
            filter,
            qos,
            no_local: false,
            retain_as_published: false,
            retain_handling: 0,
        }
    }

    fn read(reader: &mut Reader<'a>, version: Version) -> Result<Self, Error> {
        let filter = filter(reader)?;
        let options = reader.u8()?;
        let known = match version {
            Version::V3 => 0b11,
            Version::V5 => 0b0011_1111,
        };
        // MQTT 3.1.1 [MQTT-3.8.3-4], MQTT 5 [MQTT-3.8.3-5].
        let retain_handling = options >> 4 & 0b11;
        if options & !known != 0 || retain_handling == 3 {
            return Err(Error::Options);
        }
        Ok(Self {
            filter,
            qos: QoS::from_bits(options & 0b11)?,
            no_local: options & NO_LOCAL != 0,
            retain_as_published: options & RETAIN_AS_PUBLISHED != 0,
            retain_handling,
        })
    }

    fn options(&self) -> u8 {
        let set = |is_set: bool, flag| if is_set { flag } else { 0 };
        let flags = set(self.no_local, NO_LOCAL) | set(self.retain_as_published, RETAIN_AS_PUBLISHED);
        self.qos as u8 | flags | self.retain_handling << 4
    }
}

/// A filter that may be one: not empty, wildcards alone in their level, `#` at the end.
// MQTT 3.1.1 s4.7.
fn filter<'a>(reader: &mut Reader<'a>) -> Result<&'a str, Error> {
    let filter = reader.text()?;
    let mut levels = filter.split('/').peekable();
    let mut is_valid = !filter.is_empty();
    while let Some(level) = levels.next() {
        is_valid &= match level {
            "#" => levels.peek().is_none(),
            "+" => true,
            level => !level.contains(['+', '#']),
        };
    }
    if is_valid { Ok(filter) } else { Err(Error::Filter) }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Subscribe<'a> {
    version: Version,
    pub packet_id: NonZeroU16,
    pub properties: Properties<'a>,
    /// Checked.
    filters: &'a [u8],
}

impl<'a> Subscribe<'a> {
    pub(super) fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        let properties = match version {
            Version::V3 => Properties::NONE,
            Version::V5 => Properties::read(&mut reader, Place::Packet(Kind::Subscribe))?,
        };
        let filters = reader.0;
        // MQTT 3.1.1 [MQTT-3.8.3-3].
        if filters.is_empty() {
            return Err(Error::NoFilters);
        }
        while !reader.is_empty() {
            Filter::read(&mut reader, version)?;
        }
        Ok(Self {
            version,
            packet_id,
            properties,
            filters,
        })
    }

    pub fn filters(&self) -> impl Iterator<Item = Filter<'a>> + use<'a> {
        let (mut reader, version) = (Reader(self.filters), self.version);
        std::iter::from_fn(move || Filter::read(&mut reader, version).ok())
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        write_filters(
            Kind::Subscribe,
            self.packet_id,
            &self.properties,
            self.filters,
            version,
            out,
        )
    }
}

impl std::fmt::Debug for Subscribe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Subscribe");
        debug
            .field("packet_id", &self.packet_id)
            .field("properties", &self.properties);
        debug.field("filters", &self.filters().collect::<Vec<_>>()).finish()
    }
}

/// Appends a SUBSCRIBE.
///
/// # Errors
/// `TooLarge`, `NoFilters`.
pub(super) fn write_subscribe(
    packet_id: NonZeroU16,
    properties: &Properties<'_>,
    filters: &[Filter<'_>],
    version: Version,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut written = Vec::new();
    for filter in filters {
        write_binary(filter.filter.as_bytes(), &mut written)?;
        written.push(filter.options());
    }
    write_filters(Kind::Subscribe, packet_id, properties, &written, version, out)
}

/// Appends an UNSUBSCRIBE.
///
/// # Errors
/// `TooLarge`, `NoFilters`.
pub(super) fn write_unsubscribe(
    packet_id: NonZeroU16,
    properties: &Properties<'_>,
    filters: &[&str],
    version: Version,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let mut written = Vec::new();
    for filter in filters {
        write_binary(filter.as_bytes(), &mut written)?;
    }
    write_filters(Kind::Unsubscribe, packet_id, properties, &written, version, out)
}

fn write_filters(
    kind: Kind,
    packet_id: NonZeroU16,
    properties: &Properties<'_>,
    filters: &[u8],
    version: Version,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    if filters.is_empty() {
        return Err(Error::NoFilters);
    }
    let properties_bytes = match version {
        Version::V3 => 0,
        Version::V5 => properties.written_bytes(),
    };
    write_header(kind, 0b0010, 2 + properties_bytes + filters.len(), out)?;
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    if version == Version::V5 {
        properties.write(out);
    }
    out.extend_from_slice(filters);
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Unsubscribe<'a> {
    pub packet_id: NonZeroU16,
    pub properties: Properties<'a>,
    /// Checked.
    filters: &'a [u8],
}

impl<'a> Unsubscribe<'a> {
    pub(super) fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let packet_id = reader.packet_id()?;
        let properties = match version {
            Version::V3 => Properties::NONE,
            Version::V5 => Properties::read(&mut reader, Place::Packet(Kind::Unsubscribe))?,
        };
        let filters = reader.0;
        // MQTT 3.1.1 [MQTT-3.10.3-2].
        if filters.is_empty() {
            return Err(Error::NoFilters);
        }
        while !reader.is_empty() {
            filter(&mut reader)?;
        }
        Ok(Self {
            packet_id,
            properties,
            filters,
        })
    }

    pub fn filters(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        let mut reader = Reader(self.filters);
        std::iter::from_fn(move || filter(&mut reader).ok())
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        write_filters(
            Kind::Unsubscribe,
            self.packet_id,
            &self.properties,
            self.filters,
            version,
            out,
        )
    }
}

impl std::fmt::Debug for Unsubscribe<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("Unsubscribe");
        debug
            .field("packet_id", &self.packet_id)
            .field("properties", &self.properties);
        debug.field("filters", &self.filters().collect::<Vec<_>>()).finish()
    }
}

/// One code for each filter, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SubAck<'a> {
    pub packet_id: NonZeroU16,
    pub properties: Properties<'a>,
    pub codes: &'a [u8],
}

impl<'a> SubAck<'a> {
    pub(super) fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let (packet_id, properties, codes) = read_codes(Kind::SubAck, body, version)?;
        if codes.is_empty() {
            return Err(Error::NoFilters);
        }
        Ok(Self {
            packet_id,
            properties,
            codes,
        })
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        write_codes(Kind::SubAck, self.packet_id, &self.properties, self.codes, version, out)
    }
}

/// One code for each filter in MQTT 5, none before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnsubAck<'a> {
    pub packet_id: NonZeroU16,
    pub properties: Properties<'a>,
    pub codes: &'a [u8],
}

impl<'a> UnsubAck<'a> {
    pub(super) fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let (packet_id, properties, codes) = read_codes(Kind::UnsubAck, body, version)?;
        match version {
            Version::V3 => Reader(codes).end()?,
            Version::V5 if codes.is_empty() => return Err(Error::NoFilters),
            Version::V5 => {}
        }
        Ok(Self {
            packet_id,
            properties,
            codes,
        })
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        let codes = match version {
            Version::V3 => &[][..],
            Version::V5 => self.codes,
        };
        write_codes(Kind::UnsubAck, self.packet_id, &self.properties, codes, version, out)
    }
}

type Codes<'a> = (NonZeroU16, Properties<'a>, &'a [u8]);

fn read_codes(kind: Kind, body: &[u8], version: Version) -> Result<Codes<'_>, Error> {
    let mut reader = Reader(body);
    let packet_id = reader.packet_id()?;
    let properties = match version {
        Version::V3 => Properties::NONE,
        Version::V5 => Properties::read(&mut reader, Place::Packet(kind))?,
    };
    Ok((packet_id, properties, reader.0))
}

fn write_codes(
    kind: Kind,
    packet_id: NonZeroU16,
    properties: &Properties<'_>,
    codes: &[u8],
    version: Version,
    out: &mut Vec<u8>,
) -> Result<(), Error> {
    let properties_bytes = match version {
        Version::V3 => 0,
        Version::V5 => properties.written_bytes(),
    };
    write_header(kind, 0, 2 + properties_bytes + codes.len(), out)?;
    out.extend_from_slice(&packet_id.get().to_be_bytes());
    if version == Version::V5 {
        properties.write(out);
    }
    out.extend_from_slice(codes);
    Ok(())
}

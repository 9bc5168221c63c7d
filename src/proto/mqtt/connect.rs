//! CONNECT and CONNACK: how a connection begins.

use super::bytes::{Reader, write_binary};
use super::error::Error;
use super::header::{Kind, write_header};
use super::properties::{Place, Properties};
use super::{QoS, Version};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connect<'a> {
    pub version: Version,
    /// Clean session; clean start in MQTT 5.
    pub is_clean: bool,
    /// Seconds; 0 for none.
    pub keep_alive: u16,
    pub client_id: &'a str,
    pub will: Option<Will<'a>>,
    pub user_name: Option<&'a str>,
    pub password: Option<&'a [u8]>,
    pub properties: Properties<'a>,
}

/// What is published when the connection ends without a goodbye.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Will<'a> {
    pub qos: QoS,
    pub is_retain: bool,
    pub topic: &'a str,
    pub payload: &'a [u8],
    pub properties: Properties<'a>,
}

const NAME: &[u8] = b"MQTT";
const RESERVED: u8 = 1;
const CLEAN: u8 = 1 << 1;
const WILL: u8 = 1 << 2;
const WILL_RETAIN: u8 = 1 << 5;
const PASSWORD: u8 = 1 << 6;
const USER_NAME: u8 = 1 << 7;

impl<'a> Connect<'a> {
    pub(super) fn read(body: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let name = reader.binary()?;
        // MQTT 3.1 had another name: its level is what is not served.
        if name != NAME && name != b"MQIsdp" {
            return Err(Error::ProtocolName);
        }
        let version = match reader.u8()? {
            4 if name == NAME => Version::V3,
            5 if name == NAME => Version::V5,
            level => return Err(Error::ProtocolLevel { level }),
        };
        let flags = reader.u8()?;
        let contradicts = Error::ConnectFlags { flags };
        let (has_will, has_user_name, has_password) =
            (flags & WILL != 0, flags & USER_NAME != 0, flags & PASSWORD != 0);
        // MQTT 3.1.1 [MQTT-3.1.2-3], [MQTT-3.1.2-11], [MQTT-3.1.2-14], [MQTT-3.1.2-22].
        let needs_user_name = version == Version::V3 && has_password && !has_user_name;
        let has_will_bits = flags & (WILL_RETAIN | 0b11 << 3) != 0;
        if flags & RESERVED != 0 || (has_will_bits && !has_will) || needs_user_name {
            return Err(contradicts);
        }
        let will_qos = QoS::from_bits(flags >> 3 & 0b11).map_err(|_| contradicts)?;
        let keep_alive = reader.u16()?;
        let properties = match version {
            Version::V3 => Properties::NONE,
            Version::V5 => Properties::read(&mut reader, Place::Packet(Kind::Connect))?,
        };
        let client_id = reader.text()?;
        let will = match has_will {
            false => None,
            true => Some(Will {
                properties: match version {
                    Version::V3 => Properties::NONE,
                    Version::V5 => Properties::read(&mut reader, Place::Will)?,
                },
                topic: reader.text()?,
                payload: reader.binary()?,
                qos: will_qos,
                is_retain: flags & WILL_RETAIN != 0,
            }),
        };
        if will.is_some_and(|will| will.topic.is_empty() || will.topic.contains(['+', '#'])) {
            return Err(Error::Topic);
        }
        let user_name = has_user_name.then(|| reader.text()).transpose()?;
        let password = has_password.then(|| reader.binary()).transpose()?;
        reader.end()?;
        Ok(Self {
            version,
            is_clean: flags & CLEAN != 0,
            keep_alive,
            client_id,
            will,
            user_name,
            password,
            properties,
        })
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        let mut flags = u8::from(self.is_clean) * CLEAN;
        let mut set = |is_set: bool, flag| flags |= if is_set { flag } else { 0 };
        set(self.user_name.is_some(), USER_NAME);
        set(self.password.is_some(), PASSWORD);
        if let Some(will) = &self.will {
            set(true, WILL | (will.qos as u8) << 3);
            set(will.is_retain, WILL_RETAIN);
        }
        let mut body = Vec::with_capacity(64);
        write_binary(NAME, &mut body)?;
        body.extend_from_slice(&[self.version.level(), flags]);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        if self.version == Version::V5 {
            self.properties.write(&mut body);
        }
        write_binary(self.client_id.as_bytes(), &mut body)?;
        if let Some(will) = &self.will {
            if self.version == Version::V5 {
                will.properties.write(&mut body);
            }
            write_binary(will.topic.as_bytes(), &mut body)?;
            write_binary(will.payload, &mut body)?;
        }
        if let Some(user_name) = self.user_name {
            write_binary(user_name.as_bytes(), &mut body)?;
        }
        if let Some(password) = self.password {
            write_binary(password, &mut body)?;
        }
        write_header(Kind::Connect, 0, body.len(), out)?;
        out.extend_from_slice(&body);
        Ok(())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnAck<'a> {
    pub is_session_present: bool,
    /// 3.1.1: a return code; 5: a reason.
    pub code: u8,
    pub properties: Properties<'a>,
}

impl<'a> ConnAck<'a> {
    pub(super) fn read(body: &'a [u8], version: Version) -> Result<Self, Error> {
        let mut reader = Reader(body);
        let (flags, code) = (reader.u8()?, reader.u8()?);
        // MQTT 3.1.1 [MQTT-3.2.2-4].
        if flags > 1 || (flags == 1 && code != 0) {
            return Err(Error::AckFlags { flags });
        }
        let properties = match version {
            Version::V3 => Properties::NONE,
            Version::V5 => Properties::read(&mut reader, Place::Packet(Kind::ConnAck))?,
        };
        reader.end()?;
        Ok(Self {
            is_session_present: flags == 1,
            code,
            properties,
        })
    }

    pub(super) fn write(&self, version: Version, out: &mut Vec<u8>) -> Result<(), Error> {
        let properties_bytes = match version {
            Version::V3 => 0,
            Version::V5 => self.properties.written_bytes(),
        };
        write_header(Kind::ConnAck, 0, 2 + properties_bytes, out)?;
        out.extend_from_slice(&[self.is_session_present.into(), self.code]);
        if version == Version::V5 {
            self.properties.write(out);
        }
        Ok(())
    }
}

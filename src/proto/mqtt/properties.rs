//! What MQTT 5 says beside a packet's fields.

use super::bytes::{Reader, length_bytes, write_binary};
use super::error::Error;
use super::header::{Kind, write_length};

/// One property.
// MQTT 5 s2.2.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Property<'a> {
    PayloadFormat(u8),
    /// Seconds.
    MessageExpiry(u32),
    ContentType(&'a str),
    ResponseTopic(&'a str),
    CorrelationData(&'a [u8]),
    SubscriptionId(u32),
    /// Seconds.
    SessionExpiry(u32),
    AssignedClientId(&'a str),
    /// Seconds.
    ServerKeepAlive(u16),
    AuthMethod(&'a str),
    AuthData(&'a [u8]),
    RequestProblemInfo(u8),
    /// Seconds.
    WillDelay(u32),
    RequestResponseInfo(u8),
    ResponseInfo(&'a str),
    ServerReference(&'a str),
    ReasonString(&'a str),
    ReceiveMaximum(u16),
    TopicAliasMaximum(u16),
    TopicAlias(u16),
    MaximumQoS(u8),
    RetainAvailable(u8),
    User(&'a str, &'a str),
    /// Bytes.
    MaximumPacketSize(u32),
    WildcardAvailable(u8),
    SubscriptionIdAvailable(u8),
    SharedAvailable(u8),
}

const SUBSCRIPTION_ID: u32 = 11;
const USER: u32 = 38;

impl<'a> Property<'a> {
    fn number(&self) -> u32 {
        match self {
            Self::PayloadFormat(_) => 1,
            Self::MessageExpiry(_) => 2,
            Self::ContentType(_) => 3,
            Self::ResponseTopic(_) => 8,
            Self::CorrelationData(_) => 9,
            Self::SubscriptionId(_) => SUBSCRIPTION_ID,
            Self::SessionExpiry(_) => 17,
            Self::AssignedClientId(_) => 18,
            Self::ServerKeepAlive(_) => 19,
            Self::AuthMethod(_) => 21,
            Self::AuthData(_) => 22,
            Self::RequestProblemInfo(_) => 23,
            Self::WillDelay(_) => 24,
            Self::RequestResponseInfo(_) => 25,
            Self::ResponseInfo(_) => 26,
            Self::ServerReference(_) => 28,
            Self::ReasonString(_) => 31,
            Self::ReceiveMaximum(_) => 33,
            Self::TopicAliasMaximum(_) => 34,
            Self::TopicAlias(_) => 35,
            Self::MaximumQoS(_) => 36,
            Self::RetainAvailable(_) => 37,
            Self::User(..) => USER,
            Self::MaximumPacketSize(_) => 39,
            Self::WildcardAvailable(_) => 40,
            Self::SubscriptionIdAvailable(_) => 41,
            Self::SharedAvailable(_) => 42,
        }
    }

    fn read(reader: &mut Reader<'a>) -> Result<Self, Error> {
        Ok(match reader.length()? {
            1 => Self::PayloadFormat(reader.u8()?),
            2 => Self::MessageExpiry(reader.u32()?),
            3 => Self::ContentType(reader.text()?),
            8 => Self::ResponseTopic(reader.text()?),
            9 => Self::CorrelationData(reader.binary()?),
            SUBSCRIPTION_ID => Self::SubscriptionId(reader.length()?),
            17 => Self::SessionExpiry(reader.u32()?),
            18 => Self::AssignedClientId(reader.text()?),
            19 => Self::ServerKeepAlive(reader.u16()?),
            21 => Self::AuthMethod(reader.text()?),
            22 => Self::AuthData(reader.binary()?),
            23 => Self::RequestProblemInfo(reader.u8()?),
            24 => Self::WillDelay(reader.u32()?),
            25 => Self::RequestResponseInfo(reader.u8()?),
            26 => Self::ResponseInfo(reader.text()?),
            28 => Self::ServerReference(reader.text()?),
            31 => Self::ReasonString(reader.text()?),
            33 => Self::ReceiveMaximum(reader.u16()?),
            34 => Self::TopicAliasMaximum(reader.u16()?),
            35 => Self::TopicAlias(reader.u16()?),
            36 => Self::MaximumQoS(reader.u8()?),
            37 => Self::RetainAvailable(reader.u8()?),
            USER => Self::User(reader.text()?, reader.text()?),
            39 => Self::MaximumPacketSize(reader.u32()?),
            40 => Self::WildcardAvailable(reader.u8()?),
            41 => Self::SubscriptionIdAvailable(reader.u8()?),
            42 => Self::SharedAvailable(reader.u8()?),
            number => return Err(Error::Property { number }),
        })
    }

    fn write(&self, out: &mut Vec<u8>) -> Result<(), Error> {
        out.push(self.number() as u8);
        match *self {
            Self::PayloadFormat(value)
            | Self::RequestProblemInfo(value)
            | Self::RequestResponseInfo(value)
            | Self::MaximumQoS(value)
            | Self::RetainAvailable(value)
            | Self::WildcardAvailable(value)
            | Self::SubscriptionIdAvailable(value)
            | Self::SharedAvailable(value) => out.push(value),
            Self::ServerKeepAlive(value)
            | Self::ReceiveMaximum(value)
            | Self::TopicAliasMaximum(value)
            | Self::TopicAlias(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::MessageExpiry(value)
            | Self::SessionExpiry(value)
            | Self::WillDelay(value)
            | Self::MaximumPacketSize(value) => out.extend_from_slice(&value.to_be_bytes()),
            Self::SubscriptionId(value) => write_length(value as usize, out),
            Self::ContentType(text)
            | Self::ResponseTopic(text)
            | Self::AssignedClientId(text)
            | Self::AuthMethod(text)
            | Self::ResponseInfo(text)
            | Self::ServerReference(text)
            | Self::ReasonString(text) => write_binary(text.as_bytes(), out)?,
            Self::CorrelationData(bytes) | Self::AuthData(bytes) => write_binary(bytes, out)?,
            Self::User(name, value) => {
                write_binary(name.as_bytes(), out)?;
                write_binary(value.as_bytes(), out)?;
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), Error> {
        let is_valid = match *self {
            Self::PayloadFormat(value)
            | Self::RequestProblemInfo(value)
            | Self::RequestResponseInfo(value)
            | Self::MaximumQoS(value)
            | Self::RetainAvailable(value)
            | Self::WildcardAvailable(value)
            | Self::SubscriptionIdAvailable(value)
            | Self::SharedAvailable(value) => value <= 1,
            Self::ReceiveMaximum(value) | Self::TopicAlias(value) => value != 0,
            Self::MaximumPacketSize(value) | Self::SubscriptionId(value) => value != 0,
            // MQTT 5 [MQTT-3.3.2-14].
            Self::ResponseTopic(topic) => !topic.is_empty() && !topic.contains(['+', '#']),
            _ => true,
        };
        let number = self.number();
        if is_valid {
            Ok(())
        } else {
            Err(Error::PropertyValue { number })
        }
    }
}

/// Where properties stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Packet(Kind),
    Will,
}

impl Place {
    /// The numbers of the properties that may stand there, one bit each.
    // MQTT 5 s2.2.2.2.
    const fn allowed(self) -> u64 {
        const fn bits(numbers: &[u32]) -> u64 {
            let (mut bits, mut at) = (0, 0);
            while at < numbers.len() {
                bits |= 1 << numbers[at];
                at += 1;
            }
            bits
        }
        match self {
            Self::Packet(Kind::Connect) => const { bits(&[17, 21, 22, 23, 25, 33, 34, USER, 39]) },
            Self::Packet(Kind::ConnAck) => {
                const { bits(&[17, 18, 19, 21, 22, 26, 28, 31, 33, 34, 36, 37, USER, 39, 40, 41, 42]) }
            }
            Self::Packet(Kind::Publish) => const { bits(&[1, 2, 3, 8, 9, SUBSCRIPTION_ID, 35, USER]) },
            Self::Will => const { bits(&[1, 2, 3, 8, 9, 24, USER]) },
            Self::Packet(Kind::Subscribe) => const { bits(&[SUBSCRIPTION_ID, USER]) },
            Self::Packet(Kind::Unsubscribe) => const { bits(&[USER]) },
            Self::Packet(Kind::Disconnect) => const { bits(&[17, 28, 31, USER]) },
            Self::Packet(Kind::Auth) => const { bits(&[21, 22, 31, USER]) },
            Self::Packet(
                Kind::PubAck | Kind::PubRec | Kind::PubRel | Kind::PubComp | Kind::SubAck | Kind::UnsubAck,
            ) => const { bits(&[31, USER]) },
            Self::Packet(Kind::PingReq | Kind::PingResp) => 0,
        }
    }

    /// Properties that may stand there more than once.
    fn repeatable(self) -> u64 {
        match self {
            // MQTT 5 s3.3.2.3.8: a message for several subscriptions names them all.
            Self::Packet(Kind::Publish) => 1 << USER | 1 << SUBSCRIPTION_ID,
            _ => 1 << USER,
        }
    }
}

/// Properties that were checked.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Properties<'a>(&'a [u8]);

impl<'a> Properties<'a> {
    pub const NONE: Self = Self(&[]);

    /// Reads their length and checks each.
    pub(super) fn read(reader: &mut Reader<'a>, place: Place) -> Result<Self, Error> {
        let count = reader.length()?;
        let bytes = reader.take(count as usize)?;
        let (mut unread, mut seen) = (Reader(bytes), 0u64);
        while !unread.is_empty() {
            let property = Property::read(&mut unread)?;
            let number = property.number();
            if place.allowed() & 1 << number == 0 {
                return Err(Error::Property { number });
            }
            if seen & 1 << number != 0 && place.repeatable() & 1 << number == 0 {
                return Err(Error::PropertyTwice { number });
            }
            seen |= 1 << number;
            property.check()?;
        }
        Ok(Self(bytes))
    }

    /// Each in its order. Costs no allocation.
    pub fn iter(&self) -> impl Iterator<Item = Property<'a>> + use<'a> {
        let mut reader = Reader(self.0);
        std::iter::from_fn(move || (!reader.is_empty()).then(|| Property::read(&mut reader).ok()).flatten())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn written_bytes(&self) -> usize {
        length_bytes(self.0.len()) + self.0.len()
    }

    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_length(self.0.len(), out);
        out.extend_from_slice(self.0);
    }
}

impl std::fmt::Debug for Properties<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Properties to be sent. Whether they may stand in a packet is the sender's to know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PropertyBuf(Vec<u8>);

impl PropertyBuf {
    /// A text of more than 65,535 bytes is left out: MQTT has no way to say it.
    pub fn push(&mut self, property: Property<'_>) {
        let before = self.0.len();
        if property.write(&mut self.0).is_err() {
            self.0.truncate(before);
        }
    }

    pub fn as_properties(&self) -> Properties<'_> {
        Properties(&self.0)
    }
}

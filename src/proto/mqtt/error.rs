//! What is wrong with a packet, and the reasons that MQTT 5 has names for.

/// Why bytes are no packet. The connection they came on cannot go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("no packet has the type and flags {first:#04x}")]
    Header { first: u8 },
    #[error("a length is written in more than four bytes")]
    Length,
    #[error("the packet ends before what it holds does")]
    Truncated,
    #[error("{bytes} bytes stand behind what the packet holds")]
    Trailing { bytes: usize },
    #[error("a text is not UTF-8, or has U+0000 in it")]
    Text,
    #[error("the packet id is 0")]
    PacketId,
    #[error("the quality of service is 3")]
    QoS,
    #[error("a message of QoS 0 is marked as a duplicate")]
    Duplicate,
    #[error("a topic is empty or has a wildcard")]
    Topic,
    #[error("a filter is empty or has a wildcard where none may stand")]
    Filter,
    #[error("the packet names no filter")]
    NoFilters,
    #[error("a subscription has options that do not exist")]
    Options,
    #[error("the protocol is not MQTT")]
    ProtocolName,
    #[error("the protocol level {level} is not served")]
    ProtocolLevel { level: u8 },
    #[error("the flags {flags:#04x} of the CONNECT contradict each other")]
    ConnectFlags { flags: u8 },
    #[error("the flags {flags:#04x} of the CONNACK are not valid")]
    AckFlags { flags: u8 },
    #[error("no property has the number {number}, or not in this packet")]
    Property { number: u32 },
    #[error("the property {number} stands there twice")]
    PropertyTwice { number: u32 },
    #[error("the property {number} has a value it may not have")]
    PropertyValue { number: u32 },
    #[error("the packet is larger than it may be")]
    TooLarge,
}

impl Error {
    /// What an MQTT 5 peer is told.
    // MQTT 5 s4.13.
    pub fn reason(self) -> Reason {
        match self {
            Self::Duplicate | Self::NoFilters | Self::PropertyTwice { .. } | Self::PropertyValue { .. } => {
                Reason::PROTOCOL_ERROR
            }
            Self::Topic => Reason::TOPIC_NAME_INVALID,
            Self::Filter => Reason::TOPIC_FILTER_INVALID,
            Self::ProtocolName | Self::ProtocolLevel { .. } => Reason::UNSUPPORTED_PROTOCOL_VERSION,
            Self::TooLarge => Reason::PACKET_TOO_LARGE,
            Self::Header { .. }
            | Self::Length
            | Self::Truncated
            | Self::Trailing { .. }
            | Self::Text
            | Self::PacketId
            | Self::QoS
            | Self::Options
            | Self::ConnectFlags { .. }
            | Self::AckFlags { .. }
            | Self::Property { .. } => Reason::MALFORMED_PACKET,
        }
    }
}

/// A reason code of MQTT 5.
// MQTT 5 s2.4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reason(pub u8);

impl Reason {
    pub const SUCCESS: Self = Self(0x00);
    pub const GRANTED_QOS_1: Self = Self(0x01);
    pub const DISCONNECT_WITH_WILL: Self = Self(0x04);
    pub const NO_SUBSCRIPTION_EXISTED: Self = Self(0x11);
    pub const UNSPECIFIED: Self = Self(0x80);
    pub const MALFORMED_PACKET: Self = Self(0x81);
    pub const PROTOCOL_ERROR: Self = Self(0x82);
    pub const IMPLEMENTATION_SPECIFIC: Self = Self(0x83);
    pub const UNSUPPORTED_PROTOCOL_VERSION: Self = Self(0x84);
    pub const CLIENT_ID_INVALID: Self = Self(0x85);
    pub const BAD_USER_NAME_OR_PASSWORD: Self = Self(0x86);
    pub const NOT_AUTHORIZED: Self = Self(0x87);
    pub const SERVER_UNAVAILABLE: Self = Self(0x88);
    pub const SERVER_BUSY: Self = Self(0x89);
    pub const SERVER_SHUTTING_DOWN: Self = Self(0x8b);
    pub const BAD_AUTHENTICATION_METHOD: Self = Self(0x8c);
    pub const KEEP_ALIVE_TIMEOUT: Self = Self(0x8d);
    pub const SESSION_TAKEN_OVER: Self = Self(0x8e);
    pub const TOPIC_FILTER_INVALID: Self = Self(0x8f);
    pub const TOPIC_NAME_INVALID: Self = Self(0x90);
    pub const RECEIVE_MAXIMUM_EXCEEDED: Self = Self(0x93);
    pub const TOPIC_ALIAS_INVALID: Self = Self(0x94);
    pub const PACKET_TOO_LARGE: Self = Self(0x95);
    pub const QUOTA_EXCEEDED: Self = Self(0x97);
    pub const ADMINISTRATIVE_ACTION: Self = Self(0x98);
    pub const PAYLOAD_FORMAT_INVALID: Self = Self(0x99);
    pub const RETAIN_NOT_SUPPORTED: Self = Self(0x9a);
    pub const QOS_NOT_SUPPORTED: Self = Self(0x9b);
    pub const SHARED_NOT_SUPPORTED: Self = Self(0x9e);
    pub const CONNECTION_RATE_EXCEEDED: Self = Self(0x9f);
    pub const MAXIMUM_CONNECT_TIME: Self = Self(0xa0);

    pub fn is_error(self) -> bool {
        self.0 >= 0x80
    }
}

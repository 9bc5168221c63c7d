//! Application error codes of a native connection: why the hub (or a client) closed it.
//!
//! | code | name | meaning | what a client does |
//! | --- | --- | --- | --- |
//! | 0x00 | Normal | finished | nothing |
//! | 0x01 | Draining | the hub stops | reconnect after a back-off |
//! | 0x02 | MalformedFrame | a frame or batch that cannot be read | do not repeat it |
//! | 0x03 | UnsupportedVersion | version or frame kind unknown; the reason says what is spoken | upgrade |
//! | 0x04 | FrameTooLarge | a frame above the announced limit | send smaller batches |
//! | 0x05 | MessageTooLarge | a message above 256 KiB, counted (IoT Hub 413001) | do not repeat it |
//! | 0x06 | UnexpectedFrame | a frame that its stream does not carry now | fix the client |
//! | 0x07 | SequenceGap | an append that skips sequences without saying so | resume from the welcome |
//! | 0x08 | StaleEpoch | a newer epoch of this device has been seen | take a new epoch |
//! | 0x09 | InvalidMessage | an archive that fails validation | do not repeat it |
//! | 0x10 | Unauthorized | credential refused (IoT Hub 401003): unknown device, wrong key, expired, wrong scope | get a credential |
//! | 0x11 | DeviceDisabled | disabled (IoT Hub 403012), also in mid-session | wait long |
//! | 0x12 | DeviceDeleted | deleted in mid-session | stop |
//! | 0x13 | TokenExpired | the token ran out in mid-session | reconnect with a new one |
//! | 0x14 | TakenOver | the same identity connected again (IoT Hub 400027) | do not fight for it |
//! | 0x15 | Forbidden | the policy lacks the permission (IoT Hub 401002) | use another policy |
//! | 0x20 | Busy | too many sessions, or the hub sheds load | back off |
//! | 0x21 | TooSlow | no hello in time, or a peer that does not read what it asked for | reconnect |
//! | 0x22 | Internal | the hub cannot store: the partition is closed after an I/O error | back off |

/// See the module's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum CloseCode {
    Normal = 0x00,
    Draining = 0x01,
    MalformedFrame = 0x02,
    UnsupportedVersion = 0x03,
    FrameTooLarge = 0x04,
    MessageTooLarge = 0x05,
    UnexpectedFrame = 0x06,
    SequenceGap = 0x07,
    StaleEpoch = 0x08,
    InvalidMessage = 0x09,
    Unauthorized = 0x10,
    DeviceDisabled = 0x11,
    DeviceDeleted = 0x12,
    TokenExpired = 0x13,
    TakenOver = 0x14,
    Forbidden = 0x15,
    Busy = 0x20,
    TooSlow = 0x21,
    Internal = 0x22,
}

impl CloseCode {
    pub const ALL: [Self; 19] = [
        Self::Normal,
        Self::Draining,
        Self::MalformedFrame,
        Self::UnsupportedVersion,
        Self::FrameTooLarge,
        Self::MessageTooLarge,
        Self::UnexpectedFrame,
        Self::SequenceGap,
        Self::StaleEpoch,
        Self::InvalidMessage,
        Self::Unauthorized,
        Self::DeviceDisabled,
        Self::DeviceDeleted,
        Self::TokenExpired,
        Self::TakenOver,
        Self::Forbidden,
        Self::Busy,
        Self::TooSlow,
        Self::Internal,
    ];

    pub fn from_number(number: u64) -> Option<Self> {
        Self::ALL.into_iter().find(|code| *code as u64 == number)
    }

    /// A label for metrics, from this closed set.
    pub fn label(self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Draining => "draining",
            Self::MalformedFrame => "malformed_frame",
            Self::UnsupportedVersion => "unsupported_version",
            Self::FrameTooLarge => "frame_too_large",
            Self::MessageTooLarge => "message_too_large",
            Self::UnexpectedFrame => "unexpected_frame",
            Self::SequenceGap => "sequence_gap",
            Self::StaleEpoch => "stale_epoch",
            Self::InvalidMessage => "invalid_message",
            Self::Unauthorized => "unauthorized",
            Self::DeviceDisabled => "device_disabled",
            Self::DeviceDeleted => "device_deleted",
            Self::TokenExpired => "token_expired",
            Self::TakenOver => "taken_over",
            Self::Forbidden => "forbidden",
            Self::Busy => "busy",
            Self::TooSlow => "too_slow",
            Self::Internal => "internal",
        }
    }

    /// Whether connecting again with the same credential and data can succeed.
    pub fn is_transient(self) -> bool {
        match self {
            Self::Draining | Self::Busy | Self::TooSlow | Self::Internal | Self::TokenExpired | Self::SequenceGap => {
                true
            }
            Self::Normal
            | Self::MalformedFrame
            | Self::UnsupportedVersion
            | Self::FrameTooLarge
            | Self::MessageTooLarge
            | Self::UnexpectedFrame
            | Self::StaleEpoch
            | Self::InvalidMessage
            | Self::Unauthorized
            | Self::DeviceDisabled
            | Self::DeviceDeleted
            | Self::TakenOver
            | Self::Forbidden => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_and_numbers_agree() {
        for code in CloseCode::ALL {
            assert_eq!(CloseCode::from_number(code as u64), Some(code));
        }
        assert_eq!(CloseCode::from_number(0x7f), None);
    }
}

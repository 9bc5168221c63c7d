//! Names and numbers that identify things. Each is a type of its own, so that two of them cannot be swapped.

use std::fmt;
use std::sync::Arc;

use super::limits;

/// An ordered log with one owning shard, 0-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartitionId(pub u16);

impl PartitionId {
    /// The partition of a device: `device_hash(id) mod partition_count`. Fixed when the data directory is created.
    pub fn of_hash(device_hash: u64, partition_count: u16) -> Self {
        assert!(partition_count > 0, "a hub has at least one partition");
        Self((device_hash % u64::from(partition_count)) as u16)
    }
}

impl fmt::Display for PartitionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A record's ordinal in its partition: dense, +1, never reused. The first record of a partition is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SequenceNumber(pub u64);

impl SequenceNumber {
    /// The sequence number `count` records later.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0 + u64::from(count))
    }
}

impl fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of a device's send buffer. A device that lost its buffer starts a higher one; appends of a lower epoch
/// than the highest one seen are refused. 0 means "not chosen yet".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// Which life of a device id this is: changes when an id is deleted and created again. Shown as decimal digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a text is not a valid id or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IdError {
    /// Empty, or longer than the limit in bytes.
    Length { bytes: usize, bytes_max: usize },
    /// A character outside the allowed set, with its byte position.
    Character { character: char, position: usize },
}

impl fmt::Display for IdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Length { bytes, bytes_max } => write!(f, "has {bytes} bytes, allowed are 1 to {bytes_max}"),
            Self::Character { character, position } => {
                write!(
                    f,
                    "has the character {character:?} at byte {position}, which is not allowed"
                )
            }
        }
    }
}

impl std::error::Error for IdError {}

fn check(text: &str, bytes_max: usize, allowed: impl Fn(char) -> bool) -> Result<(), IdError> {
    if text.is_empty() || text.len() > bytes_max {
        return Err(IdError::Length {
            bytes: text.len(),
            bytes_max,
        });
    }
    match text.char_indices().find(|(_, c)| !allowed(*c)) {
        Some((position, character)) => Err(IdError::Character { character, position }),
        None => Ok(()),
    }
}

// IoT Hub, identity registry: ASCII letters and digits plus `- . + % _ # * ? ! ( ) , = @ $ '`, and `:` `;` by the REST
// schema.
fn is_identity_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-.+%_#*?!(),=@$':;".contains(c)
}

fn is_name_character(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._$".contains(c)
}

macro_rules! checked_text {
    ($(#[$doc:meta])* $name:ident, $bytes_max:expr, $allowed:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// # Errors
            /// `IdError` when the text is empty, too long, or has a character that is not allowed.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text, $bytes_max, $allowed)?;
                Ok(Self(text.into()))
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:?})", stringify!($name), &*self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

checked_text!(
    /// A device identity's name: 1 to 128 characters, case-sensitive. Cloning is a reference count.
    DeviceId,
    limits::ID_BYTES_MAX,
    is_identity_character
);
checked_text!(
    /// A module identity's name, by the same rules as a device id.
    ModuleId,
    limits::ID_BYTES_MAX,
    is_identity_character
);
checked_text!(
    /// A shared access policy's name: 1 to 64 characters.
    PolicyName,
    limits::POLICY_NAME_BYTES_MAX,
    is_name_character
);
checked_text!(
    /// A named set of readers that share one view of the hub: 1 to 50 characters. `$Default` always exists.
    ConsumerGroup,
    limits::CONSUMER_GROUP_BYTES_MAX,
    is_name_character
);

impl DeviceId {
    /// `device_hash` of this id.
    pub fn hash64(&self) -> u64 {
        device_hash(self.as_str())
    }
}

/// The stable hash that places a device: 64-bit FNV-1a over the id's UTF-8 bytes, then MurmurHash3's 64-bit finalizer.
///
/// Part of the data format and of the native protocol (clients write it into their first connection id); it never
/// changes. Test vectors stand below.
pub fn device_hash(device_id: &str) -> u64 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in device_id.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_hash_keeps_its_vectors() {
        // Computed with an independent implementation (Python integers). Changing one loses every device's partition.
        for (id, expected) in [
            ("", 0xefd0_1f60_ba99_2926_u64),
            ("dev-01", 0x44f5_7d4a_7f0b_728b),
            ("thermostat-7", 0xf378_ab0a_aa05_8d41),
        ] {
            assert_eq!(device_hash(id), expected, "{id}: {:#x}", device_hash(id));
        }
    }

    #[test]
    fn devices_spread_evenly() {
        let mut counts = [0u32; 8];
        for n in 0..8000 {
            counts[usize::from(PartitionId::of_hash(device_hash(&format!("device-{n:05}")), 8).0)] += 1;
        }
        assert!(counts.iter().all(|&count| (850..1150).contains(&count)), "{counts:?}");
    }

    #[test]
    fn ids_are_checked() {
        assert!(DeviceId::new("a-Z.0+%_#*?!(),=@$'").is_ok());
        assert_eq!(
            DeviceId::new(""),
            Err(IdError::Length {
                bytes: 0,
                bytes_max: 128
            })
        );
        assert_eq!(
            DeviceId::new(&"x".repeat(129)),
            Err(IdError::Length {
                bytes: 129,
                bytes_max: 128
            })
        );
        assert_eq!(
            DeviceId::new("a/b"),
            Err(IdError::Character {
                character: '/',
                position: 1
            })
        );
        assert_eq!(
            DeviceId::new("ä"),
            Err(IdError::Character {
                character: 'ä',
                position: 0
            })
        );
        assert!(ConsumerGroup::new("$Default").is_ok());
    }
}

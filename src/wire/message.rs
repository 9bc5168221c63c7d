//! One message as an rkyv archive: the unit inside a batch.
//!
//! Layout (little endian, no alignment, offsets are signed 32-bit and relative to the position of the offset field
//! itself; the root is the last 24 bytes of the archive, what it points at lies before it):
//!
//! ```text
//! root    0  i32 offset, u32 count   system properties      -> array of 9-byte entries
//!         8  i32 offset, u32 count   application properties -> array of 16-byte entries
//!        16  i32 offset, u32 count   body                   -> bytes
//! system entry       u8 key (model::SystemKey), i32 offset, u32 bytes of the UTF-8 value
//! application entry  i32 offset, u32 bytes of the name, i32 offset, u32 bytes of the value
//! ```
//!
//! The layout is a promise: golden files under `tests/golden/wire/` hold it, and a struct here is never edited.

use rkyv::rancor::Failure;
use rkyv::ser::{Positional, Serializer};
use rkyv::with::InlineAsBox;
use rkyv::{Archive, Serialize};

use crate::model::{Message, SystemKey};

#[derive(Archive, Serialize)]
pub struct SystemProperty<'a> {
    key: u8,
    #[rkyv(with = InlineAsBox)]
    value: &'a str,
}

#[derive(Archive, Serialize)]
pub struct Property<'a> {
    #[rkyv(with = InlineAsBox)]
    name: &'a str,
    #[rkyv(with = InlineAsBox)]
    value: &'a str,
}

/// What is archived; borrowed from a [`Message`].
#[derive(Archive, Serialize)]
pub struct Root<'a> {
    system: Vec<SystemProperty<'a>>,
    properties: Vec<Property<'a>>,
    #[rkyv(with = InlineAsBox)]
    body: &'a [u8],
}

type Archived = ArchivedRoot<'static>;

/// Bytes of the root, and so of the smallest archive.
pub const ROOT_BYTES: usize = 24;

const _: () = assert!(size_of::<Archived>() == ROOT_BYTES && align_of::<Archived>() == 1);
const _: () = assert!(size_of::<ArchivedSystemProperty<'static>>() == 9);
const _: () = assert!(size_of::<ArchivedProperty<'static>>() == 16);

/// Appends the archive of `message` to `into`.
pub fn encode(message: &Message, into: &mut Vec<u8>) {
    encode_parts(message, &message.body, into);
}

/// Appends the archive of a message that has the properties of `message` and this body instead of its own. Allocates
/// nothing if there are none.
pub fn encode_parts(message: &Message, body: &[u8], into: &mut Vec<u8>) {
    let root = Root {
        system: message
            .system
            .iter()
            .map(|(key, value)| SystemProperty { key: *key as u8, value })
            .collect(),
        properties: message
            .properties
            .iter()
            .map(|(name, value)| Property { name, value })
            .collect(),
        body,
    };
    encode_root(&root, into);
}

/// Appends the archive of a message that is only a body, without allocating.
pub fn encode_body(body: &[u8], into: &mut Vec<u8>) {
    encode_root(
        &Root {
            system: Vec::new(),
            properties: Vec::new(),
            body,
        },
        into,
    );
}

fn encode_root(root: &Root<'_>, into: &mut Vec<u8>) {
    rkyv::util::with_arena(|arena| {
        let mut serializer = Serializer::new(Appending(into), arena.acquire(), ());
        rkyv::api::serialize_using::<_, Failure>(root, &mut serializer)
    })
    .expect("a growable buffer takes any message that fits in memory");
}

/// A writer that appends to a shared buffer. rkyv's offsets are relative, so the position the archive starts at is
/// free.
struct Appending<'a>(&'a mut Vec<u8>);

impl Positional for Appending<'_> {
    fn pos(&self) -> usize {
        self.0.len()
    }
}

impl<E> rkyv::ser::Writer<E> for Appending<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), E> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

/// Why the bytes of one message are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    #[error("not a valid archive of a message")]
    Archive,
    #[error("system property {key} is unknown or set twice")]
    SystemKey { key: u8 },
    #[error("message of {bytes} counted bytes exceeds {bytes_max}")]
    TooLarge { bytes: usize, bytes_max: usize },
}

/// A checked archive, read in place.
#[derive(Clone, Copy)]
pub struct MessageRef<'a>(&'a Archived);

impl<'a> MessageRef<'a> {
    /// Checks untrusted bytes: structure, UTF-8, known system keys each at most once.
    ///
    /// # Errors
    /// `MessageError::Archive` or `MessageError::SystemKey`.
    pub fn check(archive: &'a [u8]) -> Result<Self, MessageError> {
        let archived = rkyv::api::low::access::<Archived, Failure>(archive).map_err(|_| MessageError::Archive)?;
        let mut seen = 0u32;
        for property in archived.system.iter() {
            let key = property.key;
            if SystemKey::from_number(key).is_none() || seen & (1 << key) != 0 {
                return Err(MessageError::SystemKey { key });
            }
            seen |= 1 << key;
        }
        Ok(Self(archived))
    }

    /// As [`Message::counted_bytes`].
    pub fn counted_bytes(&self) -> usize {
        let system: usize = self.0.system.iter().map(|property| property.value.len()).sum();
        let application: usize = self.0.properties.iter().map(|p| p.name.len() + p.value.len()).sum();
        self.0.body.len() + system + application
    }

    pub fn body(&self) -> &'a [u8] {
        &self.0.body
    }

    pub fn system(&self) -> impl Iterator<Item = (SystemKey, &'a str)> + use<'a> {
        self.0.system.iter().map(|property| {
            let key = SystemKey::from_number(property.key).expect("keys were checked when the reference was made");
            (key, &*property.value)
        })
    }

    pub fn properties(&self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.0
            .properties
            .iter()
            .map(|property| (&*property.name, &*property.value))
    }

    pub fn property_count(&self) -> usize {
        self.0.properties.len()
    }

    pub fn to_message(&self) -> Message {
        Message {
            system: self.system().map(|(key, value)| (key, value.to_owned())).collect(),
            properties: self
                .properties()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            body: self.body().to_vec(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Message {
        Message::new(b"{\"t\":21.5}".to_vec())
            .system(SystemKey::MessageId, "m-1")
            .system(SystemKey::ContentType, "application/json")
            .property("alert", "true")
    }

    #[test]
    fn a_message_comes_back_as_it_went_in() {
        let mut bytes = b"something before it".to_vec();
        let start = bytes.len();
        encode(&sample(), &mut bytes);
        let read = MessageRef::check(&bytes[start..]).unwrap();
        assert_eq!(read.to_message(), sample());
        assert_eq!(read.counted_bytes(), sample().counted_bytes());
    }

    #[test]
    fn the_layout_is_the_documented_one() {
        let mut bytes = Vec::new();
        encode_body(b"abc", &mut bytes);
        // body at 0, root at 3: system (offset to an empty array), properties, body offset = 0 - (3 + 16).
        assert_eq!(bytes.len(), 3 + ROOT_BYTES);
        assert_eq!(&bytes[..3], b"abc");
        assert_eq!(i32::from_le_bytes(bytes[19..23].try_into().unwrap()), -19);
        assert_eq!(u32::from_le_bytes(bytes[23..27].try_into().unwrap()), 3);
    }

    #[test]
    fn unknown_and_repeated_system_keys_are_refused() {
        let mut bytes = Vec::new();
        let twice = Root {
            system: vec![
                SystemProperty { key: 1, value: "a" },
                SystemProperty { key: 1, value: "b" },
            ],
            properties: Vec::new(),
            body: b"",
        };
        encode_root(&twice, &mut bytes);
        assert_eq!(
            MessageRef::check(&bytes).err(),
            Some(MessageError::SystemKey { key: 1 })
        );
        bytes.clear();
        let unknown = Root {
            system: vec![SystemProperty { key: 200, value: "a" }],
            properties: Vec::new(),
            body: b"",
        };
        encode_root(&unknown, &mut bytes);
        assert_eq!(
            MessageRef::check(&bytes).err(),
            Some(MessageError::SystemKey { key: 200 })
        );
    }

    proptest! {
        #[test]
        fn mutated_archives_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = Vec::new();
            encode(&sample(), &mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = to;
            let cut = cut.index(bytes.len());
            for piece in [&bytes[..], &bytes[cut..], &bytes[..cut]] {
                if let Ok(message) = MessageRef::check(piece) {
                    let _ = message.to_message();
                }
            }
        }
    }
}

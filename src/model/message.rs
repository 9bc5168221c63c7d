//! One telemetry message as a device gives it and a consumer gets it.

use std::collections::HashSet;

/// The system properties a device may set, with the number that stands for each on the native protocol.
///
/// Names and meanings: `contract/message-format.md` section 2. What the hub stamps (device id, enqueued time, auth
/// method, ...) is not here: it stands beside the device's bytes and cannot be set by a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum SystemKey {
    MessageId = 1,
    CorrelationId = 2,
    UserId = 3,
    ContentType = 4,
    ContentEncoding = 5,
    /// ISO 8601 in UTC with `Z`.
    CreationTimeUtc = 6,
    InterfaceId = 7,
    MessageSchema = 8,
    /// Component that sent the message.
    Subject = 9,
    To = 10,
    AbsoluteExpiryTime = 11,
    OutputName = 12,
    /// Free text of the feedback wish; meaningful only on the way to a device.
    Ack = 13,
    Operation = 14,
    DiagnosticId = 15,
    CorrelationContext = 16,
    /// Model that the device follows, as it said when it connected; doors that are told so set it.
    DataSchema = 17,
}

impl SystemKey {
    /// Every key, in the order of the numbers.
    pub const ALL: [Self; 17] = [
        Self::MessageId,
        Self::CorrelationId,
        Self::UserId,
        Self::ContentType,
        Self::ContentEncoding,
        Self::CreationTimeUtc,
        Self::InterfaceId,
        Self::MessageSchema,
        Self::Subject,
        Self::To,
        Self::AbsoluteExpiryTime,
        Self::OutputName,
        Self::Ack,
        Self::Operation,
        Self::DiagnosticId,
        Self::CorrelationContext,
        Self::DataSchema,
    ];

    /// The key of a number; `None` for a number no version has given out.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number).checked_sub(1)?).copied()
    }

    /// The name a reader of the built-in endpoint sees.
    pub fn name(self) -> &'static str {
        match self {
            Self::MessageId => "message-id",
            Self::CorrelationId => "correlation-id",
            Self::UserId => "user-id",
            Self::ContentType => "content-type",
            Self::ContentEncoding => "content-encoding",
            Self::CreationTimeUtc => "iothub-creation-time-utc",
            Self::InterfaceId => "iothub-interface-id",
            Self::MessageSchema => "iothub-message-schema",
            Self::Subject => "dt-subject",
            Self::To => "to",
            Self::AbsoluteExpiryTime => "absolute-expiry-time",
            Self::OutputName => "iothub-outputname",
            Self::Ack => "iothub-ack",
            Self::Operation => "iothub-operation",
            Self::DiagnosticId => "Diagnostic-Id",
            Self::CorrelationContext => "Correlation-Context",
            Self::DataSchema => "dt-dataschema",
        }
    }

    /// The key of an endpoint name, compared without case as the hub compares property names.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|key| key.name().eq_ignore_ascii_case(name))
    }
}

/// A message on its way from a device: what the device wrote and nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Message {
    /// At most one value a key.
    pub system: Vec<(SystemKey, String)>,
    /// Application properties in the sender's order.
    pub properties: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Message {
    pub fn new(body: impl Into<Vec<u8>>) -> Self {
        Self {
            body: body.into(),
            ..Self::default()
        }
    }

    /// Adds an application property.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    /// Sets a system property, replacing an earlier value.
    #[must_use]
    pub fn system(mut self, key: SystemKey, value: impl Into<String>) -> Self {
        self.system.retain(|(k, _)| *k != key);
        self.system.push((key, value.into()));
        self
    }

    pub fn get(&self, key: SystemKey) -> Option<&str> {
        self.system
            .iter()
            .find(|(k, _)| *k == key)
            .map(|(_, value)| value.as_str())
    }

    /// The size that `limits::MESSAGE_BYTES_MAX` bounds.
    // IoT Hub, message format section 8: body, values of system properties, names and values of application properties.
    pub fn counted_bytes(&self) -> usize {
        let system: usize = self.system.iter().map(|(_, value)| value.len()).sum();
        let application: usize = self
            .properties
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        self.body.len() + system + application
    }
}

/// Tells the names of application properties apart, whatever their case. A message has few, or a sender wants the hub to
/// work: then they are looked up.
#[derive(Debug, Default)]
pub struct PropertyNames(HashSet<String>);

impl PropertyNames {
    const FEW: usize = 32;

    /// Whether the name is none of those in `known`, to which the caller then adds it. One set for one message.
    // IoT Hub, message format section 7: of names that differ only in case, one is forwarded.
    pub fn is_new(&mut self, known: &[(String, String)], name: &str) -> bool {
        if known.len() < Self::FEW {
            return known.iter().all(|(known, _)| !known.eq_ignore_ascii_case(name));
        }
        if self.0.is_empty() {
            self.0.extend(known.iter().map(|(known, _)| known.to_ascii_lowercase()));
        }
        self.0.insert(name.to_ascii_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_keys_and_numbers_agree() {
        for key in SystemKey::ALL {
            assert_eq!(SystemKey::from_number(key as u8), Some(key));
            assert_eq!(SystemKey::from_name(&key.name().to_uppercase()), Some(key));
        }
        assert_eq!(SystemKey::from_number(0), None);
        assert_eq!(SystemKey::from_number(18), None);
    }

    #[test]
    fn size_counts_system_values_but_not_their_names() {
        let message = Message::new("12345")
            .system(SystemKey::MessageId, "id")
            .property("name", "val");
        assert_eq!(message.counted_bytes(), 5 + 2 + 7);
    }

    #[test]
    fn names_are_told_apart_however_many_there_are() {
        let mut names = PropertyNames::default();
        let mut known: Vec<(String, String)> = Vec::new();
        for n in 0..200 {
            for name in [format!("Name-{n}"), format!("nAME-{n}"), "name-0".to_owned()] {
                if names.is_new(&known, &name) {
                    known.push((name, String::new()));
                }
            }
        }
        assert_eq!(known.len(), 200);
        assert!(known.iter().all(|(name, _)| name.starts_with("Name-")));
    }
}

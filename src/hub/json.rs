//! How the words of `model` stand in the contract's JSON. `model` imports only `std`, so serde meets it here.

/// Text that has a checked type: ids, names.
macro_rules! text {
    ($name:ident, $type:ty) => {
        pub mod $name {
            use serde::{Deserialize as _, Deserializer, Serializer};

            pub fn serialize<S: Serializer>(value: &$type, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(value.as_str())
            }

            pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                <$type>::new(&text).map_err(serde::de::Error::custom)
            }
        }
    };
}

text!(device_id, crate::model::DeviceId);
text!(module_id, crate::model::ModuleId);
text!(policy_name, crate::model::PolicyName);

/// A generation as text of decimal digits; absent or null is 0, "not given yet".
pub mod generation {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::model::Generation;

    pub fn serialize<S: Serializer>(value: &Generation, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Generation, D::Error> {
        let text = Option::<std::borrow::Cow<'_, str>>::deserialize(deserializer)?;
        // A client may send back text of its own; the registry overwrites it.
        Ok(Generation(text.and_then(|text| text.parse().ok()).unwrap_or_default()))
    }
}

/// A date as `2026-01-01T00:00:00.000Z`, and the year 1 when unset, as the service has it.
pub mod date {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::model::UtcMillis;

    const UNSET: &str = "0001-01-01T00:00:00Z";

    pub fn serialize<S: Serializer>(value: &Option<UtcMillis>, serializer: S) -> Result<S::Ok, S::Error> {
        match value.and_then(|time| jiff::Timestamp::from_millisecond(time.0).ok()) {
            Some(time) => serializer.serialize_str(&format!("{time:.3}")),
            None => serializer.serialize_str(UNSET),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UtcMillis>, D::Error> {
        let Some(text) = Option::<std::borrow::Cow<'_, str>>::deserialize(deserializer)? else {
            return Ok(None);
        };
        if text.starts_with("0001-01-01T00:00:00") {
            return Ok(None);
        }
        let time: jiff::Timestamp = if text.ends_with('Z') {
            text.parse().map_err(serde::de::Error::custom)?
        } else {
            // An older shape has no zone and means UTC.
            format!("{text}Z").parse().map_err(serde::de::Error::custom)?
        };
        Ok(Some(UtcMillis(time.as_millisecond())))
    }
}

/// A time as the hub keeps it in records nobody else reads: milliseconds.
pub mod millis {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use crate::model::UtcMillis;

    pub fn serialize<S: Serializer>(value: &Option<UtcMillis>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(|time| time.0).serialize(serializer)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<UtcMillis>, D::Error> {
        Ok(Option::deserialize(deserializer)?.map(UtcMillis))
    }
}

/// Null means the same as absence.
pub fn null_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + serde::Deserialize<'de>,
{
    Ok(<Option<T> as serde::Deserialize>::deserialize(deserializer)?.unwrap_or_default())
}

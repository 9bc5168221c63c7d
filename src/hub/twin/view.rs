//! A twin as the two sides see it, and the body of a change event, ready to be serialized.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::document::{Members, Metadata, Section, Twin};
use super::store::{TwinChange, TwinChanged};
use crate::hub::identity::{
    AuthenticationKind, Capabilities, ConnectionState, DeviceIdentity, IdentityName, ModuleIdentity, Status,
    ThumbprintPair,
};
use crate::hub::json;
use crate::model::UtcMillis;

/// What a service sees (twins, section 1.1). Whoever knows the live connection state has put it into the identity.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceSide<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    etag: String,
    device_etag: &'a str,
    #[serde(flatten)]
    device: Option<DeviceMembers<'a>>,
    connection_state: ConnectionState,
    #[serde(with = "json::date")]
    last_activity_time: Option<UtcMillis>,
    cloud_to_device_message_count: u32,
    authentication_type: AuthenticationKind,
    x509_thumbprint: &'a ThumbprintPair,
    /// Empty: no door takes a model id.
    model_id: &'static str,
    version: u64,
    tags: &'a Members,
    properties: Properties<'a>,
}

/// What a module's twin does not have.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceMembers<'a> {
    status: Status,
    status_reason: Option<&'a str>,
    // IoT Hub, twins: `statusUpdateTime` here, `statusUpdatedTime` in the identity.
    #[serde(with = "json::date")]
    status_update_time: Option<UtcMillis>,
    capabilities: &'a Capabilities,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_scope: Option<&'a str>,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    parent_scopes: &'a [String],
}

#[derive(serde::Serialize)]
struct Properties<'a> {
    desired: Described<'a>,
    reported: Described<'a>,
}

impl<'a> ServiceSide<'a> {
    pub fn of_device(identity: &'a DeviceIdentity, twin: &'a Twin) -> Self {
        Self {
            device_id: identity.device_id.as_str(),
            module_id: None,
            etag: twin.etag(),
            device_etag: &identity.etag,
            device: Some(DeviceMembers {
                status: identity.status,
                status_reason: identity.status_reason.as_deref(),
                status_update_time: identity.status_updated_time,
                capabilities: &identity.capabilities,
                device_scope: identity.device_scope.as_deref(),
                parent_scopes: &identity.parent_scopes,
            }),
            connection_state: identity.connection_state,
            last_activity_time: identity.last_activity_time,
            cloud_to_device_message_count: identity.cloud_to_device_message_count,
            authentication_type: identity.authentication.kind,
            x509_thumbprint: &identity.authentication.x509_thumbprint,
            model_id: "",
            version: twin.version,
            tags: &twin.tags,
            properties: Properties::of(twin),
        }
    }

    pub fn of_module(identity: &'a ModuleIdentity, twin: &'a Twin) -> Self {
        Self {
            device_id: identity.device_id.as_str(),
            module_id: Some(identity.module_id.as_str()),
            etag: twin.etag(),
            device_etag: &identity.etag,
            device: None,
            connection_state: identity.connection_state,
            last_activity_time: identity.last_activity_time,
            cloud_to_device_message_count: identity.cloud_to_device_message_count,
            authentication_type: identity.authentication.kind,
            x509_thumbprint: &identity.authentication.x509_thumbprint,
            model_id: "",
            version: twin.version,
            tags: &twin.tags,
            properties: Properties::of(twin),
        }
    }
}

impl<'a> Properties<'a> {
    fn of(twin: &'a Twin) -> Self {
        Self {
            desired: Described::desired(twin, None),
            reported: Described::reported(twin, None),
        }
    }
}

/// What a device sees of its own twin (twins, section 1.2): no tags, nothing of the identity, no metadata.
#[derive(serde::Serialize)]
pub struct DeviceSide<'a> {
    desired: Versioned<'a>,
    reported: Versioned<'a>,
}

impl<'a> DeviceSide<'a> {
    pub fn of(twin: &'a Twin) -> Self {
        Self {
            desired: Versioned(&twin.desired),
            reported: Versioned(&twin.reported),
        }
    }
}

/// The body of a twin change event (events, section 5), or of a life cycle event.
#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeEvent<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<&'a Members>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<ChangedProperties<'a>>,
}

#[derive(serde::Serialize)]
struct ChangedProperties<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    desired: Option<Described<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reported: Option<Described<'a>>,
}

impl<'a> ChangeEvent<'a> {
    pub fn of(changed: &'a TwinChanged) -> Self {
        let TwinChanged { identity, twin, .. } = changed;
        let (tags, desired, reported) = match &*changed.change {
            TwinChange::Patched(update) => (update.tags.as_ref(), update.desired.as_ref(), None),
            TwinChange::Reported(patch) => (None, None, Some(patch)),
            TwinChange::Replaced(_) => return Self::whole(identity, twin),
        };
        let has_properties = desired.is_some() || reported.is_some();
        Self {
            device_id: None,
            module_id: None,
            etag: None,
            version: twin.version,
            tags,
            properties: has_properties.then(|| ChangedProperties {
                desired: desired.map(|patch| Described::desired(twin, Some(patch))),
                reported: reported.map(|patch| Described::reported(twin, Some(patch))),
            }),
        }
    }
}

impl<'a> ChangeEvent<'a> {
    /// The body of a life cycle event (events, section 4): the whole twin, tags if there are any.
    pub fn of_life(identity: &'a IdentityName, twin: &'a Twin) -> Self {
        Self {
            tags: Some(&twin.tags).filter(|tags| !tags.is_empty()),
            ..Self::whole(identity, twin)
        }
    }

    fn whole(identity: &'a IdentityName, twin: &'a Twin) -> Self {
        Self {
            device_id: Some(identity.device.as_str()),
            module_id: identity.module.as_ref().map(|module| module.as_str()),
            etag: Some(twin.etag()),
            version: twin.version,
            tags: Some(&twin.tags),
            properties: Some(ChangedProperties {
                desired: Some(Described::desired(twin, None)),
                reported: Some(Described::reported(twin, None)),
            }),
        }
    }
}

/// A section with `$version`.
struct Versioned<'a>(&'a Section);

impl Serialize for Versioned<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in &self.0.members {
            map.serialize_entry(key, value)?;
        }
        map.serialize_entry("$version", &self.0.version)?;
        map.end()
    }
}

/// A section with `$metadata` and `$version`.
struct Described<'a> {
    section: &'a Section,
    with_versions: bool,
    /// Shows these members in place of the section's own, and metadata of no others.
    only: Option<&'a Members>,
}

impl<'a> Described<'a> {
    fn desired(twin: &'a Twin, only: Option<&'a Members>) -> Self {
        Self {
            section: &twin.desired,
            with_versions: true,
            only,
        }
    }

    fn reported(twin: &'a Twin, only: Option<&'a Members>) -> Self {
        Self {
            section: &twin.reported,
            // IoT Hub, twins: `$lastUpdatedVersion` is on desired properties only.
            with_versions: false,
            only,
        }
    }
}

impl Serialize for Described<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (key, value) in self.only.unwrap_or(&self.section.members) {
            map.serialize_entry(key, value)?;
        }
        let metadata = MetadataSide {
            metadata: &self.section.metadata,
            with_versions: self.with_versions,
            only: self.only,
        };
        map.serialize_entry("$metadata", &metadata)?;
        map.serialize_entry("$version", &self.section.version)?;
        map.end()
    }
}

struct MetadataSide<'a> {
    metadata: &'a Metadata,
    with_versions: bool,
    only: Option<&'a Members>,
}

impl Serialize for MetadataSide<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(serde::Serialize)]
        struct Date(#[serde(with = "json::date")] Option<UtcMillis>);

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("$lastUpdated", &Date(self.metadata.at))?;
        if self.with_versions && self.metadata.version > 0 {
            map.serialize_entry("$lastUpdatedVersion", &self.metadata.version)?;
        }
        for (key, metadata) in &self.metadata.members {
            if self.only.is_some_and(|only| !only.contains_key(key)) {
                continue;
            }
            let inner = MetadataSide {
                metadata,
                with_versions: self.with_versions,
                only: self.only.and_then(|only| only.get(key)?.as_object()),
            };
            map.serialize_entry(key, &inner)?;
        }
        map.end()
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;

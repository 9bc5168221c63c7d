//! The twin itself: what a change makes of it. Plain values; time is an argument.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::limits::{InvalidTwin, SectionName, check_patch, check_section};
use crate::hub::json;
use crate::model::UtcMillis;

/// A JSON object.
pub type Members = serde_json::Map<String, Value>;

/// Members that the hub writes at the top of a section. Clients send back what they read; it is not theirs to change.
const RESERVED: [&str; 3] = ["$version", "$metadata", "$etag"];

/// What a service asks to change. A section that is absent stays as it is.
///
/// In JSON it is the part of a service's twin that may be written; other members are not looked at. A section that is
/// null is taken as absent: some SDKs write null for what was not set, and would empty the twin.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TwinUpdate {
    pub tags: Option<Members>,
    pub desired: Option<Members>,
}

impl TwinUpdate {
    /// # Errors
    /// When it is no JSON, or a section is no object.
    pub fn from_json(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let section = |members: &mut Members, key: &str| {
            let value = members.remove(key).unwrap_or(Value::Null);
            serde_json::from_value::<Option<Members>>(value)
        };
        let mut document = parse_members(bytes)?;
        let tags = section(&mut document, "tags")?;
        let mut properties = section(&mut document, "properties")?.unwrap_or_default();
        let desired = section(&mut properties, "desired")?;
        Ok(Self { tags, desired })
    }

    pub(super) fn without_reserved(self) -> Self {
        Self {
            tags: self.tags.map(without_reserved),
            desired: self.desired.map(without_reserved),
        }
    }
}

/// What the twin of a new identity begins with. Absent is the same as empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct InitialTwin {
    pub tags: Option<Members>,
    pub desired: Option<Members>,
    pub reported: Option<Members>,
}

impl InitialTwin {
    /// The twin, or `None` when it is the fresh one.
    pub(in crate::hub) fn build(self, now: UtcMillis) -> Result<Option<Twin>, InvalidTwin> {
        let mut twin = Twin::fresh();
        let sections = [
            (SectionName::Tags, self.tags),
            (SectionName::Desired, self.desired),
            (SectionName::Reported, self.reported),
        ];
        for (name, members) in sections {
            let members = members.map(without_reserved).unwrap_or_default();
            if members.is_empty() {
                continue;
            }
            check_patch(name, &members)?;
            let kept = match name {
                SectionName::Tags => {
                    merge(&mut twin.tags, &members);
                    &twin.tags
                }
                SectionName::Desired => twin.desired.begin(&members, now),
                SectionName::Reported => twin.reported.begin(&members, now),
            };
            check_section(name, kept)?;
        }
        Ok((twin != Twin::fresh()).then_some(twin))
    }
}

/// A JSON object: a device's patch of its reported properties.
///
/// # Errors
/// When it is no JSON, or no object.
pub fn parse_members(bytes: &[u8]) -> Result<Members, serde_json::Error> {
    serde_json::from_slice(bytes)
}

pub(super) fn without_reserved(mut members: Members) -> Members {
    for key in RESERVED {
        members.remove(key);
    }
    members
}

/// When and by which version of its section something was last changed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Stamp {
    at: UtcMillis,
    version: u64,
}

/// The metadata of a section, an object or a leaf; of arrays as a whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Metadata {
    /// `None` in a section that was never changed.
    #[serde(default, with = "json::millis", skip_serializing_if = "Option::is_none")]
    pub at: Option<UtcMillis>,
    /// 0 in a section that was never changed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub version: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub members: BTreeMap<String, Metadata>,
}

fn is_zero(version: &u64) -> bool {
    *version == 0
}

impl Metadata {
    fn stamp(&mut self, stamp: Stamp) {
        self.at = Some(stamp.at);
        self.version = stamp.version;
    }

    /// Follows a patch without looking at the values: below what is no object there is no metadata that could stay.
    fn follow(&mut self, patch: &Members, stamp: Stamp) {
        // IoT Hub, twins: parents carry it too, so that the removal of a member can be seen.
        self.stamp(stamp);
        for (key, value) in patch {
            match value {
                Value::Null => {
                    self.members.remove(key);
                }
                Value::Object(patch) => self.members.entry(key.clone()).or_default().follow(patch, stamp),
                Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                    let mut leaf = Self::default();
                    leaf.stamp(stamp);
                    self.members.insert(key.clone(), leaf);
                }
            }
        }
    }
}

/// Desired or reported properties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// `$version`: one more with each change.
    pub version: u64,
    pub members: Members,
    pub(super) metadata: Metadata,
}

impl Section {
    // IoT Hub, twins: both sections of a fresh twin have version 1.
    fn fresh() -> Self {
        Self {
            version: 1,
            members: Members::new(),
            metadata: Metadata::default(),
        }
    }

    /// The whole section as a device is told of it, with `$version`.
    pub(super) fn told(&self) -> Members {
        let mut told = self.members.clone();
        told.insert("$version".into(), self.version.into());
        told
    }

    fn replaced(&self, members: &Members, now: UtcMillis) -> Self {
        let mut next = Self {
            version: self.version,
            ..Self::fresh()
        };
        next.merge(members, now);
        next
    }

    /// What the section holds from the beginning, which is no change of it.
    fn begin(&mut self, members: &Members, now: UtcMillis) -> &Members {
        let stamp = Stamp {
            at: now,
            version: self.version,
        };
        merge(&mut self.members, members);
        self.metadata.follow(members, stamp);
        &self.members
    }

    fn merge(&mut self, patch: &Members, now: UtcMillis) {
        self.version += 1;
        let stamp = Stamp {
            at: now,
            version: self.version,
        };
        merge(&mut self.members, patch);
        self.metadata.follow(patch, stamp);
    }
}

/// RFC 7396: null deletes, objects merge, all else replaces.
fn merge(members: &mut Members, patch: &Members) {
    for (key, value) in patch {
        match value {
            Value::Null => {
                members.remove(key);
            }
            Value::Object(patch) => {
                let slot = members.entry(key.clone()).or_insert(Value::Null);
                if let Value::Object(inner) = slot {
                    merge(inner, patch);
                } else {
                    let mut inner = Members::new();
                    merge(&mut inner, patch);
                    *slot = Value::Object(inner);
                }
            }
            Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                members.insert(key.clone(), value.clone());
            }
        }
    }
}

/// A device's or module's twin, without what its identity says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Twin {
    /// Of the twin as a whole: one more with each change.
    pub version: u64,
    /// What the etag shows.
    counter: u64,
    pub tags: Members,
    pub desired: Section,
    pub reported: Section,
}

impl Twin {
    /// The twin of an identity that nobody has written to.
    pub fn fresh() -> Self {
        Self {
            // IoT Hub, life cycle events: 2 and `AAAAAAAAAAE=` on creation.
            version: 2,
            counter: 1,
            tags: Members::new(),
            desired: Section::fresh(),
            reported: Section::fresh(),
        }
    }

    /// The etag, unquoted. It changes with tags and desired properties, which it protects. Whether reported ones should
    /// change it is not confirmed; they do not, so that a busy device does not refuse its service every write.
    pub fn etag(&self) -> String {
        STANDARD.encode(self.counter.to_be_bytes())
    }

    /// What a device missed that last saw `version` of its desired properties: nothing, or the whole section, since the
    /// changes between are not kept. A version the section never had is one of an earlier life.
    pub fn desired_since(&self, version: u64) -> Option<Members> {
        (self.desired.version != version).then(|| self.desired.told())
    }

    /// A service's partial update, whose members were checked. `Err` when a section would exceed its limits.
    pub(super) fn patched(&self, update: &TwinUpdate, now: UtcMillis) -> Result<Self, InvalidTwin> {
        let mut next = self.next();
        next.counter += 1;
        if let Some(patch) = &update.tags {
            merge(&mut next.tags, patch);
            check_section(SectionName::Tags, &next.tags)?;
        }
        if let Some(patch) = &update.desired {
            next.desired.merge(patch, now);
            check_section(SectionName::Desired, &next.desired.members)?;
        }
        Ok(next)
    }

    /// A service's replacement: a section that is given takes the place of the old one. `Err` as with `patched`.
    pub(super) fn replaced(&self, update: &TwinUpdate, now: UtcMillis) -> Result<Self, InvalidTwin> {
        let mut next = self.next();
        next.counter += 1;
        if let Some(tags) = &update.tags {
            next.tags = Members::new();
            merge(&mut next.tags, tags);
            check_section(SectionName::Tags, &next.tags)?;
        }
        if let Some(members) = &update.desired {
            next.desired = self.desired.replaced(members, now);
            check_section(SectionName::Desired, &next.desired.members)?;
        }
        Ok(next)
    }

    /// A device's update of its reported properties. `Err` as with `patched`.
    pub(super) fn patched_reported(&self, patch: &Members, now: UtcMillis) -> Result<Self, InvalidTwin> {
        let mut next = self.next();
        next.reported.merge(patch, now);
        check_section(SectionName::Reported, &next.reported.members)?;
        Ok(next)
    }

    /// Every accepted request is a change, also one that changes no member.
    fn next(&self) -> Self {
        let mut next = self.clone();
        next.version += 1;
        next
    }
}

#[cfg(test)]
#[path = "document_tests.rs"]
mod tests;

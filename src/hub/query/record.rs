//! What the attributes of a device or module are: the members of its twin as a service sees it.

use std::borrow::Cow;
use std::cell::OnceCell;

use serde_json::Value;

use super::expression::{Attributes, Datum, Path};
use crate::hub::identity::{DeviceIdentity, ModuleIdentity, Status};
use crate::hub::twin::{Members, ServiceSide, Twin};

/// An identity while a query looks at it.
pub(super) enum Identity {
    Device(DeviceIdentity),
    Module(ModuleIdentity),
}

pub(super) struct Record<'r> {
    identity: &'r Identity,
    twin: &'r Twin,
    document: OnceCell<Value>,
}

impl<'r> Record<'r> {
    pub fn new(identity: &'r Identity, twin: &'r Twin) -> Self {
        Self {
            identity,
            twin,
            document: OnceCell::new(),
        }
    }

    /// The whole twin.
    pub fn document(&self) -> &Value {
        self.document.get_or_init(|| {
            let document = match self.identity {
                Identity::Device(identity) => serde_json::to_value(ServiceSide::of_device(identity, self.twin)),
                Identity::Module(identity) => serde_json::to_value(ServiceSide::of_module(identity, self.twin)),
            };
            document.expect("a twin has text keys and no failing serializers")
        })
    }

    /// An attribute as JSON; `None` when it is undefined.
    pub fn json(&self, path: &Path) -> Option<&Value> {
        let mut names = path.0.iter();
        let first = names.next()?;
        walk(self.document().get(first)?, names)
    }
}

impl Attributes for Record<'_> {
    fn value(&self, path: &Path) -> Option<Datum<'_>> {
        let text = |text: &'static str| Some(Datum::Text(Cow::Borrowed(text)));
        let words: Vec<&str> = path.0.iter().map(String::as_str).collect();
        // Most conditions ask only for these, and the whole document costs ten times as much.
        match (&words[..], self.identity) {
            (["deviceId"], Identity::Device(device)) => Some(Datum::Text(Cow::Borrowed(device.device_id.as_str()))),
            (["deviceId"], Identity::Module(module)) => Some(Datum::Text(Cow::Borrowed(module.device_id.as_str()))),
            (["moduleId"], Identity::Module(module)) => Some(Datum::Text(Cow::Borrowed(module.module_id.as_str()))),
            (["status"], Identity::Device(device)) => match device.status {
                Status::Enabled => text("enabled"),
                Status::Disabled => text("disabled"),
            },
            (["tags", rest @ ..], _) if !rest.is_empty() => member(&self.twin.tags, rest),
            (["properties", "desired", rest @ ..], _) if is_plain(rest) => member(&self.twin.desired.members, rest),
            (["properties", "reported", rest @ ..], _) if is_plain(rest) => member(&self.twin.reported.members, rest),
            _ => self.json(path).map(Datum::from),
        }
    }
}

/// Not the whole section, `$version` or `$metadata`.
fn is_plain(names: &[&str]) -> bool {
    names.first().is_some_and(|name| !name.starts_with('$'))
}

fn member<'v>(members: &'v Members, names: &[&str]) -> Option<Datum<'v>> {
    let (first, rest) = names.split_first()?;
    walk(members.get(*first)?, rest.iter()).map(Datum::from)
}

fn walk(mut value: &Value, names: impl Iterator<Item = impl AsRef<str>>) -> Option<&Value> {
    for name in names {
        value = value.as_object()?.get(name.as_ref())?;
    }
    Some(value)
}

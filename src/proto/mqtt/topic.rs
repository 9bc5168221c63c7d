//! The topics of IoT Hub, and the filters that may be subscribed to.
//!
//! ```text
//!   from a device                                            to a device
//!   devices/{d}[/modules/{m}]/messages/events/{bag}          devices/{d}/messages/devicebound/{bag}
//!   $iothub/twin/GET/?$rid={rid}                             $iothub/twin/res/{status}/?$rid={rid}[&$version={n}]
//!   $iothub/twin/PATCH/properties/reported/?$rid={rid}       $iothub/twin/PATCH/properties/desired/?$version={n}
//!   $iothub/methods/res/{status}/?$rid={rid}                 $iothub/methods/POST/{name}/?$rid={rid}
//! ```

use std::borrow::Cow;

use super::bag::decoded;

/// What a device publishes.
// IoT Hub, MQTT sections 4, 6 and 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published<'a> {
    Telemetry {
        owner: Owner<'a>,
        bag: &'a str,
    },
    TwinGet {
        rid: &'a str,
    },
    TwinReport {
        rid: &'a str,
        /// As it stands: whether it is a number is the hub's to say.
        version: Option<&'a str>,
    },
    MethodAnswer {
        status: i32,
        rid: &'a str,
    },
}

/// Whose topic it is, as it stands there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner<'a> {
    device: &'a str,
    module: Option<&'a str>,
}

impl Owner<'_> {
    /// Whether these are the ids; a client may encode them.
    pub fn is(&self, device: &str, module: Option<&str>) -> bool {
        let is = |text: &str, id: &str| text == id || decoded(text) == id;
        is(self.device, device)
            && match (self.module, module) {
                (None, None) => true,
                (Some(text), Some(id)) => is(text, id),
                (Some(_), None) | (None, Some(_)) => false,
            }
    }
}

impl<'a> Published<'a> {
    /// `None`: nobody may publish there.
    pub fn parse(topic: &'a str) -> Option<Self> {
        if let Some(rest) = topic.strip_prefix("devices/") {
            let (owner, rest) = owner(rest)?;
            let bag = rest.strip_prefix("messages/events")?;
            let bag = match bag.strip_prefix('/') {
                Some(bag) => bag,
                None if bag.is_empty() => bag,
                None => return None,
            };
            return Some(Self::Telemetry { owner, bag });
        }
        let rest = topic.strip_prefix("$iothub/")?;
        if let Some(query) = rest.strip_prefix("twin/GET/") {
            return Some(Self::TwinGet {
                rid: parameter(query, "$rid")?,
            });
        }
        if let Some(query) = rest.strip_prefix("twin/PATCH/properties/reported/") {
            return Some(Self::TwinReport {
                rid: parameter(query, "$rid")?,
                version: parameter(query, "$version"),
            });
        }
        let (status, query) = rest.strip_prefix("methods/res/")?.split_once('/')?;
        Some(Self::MethodAnswer {
            status: status.parse().ok()?,
            rid: parameter(query, "$rid")?,
        })
    }
}

/// Cuts `{d}/` or `{d}/modules/{m}/` off.
fn owner(rest: &str) -> Option<(Owner<'_>, &str)> {
    let (device, rest) = rest.split_once('/')?;
    let Some(of_module) = rest.strip_prefix("modules/") else {
        return Some((Owner { device, module: None }, rest));
    };
    let (module, rest) = of_module.split_once('/')?;
    let module = Some(module);
    Some((Owner { device, module }, rest))
}

/// A parameter of the query that ends a topic, byte for byte.
fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let query = query.strip_prefix('?')?;
    query.split('&').find_map(|pair| match pair.split_once('=') {
        Some((key, value)) if key == name => Some(value),
        Some(_) | None => None,
    })
}

/// What a device subscribes to.
// IoT Hub, MQTT section 9.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Filter<'a> {
    /// Messages to the device.
    Commands(Owner<'a>),
    TwinAnswers,
    DesiredChanges,
    /// Direct methods: all, or the one of this name.
    Methods(Option<Cow<'a, str>>),
    /// Messages to a module's inputs, which come from other modules of an Edge device.
    Inputs(Owner<'a>),
    /// Answers to requests for a new certificate.
    Credentials,
}

impl<'a> Filter<'a> {
    /// `None`: nothing comes on such a topic.
    pub fn parse(filter: &'a str) -> Option<Self> {
        let rest = filter.strip_suffix('#')?;
        match rest {
            "$iothub/twin/res/" => return Some(Self::TwinAnswers),
            "$iothub/twin/PATCH/properties/desired/" => return Some(Self::DesiredChanges),
            "$iothub/methods/POST/" => return Some(Self::Methods(None)),
            "$iothub/credential/" => return Some(Self::Credentials),
            _ => {}
        }
        if let Some(name) = rest.strip_prefix("$iothub/methods/POST/") {
            let name = name.strip_suffix('/')?;
            let is_name = !name.is_empty() && !name.contains(['/', '+', '#']);
            return is_name.then(|| Self::Methods(Some(decoded(name))));
        }
        let (owner, rest) = owner(rest.strip_prefix("devices/")?)?;
        match rest {
            "messages/devicebound/" => Some(Self::Commands(owner)),
            "" | "inputs/" if owner.module.is_some() => Some(Self::Inputs(owner)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn telemetry(topic: &str) -> Option<(Owner<'_>, &str)> {
        match Published::parse(topic)? {
            Published::Telemetry { owner, bag } => Some((owner, bag)),
            _ => None,
        }
    }

    #[test]
    fn telemetry_has_an_owner_and_a_bag() {
        let device = Owner {
            device: "d",
            module: None,
        };
        let module = Owner {
            device: "d",
            module: Some("m"),
        };
        for (topic, expected) in [
            ("devices/d/messages/events", Some((device, ""))),
            ("devices/d/messages/events/", Some((device, ""))),
            ("devices/d/messages/events/a=1&b=2/", Some((device, "a=1&b=2/"))),
            ("devices/d/modules/m/messages/events/?a", Some((module, "?a"))),
            ("devices/d/messages/eventsx", None),
            ("devices/d/messages", None),
            ("devices/d/messages/devicebound/", None),
            ("devices/d/modules/messages/events", None),
            ("devices//messages", None),
            ("a", None),
            ("", None),
        ] {
            assert_eq!(telemetry(topic), expected, "{topic}");
        }
    }

    #[test]
    fn an_owner_may_be_encoded() {
        let owner = Owner {
            device: "a%2fb",
            module: Some("m:1"),
        };
        assert!(owner.is("a/b", Some("m:1")) && owner.is("a%2fb", Some("m:1")));
        assert!(!owner.is("a/b", None) && !owner.is("a", Some("m:1")));
        let device = Owner {
            device: "d",
            module: None,
        };
        assert!(device.is("d", None) && !device.is("d", Some("d")) && !device.is("D", None));
    }

    #[test]
    fn requests_and_answers_carry_an_id_as_it_stands() {
        for (topic, expected) in [
            (
                "$iothub/twin/GET/?$rid=a%20b",
                Some(Published::TwinGet { rid: "a%20b" }),
            ),
            (
                "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=7",
                Some(Published::TwinReport {
                    rid: "1",
                    version: Some("7"),
                }),
            ),
            (
                "$iothub/methods/res/-3/?$rid=1f",
                Some(Published::MethodAnswer { status: -3, rid: "1f" }),
            ),
            ("$iothub/methods/res/x/?$rid=1", None),
            ("$iothub/methods/res/200/", None),
            ("$iothub/twin/GET/", None),
            ("$iothub/twin/GET/?rid=1", None),
            ("$iothub/twin/PATCH/properties/desired/?$rid=1", None),
            ("$iothub/credentials/POST/issueCertificate/?$rid=1", None),
        ] {
            assert_eq!(Published::parse(topic), expected, "{topic}");
        }
    }

    #[test]
    fn only_what_comes_can_be_subscribed_to() {
        let owner = Owner {
            device: "d",
            module: None,
        };
        let module = Owner {
            device: "d",
            module: Some("m"),
        };
        for (filter, expected) in [
            ("devices/d/messages/devicebound/#", Some(Filter::Commands(owner))),
            ("$iothub/twin/res/#", Some(Filter::TwinAnswers)),
            ("$iothub/twin/PATCH/properties/desired/#", Some(Filter::DesiredChanges)),
            ("$iothub/methods/POST/#", Some(Filter::Methods(None))),
            (
                "$iothub/methods/POST/a%20b/#",
                Some(Filter::Methods(Some("a b".into()))),
            ),
            ("devices/d/modules/m/#", Some(Filter::Inputs(module))),
            ("devices/d/modules/m/inputs/#", Some(Filter::Inputs(module))),
            ("$iothub/credential/#", Some(Filter::Credentials)),
            ("devices/d/messages/devicebound/x/#", None),
            ("devices/d/messages/devicebound/", None),
            ("devices/d/messages/events/#", None),
            ("devices/d/#", None),
            (
                "devices/+/messages/devicebound/#",
                Some(Filter::Commands(Owner {
                    device: "+",
                    module: None,
                })),
            ),
            ("$iothub/methods/POST//#", None),
            ("$iothub/methods/POST/+/#", None),
            ("$iothub/#", None),
            ("#", None),
            ("", None),
        ] {
            assert_eq!(Filter::parse(filter), expected, "{filter}");
        }
    }
}

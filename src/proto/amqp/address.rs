//! What a link's address names.
//!
//! ```text
//!   [scheme://host[:port]/]path         words in any case, ids percent-encoded
//!
//!   $cbs                                                   tokens
//!   $management, {entity}/$management                      the built-in endpoint's facts
//!   {entity}/ConsumerGroups/{group}/Partitions/{n}         events of one partition
//!   messages/events[/...]                                  the same under the hub's own name: redirected
//!   devices/{d}[/modules/{m}]/messages/events              telemetry; of a module also what is for its inputs
//!   devices/{d}[/modules/{m}]/messages/devicebound         messages to the device
//!   devices/{d}[/modules/{m}]/methods/devicebound, /twin
//!   messages/devicebound                                   messages to devices, from a service
//!   messages/servicebound/feedback, /filenotifications
//! ```

/// The words of an address.
// IoT Hub, AMQP sections 3 to 5; built-in endpoint section 4.2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Cbs,
    Management {
        entity: Option<String>,
    },
    Partition {
        entity: String,
        group: String,
        partition: String,
    },
    /// `rest` is what follows `messages/events`, as it came.
    HubEvents {
        rest: String,
    },
    Device {
        device: String,
        module: Option<String>,
        purpose: Purpose,
    },
    Commands,
    Feedback,
    FileNotifications,
    /// An entity itself, to which nobody may send.
    Entity(String),
}

/// What a device's link is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Purpose {
    Events,
    Commands,
    Methods,
    Twin,
}

impl Address {
    /// `None`: nothing has this address.
    pub fn parse(text: &str) -> Option<Self> {
        let path = path(text);
        let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
        let is = |segment: &str, word: &str| segment.eq_ignore_ascii_case(word);
        Some(match segments[..] {
            [only] if is(only, "$cbs") => Self::Cbs,
            [only] if is(only, "$management") => Self::Management { entity: None },
            [messages, word] if is(messages, "messages") && is(word, "devicebound") => Self::Commands,
            [messages, service, word] if is(messages, "messages") && is(service, "servicebound") => match word {
                word if is(word, "feedback") => Self::Feedback,
                // IoT Hub, AMQP section 5: two names of one endpoint.
                word if is(word, "filenotifications") || is(word, "fileuploadnotifications") => Self::FileNotifications,
                _ => return None,
            },
            [messages, events, ..] if is(messages, "messages") && is(events, "events") => Self::HubEvents {
                rest: segments[2..].join("/"),
            },
            [devices, device, ref rest @ ..] if is(devices, "devices") => {
                let (module, rest) = match rest {
                    [modules, module, rest @ ..] if is(modules, "modules") => (Some(decode(module)?), rest),
                    rest => (None, rest),
                };
                let purpose = match rest {
                    [messages, word] if is(messages, "messages") && is(word, "events") => Purpose::Events,
                    [messages, word] if is(messages, "messages") && is(word, "devicebound") => Purpose::Commands,
                    [methods, word] if is(methods, "methods") && is(word, "devicebound") => Purpose::Methods,
                    [twin] if is(twin, "twin") => Purpose::Twin,
                    _ => return None,
                };
                Self::Device {
                    device: decode(device)?,
                    module,
                    purpose,
                }
            }
            [entity, only] if is(only, "$management") => Self::Management {
                entity: Some(decode(entity)?),
            },
            [entity, groups, group, partitions, partition]
                if is(groups, "consumergroups") && is(partitions, "partitions") =>
            {
                Self::Partition {
                    entity: decode(entity)?,
                    group: decode(group)?,
                    partition: decode(partition)?,
                }
            }
            [entity] => Self::Entity(decode(entity)?),
            [entity, partitions, _] if is(partitions, "partitions") => Self::Entity(decode(entity)?),
            _ => return None,
        })
    }
}

/// What follows scheme and host.
pub fn path(text: &str) -> &str {
    match text.split_once("://") {
        Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
        None => text,
    }
}

/// A segment without its escapes; `None` for a broken one.
fn decode(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push((high * 16 + low) as u8);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(texts: &[&str], expected: &Address) {
        for text in texts {
            assert_eq!(Address::parse(text).as_ref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn every_form_of_an_address_is_known() {
        check(&["$cbs", "/$CBS", "amqps://hub:5671/$cbs"], &Address::Cbs);
        check(
            &[
                "events/ConsumerGroups/$Default/Partitions/0",
                "amqps://hub/events/consumergroups/%24Default/partitions/0",
                "sb://hub:5671/events/ConsumerGroups/$Default/Partitions/0",
            ],
            &Address::Partition {
                entity: "events".into(),
                group: "$Default".into(),
                partition: "0".into(),
            },
        );
        check(
            &[
                "/devices/a%20b/messages/deviceBound",
                "amqps://h/devices/a%20b/messages/devicebound",
            ],
            &Address::Device {
                device: "a b".into(),
                module: None,
                purpose: Purpose::Commands,
            },
        );
        check(
            &["/devices/d/modules/m/twin", "devices/d/modules/m/twin"],
            &Address::Device {
                device: "d".into(),
                module: Some("m".into()),
                purpose: Purpose::Twin,
            },
        );
        check(
            &["/messages/devicebound", "amqps://h/messages/deviceBound"],
            &Address::Commands,
        );
        check(&["/messages/serviceBound/feedback"], &Address::Feedback);
        check(
            &[
                "/messages/serviceBound/filenotifications",
                "/messages/servicebound/fileuploadnotifications",
            ],
            &Address::FileNotifications,
        );
        check(
            &["messages/events/ConsumerGroups/$Default/Partitions/1"],
            &Address::HubEvents {
                rest: "ConsumerGroups/$Default/Partitions/1".into(),
            },
        );
        check(
            &["events/$management"],
            &Address::Management {
                entity: Some("events".into()),
            },
        );
    }

    #[test]
    fn what_is_no_address_is_known_as_none() {
        for text in [
            "",
            "/",
            "devices",
            "devices/d",
            "devices/d/messages",
            "devices/%zz/twin",
            "devices/%ff/twin",
            "a/b/c/d",
        ] {
            let parsed = Address::parse(text);
            assert!(matches!(parsed, None | Some(Address::Entity(_))), "{text}: {parsed:?}");
        }
        assert_eq!(Address::parse("messages/servicebound/other"), None);
    }
}

//! What a session is subscribed to.

use super::config::SUBSCRIPTIONS_MAX;
use crate::hub::IdentityName;
use crate::hub::subscriptions::Subscription;
use crate::proto::mqtt::topic::Filter;
use crate::proto::mqtt::{QoS, Reason, Version};

/// Of what the store remembers of a filter.
const FILTER_BYTES_MAX: usize = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Subscribed(Vec<Subscription>);

/// Which direct methods a session listens for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Methods {
    None,
    All,
    Named(Vec<String>),
}

impl Methods {
    pub fn include(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Named(names) => names.iter().any(|known| known == name),
        }
    }
}

impl Subscribed {
    pub fn new(filters: Vec<Subscription>) -> Self {
        Self(filters)
    }

    pub fn filters(&self) -> &[Subscription] {
        &self.0
    }

    /// Adds a subscription, or changes its QoS: the QoS that is granted.
    ///
    /// # Errors
    /// Why it is not.
    // IoT Hub, MQTT section 9.
    pub fn add(&mut self, filter: &str, qos: QoS, name: &IdentityName) -> Result<QoS, Reason> {
        let module = name.module.as_ref().map(|module| module.as_str());
        match Filter::parse(filter) {
            // MQTT 5 s3.9.3: as the CONNACK says.
            None if filter.starts_with("$share/") => return Err(Reason::SHARED_NOT_SUPPORTED),
            None => return Err(Reason::TOPIC_FILTER_INVALID),
            Some(Filter::Commands(owner) | Filter::Inputs(owner)) if !owner.is(name.device.as_str(), module) => {
                return Err(Reason::NOT_AUTHORIZED);
            }
            Some(_) if filter.len() > FILTER_BYTES_MAX => return Err(Reason::TOPIC_FILTER_INVALID),
            Some(_) => {}
        }
        let (granted, is_full) = (qos.min(QoS::AtLeastOnce), self.0.len() >= SUBSCRIPTIONS_MAX);
        match self.0.iter_mut().find(|known| known.filter == filter) {
            Some(known) => known.qos = granted as u8,
            None if is_full => return Err(Reason::QUOTA_EXCEEDED),
            None => self.0.push(Subscription {
                filter: filter.to_owned(),
                qos: granted as u8,
            }),
        }
        Ok(granted)
    }

    /// Whether there was such a subscription.
    pub fn remove(&mut self, filter: &str) -> bool {
        let before = self.0.len();
        self.0.retain(|known| known.filter != filter);
        self.0.len() < before
    }

    /// With which QoS messages to the device are wanted.
    pub fn commands(&self) -> Option<QoS> {
        self.parsed().find_map(|(filter, qos)| match filter {
            Filter::Commands(_) => Some(qos),
            _ => None,
        })
    }

    pub fn has_twin_answers(&self) -> bool {
        self.parsed().any(|(filter, _)| filter == Filter::TwinAnswers)
    }

    pub fn has_desired_changes(&self) -> bool {
        self.parsed().any(|(filter, _)| filter == Filter::DesiredChanges)
    }

    pub fn methods(&self) -> Methods {
        let mut named = Vec::new();
        for (filter, _) in self.parsed() {
            match filter {
                Filter::Methods(None) => return Methods::All,
                Filter::Methods(Some(name)) => named.push(name.into_owned()),
                _ => {}
            }
        }
        if named.is_empty() {
            Methods::None
        } else {
            Methods::Named(named)
        }
    }

    fn parsed(&self) -> impl Iterator<Item = (Filter<'_>, QoS)> {
        self.0.iter().filter_map(|known| {
            let qos = if known.qos == 0 {
                QoS::AtMostOnce
            } else {
                QoS::AtLeastOnce
            };
            Some((Filter::parse(&known.filter)?, qos))
        })
    }
}

/// The code of a SUBACK.
// MQTT 3.1.1 s3.9.3, MQTT 5 s3.9.3.
pub(super) fn code(granted: Result<QoS, Reason>, version: Version) -> u8 {
    match (granted, version) {
        (Ok(qos), _) => qos as u8,
        (Err(_), Version::V3) => Reason::UNSPECIFIED.0,
        (Err(reason), Version::V5) => reason.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DeviceId, ModuleId};

    const COMMANDS: &str = "devices/d/messages/devicebound/#";

    fn device() -> IdentityName {
        IdentityName::device(DeviceId::new("d").unwrap())
    }

    #[test]
    fn subscriptions_say_what_is_wanted() {
        let mut subscribed = Subscribed::default();
        assert_eq!((subscribed.commands(), subscribed.methods()), (None, Methods::None));
        assert_eq!(
            subscribed.add(COMMANDS, QoS::ExactlyOnce, &device()),
            Ok(QoS::AtLeastOnce)
        );
        assert_eq!(
            subscribed.add("$iothub/methods/POST/a/#", QoS::AtMostOnce, &device()),
            Ok(QoS::AtMostOnce)
        );
        assert_eq!(subscribed.commands(), Some(QoS::AtLeastOnce));
        assert!(subscribed.methods().include("a") && !subscribed.methods().include("b"));
        subscribed
            .add("$iothub/methods/POST/#", QoS::AtMostOnce, &device())
            .unwrap();
        assert!(subscribed.methods().include("b"));
        assert!(!subscribed.has_twin_answers() && !subscribed.has_desired_changes());
        subscribed
            .add("$iothub/twin/res/#", QoS::AtMostOnce, &device())
            .unwrap();
        subscribed
            .add("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce, &device())
            .unwrap();
        assert!(subscribed.has_twin_answers() && subscribed.has_desired_changes());
        // Again, with another QoS: still five.
        assert_eq!(
            subscribed.add(COMMANDS, QoS::AtMostOnce, &device()),
            Ok(QoS::AtMostOnce)
        );
        assert_eq!(subscribed.commands(), Some(QoS::AtMostOnce));
        let sixth = subscribed.add("$iothub/methods/POST/b/#", QoS::AtMostOnce, &device());
        assert_eq!(sixth, Err(Reason::QUOTA_EXCEEDED));
        assert!(subscribed.remove(COMMANDS) && !subscribed.remove(COMMANDS));
        assert_eq!(subscribed.commands(), None);
    }

    #[test]
    fn others_topics_are_refused() {
        let mut subscribed = Subscribed::default();
        let module = IdentityName {
            module: Some(ModuleId::new("m").unwrap()),
            ..device()
        };
        for (filter, name, expected) in [
            ("devices/e/messages/devicebound/#", device(), Reason::NOT_AUTHORIZED),
            ("devices/+/messages/devicebound/#", device(), Reason::NOT_AUTHORIZED),
            (COMMANDS, module.clone(), Reason::NOT_AUTHORIZED),
            ("devices/d/modules/n/#", module, Reason::NOT_AUTHORIZED),
            ("#", device(), Reason::TOPIC_FILTER_INVALID),
            ("$share/g/$iothub/twin/res/#", device(), Reason::SHARED_NOT_SUPPORTED),
            ("devices/d/messages/events/#", device(), Reason::TOPIC_FILTER_INVALID),
        ] {
            assert_eq!(
                subscribed.add(filter, QoS::AtLeastOnce, &name),
                Err(expected),
                "{filter}"
            );
        }
        let long = format!("$iothub/methods/POST/{}/#", "x".repeat(2000));
        assert!(subscribed.add(&long, QoS::AtMostOnce, &device()).is_err());
        assert_eq!(subscribed, Subscribed::default());
    }
}

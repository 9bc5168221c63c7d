//! The user name of a CONNECT: who connects to which hub, and what the client says of itself.
//!
//! ```text
//!   host "/" device-id [ "/" module-id ] "/" [ "?" ] property *( "&" property )
//! ```

use std::borrow::Cow;

use super::bag::pairs;

// IoT Hub, MQTT section 2.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserName<'a> {
    pub host: &'a str,
    pub device: &'a str,
    pub module: Option<&'a str>,
    properties: &'a str,
}

impl<'a> UserName<'a> {
    /// `None`: it has another form. Ids are as they stand: not percent-encoded.
    pub fn parse(text: &'a str) -> Option<Self> {
        let (host, rest) = text.split_once('/')?;
        // Old clients part the agent from the version by a slash, and have one in it.
        let end = ["/api-version=", "/?api-version="]
            .iter()
            .filter_map(|mark| rest.find(mark))
            .min();
        let (ids, properties) = match end {
            Some(at) => (&rest[..at], &rest[at + 1..]),
            None => rest.rsplit_once('/')?,
        };
        let (device, module) = match ids.split_once('/') {
            Some((device, module)) => (device, Some(module)),
            None => (ids, None),
        };
        let is_id = |id: &str| !id.is_empty() && !id.contains('/');
        (is_id(device) && module.is_none_or(is_id)).then_some(Self {
            host,
            device,
            module,
            properties,
        })
    }

    /// Whether the client id is of the same identity.
    pub fn is_of(&self, client_id: &str) -> bool {
        match self.module {
            None => client_id == self.device,
            Some(module) => client_id.split_once('/') == Some((self.device, module)),
        }
    }

    /// The first property of that name.
    pub fn property(&self, name: &str) -> Option<Cow<'a, str>> {
        pairs(self.properties).find_map(|(key, value)| (key == name).then(|| value.unwrap_or_default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_name_names_hub_identity_and_client() {
        let name =
            UserName::parse("hub.example/d/?api-version=2021-04-12&DeviceClientType=a%2F1&model-id=dtmi%3Ax%3B1")
                .unwrap();
        assert_eq!((name.host, name.device, name.module), ("hub.example", "d", None));
        assert_eq!(name.property("DeviceClientType").unwrap(), "a/1");
        assert_eq!(name.property("model-id").unwrap(), "dtmi:x;1");
        assert_eq!(name.property("auth-chain"), None);
        assert!(name.is_of("d") && !name.is_of("d/m") && !name.is_of("D"));
        let module = UserName::parse("hub/d/m/?api-version=2019-10-01").unwrap();
        assert_eq!((module.device, module.module), ("d", Some("m")));
        assert!(module.is_of("d/m") && !module.is_of("d"));
    }

    #[test]
    fn forms_of_old_clients_are_read() {
        for text in [
            "hub/d/api-version=2016-11-14",
            "hub/d/",
            "hub/d/?api-version=2016-11-14",
            "hub/d/api-version=2017-06-30/DeviceClientType=py-iothub/1.0",
        ] {
            let name = UserName::parse(text).unwrap();
            assert_eq!((name.device, name.module), ("d", None), "{text}");
        }
        // IoT Hub, MQTT section 2: a question mark inside an id is none that parts.
        assert_eq!(UserName::parse("hub/d?x/?api-version=1").unwrap().device, "d?x");
        assert_eq!(UserName::parse("hub/d/?a=1&a=2").unwrap().property("a").unwrap(), "1");
    }

    #[test]
    fn other_forms_are_refused() {
        for text in [
            "",
            "hub",
            "hub/",
            "hub/d",
            "hub//?x",
            "hub/d/m/n/?x",
            "hub///",
            "hub/d//?api-version=1",
        ] {
            assert_eq!(UserName::parse(text), None, "{text}");
        }
    }
}

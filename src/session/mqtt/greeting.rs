//! CONNECT: who is there, may they come in, and what of an earlier connection is still there.

use rustls::pki_types::CertificateDer;

use super::Door;
use super::message;
use super::say::Listener;
use crate::hub::auth::AuthError;
use crate::hub::{Authenticated, Credential, IdentityName};
use crate::model::limits::MODEL_ID_BYTES_MAX;
use crate::model::{DeviceId, Message, ModuleId};
use crate::proto::mqtt::topic::Published;
use crate::proto::mqtt::user_name::UserName;
use crate::proto::mqtt::{Connect, Error, Property, PropertyBuf, QoS, Reason, Version, Will};
use crate::shard::command::OpenError;

/// A CONNECT that owns what it says.
#[derive(Clone, Debug)]
pub(super) struct Hello {
    pub version: Version,
    pub is_clean: bool,
    /// Seconds.
    pub keep_alive: u16,
    client_id: String,
    user_name: Option<String>,
    password: Option<Vec<u8>>,
    will: Option<OwnedWill>,
    pub said: Said,
}

#[derive(Clone, Debug)]
struct OwnedWill {
    qos: QoS,
    is_retain: bool,
    topic: String,
    payload: Vec<u8>,
    properties: PropertyBuf,
}

/// What an MQTT 5 client says of itself.
#[derive(Clone, Debug)]
pub(super) struct Said {
    /// Seconds the session is kept after the connection; `u32::MAX`: for ever.
    pub session_expiry: u32,
    pub receive_maximum: u16,
    /// Of what it takes; `u32::MAX`: any.
    pub packet_bytes_max: u32,
    has_auth_method: bool,
}

/// Why a CONNECT is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// For metrics, from a closed set.
    pub label: &'static str,
    /// Of MQTT 3.1.1.
    pub code: u8,
    pub reason: Reason,
    pub text: String,
}

// MQTT 3.1.1 s3.2.2.3; IoT Hub, MQTT section 2.
const VERSION: u8 = 1;
const IDENTIFIER: u8 = 2;
const UNAVAILABLE: u8 = 3;
const MALFORMED: u8 = 4;
const NOT_AUTHORIZED: u8 = 5;

impl Refused {
    fn new(label: &'static str, code: u8, reason: Reason, text: impl ToString) -> Self {
        Self {
            label,
            code,
            reason,
            text: text.to_string(),
        }
    }

    /// A client that may come back at once, or soon.
    // IoT Hub, SDKs section 4.1: any other code makes SDKs give up for good.
    pub fn unavailable(label: &'static str, reason: Reason, text: impl ToString) -> Self {
        Self::new(label, UNAVAILABLE, reason, text)
    }

    /// `None`: MQTT has no answer to such a thing.
    pub fn of_error(error: Error) -> Option<Self> {
        match error {
            Error::ProtocolLevel { .. } => Some(Self::new("version", VERSION, error.reason(), error)),
            Error::Topic => Some(will_refused(error)),
            _ => None,
        }
    }

    pub fn of_open(error: &OpenError) -> Self {
        let (label, reason) = match error {
            OpenError::Busy => ("busy", Reason::SERVER_BUSY),
            OpenError::Stopping => ("stopping", Reason::SERVER_SHUTTING_DOWN),
            OpenError::StaleEpoch { .. } | OpenError::EarlyData | OpenError::Poisoned(_) | OpenError::State(_) => {
                ("unavailable", Reason::SERVER_UNAVAILABLE)
            }
        };
        Self::unavailable(label, reason, error)
    }

    /// The log says why; a client learns that an identity exists only once it has proved itself.
    pub fn of_auth(error: &AuthError) -> Self {
        let label = error.label();
        match error {
            AuthError::Unavailable(_) => {
                Self::unavailable(label, Reason::SERVER_UNAVAILABLE, "the hub cannot tell now")
            }
            AuthError::Malformed(_) => {
                let reason = Reason::BAD_USER_NAME_OR_PASSWORD;
                Self::new(label, MALFORMED, reason, "the password is no token that can be read")
            }
            _ => Self::new(label, NOT_AUTHORIZED, Reason::NOT_AUTHORIZED, "not authorized"),
        }
    }
}

fn will_refused(text: impl ToString) -> Refused {
    Refused::new("will", IDENTIFIER, Reason::TOPIC_NAME_INVALID, text)
}

/// What is published if the connection ends without a goodbye.
#[derive(Clone, Debug)]
pub(super) struct PreparedWill {
    pub message: Message,
    /// Seconds.
    pub delay: u32,
}

impl Hello {
    pub fn of(connect: &Connect<'_>) -> Self {
        let mut said = Said {
            session_expiry: 0,
            receive_maximum: u16::MAX,
            packet_bytes_max: u32::MAX,
            has_auth_method: false,
        };
        // A session of 3.1.1 that is not clean is kept until it is cleaned.
        if connect.version == Version::V3 && !connect.is_clean {
            said.session_expiry = u32::MAX;
        }
        for property in connect.properties.iter() {
            match property {
                Property::SessionExpiry(seconds) => said.session_expiry = seconds,
                Property::ReceiveMaximum(maximum) => said.receive_maximum = maximum,
                Property::MaximumPacketSize(bytes) => said.packet_bytes_max = bytes,
                Property::AuthMethod(_) => said.has_auth_method = true,
                _ => {}
            }
        }
        Self {
            version: connect.version,
            is_clean: connect.is_clean,
            keep_alive: connect.keep_alive,
            client_id: connect.client_id.to_owned(),
            user_name: connect.user_name.map(str::to_owned),
            password: connect.password.map(<[u8]>::to_vec),
            will: connect.will.as_ref().map(OwnedWill::of),
            said,
        }
    }

    /// How this client is spoken to.
    pub fn listener(&self) -> Listener {
        Listener {
            version: self.version,
            packet_bytes_max: self.said.packet_bytes_max,
        }
    }

    /// The model that the client says it follows; an empty one is none.
    // IoT Hub, MQTT section 2.
    pub fn model_id(&self) -> Option<String> {
        let user_name = self.user_name.as_deref().and_then(UserName::parse)?;
        let model_id = user_name.property("model-id")?.into_owned();
        (!model_id.is_empty()).then_some(model_id)
    }

    /// Checks who it is that connects.
    pub fn authenticate(&self, door: &Door, chain: &[CertificateDer<'static>]) -> Result<Authenticated, Refused> {
        if self.said.has_auth_method {
            let text = "no enhanced authentication is served";
            return Err(Refused::new(
                "auth_method",
                NOT_AUTHORIZED,
                Reason::BAD_AUTHENTICATION_METHOD,
                text,
            ));
        }
        let malformed = |text| {
            let reason = Reason::BAD_USER_NAME_OR_PASSWORD;
            Err(Refused::new("user_name", MALFORMED, reason, text))
        };
        let Some(user_name) = self.user_name.as_deref().and_then(UserName::parse) else {
            return malformed("the user name is not host/device/?api-version=...");
        };
        let module = user_name.module.map(ModuleId::new).transpose();
        let (Ok(device), Ok(module)) = (DeviceId::new(user_name.device), module) else {
            return malformed("the user name names no identity");
        };
        // MQTT 5 s3.1.3.1: who names none is given one.
        let is_unnamed = self.version == Version::V5 && self.client_id.is_empty();
        if !is_unnamed && !user_name.is_of(&self.client_id) {
            let text = "the client id is not the identity of the user name";
            return Err(Refused::new("client_id", IDENTIFIER, Reason::CLIENT_ID_INVALID, text));
        }
        if self
            .model_id()
            .is_some_and(|model_id| model_id.len() > MODEL_ID_BYTES_MAX)
        {
            return malformed("the model id is too long");
        }
        let wanted = IdentityName { device, module };
        let chain: Vec<&[u8]> = chain.iter().map(AsRef::as_ref).collect();
        let credential = match (self.password.as_deref(), chain.split_first()) {
            (Some(password), _) if !password.is_empty() => match std::str::from_utf8(password) {
                Ok(token) => Credential::Sas(token),
                Err(_) => return malformed("the password is not text"),
            },
            (_, Some((leaf, intermediates))) => Credential::Certificate { leaf, intermediates },
            (_, None) => Credential::Nothing,
        };
        let now = door.clock.now();
        let host = without_port(user_name.host);
        door.authenticator
            .authenticate(credential, &wanted, host, now)
            .map_err(|error| {
                door.observer.auth_refused(error.label());
                tracing::debug!(%error, device = %wanted.device.as_str(), "MQTT client refused");
                Refused::of_auth(&error)
            })
    }

    /// The client id the hub gives, if the client has none.
    pub fn assigned_client_id(&self, name: &IdentityName) -> Option<String> {
        self.client_id.is_empty().then(|| match &name.module {
            None => name.device.as_str().to_owned(),
            Some(module) => format!("{}/{}", name.device.as_str(), module.as_str()),
        })
    }

    /// The will as telemetry.
    // IoT Hub, MQTT section 8.
    pub fn will(&self, door: &Door, name: &IdentityName) -> Result<Option<PreparedWill>, Refused> {
        let Some(will) = &self.will else {
            return Ok(None);
        };
        if will.qos == QoS::ExactlyOnce {
            let text = "the will has QoS 2";
            return Err(Refused::new("will", IDENTIFIER, Reason::QOS_NOT_SUPPORTED, text));
        }
        let module = name.module.as_ref().map(|module| module.as_str());
        let Some(Published::Telemetry { owner, bag }) = Published::parse(&will.topic) else {
            return Err(will_refused("the will's topic is none of telemetry"));
        };
        if !owner.is(name.device.as_str(), module) {
            return Err(will_refused("the will's topic is another identity's"));
        }
        let (properties, now) = (will.properties.as_properties(), door.clock.now());
        let mut message = message::of_bag(bag).map_err(will_refused)?;
        message::add_properties(&mut message, &properties, &will.payload, now).map_err(will_refused)?;
        if will.is_retain {
            message::mark_retained(&mut message);
        }
        message::mark_will(&mut message);
        message::mark_model(&mut message, self.model_id().as_deref());
        message.body.clone_from(&will.payload);
        if message.counted_bytes() > door.config.message_bytes_max {
            let text = "the will is too large";
            return Err(Refused::new("will", IDENTIFIER, Reason::PACKET_TOO_LARGE, text));
        }
        let delay = properties.iter().find_map(|property| match property {
            Property::WillDelay(seconds) => Some(seconds),
            _ => None,
        });
        let delay = delay.unwrap_or(0).min(self.said.session_expiry);
        Ok(Some(PreparedWill { message, delay }))
    }
}

impl OwnedWill {
    fn of(will: &Will<'_>) -> Self {
        let mut properties = PropertyBuf::default();
        will.properties.iter().for_each(|property| properties.push(property));
        Self {
            qos: will.qos,
            is_retain: will.is_retain,
            topic: will.topic.to_owned(),
            payload: will.payload.to_vec(),
            properties,
        }
    }
}

/// Some clients name the port they connect to with the host.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

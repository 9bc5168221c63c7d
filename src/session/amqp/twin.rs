//! A device's twin as messages of a pair of links. What the device is told, and may ask, is [`crate::session::twin`]'s.

use std::rc::Rc;

use super::message::body;
use super::pair::Pair;
use super::session::{Session, displaced};
use crate::amqp::error;
use crate::hub::ErrorCode;
use crate::proto::amqp::Error;
use crate::proto::amqp::message::{Id, Message, MessageWriter, Properties};
use crate::proto::amqp::performative::find;
use crate::session::twin::{Desired, Observed, OwnTwin};

// IoT Hub, AMQP section 4.4.
const REPORTED: &str = "/properties/reported";
const DESIRED: &str = "/properties/desired";
const NOTIFICATIONS: &str = "/notifications/twin/properties/desired";
const OK: i32 = 200;
const NO_CONTENT: i32 = 204;
/// Reports that wait for the store; then the device is read no further.
const PENDING_MAX: usize = 64;

/// A correlation id as it came: it is answered in its own type.
type Correlation = Vec<u8>;

pub(super) async fn run(session: Rc<Session>, mut pair: Pair) {
    if let Err(error) = serve(&session, &mut pair).await {
        pair.end(&error);
    }
}

async fn serve(session: &Session, pair: &mut Pair) -> Result<(), Error> {
    pair.opened().await?;
    let (twins, throttles) = (session.devices.twins.clone(), session.devices.throttles.clone());
    let (clock, name) = (session.clock.clone(), session.name.clone());
    let mut twin = Twin {
        session,
        own: OwnTwin::new(twins, throttles, clock, name, session.generation),
        observed: None,
        seen: None,
    };
    loop {
        while twin.own.pending() < PENDING_MAX
            && let Some(delivery) = pair.take()
        {
            let asked = twin.ask(pair, &delivery.payload).await;
            pair.settle(&delivery, asked);
        }
        if !pair.go_on() {
            return Ok(());
        }
        let has_room = pair.has_room();
        tokio::select! {
            changed = pair.changed() => changed?,
            (correlation, version) = twin.own.outcome(), if has_room => pair.tell(match version {
                Ok(version) => answer(&correlation, NO_CONTENT, Some(version), b""),
                Err(error) => refusal(&correlation, error.code(), &error),
            }),
            desired = next(&mut twin.observed), if has_room => pair.tell(notification(&desired?)),
        }
    }
}

async fn next(observed: &mut Option<Observed>) -> Result<Desired, Error> {
    match observed {
        Some(observed) => observed.next().await.map_err(|_| displaced()),
        None => std::future::pending().await,
    }
}

struct Twin<'a> {
    session: &'a Session,
    own: OwnTwin<Correlation>,
    observed: Option<Observed>,
    /// The device has read its twin with this version of the desired properties, or a later one.
    seen: Option<u64>,
}

/// What a device asks.
#[derive(Debug, PartialEq, Eq)]
enum Request {
    Get,
    Report { patch: Vec<u8>, if_version: Option<u64> },
    Subscribe,
    Unsubscribe,
}

impl Twin<'_> {
    /// Does what is asked, and tells the answer now or with its outcome. Waits for its turn under the throttles.
    ///
    /// # Errors
    /// Nobody can be answered.
    async fn ask(&mut self, pair: &mut Pair, payload: &[u8]) -> Result<(), Error> {
        let invalid = |reason: String| error::of(ErrorCode::ARGUMENT_INVALID, reason);
        let sections = Message::read(payload).map_err(|error| invalid(error.to_string()))?;
        // Without one, clients take what they are told for a notification.
        let Some(Id::Raw(correlation)) = sections.properties.correlation_id else {
            return Err(invalid("a request has a correlation id".to_owned()));
        };
        match request(&sections) {
            Err(reason) => pair.tell(refusal(correlation, ErrorCode::BAD_REQUEST, &reason)),
            Ok(Request::Get) => {
                let seen = self.desired_version();
                pair.tell(match self.own.read().await {
                    Ok(json) => {
                        self.seen = seen;
                        answer(correlation, OK, None, json.as_bytes())
                    }
                    Err(refused) => refusal(correlation, refused.code(), &refused),
                });
            }
            Ok(Request::Report { patch, if_version }) => {
                if let Err(refused) = self.own.report(correlation.to_vec(), &patch, if_version).await {
                    pair.tell(refusal(correlation, refused.code(), &refused));
                }
            }
            Ok(Request::Subscribe) => {
                let devices = &self.session.devices;
                let (lines, twins) = (&devices.lines, &devices.twins);
                match Observed::open(lines, twins, &self.session.name, self.seen.unwrap_or(0)) {
                    Ok((observed, missed)) => {
                        self.observed = Some(observed);
                        pair.tell(answer(correlation, OK, None, b""));
                        // Who has not read the twin yet reads it next: nothing is missed.
                        if let Some(missed) = missed.filter(|_| self.seen.is_some()) {
                            pair.tell(notification(&missed));
                        }
                    }
                    Err(failed) => pair.tell(refusal(correlation, failed.code(), &failed)),
                }
            }
            Ok(Request::Unsubscribe) => {
                self.observed = None;
                pair.tell(answer(correlation, OK, None, b""));
            }
        }
        Ok(())
    }

    fn desired_version(&self) -> Option<u64> {
        let twin = self.session.devices.twins.get(&self.session.name).ok()?;
        Some(twin.desired.version)
    }
}

fn request(sections: &Message<'_>) -> Result<Request, String> {
    let annotation = |key| sections.annotations.as_ref().and_then(|map| find(map, key));
    let text = |key| annotation(key).and_then(|value| value.as_text()).unwrap_or_default();
    let (operation, resource) = (text("operation").to_ascii_uppercase(), text("resource"));
    let is = |known: &str| resource.eq_ignore_ascii_case(known);
    match operation.as_str() {
        "GET" if resource.is_empty() => Ok(Request::Get),
        "PATCH" if is(REPORTED) => Ok(Request::Report {
            patch: body(sections).map_err(|error| error.to_string())?,
            if_version: annotation("version")
                .and_then(|version| version.as_integer())
                .and_then(|version| u64::try_from(version).ok()),
        }),
        "PUT" if is(NOTIFICATIONS) => Ok(Request::Subscribe),
        "DELETE" if is(NOTIFICATIONS) => Ok(Request::Unsubscribe),
        _ => Err(format!("{operation:?} of {resource:?} is nothing a twin does")),
    }
}

/// Clients want a data section, also an empty one (azure-uamqp-c).
fn answer(correlation: &[u8], status: i32, version: Option<u64>, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.annotations(1 + usize::from(version.is_some()), |map| {
        map.symbol("status");
        map.int(status);
        write_version(map, version);
    });
    writer.properties(&Properties {
        correlation_id: Some(Id::Raw(correlation)),
        ..Properties::default()
    });
    writer.data(body);
    bytes
}

/// A null version would make a client pass the message over (azure-uamqp-c).
fn write_version(map: &mut crate::proto::amqp::value::Writer<'_>, version: Option<u64>) {
    if let Some(version) = version {
        map.symbol("version");
        map.long(version.cast_signed());
    }
}

// Node reads the error out of the body: sdk-wire-behaviour section 7.2.
fn refusal(correlation: &[u8], code: ErrorCode, reason: &impl std::fmt::Display) -> Vec<u8> {
    tracing::debug!(code = code.number, %reason, "twin request refused");
    let body = serde_json::json!({ "errorCode": code.number, "message": format!("{}: {reason}", code.name) });
    answer(
        correlation,
        code.http_status().into(),
        None,
        body.to_string().as_bytes(),
    )
}

fn notification(desired: &Desired) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = MessageWriter::new(&mut bytes);
    writer.annotations(2, |map| {
        map.symbol("resource");
        map.string(DESIRED);
        write_version(map, Some(desired.version));
    });
    writer.data(desired.json().as_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::amqp::message::Body;
    use crate::proto::amqp::value::{Value, Writer};

    fn requested(
        operation: &str,
        resource: Option<&str>,
        version: impl FnOnce(&mut Writer<'_>),
    ) -> Result<Request, String> {
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.annotations(3, |map| {
            map.symbol("operation");
            map.string(operation);
            map.symbol("resource");
            map.optional(resource, Writer::string);
            map.symbol("version");
            version(map);
        });
        writer.data(b"{}");
        request(&Message::read(&bytes).unwrap())
    }

    #[test]
    fn requests_are_told_by_operation_and_resource() {
        let asked = |operation, resource| requested(operation, resource, |writer| writer.null());
        let report = |if_version| Request::Report {
            patch: b"{}".to_vec(),
            if_version,
        };
        assert_eq!(asked("GET", None), Ok(Request::Get));
        assert_eq!(asked("PATCH", Some(REPORTED)), Ok(report(None)));
        assert_eq!(
            requested("PATCH", Some(REPORTED), |writer| writer.long(3)),
            Ok(report(Some(3)))
        );
        assert_eq!(asked("PUT", Some(NOTIFICATIONS)), Ok(Request::Subscribe));
        assert_eq!(asked("DELETE", Some(NOTIFICATIONS)), Ok(Request::Unsubscribe));
        for (operation, resource) in [
            ("PATCH", Some(DESIRED)),
            ("PUT", None),
            ("POST", None),
            ("GET", Some("/tags")),
        ] {
            assert!(asked(operation, resource).is_err(), "{operation} {resource:?}");
        }
        assert!(request(&Message::default()).is_err());
    }

    #[test]
    fn answers_have_the_types_that_clients_insist_on() {
        let id = [0xa1, 1, b'7'];
        let bytes = answer(&id, NO_CONTENT, Some(4), b"");
        let message = Message::read(&bytes).unwrap();
        let annotations = message.annotations.unwrap();
        assert_eq!(find(&annotations, "status"), Some(Value::Int(204)));
        assert_eq!(find(&annotations, "version"), Some(Value::Long(4)));
        assert_eq!(message.properties.correlation_id, Some(Id::Raw(&id)));
        assert_eq!(message.body, Body::Data(vec![b""]));
        let bytes = refusal(&id, ErrorCode::PRECONDITION_FAILED, &"changed");
        let message = Message::read(&bytes).unwrap();
        assert_eq!(find(&message.annotations.unwrap(), "status"), Some(Value::Int(412)));
        assert_eq!(find(&message.annotations.unwrap(), "version"), None);
        let Body::Data(data) = message.body else { panic!("data") };
        let json: serde_json::Value = serde_json::from_slice(data[0]).unwrap();
        assert_eq!(json["errorCode"], 412_001);
    }

    #[test]
    fn a_notification_has_no_correlation_id() {
        let desired = Desired {
            version: 2,
            is_complete: false,
            members: serde_json::from_str(r#"{"$version":2,"a":1}"#).unwrap(),
        };
        let bytes = notification(&desired);
        let message = Message::read(&bytes).unwrap();
        let annotations = message.annotations.unwrap();
        assert_eq!(find(&annotations, "resource"), Some(Value::String(DESIRED)));
        assert_eq!(find(&annotations, "version"), Some(Value::Long(2)));
        assert_eq!(message.properties, Properties::default());
        assert_eq!(message.body, Body::Data(vec![br#"{"$version":2,"a":1}"#]));
    }
}

//! Direct methods as messages of a pair of links. Which calls are under way is [`crate::session::methods`]'s.

use std::rc::Rc;

use super::message::{body, property};
use super::pair::Pair;
use super::session::{Session, displaced};
use crate::amqp::error;
use crate::hub::ErrorCode;
use crate::hub::method::CALLS_PER_TARGET_MAX;
use crate::proto::amqp::Error;
use crate::proto::amqp::message::{Id, Message, MessageWriter, Properties};
use crate::proto::amqp::value::Writer;
use crate::session::methods::{Invocation, Methods};
use crate::shard::command::SessionId;

// IoT Hub, AMQP section 4.3.
const NAME: &str = "IoThub-methodname";
const STATUS: &str = "IoThub-status";
/// What no answer may be: JSON it is not.
const UNREADABLE: &str = "\u{fffd}";

pub(super) async fn run(session: Rc<Session>, mut pair: Pair) {
    if let Err(error) = serve(&session, &mut pair).await {
        pair.end(&error);
    }
}

async fn serve(session: &Session, pair: &mut Pair) -> Result<(), Error> {
    let calls = Calls(pair.opened().await?);
    let mut methods = None;
    loop {
        while let Some(delivery) = pair.take() {
            let answer = calls.answer(&delivery.payload);
            if let (Ok(answer), Some(methods)) = (&answer, &mut methods) {
                Methods::answer(methods, answer.id, answer.status, &answer.payload);
            }
            pair.settle(&delivery, answer.map(drop));
        }
        if !pair.go_on() {
            return Ok(());
        }
        // A device listens once it has the link on which calls come.
        match pair.has_outgoing() {
            true if methods.is_none() => {
                let lines = &session.devices.lines;
                methods = Some(Methods::listen(lines, &session.name, CALLS_PER_TARGET_MAX));
            }
            true => {}
            false => methods = None,
        }
        let has_room = pair.has_room();
        tokio::select! {
            changed = pair.changed() => changed?,
            invocation = next(&mut methods), if has_room => pair.tell(calls.request(&invocation?)),
        }
    }
}

async fn next(methods: &mut Option<Methods>) -> Result<Invocation, Error> {
    match methods {
        Some(methods) => methods.next().await.map_err(|_| displaced()),
        None => std::future::pending().await,
    }
}

/// The calls of one session, named by UUIDs.
struct Calls(SessionId);

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    id: u64,
    status: i32,
    payload: String,
}

impl Calls {
    /// 54 bits of the session and 56 of the call, in the form of a random UUID: clients look for that form
    /// (azure-iot-amqp-base).
    // RFC 9562 s5.4.
    fn uuid(&self, id: u64) -> [u8; 16] {
        let (session, call) = (self.0.0.to_be_bytes(), id.to_be_bytes());
        let mut uuid = [0; 16];
        uuid[..6].copy_from_slice(&session[2..]);
        uuid[6] = 0x40;
        uuid[8] = 0x80;
        uuid[9..].copy_from_slice(&call[1..]);
        uuid
    }

    fn request(&self, invocation: &Invocation) -> Vec<u8> {
        let mut raw = Vec::new();
        Writer(&mut raw).uuid(&self.uuid(invocation.id));
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.properties(&Properties {
            correlation_id: Some(Id::Raw(&raw)),
            ..Properties::default()
        });
        writer.application_properties(1, |map| {
            map.string(NAME);
            map.string(&invocation.name);
        });
        // JSON also where the caller gave none.
        let payload = match invocation.payload.as_str() {
            "" => "null",
            payload => payload,
        };
        writer.data(payload.as_bytes());
        bytes
    }

    fn answer(&self, payload: &[u8]) -> Result<Answer, Error> {
        let invalid = |reason: &str| error::of(ErrorCode::ARGUMENT_INVALID, reason);
        let sections = Message::read(payload).map_err(|error| invalid(&error.to_string()))?;
        let id = sections.properties.correlation_id.and_then(Id::to_text);
        let id = id.and_then(|text| u128::from_str_radix(&text.replace('-', ""), 16).ok());
        let id = id.and_then(|uuid| {
            let mut call = [0; 8];
            call[1..].copy_from_slice(&uuid.to_be_bytes()[9..]);
            let call = u64::from_be_bytes(call);
            (self.uuid(call) == uuid.to_be_bytes()).then_some(call)
        });
        let id = id.ok_or_else(|| invalid("the correlation id is of no call"))?;
        let status = property(&sections, STATUS).and_then(|status| status.as_integer());
        let status = status.and_then(|status| i32::try_from(status).ok());
        let body = body(&sections).ok();
        // An answer that cannot be passed on is one all the same: its caller need not wait for a better one.
        let (status, payload) = match (status, body.map(String::from_utf8)) {
            (Some(status), Some(Ok(payload))) => (status, payload),
            _ => (0, UNREADABLE.to_owned()),
        };
        Ok(Answer { id, status, payload })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proto::amqp::message::Body;
    use crate::proto::amqp::value::Value;

    const CALLS: Calls = Calls(SessionId(0x0102_0304_0506));

    fn answer(id: &[u8], name: &str, status: impl FnOnce(&mut Writer<'_>), body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.properties(&Properties {
            correlation_id: Some(Id::Raw(id)),
            ..Properties::default()
        });
        writer.application_properties(1, |map| {
            map.string(name);
            status(map);
        });
        writer.data(body);
        bytes
    }

    fn request(payload: &str) -> Vec<u8> {
        CALLS.request(&Invocation {
            id: 7,
            name: "reboot".into(),
            payload: payload.into(),
            time_left: Duration::from_secs(1),
        })
    }

    #[test]
    fn a_call_is_named_by_a_uuid_and_carries_json() {
        let bytes = request("[1]");
        let message = Message::read(&bytes).unwrap();
        let Some(Id::Raw(raw)) = message.properties.correlation_id else {
            panic!("an id")
        };
        assert_eq!(raw[0], 0x98);
        let text = message.properties.correlation_id.unwrap().to_text().unwrap();
        assert_eq!(text, "01020304-0506-4000-8000-000000000007");
        assert_eq!(message.application_property(NAME), Some(Value::String("reboot")));
        assert_eq!(message.body, Body::Data(vec![b"[1]"]));
        let bytes = request("");
        assert_eq!(Message::read(&bytes).unwrap().body, Body::Data(vec![b"null"]));
    }

    #[test]
    fn an_answer_finds_its_call_by_uuid_or_text() {
        let uuid = [&[0x98][..], &CALLS.uuid(7)].concat();
        let mut text = Vec::new();
        Writer(&mut text).string("01020304-0506-4000-8000-000000000007");
        for id in [uuid, text] {
            let answered = CALLS.answer(&answer(&id, "iothub-STATUS", |value| value.int(200), b"{}"));
            let expected = Answer {
                id: 7,
                status: 200,
                payload: "{}".into(),
            };
            assert_eq!(answered, Ok(expected));
        }
        let other = [&[0x98][..], &Calls(SessionId(1)).uuid(7)].concat();
        let refused = CALLS.answer(&answer(&other, STATUS, |value| value.int(200), b"{}"));
        assert_eq!(refused.unwrap_err().condition.name(), "com.microsoft:argument-error");
        assert!(CALLS.answer(b"no message").is_err());
    }

    #[test]
    fn an_answer_without_status_or_text_is_one_nobody_can_read() {
        let id = [&[0x98][..], &CALLS.uuid(7)].concat();
        for bytes in [
            answer(&id, "other", |value| value.int(200), b"{}"),
            answer(&id, STATUS, |value| value.string("200"), b"{}"),
            answer(&id, STATUS, |value| value.int(200), &[0xff]),
        ] {
            assert_eq!(CALLS.answer(&bytes).unwrap().payload, UNREADABLE);
        }
    }
}

//! A device's twin as requests and answers on topics. What the device may ask is [`crate::session::twin`]'s.

use tokio::sync::mpsc;

use super::say::{Listener, say};
use crate::hub::ErrorCode;
use crate::proto::mqtt::{Property, PropertyBuf, Version};
use crate::session::twin::{Desired, OwnTwin};

/// Requests without an answer; then the client is read no further.
pub(super) const PENDING_MAX: usize = 64;

/// How the client tells its requests apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Tag {
    /// As it stands in the topic.
    pub rid: String,
    /// Of MQTT 5.
    pub correlation: Option<Vec<u8>>,
    /// Whether the client was subscribed to answers when it asked.
    // IoT Hub, MQTT section 6: who is not, is not answered.
    pub is_heard: bool,
}

#[derive(Debug)]
pub(super) enum Request {
    Get,
    Report {
        patch: Vec<u8>,
        /// As it stands in the topic.
        if_version: Option<String>,
    },
}

#[derive(Debug)]
pub(super) struct Answer {
    tag: Tag,
    status: u16,
    version: Option<u64>,
    body: String,
}

/// Where a session's requests are answered, one after the other: each may wait for its turn under the throttles.
pub(super) struct Desk {
    requests: mpsc::UnboundedSender<(Tag, Request)>,
    answers: mpsc::UnboundedReceiver<Answer>,
    pending: usize,
}

impl Desk {
    pub fn open(own: OwnTwin<Tag>) -> Self {
        let (requests, asked) = mpsc::unbounded_channel();
        let (answered, answers) = mpsc::unbounded_channel();
        actix_rt::spawn(serve(own, asked, answered));
        Self {
            requests,
            answers,
            pending: 0,
        }
    }

    pub fn pending(&self) -> usize {
        self.pending
    }

    pub fn ask(&mut self, tag: Tag, request: Request) {
        if self.requests.send((tag, request)).is_ok() {
            self.pending += 1;
        }
    }

    /// Waits for the next answer; cancelling the wait loses nothing.
    pub async fn answer(&mut self) -> Answer {
        match self.answers.recv().await {
            Some(answer) => {
                self.pending -= 1;
                answer
            }
            None => std::future::pending().await,
        }
    }
}

async fn serve(
    mut own: OwnTwin<Tag>,
    mut asked: mpsc::UnboundedReceiver<(Tag, Request)>,
    answers: mpsc::UnboundedSender<Answer>,
) {
    loop {
        let answer = tokio::select! {
            request = asked.recv() => match request {
                Some((tag, request)) => match ask(&mut own, tag, request).await {
                    Some(answer) => answer,
                    None => continue,
                },
                None => return,
            },
            (tag, version) = own.outcome() => match version {
                Ok(version) => Answer { tag, status: 204, version: Some(version), body: String::new() },
                Err(error) => refusal(tag, error.code(), &error),
            },
        };
        if answers.send(answer).is_err() {
            return;
        }
    }
}

/// `None`: the answer follows as an outcome.
async fn ask(own: &mut OwnTwin<Tag>, tag: Tag, request: Request) -> Option<Answer> {
    match request {
        Request::Get => Some(match own.read().await {
            Ok(body) => Answer {
                tag,
                status: 200,
                version: None,
                body,
            },
            Err(refused) => refusal(tag, refused.code(), &refused),
        }),
        Request::Report { patch, if_version } => {
            let if_version = match if_version.map(|version| version.parse()).transpose() {
                Ok(version) => version,
                Err(_) => return Some(refusal(tag, ErrorCode::ARGUMENT_INVALID, &"the version is no number")),
            };
            let refused = own.report(tag.clone(), &patch, if_version).await.err()?;
            Some(refusal(tag, refused.code(), &refused))
        }
    }
}

// Node reads the error out of the body: sdk-wire-behaviour section 7.1.
fn refusal(tag: Tag, code: ErrorCode, reason: &impl std::fmt::Display) -> Answer {
    tracing::debug!(code = code.number, %reason, "twin request refused");
    let body = serde_json::json!({ "errorCode": code.number, "message": format!("{}: {reason}", code.name) });
    Answer {
        tag,
        status: code.http_status(),
        version: None,
        body: body.to_string(),
    }
}

impl Answer {
    // IoT Hub, MQTT section 6: the id is the first parameter, byte for byte.
    pub fn write(&self, listener: Listener, out: &mut Vec<u8>) {
        if !self.tag.is_heard {
            return;
        }
        let (status, rid) = (self.status, &self.tag.rid);
        let mut topic = format!("$iothub/twin/res/{status}/?$rid={rid}");
        if let Some(version) = self.version {
            topic.push_str(&format!("&$version={version}"));
        }
        let mut properties = PropertyBuf::default();
        if listener.version == Version::V5 {
            if let Some(correlation) = &self.tag.correlation {
                properties.push(Property::CorrelationData(correlation));
            }
            properties.push(Property::User("status", &status.to_string()));
        }
        say(&topic, &properties, self.body.as_bytes(), listener, out);
    }
}

// IoT Hub, MQTT section 6.
pub(super) fn write_desired(desired: &Desired, listener: Listener, out: &mut Vec<u8>) {
    let topic = format!("$iothub/twin/PATCH/properties/desired/?$version={}", desired.version);
    say(
        &topic,
        &PropertyBuf::default(),
        desired.json().as_bytes(),
        listener,
        out,
    );
}

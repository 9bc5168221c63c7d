//! Why a connection ends.

use crate::proto::mqtt::{Error, Reason};
use crate::shard::link::End;
use crate::wire::close::CloseCode;

/// The end of a connection that had begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    /// For metrics, from a closed set.
    pub label: &'static str,
    /// What an MQTT 5 client is told; `None`: there is nobody to tell.
    pub reason: Option<Reason>,
    pub text: String,
    /// What was wrong with the packet, if it was that.
    pub error: Option<Error>,
    /// Whether its will is published.
    pub has_will: bool,
    /// Whether what was taken is waited for, and acknowledged.
    pub is_orderly: bool,
}

impl Ended {
    fn new(label: &'static str, reason: Reason, text: impl ToString) -> Self {
        Self {
            label,
            reason: Some(reason),
            text: text.to_string(),
            error: None,
            has_will: true,
            is_orderly: false,
        }
    }

    /// The client has gone without a word.
    pub fn lost() -> Self {
        Self {
            reason: None,
            ..Self::new("lost", Reason::UNSPECIFIED, "the client is gone")
        }
    }

    /// The client has said goodbye. What it sent before is stored; whether it hears of that is its own affair.
    pub fn goodbye(reason: Reason) -> Self {
        Self {
            reason: None,
            // MQTT 5 s3.14.2.1: a client may want its will published all the same.
            has_will: reason != Reason::SUCCESS,
            is_orderly: true,
            ..Self::new("goodbye", Reason::SUCCESS, "the client said goodbye")
        }
    }

    /// What came is no packet.
    pub fn malformed(error: Error) -> Self {
        let label = match error {
            Error::TooLarge => "too_large",
            _ => "malformed",
        };
        Self {
            error: Some(error),
            ..Self::new(label, error.reason(), error)
        }
    }

    /// A packet that may not come, or not now.
    pub fn protocol(text: &str) -> Self {
        Self::new("protocol", Reason::PROTOCOL_ERROR, text)
    }

    // MQTT 5 [MQTT-3.3.2-9].
    pub fn topic_alias() -> Self {
        Self::new("protocol", Reason::TOPIC_ALIAS_INVALID, "topic aliases are not served")
    }

    pub fn refused(refusal: Refusal, text: impl ToString) -> Self {
        Self::new(refusal.label, refusal.reason, text)
    }

    pub fn receive_maximum(maximum: u16) -> Self {
        let text = format!("more than {maximum} messages wait for their acknowledgement");
        Self::new("receive_maximum", Reason::RECEIVE_MAXIMUM_EXCEEDED, text)
    }

    pub fn keep_alive() -> Self {
        let text = "the client was silent for too long";
        Self::new("keep_alive", Reason::KEEP_ALIVE_TIMEOUT, text)
    }

    pub fn stalled() -> Self {
        Self {
            reason: None,
            ..Self::new(
                "stalled",
                Reason::UNSPECIFIED,
                "the client takes nothing of what is sent",
            )
        }
    }

    // IoT Hub, MQTT section 11: 400027.
    pub fn taken_over() -> Self {
        let text = "the identity has connected again";
        Self::new("taken_over", Reason::SESSION_TAKEN_OVER, text)
    }

    // IoT Hub, MQTT section 11: 401003.
    pub fn expired() -> Self {
        let text = "the credential has run out";
        Self::new("expired", Reason::MAXIMUM_CONNECT_TIME, text)
    }

    pub fn stopping() -> Self {
        Self {
            // The client comes back soon, and to no effect yet: nothing can be stored any more.
            has_will: false,
            is_orderly: true,
            ..Self::new("stopping", Reason::SERVER_SHUTTING_DOWN, "the hub stops")
        }
    }

    pub fn failed(text: impl ToString) -> Self {
        Self::new("failed", Reason::UNSPECIFIED, text)
    }

    /// The home shard has ended the session.
    pub fn by_shard(end: &End) -> Self {
        match end.code {
            CloseCode::TakenOver => Self::taken_over(),
            CloseCode::Draining => Self::stopping(),
            CloseCode::DeviceDisabled | CloseCode::DeviceDeleted => {
                Self::new("revoked", Reason::ADMINISTRATIVE_ACTION, &end.reason)
            }
            _ => Self::failed(&end.reason),
        }
    }
}

/// Why a message is refused: MQTT 5 has a word for it, before that the connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub label: &'static str,
    pub reason: Reason,
}

impl Refusal {
    const fn new(label: &'static str, reason: Reason) -> Self {
        Self { label, reason }
    }

    /// Nobody may publish there.
    pub const TOPIC: Self = Self::new("topic", Reason::TOPIC_NAME_INVALID);
    /// The topic is another identity's.
    pub const OWNER: Self = Self::new("topic", Reason::NOT_AUTHORIZED);
    // IoT Hub, message format section 8: 413001.
    pub const TOO_LARGE: Self = Self::new("too_large", Reason::QUOTA_EXCEEDED);
    pub const CREATION_TIME: Self = Self::new("property", Reason::IMPLEMENTATION_SPECIFIC);
    pub const PAYLOAD_FORMAT: Self = Self::new("property", Reason::PAYLOAD_FORMAT_INVALID);
    // IoT Hub, MQTT section 4.2.
    pub const QOS: Self = Self::new("qos", Reason::QOS_NOT_SUPPORTED);
}

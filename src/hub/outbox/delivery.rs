//! One cloud-to-device message, from enqueue to its outcome (IoT Hub, C2D life cycle). Feedback batches live the same way.
//!
//! ```text
//!   Enqueued ──lock──> Invisible ──complete, reject──> Done
//!    ^  │ ^               │ │ │
//!    │  │ └─ lock timeout ┘ │ └─ abandon, deliveries used up ──> Done
//!    │  │    or release     │
//!    │  └─ expiry ──────────┼─────────────────────────────────> Done
//!    └───── abandon ────────┘          purge, from either ────> Done
//! ```
//!
//! No clock: the caller passes `now`. The whole table is `tests/golden/outbox/delivery.txt`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::millis;
use super::record::Reader;
use crate::hub::entropy::Entropy;
use crate::model::UtcMillis;

/// Proof of holding one message. Written as a GUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct LockToken(u128);

impl LockToken {
    pub(in crate::hub) fn generate(entropy: &dyn Entropy) -> Self {
        let mut bytes = [0; 16];
        entropy.fill(&mut bytes);
        // RFC 9562 s5.4: the version and variant of a random GUID.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        Self(u128::from_be_bytes(bytes))
    }
}

impl From<[u8; 16]> for LockToken {
    fn from(bytes: [u8; 16]) -> Self {
        Self(u128::from_be_bytes(bytes))
    }
}

impl From<LockToken> for [u8; 16] {
    fn from(token: LockToken) -> Self {
        token.0.to_be_bytes()
    }
}

impl fmt::Display for LockToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = format!("{:032x}", self.0);
        let groups = [
            &digits[..8],
            &digits[8..12],
            &digits[12..16],
            &digits[16..20],
            &digits[20..],
        ];
        f.write_str(&groups.join("-"))
    }
}

/// The text is no GUID, so nothing is locked by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a GUID")]
pub struct NoGuid;

impl FromStr for LockToken {
    type Err = NoGuid;

    fn from_str(text: &str) -> Result<Self, NoGuid> {
        let is_guid = text.len() == 36
            && text.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        if !is_guid {
            return Err(NoGuid);
        }
        u128::from_str_radix(&text.replace('-', ""), 16)
            .map(Self)
            .map_err(|_| NoGuid)
    }
}

impl From<LockToken> for String {
    fn from(token: LockToken) -> Self {
        token.to_string()
    }
}

impl TryFrom<String> for LockToken {
    type Error = NoGuid;

    fn try_from(text: String) -> Result<Self, NoGuid> {
        text.parse()
    }
}

/// How a message ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    Success,
    Expired,
    DeliveryCountExceeded,
    Rejected,
    Purged,
}

impl Outcome {
    /// In the order of their numbers in stored records.
    pub const ALL: [Self; 5] = [
        Self::Success,
        Self::Expired,
        Self::DeliveryCountExceeded,
        Self::Rejected,
        Self::Purged,
    ];

    /// The value of a metric's label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Expired => "expired",
            Self::DeliveryCountExceeded => "delivery_count_exceeded",
            Self::Rejected => "rejected",
            Self::Purged => "purged",
        }
    }

    /// As `statusCode` of a feedback record spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Rejected => "Rejected",
            Self::Purged => "Purged",
        }
    }
}

/// What the holder of a lock does with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    Complete,
    /// Again later; consumes one delivery.
    Abandon,
    Reject,
    /// The connection was lost before the holder could say: again later, no delivery consumed.
    Release,
}

/// Somebody else may hold the message by now, or it is done. An ordinary answer to a slow holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the lock is lost")]
pub struct LockLost;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum State {
    Enqueued,
    Invisible {
        token: LockToken,
        #[serde(with = "millis")]
        until: UtcMillis,
    },
    Done(Outcome),
}

/// Where one message stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    state: State,
    delivery_count: u8,
    #[serde(with = "millis")]
    expires: UtcMillis,
}

impl Delivery {
    pub fn new(expires: UtcMillis) -> Self {
        Self {
            state: State::Enqueued,
            delivery_count: 0,
            expires,
        }
    }

    /// As it stands in the record of its queue.
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        match self.state {
            State::Enqueued => into.push(0),
            State::Invisible { token, until } => {
                into.push(1);
                into.extend_from_slice(&<[u8; 16]>::from(token));
                into.extend_from_slice(&until.0.to_le_bytes());
            }
            State::Done(outcome) => into.extend_from_slice(&[2, outcome as u8]),
        }
        into.push(self.delivery_count);
        into.extend_from_slice(&self.expires.0.to_le_bytes());
    }

    /// The inverse of `write`; `None` for what it does not write.
    pub(super) fn read(from: &mut Reader<'_>) -> Option<Self> {
        let state = match from.u8()? {
            0 => State::Enqueued,
            1 => State::Invisible {
                token: LockToken::from(from.array::<16>()?),
                until: UtcMillis(i64::from_le_bytes(from.array()?)),
            },
            2 => State::Done(Outcome::ALL.get(usize::from(from.u8()?)).copied()?),
            _ => return None,
        };
        Some(Self {
            state,
            delivery_count: from.u8()?,
            expires: UtcMillis(i64::from_le_bytes(from.array()?)),
        })
    }

    /// How often it was abandoned.
    // IoT Hub, C2D: only an abandon counts, neither a delivery nor a lock that timed out.
    pub fn delivery_count(&self) -> u8 {
        self.delivery_count
    }

    pub fn expires(&self) -> UtcMillis {
        self.expires
    }

    pub fn outcome(&self) -> Option<Outcome> {
        match self.state {
            State::Done(outcome) => Some(outcome),
            State::Enqueued | State::Invisible { .. } => None,
        }
    }

    /// When the lock ends; `None` unless it is locked.
    pub fn locked_until(&self) -> Option<UtcMillis> {
        match self.state {
            State::Invisible { until, .. } => Some(until),
            State::Enqueued | State::Done(_) => None,
        }
    }

    /// Hands the message out; `false` unless it is waiting.
    pub fn lock(&mut self, token: LockToken, until: UtcMillis) -> bool {
        match self.state {
            State::Enqueued => self.state = State::Invisible { token, until },
            State::Invisible { .. } | State::Done(_) => return false,
        }
        true
    }

    /// # Errors
    /// When this token does not hold the message, or no longer.
    // IoT Hub, C2D: inside the lock the holder wins over an expiry that passed meanwhile.
    pub fn settle(
        &mut self,
        token: LockToken,
        settlement: Settlement,
        now: UtcMillis,
        delivery_count_max: u8,
    ) -> Result<(), LockLost> {
        match self.state {
            State::Invisible { token: held, until } if held == token && now < until => {}
            State::Enqueued | State::Invisible { .. } | State::Done(_) => return Err(LockLost),
        }
        self.state = match settlement {
            Settlement::Complete => State::Done(Outcome::Success),
            Settlement::Reject => State::Done(Outcome::Rejected),
            Settlement::Release => State::Enqueued,
            Settlement::Abandon => {
                self.delivery_count = self.delivery_count.saturating_add(1);
                if self.delivery_count >= delivery_count_max {
                    State::Done(Outcome::DeliveryCountExceeded)
                } else {
                    State::Enqueued
                }
            }
        };
        Ok(())
    }

    /// Lets the lock and the message run out, in this order.
    pub fn handle_timeout(&mut self, now: UtcMillis) {
        if let State::Invisible { until, .. } = self.state
            && now >= until
        {
            self.state = State::Enqueued;
        }
        match self.state {
            State::Enqueued if now >= self.expires => self.state = State::Done(Outcome::Expired),
            State::Enqueued | State::Invisible { .. } | State::Done(_) => {}
        }
    }

    // IoT Hub, purge: locked messages too.
    pub fn purge(&mut self) {
        match self.state {
            State::Enqueued | State::Invisible { .. } => self.state = State::Done(Outcome::Purged),
            State::Done(_) => {}
        }
    }
}

#[cfg(test)]
#[path = "delivery_tests.rs"]
mod tests;

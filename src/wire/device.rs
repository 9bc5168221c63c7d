//! The frames of a device's further streams: messages to it, its twin, direct methods.
//!
//! Beside its first stream a device may open one stream for each of the three; the first frame says which. The hub's
//! first frame on each is [`Ready`]. A second stream for the same purpose ends the first with `Failed` (409003). A fault on
//! such a stream ends it with `Failed` and leaves the session; none of them takes early data (400003). Layout as in [`super::control`].

use rkyv::{Archive, Deserialize, Serialize};

use super::control::{Control, ControlError, control};
use super::frame::Kind;

/// The body of a frame of these streams, at most: a method's payload of 128 KiB in JSON, or a command of 64 KiB, with room.
pub const DEVICE_FRAME_BYTES_MAX: u32 = 256 * 1024;

/// Hub: what the stream's first frame asked for is in force.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ready {
    /// How much may be under way at once; at most what was asked for.
    pub window: u32,
}

/// Device, first frame: deliver the messages that are queued for me.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandsOpen {
    /// Messages delivered and not settled, at most; the hub's own limit is 50.
    pub window: u32,
}

/// Hub: a message, locked for the device before it is sent.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Command {
    pub lock_token: [u8; 16],
    /// Place in the queue; grows over its life.
    pub sequence: u64,
    /// How often it was abandoned.
    pub delivery_count: u8,
    /// UTC milliseconds.
    pub enqueued_ms: i64,
    /// UTC milliseconds.
    pub expires_ms: i64,
    /// One archive of [`super::message`].
    pub message: Vec<u8>,
}

/// What becomes of a delivered message.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Complete = 1,
    Reject = 2,
    /// Deliver it again.
    Abandon = 3,
}

/// Device: ends the lock of a message.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settle {
    pub lock_token: [u8; 16],
    pub outcome: Outcome,
}

/// Hub: the settlement is durable, or refused.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub lock_token: [u8; 16],
    /// 0, or an IoT Hub error code (412002: the lock was lost).
    pub code: u32,
    pub reason: String,
}

/// Device, first frame: tell me of changes to my desired properties. If `desired_seen` is older than the hub's version,
/// the whole section comes first.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinOpen {
    /// The newest `$version` of the desired properties that the device holds; 0 for none.
    pub desired_seen: u64,
}

/// Hub: the desired properties changed. Versions only grow on a stream; where one is left out, the next is complete.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Desired {
    pub version: u64,
    /// The whole section; otherwise a merge patch, in which null deletes, to the version before.
    pub is_complete: bool,
    /// With `$version`.
    pub json: String,
}

/// Device: what is in my twin?
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct TwinGet {
    /// Stands in the answer.
    pub id: u32,
}

/// Hub: `{"desired": {.., "$version"}, "reported": {.., "$version"}}`.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct TwinDocument {
    pub id: u32,
    /// 0, or an IoT Hub error code; then `json` is the reason in words.
    pub code: u32,
    pub json: String,
}

/// Device: changes my reported properties.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Stands in the answer.
    pub id: u32,
    /// Only if the reported properties have this `$version`; 0 for any.
    pub if_version: u64,
    /// A merge patch: null deletes.
    pub json: String,
}

/// Hub: the report is durable, or refused.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Reported {
    pub id: u32,
    /// 0, or an IoT Hub error code.
    pub code: u32,
    /// `$version` of the reported properties after it; 0 when refused.
    pub version: u64,
    pub reason: String,
}

/// Device, first frame: I answer direct methods.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct MethodsOpen {
    /// Calls at a time, at most; the hub's own limit is 10.
    pub window: u32,
}

/// Hub: a direct method is called.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Invoke {
    /// Stands in the answer; unique on the stream.
    pub id: u64,
    pub name: String,
    /// JSON; empty for none.
    pub payload: String,
    /// Milliseconds after which nobody waits for the answer.
    pub timeout_ms: u32,
}

/// Device: what the method came to.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub id: u64,
    /// The device's own, by custom as in HTTP.
    pub status: i32,
    /// JSON; empty for none.
    pub payload: String,
}

control!(
    Ready,
    CommandsOpen,
    Command,
    Settle,
    Settled,
    TwinOpen,
    Desired,
    TwinGet,
    TwinDocument,
    Report,
    Reported,
    MethodsOpen,
    Invoke,
    Answer
);

//! The small frames around the batches: each body is the rkyv archive of the struct of its name.
//!
//! Decoding gives an owned copy: these frames are rare and small. Fields are in the order of the structs, little
//! endian, without padding; texts and lists as in `wire::message`. Golden files hold the bytes.

use rkyv::api::low::LowValidator;
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor::Failure;
use rkyv::{Archive, Deserialize, Portable, Serialize};

use super::frame::{self, Kind};

/// A control frame's body is not the archive its kind calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("body of a {kind:?} frame is not valid")]
pub struct ControlError {
    pub kind: Kind,
}

/// The largest body of a control frame a client may send: a hello with a long token and a subject, with room.
pub const CONTROL_BYTES_MAX: u32 = 16 * 1024;

/// What connects.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// One device or module identity that sends telemetry.
    Device = 1,
    /// A back end: consumers and management, by what its policy permits.
    Service = 2,
}

/// The first frame. Frame versions are negotiated here: the hub takes the highest that both speak.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    pub version_min: u8,
    pub version_max: u8,
    pub role: Role,
    /// Empty for a service.
    pub device_id: String,
    /// Empty for the device itself.
    pub module_id: String,
    /// A SAS token; empty when the client certificate is the credential.
    pub token: String,
    /// The epoch of the appends to come; 0 lets the hub choose the next.
    pub epoch: u64,
    /// Name and version of the client software, for logs.
    pub agent: String,
}

/// The hub's answer to a hello.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    pub version: u8,
    /// The epoch that the session's appends belong to.
    pub epoch: u64,
    /// The last sequence stored in that epoch, at the hub's durability level; 0 for none.
    pub last_sequence: u64,
    pub partition: u16,
    pub partition_count: u16,
    /// Counted bytes of one message.
    pub message_bytes_max: u32,
    /// Bytes of one append frame's body.
    pub batch_bytes_max: u32,
    /// Messages of one append frame.
    pub batch_count_max: u32,
    /// UTC milliseconds at which the hub ends the session unless the token is renewed; 0 for never.
    pub expires_ms: i64,
    /// `sync`, `interval` or `os`: what an acknowledgement stands for.
    pub durability: String,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// A number of [`super::close::CloseCode`].
    pub code: u8,
    /// How long to stay away, milliseconds; 0 for the client's own back-off.
    pub retry_after_ms: u32,
    pub reason: String,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Renew {
    pub token: String,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Renewed {
    pub expires_ms: i64,
}

/// Everything up to and including `sequence` of the session's epoch is stored.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack {
    pub sequence: u64,
}

impl Ack {
    /// `to_frame` without an allocation: the most frequent frame the hub sends.
    pub fn frame_bytes(self) -> [u8; frame::HEADER_BYTES + 8] {
        let mut bytes = [0; frame::HEADER_BYTES + 8];
        bytes[..frame::HEADER_BYTES].copy_from_slice(&frame::header(Kind::Ack, 0, 8));
        bytes[frame::HEADER_BYTES..].copy_from_slice(&self.sequence.to_le_bytes());
        bytes
    }
}

/// Where a cursor starts.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum From {
    Earliest = 1,
    /// Only what is stored after this moment.
    Latest = 2,
    /// `value` is a sequence number.
    Sequence = 3,
    /// `value` is UTC milliseconds: the first record enqueued then or later.
    Time = 4,
    /// The group's checkpoint, or the earliest record when there is none.
    Checkpoint = 5,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub partition: u16,
    pub group: String,
    pub from: From,
    pub value: u64,
    /// Above 0: claims the partition for this reader within the group; a higher level or a later claim of the same
    /// level takes it from the earlier one. 0: reads beside others and may not checkpoint.
    pub owner_level: u64,
    /// Name of the reader, for the claim and for logs.
    pub owner: String,
    /// Bytes of `Deliver` bodies that may be sent before more credit is given.
    pub credit_bytes: u64,
}

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subscribed {
    /// The sequence number the cursor stands at.
    pub start: u64,
    /// The oldest one retained.
    pub first_retained: u64,
    /// The next one to be stored.
    pub next: u64,
}

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credit {
    pub bytes: u64,
}

/// The reader has processed everything before `next`.
#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    pub next: u64,
}

#[derive(Archive, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointStored {
    pub next: u64,
}

/// A stream's request failed; the stream ends, the connection stays.
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// IoT Hub error code where the contract has one (404001, 403000, ...).
    pub code: u32,
    pub reason: String,
    /// The sequence number to go on from, where reading stopped for a fault or for retention; else 0.
    pub next: u64,
}

/// A management request: operation and JSON document (see `session::quic::service`).
#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub operation: String,
    pub json: String,
}

#[derive(Archive, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// HTTP-like status.
    pub status: u16,
    /// IoT Hub error code; 0 on success.
    pub code: u32,
    pub json: String,
}

/// A struct that is the body of a frame kind.
pub trait Control: Sized {
    const KIND: Kind;

    /// The whole frame.
    fn to_frame(&self) -> Vec<u8>;

    /// # Errors
    /// `ControlError` when the bytes are not a valid archive.
    fn from_body(body: &[u8]) -> Result<Self, ControlError>;
}

/// Makes structs the bodies of the frame kinds of their names.
macro_rules! control {
    ($($name:ident),*) => {$(
        impl Control for $name {
            const KIND: Kind = Kind::$name;

            fn to_frame(&self) -> Vec<u8> {
                let body = rkyv::to_bytes::<rkyv::rancor::Failure>(self).expect("a control frame fits in memory");
                [&$crate::wire::frame::header(Self::KIND, 0, body.len())[..], &body].concat()
            }

            fn from_body(body: &[u8]) -> Result<Self, ControlError> {
                $crate::wire::control::read::<rkyv::Archived<Self>>(body)
                    .and_then(|archived| rkyv::deserialize::<Self, rkyv::rancor::Failure>(archived).ok())
                    .ok_or(ControlError { kind: Self::KIND })
            }
        }
    )*};
}
pub(super) use control;

pub(super) fn read<T>(body: &[u8]) -> Option<&T>
where
    T: Portable + for<'a> CheckBytes<LowValidator<'a, Failure>>,
{
    rkyv::api::low::access::<T, Failure>(body).ok()
}

control!(
    Hello,
    Welcome,
    Goodbye,
    Renew,
    Renewed,
    Ack,
    Subscribe,
    Subscribed,
    Credit,
    Checkpoint,
    CheckpointStored,
    Failed,
    Request,
    Response
);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn hello() -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            role: Role::Device,
            device_id: "dev-01".into(),
            module_id: String::new(),
            token: "SharedAccessSignature sr=hub%2Fdevices%2Fdev-01&sig=x&se=1".into(),
            epoch: 3,
            agent: "test/1".into(),
        }
    }

    #[test]
    fn control_frames_come_back_as_they_went_out() {
        let frame = hello().to_frame();
        assert_eq!(frame[4], Kind::Hello as u8);
        assert_eq!(Hello::from_body(&frame[frame::HEADER_BYTES..]).unwrap(), hello());
        let ack = Ack {
            sequence: 0x0102_0304_0506_0708,
        }
        .to_frame();
        assert_eq!(ack, [8, 0, 0, 0, 0x12, 1, 0, 0, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(
            ack,
            Ack {
                sequence: 0x0102_0304_0506_0708
            }
            .frame_bytes()
        );
    }

    #[test]
    fn a_wrong_role_is_refused() {
        let mut frame = hello().to_frame();
        let role_at = frame.len() - size_of::<rkyv::Archived<Hello>>() + 2;
        assert_eq!(frame[role_at], 1);
        frame[role_at] = 9;
        assert_eq!(
            Hello::from_body(&frame[frame::HEADER_BYTES..]),
            Err(ControlError { kind: Kind::Hello })
        );
    }

    proptest! {
        #[test]
        fn mutated_hellos_never_panic(at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut body = hello().to_frame()[frame::HEADER_BYTES..].to_vec();
            let at = at.index(body.len());
            body[at] = to;
            body.truncate(cut.index(body.len() + 1));
            let _ = Hello::from_body(&body);
        }
    }
}

//! Telemetry: messages out of PUBLISH into batches, and their acknowledgements in order.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use super::Door;
use super::ended::{Ended, Refusal};
use super::message::{self, Unreadable};
use super::window::Window;
use crate::hub::IdentityName;
use crate::model::{Message, UtcMillis};
use crate::proto::mqtt::topic::Owner;
use crate::proto::mqtt::{Ack, Packet, Publish, QoS, Reason, Version};
use crate::wire::batch::{Batch, BatchBuilder};

/// A joined batch grows no further than this.
const JOINED_BYTES_MAX: usize = 64 * 1024;

pub(super) struct Uplink {
    door: Arc<Door>,
    name: IdentityName,
    version: Version,
    builder: BatchBuilder,
    next_sequence: u64,
    pub window: Window,
    /// Whether duplicates are looked for: the session outlives its connection.
    is_kept: bool,
    model_id: Option<String>,
    latest: Latest,
}

/// A device says the same of most of its messages.
#[derive(Default)]
struct Latest {
    topic: String,
    /// Without a body.
    message: Message,
    counted_bytes: usize,
}

impl Uplink {
    /// `last_sequence`: of what the session's epoch has stored.
    pub fn new(
        door: Arc<Door>,
        name: IdentityName,
        version: Version,
        window: Window,
        is_kept: bool,
        last_sequence: u64,
        model_id: Option<String>,
    ) -> Self {
        Self {
            door,
            name,
            version,
            builder: BatchBuilder::default(),
            next_sequence: last_sequence + 1,
            window,
            is_kept,
            model_id,
            latest: Latest::default(),
        }
    }

    /// Whether this is the topic of the message before: then it need not be looked at.
    #[inline]
    pub fn is_latest(&self, topic: &str) -> bool {
        self.latest.topic == topic
    }

    /// Learns what a topic says.
    pub fn look_at(&mut self, topic: &str, owner: Owner<'_>, bag: &str) -> Result<(), Refusal> {
        let module = self.name.module.as_ref().map(|module| module.as_str());
        if !owner.is(self.name.device.as_str(), module) {
            return Err(Refusal::OWNER);
        }
        let mut message = message::of_bag(bag).map_err(refusal)?;
        message::mark_model(&mut message, self.model_id.as_deref());
        self.latest = Latest {
            counted_bytes: message.counted_bytes(),
            topic: topic.to_owned(),
            message,
        };
        Ok(())
    }

    /// Takes a message whose topic was looked at.
    pub fn take(&mut self, publish: &Publish<'_>) -> Result<(), Ended> {
        let digest = match publish.packet_id {
            Some(id) if self.is_kept => {
                let digest = self.door.digests.hash_one((publish.topic, publish.payload));
                if publish.is_dup && self.window.knows(id, digest) {
                    self.door.observer.duplicate();
                    // One that still waits is answered then.
                    if !self.window.is_waiting(id) {
                        self.answer(id, Reason::SUCCESS);
                    }
                    return Ok(());
                }
                digest
            }
            _ => 0,
        };
        if let Err(refusal) = self.push(publish) {
            return self.refuse(publish, refusal);
        }
        if let Some(id) = publish.packet_id {
            self.window.push(self.next_sequence, id, digest);
        }
        self.next_sequence += 1;
        Ok(())
    }

    fn push(&mut self, publish: &Publish<'_>) -> Result<(), Refusal> {
        let bytes_max = self.door.config.message_bytes_max;
        let Latest {
            message, counted_bytes, ..
        } = &self.latest;
        if !publish.is_retain && publish.properties.is_empty() {
            if counted_bytes + publish.payload.len() > bytes_max {
                return Err(Refusal::TOO_LARGE);
            }
            self.builder.push_parts(message, publish.payload);
            return Ok(());
        }
        let (mut message, now) = (message.clone(), self.door.clock.now());
        add(&mut message, publish, now)?;
        if message.counted_bytes() + publish.payload.len() > bytes_max {
            return Err(Refusal::TOO_LARGE);
        }
        self.builder.push_parts(&message, publish.payload);
        Ok(())
    }

    /// Refuses a message: a client of MQTT 5 is told, with another the connection ends.
    pub fn refuse(&mut self, publish: &Publish<'_>, refusal: Refusal) -> Result<(), Ended> {
        // MQTT 5 s3.2.2.3.4: who sends what was said not to be served is told goodbye.
        if self.version == Version::V3 || refusal == Refusal::QOS {
            return Err(Ended::refused(
                refusal,
                format_args!("a message was refused: {}", refusal.label),
            ));
        }
        self.door.observer.message_refused(refusal.label);
        if let Some(id) = publish.packet_id {
            self.answer(id, refusal.reason);
        }
        Ok(())
    }

    /// Answers in its turn: after those before it.
    pub fn answer(&mut self, id: std::num::NonZeroU16, reason: Reason) {
        self.window.push_answer(self.next_sequence - 1, id, reason);
    }

    /// Whether what has come is better handed over before more is read.
    pub fn is_full(&self) -> bool {
        self.builder.body_bytes() >= JOINED_BYTES_MAX
    }

    /// What has come, as one batch.
    pub fn take_batch(&mut self) -> Option<Batch> {
        let count = self.builder.count();
        (count > 0).then(|| Batch {
            first_sequence: self.next_sequence - u64::from(count),
            count,
            skip: false,
            payload: self.builder.finish_payload(),
        })
    }

    /// All up to this sequence is durable.
    pub fn acknowledge(&mut self, sequence: u64, out: &mut Vec<u8>) {
        let version = self.version;
        self.window.acknowledge(sequence, |id, reason| {
            let ack = Packet::PubAck(Ack::new(id, reason));
            ack.encode(version, out).expect("an acknowledgement has no limits");
        });
    }
}

fn add(message: &mut Message, publish: &Publish<'_>, now: UtcMillis) -> Result<(), Refusal> {
    message::add_properties(message, &publish.properties, publish.payload, now).map_err(refusal)?;
    if publish.is_retain {
        message::mark_retained(message);
    }
    Ok(())
}

fn refusal(unreadable: Unreadable) -> Refusal {
    match unreadable {
        Unreadable::CreationTime => Refusal::CREATION_TIME,
        Unreadable::PayloadFormat => Refusal::PAYLOAD_FORMAT,
    }
}

/// Whether the QoS of a message is served.
// IoT Hub, MQTT section 4.2.
pub(super) fn is_served(qos: QoS) -> bool {
    qos != QoS::ExactlyOnce
}

//! Messages to the device as PUBLISH. What is locked, settled and given back is [`crate::session::commands`]'s.

use std::collections::VecDeque;
use std::num::NonZeroU16;

use super::message;
use super::say::Listener;
use crate::hub::IdentityName;
use crate::hub::outbox::{Delivered, LockToken, QUEUE_DEPTH_MAX, Settlement};
use crate::model::UtcMillis;
use crate::proto::mqtt::{Packet, Properties, Publish, QoS, Reason, Version};
use crate::session::commands::{Event, Queue};

/// Settlements that wait for the store; then the client is read no further.
pub(super) const SETTLING_MAX: usize = 64;
/// Messages that the client has not acknowledged, those whose locks have run out included; the oldest beyond are
/// forgotten.
const SENT_MAX: usize = 4 * QUEUE_DEPTH_MAX;

/// To whom messages go, and how.
#[derive(Clone, Copy)]
pub(super) struct Client<'a> {
    pub name: &'a IdentityName,
    pub listener: Listener,
}

pub(super) struct Downlink {
    queue: Queue,
    qos: QoS,
    /// Messages that may wait for the client's acknowledgement.
    receive_maximum: usize,
    /// Locked, and not sent for want of room.
    waiting: VecDeque<Delivered>,
    /// In the order of sending.
    sent: VecDeque<(NonZeroU16, LockToken)>,
    next_id: NonZeroU16,
}

impl Downlink {
    /// `queue` has a window of [`Self::window`].
    pub fn new(queue: Queue, qos: QoS, receive_maximum: u16) -> Self {
        Self {
            queue,
            qos,
            receive_maximum: usize::from(receive_maximum).min(SENT_MAX),
            waiting: VecDeque::new(),
            sent: VecDeque::new(),
            next_id: NonZeroU16::MIN,
        }
    }

    /// How many messages may be locked at a time.
    pub fn window(receive_maximum: u16) -> usize {
        usize::from(receive_maximum).min(QUEUE_DEPTH_MAX)
    }

    pub fn set_qos(&mut self, qos: QoS) {
        self.qos = qos;
    }

    /// Waits for what is to be done next; cancelling the wait loses nothing.
    pub async fn next(&mut self) -> Event {
        self.queue.next().await
    }

    /// Keeps what was locked until it is sent.
    pub fn deliver(&mut self, delivered: Vec<Delivered>) {
        self.waiting.extend(delivered);
    }

    /// Whether there is something to send.
    pub fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Whether a client that settles more would make the hub hold more.
    pub fn is_settling_much(&self) -> bool {
        self.queue.settling() >= SETTLING_MAX
    }

    /// Sends what there is room for.
    pub fn send(&mut self, client: Client<'_>, now: UtcMillis, bytes_max: usize, out: &mut Vec<u8>) {
        while out.len() < bytes_max
            && (self.qos == QoS::AtMostOnce || self.sent.len() < self.receive_maximum)
            && let Some(delivered) = self.waiting.pop_front()
        {
            if delivered.locked_until <= now {
                // It comes again, under another lock.
                continue;
            }
            let before = out.len();
            let packet_id = (self.qos == QoS::AtLeastOnce).then(|| self.next_id());
            let is_written = write(&delivered, client, packet_id, now, out);
            if !is_written || !client.listener.takes(out, before) {
                // MQTT 5 [MQTT-3.1.2-25]; or no topic is long enough for its properties. It never can be.
                out.truncate(before);
                tracing::debug!(
                    device = client.name.device.as_str(),
                    "a message is too large for its device"
                );
                self.queue.settle(delivered.token, Settlement::Reject);
                continue;
            }
            match packet_id {
                Some(id) => {
                    self.sent.push_back((id, delivered.token));
                    // Only ones whose lock has run out are that old.
                    if self.sent.len() > SENT_MAX {
                        self.sent.pop_front();
                    }
                }
                // At most once: sent is done.
                None => self.queue.settle(delivered.token, Settlement::Complete),
            }
        }
    }

    /// The client has a message, or in MQTT 5 says that it does not want it. Whether it was sent.
    // IoT Hub, MQTT section 5.
    pub fn acknowledged(&mut self, id: NonZeroU16, reason: Reason) -> bool {
        let Some(at) = self.sent.iter().position(|(sent, _)| *sent == id) else {
            return false;
        };
        if let Some((_, token)) = self.sent.remove(at) {
            let settlement = match reason.is_error() {
                false => Settlement::Complete,
                true => Settlement::Reject,
            };
            self.queue.settle(token, settlement);
        }
        true
    }

    /// One that no message waits under.
    fn next_id(&mut self) -> NonZeroU16 {
        loop {
            let id = self.next_id;
            self.next_id = id.checked_add(1).unwrap_or(NonZeroU16::MIN);
            if self.sent.iter().all(|(sent, _)| *sent != id) {
                return id;
            }
        }
    }
}

fn write(
    delivered: &Delivered,
    client: Client<'_>,
    packet_id: Option<NonZeroU16>,
    now: UtcMillis,
    out: &mut Vec<u8>,
) -> bool {
    let topic = message::command_topic(delivered, client.name);
    let properties = match client.listener.version {
        Version::V3 => None,
        Version::V5 => Some(message::command_properties(delivered, now)),
    };
    let publish = Publish {
        // The client may have had it before.
        is_dup: packet_id.is_some() && delivered.delivery_count > 0,
        qos: match packet_id {
            Some(_) => QoS::AtLeastOnce,
            None => QoS::AtMostOnce,
        },
        is_retain: false,
        topic: &topic,
        packet_id,
        properties: properties.as_ref().map_or(Properties::NONE, |buf| buf.as_properties()),
        payload: &delivered.message.body,
    };
    Packet::Publish(publish).encode(client.listener.version, out).is_ok()
}

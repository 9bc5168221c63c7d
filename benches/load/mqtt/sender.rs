//! A connection that publishes with QoS 1, many messages before the first is acknowledged.

use std::collections::VecDeque;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use bytes::Buf as _;
use forebay::proto::mqtt::{Packet, Properties, Publish, QoS};

use super::{Connection, VERSION};

/// What is read at a time at most.
const READ_BYTES: usize = 64 << 10;

/// A device that sends.
pub struct Device {
    connection: Connection,
    topic: Arc<str>,
    next_id: NonZeroU16,
    /// When each was sent that is not acknowledged, oldest first.
    unacknowledged: VecDeque<(NonZeroU16, Instant)>,
}

impl Device {
    pub(super) fn new(connection: Connection, id: &str) -> Self {
        Self {
            connection,
            topic: format!("devices/{id}/messages/events/").into(),
            next_id: NonZeroU16::MIN,
            unacknowledged: VecDeque::new(),
        }
    }

    /// Messages that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Puts a message of QoS 1 into the buffer; it leaves with the next `flush`. `since`: from when its latency counts.
    ///
    /// # Errors
    /// The payload is larger than a packet may be.
    pub fn put(&mut self, payload: &[u8], since: Instant) -> anyhow::Result<()> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(NonZeroU16::MIN);
        self.connection.put(&Packet::Publish(Publish {
            is_dup: false,
            qos: QoS::AtLeastOnce,
            is_retain: false,
            topic: &self.topic,
            packet_id: Some(id),
            properties: Properties::NONE,
            payload,
        }))?;
        self.unacknowledged.push_back((id, since));
        Ok(())
    }

    /// # Errors
    /// The hub is gone.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.connection.flush().await
    }

    /// Waits for the hub and takes all it has said; `acknowledged` is told since when each message counts. Cancelling the
    /// wait loses nothing.
    ///
    /// # Errors
    /// The hub is gone, or acknowledges what was not sent.
    pub async fn wait(&mut self, mut acknowledged: impl FnMut(Instant)) -> anyhow::Result<()> {
        let is_quiet = self.unacknowledged.is_empty();
        self.connection.read(if is_quiet { 64 } else { READ_BYTES }).await?;
        let mut used = 0;
        while let Some((packet, bytes)) = Packet::decode(&self.connection.input[used..], VERSION)? {
            let Packet::PubAck(ack) = packet else {
                bail!("the hub says {packet:?}")
            };
            let (id, since) = self.unacknowledged.pop_front().context("nothing was sent")?;
            // MQTT 3.1.1 [MQTT-4.6.0-2].
            ensure!(
                id == ack.packet_id,
                "message {} is acknowledged before {id}",
                ack.packet_id
            );
            acknowledged(since);
            used += bytes;
        }
        self.connection.input.advance(used);
        Ok(())
    }
}

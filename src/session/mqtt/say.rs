//! Messages of QoS 0 to a client: answers, desired changes, calls.

use crate::proto::mqtt::{Packet, PropertyBuf, Publish, QoS, Version};

/// How a client is spoken to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    pub version: Version,
    /// The longest packet it takes; `u32::MAX`: any.
    pub packet_bytes_max: u32,
}

impl Listener {
    /// Whether it takes what was appended to `out` behind `before`.
    pub fn takes(self, out: &[u8], before: usize) -> bool {
        (out.len() - before) as u64 <= u64::from(self.packet_bytes_max)
    }
}

/// Appends a message of QoS 0. One that is longer than the client takes, or has a topic that no packet can have, is
/// nobody's to read: it is left out, as if it had been sent.
// MQTT 5 [MQTT-3.1.2-24], [MQTT-3.1.2-25].
pub(super) fn say(topic: &str, properties: &PropertyBuf, payload: &[u8], listener: Listener, out: &mut Vec<u8>) {
    let before = out.len();
    let publish = Publish {
        is_dup: false,
        qos: QoS::AtMostOnce,
        is_retain: false,
        topic,
        packet_id: None,
        properties: properties.as_properties(),
        payload,
    };
    let is_written = Packet::Publish(publish).encode(listener.version, out).is_ok();
    if !is_written || !listener.takes(out, before) {
        out.truncate(before);
        tracing::debug!(topic, "a message is longer than its client takes");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_client_does_not_take_is_left_out() {
        let say = |packet_bytes_max, payload: &[u8]| {
            let mut out = b"before".to_vec();
            let listener = Listener {
                version: Version::V5,
                packet_bytes_max,
            };
            super::say("topic", &PropertyBuf::default(), payload, listener, &mut out);
            out.split_off(6)
        };
        // Two of the header, seven of the topic, one of the properties.
        assert_eq!(say(20, &[0; 10]).len(), 20);
        assert!(say(19, &[0; 10]).is_empty());
        assert_eq!(say(u32::MAX, &[0; 10]).len(), 20);
    }
}

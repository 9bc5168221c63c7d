//! What reads MQTT from outside.

use crate::proto::mqtt::topic::{Filter, Published};
use crate::proto::mqtt::user_name::UserName;
use crate::proto::mqtt::{Header, Packet, Version, bag};
use crate::session::mqtt::fuzz::read_bag;

/// What is a packet is the same packet when it is written and read again, and nothing stands behind its end.
pub(super) fn packet(input: &[u8]) {
    for version in [Version::V3, Version::V5] {
        let Ok(Some((packet, used))) = Packet::decode(input, version) else {
            continue;
        };
        let header = Header::read(input).ok().flatten().expect("a packet has a header");
        assert_eq!(header.packet_bytes(), used);
        for cut in 0..used.min(64) {
            assert_eq!(Packet::decode(&input[..cut], version), Ok(None));
        }
        // A CONNECT says its own version.
        let version = match &packet {
            Packet::Connect(connect) => connect.version,
            _ => version,
        };
        let mut written = Vec::new();
        if packet.encode(version, &mut written).is_ok() {
            let again = Packet::decode(&written, version);
            assert_eq!(again, Ok(Some((packet, written.len()))));
        }
    }
}

/// What a bag says is said again by the bag that is made of it.
pub(super) fn topic(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Some(Published::Telemetry { bag: said, .. }) = Published::parse(text) {
        let pairs = |bag: &str| -> Vec<(String, Option<String>)> {
            let owned = bag::pairs(bag).map(|(key, value)| (key.into_owned(), value.map(|value| value.into_owned())));
            owned.collect()
        };
        let mut again = String::new();
        let known = pairs(said);
        for (key, value) in &known {
            bag::push(&mut again, key, value.as_deref());
        }
        assert_eq!(pairs(&again), known);
        let _ = read_bag(said);
    }
    let _ = Filter::parse(text);
    if let Some(name) = UserName::parse(text) {
        assert!(!name.device.is_empty() && !name.device.contains('/'));
        let _ = name.property("api-version");
    }
}

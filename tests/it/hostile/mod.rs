//! Peers that mean harm, or mean well and are broken: each is closed with the documented code, is counted, and harms
//! nobody beside it. The close codes are those of the table in `wire::close`.

mod credentials;
mod frames;
mod pressure;
mod services;

use forebay::client::device::Device;
use forebay::model::Message;
use forebay::wire::close::CloseCode;

use crate::hub::Hub;
use crate::peers::{Peer, Site, closed_sample, device_token, sample, within};

pub const MIB: f64 = 1048576.0;

/// A hub with somebody on it who behaves.
pub struct Scene {
    pub hub: Hub,
    pub site: Site,
    pub key: String,
    pub neighbour: Device,
}

impl Scene {
    pub async fn start(args: &[&str]) -> Self {
        let hub = Hub::start(args);
        let site = Site::of(&hub);
        let key = site.create_device("hostile").await;
        let neighbour_key = site.create_device("neighbour").await;
        let neighbour = site.device("neighbour", &neighbour_key);
        let scene = Self {
            hub,
            site,
            key,
            neighbour,
        };
        scene.neighbour_is_well().await;
        scene
    }

    pub async fn neighbour_is_well(&self) {
        let receipt = within(self.neighbour.send(&Message::new("well"))).await.unwrap();
        within(self.neighbour.acknowledged(receipt)).await.unwrap();
        assert_eq!(self.neighbour.connects(), 1, "the neighbour had to reconnect");
    }

    pub fn token(&self) -> String {
        device_token("hostile", &self.key, 3600)
    }

    pub fn resident_bytes(&self) -> f64 {
        self.hub.metric("forebay_process_resident_bytes")
    }

    /// The peer that `meet` makes is closed with `expected`, which is counted; the neighbour is well.
    pub async fn check(&self, what: &str, expected: CloseCode, meet: impl AsyncFnOnce() -> Peer) {
        let counter = closed_sample(expected);
        let before = sample(&self.hub, &counter);
        let peer = meet().await;
        let (code, reason) = peer.closed().await;
        assert_eq!(code, expected, "{what}: {reason}");
        // An ordinary end is no refusal: it has no reason and no count.
        assert_eq!(reason.is_empty(), code == CloseCode::Normal, "{what}: {reason:?}");
        let counted = if code == CloseCode::Normal {
            before
        } else {
            before + 1.0
        };
        assert_eq!(sample(&self.hub, &counter), counted, "{what}");
        self.neighbour_is_well().await;
    }
}

pub fn changed(mut bytes: Vec<u8>, at: usize, to: &[u8]) -> Vec<u8> {
    bytes[at..at + to.len()].copy_from_slice(to);
    bytes
}

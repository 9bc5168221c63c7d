//! Networks that move a device to another address, lose its packets and change their order: sessions stay, and every
//! acknowledged message is stored once and in its place.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay::client::device::{Device, Receipt};
use forebay::model::Message;
use tokio::net::UdpSocket;

use crate::hub::Hub;
use crate::peers::{Chance, Site, sample, within};

/// Full and resumed handshakes, of devices and services.
fn handshakes(hub: &Hub) -> f64 {
    let of = |outcome: &str| sample(hub, &format!("forebay_handshakes_total{{outcome=\"{outcome}\"}}"));
    of("full") + of("resumed")
}

async fn send(device: &Device, name: &str, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        let body = format!("{name} {number} {}", "x".repeat(number as usize % 300));
        let receipt = within(device.send(&Message::new(body))).await.unwrap();
        assert_eq!(receipt, Receipt(number));
    }
}

async fn check_stored(site: &Site, names: &[String], count: u64) {
    let stored = site.read_by_device().await;
    assert_eq!(stored.len(), names.len());
    for name in names {
        let bodies = &stored[name];
        for (number, body) in (1..).zip(bodies) {
            assert!(
                body.starts_with(format!("{name} {number} ").as_bytes()),
                "message {number} of {name} is due, {:?} is stored",
                String::from_utf8_lossy(body)
            );
        }
        assert_eq!(bodies.len() as u64, count, "messages of {name}");
    }
}

/// Three devices of one process, whose UDP port changes while they send.
async fn check_moves(shards: u16) {
    const MOVES: u64 = 6;
    const EACH: u64 = 150;
    let hub = Hub::start(&["--set", &format!("process.shards={shards}")]);
    let site = Site::of(&hub);
    let names: Vec<String> = (0..3).map(|n| format!("moving-{n}")).collect();
    let endpoint = site.endpoint();
    let mut devices = Vec::new();
    for name in &names {
        let key = site.create_device(name).await;
        let device = site.device_at(endpoint.clone(), name, &key);
        within(device.connected()).await.unwrap();
        devices.push(device);
    }
    let before = handshakes(&hub);
    let mut ports = vec![endpoint.local_address().unwrap().port()];
    for round in 0..MOVES {
        let first = round * EACH + 1;
        for (device, name) in devices.iter().zip(&names) {
            send(device, name, first..=first + EACH - 1).await;
        }
        // In the middle of it: some of the round is on its way from the old port.
        endpoint.rebind().unwrap();
        ports.push(endpoint.local_address().unwrap().port());
        for device in &devices {
            within(device.acknowledged(Receipt(first + EACH - 1))).await.unwrap();
        }
    }
    assert!(ports.windows(2).all(|pair| pair[0] != pair[1]), "{ports:?}");
    assert_eq!(handshakes(&hub), before, "a move is no reason for a handshake");
    assert!(devices.iter().all(|device| device.connects() == 1));
    check_stored(&site, &names, MOVES * EACH).await;
}

#[tokio::test]
async fn a_device_that_moves_keeps_its_session_on_1_shard() {
    check_moves(1).await;
}

#[tokio::test]
async fn a_device_that_moves_keeps_its_session_on_2_shards() {
    check_moves(2).await;
}

#[tokio::test]
async fn a_device_that_moves_keeps_its_session_on_4_shards() {
    check_moves(4).await;
}

/// Stands between one client's port and the hub, and is bad at it.
struct LossyLink {
    address: SocketAddr,
    dropped: Arc<AtomicU64>,
    swapped: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for LossyLink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One direction's bad luck: one datagram in ten is lost, one in twenty is overtaken by the next.
struct Luck {
    chance: Chance,
    held: Option<Vec<u8>>,
    dropped: Arc<AtomicU64>,
    swapped: Arc<AtomicU64>,
}

impl Luck {
    /// What leaves when this comes in.
    fn pass(&mut self, datagram: &[u8]) -> Vec<Vec<u8>> {
        match self.chance.within(0..=99) {
            0..10 => {
                self.dropped.fetch_add(1, Ordering::Relaxed);
                Vec::new()
            }
            10..15 if self.held.is_none() => {
                self.held = Some(datagram.to_vec());
                Vec::new()
            }
            _ => {
                let held = self.held.take();
                self.swapped.fetch_add(u64::from(held.is_some()), Ordering::Relaxed);
                std::iter::once(datagram.to_vec()).chain(held).collect()
            }
        }
    }
}

impl LossyLink {
    async fn start(hub: SocketAddr, seed: u64) -> Self {
        let client_side = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let hub_side = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        hub_side.connect(hub).await.unwrap();
        let (dropped, swapped) = <(Arc<AtomicU64>, Arc<AtomicU64>)>::default();
        let luck = |seed| Luck {
            chance: Chance::new(seed),
            held: None,
            dropped: dropped.clone(),
            swapped: swapped.clone(),
        };
        let (mut up, mut down) = (luck(seed), luck(!seed));
        let address = client_side.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let mut client = None;
            let (mut from_client, mut from_hub) = (vec![0; 65_536], vec![0; 65_536]);
            loop {
                tokio::select! {
                    Ok((bytes, from)) = client_side.recv_from(&mut from_client) => {
                        client = Some(from);
                        for datagram in up.pass(&from_client[..bytes]) {
                            let _ = hub_side.send(&datagram).await;
                        }
                    }
                    Ok(bytes) = hub_side.recv(&mut from_hub) => {
                        for datagram in down.pass(&from_hub[..bytes]) {
                            let client = client.expect("the hub only answers");
                            let _ = client_side.send_to(&datagram, client).await;
                        }
                    }
                }
            }
        });
        Self {
            address,
            dropped,
            swapped,
            task,
        }
    }
}

#[tokio::test]
async fn a_link_that_loses_one_packet_in_ten_loses_no_message() {
    const COUNT: u64 = 2_000;
    let seed = Chance::seed();
    println!("lossy link: seed {seed}");
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let names = ["far-away".to_owned()];
    let key = site.create_device(&names[0]).await;
    let link = LossyLink::start(site.address.address, seed).await;
    let device = site.at(link.address).device(&names[0], &key);
    for first in (1..=COUNT).step_by(100) {
        send(&device, &names[0], first..=first + 99).await;
        // A few round trips on the way, so that acknowledgements get lost too.
        within(device.acknowledged(Receipt(first))).await.unwrap();
    }
    within(device.acknowledged(Receipt(COUNT))).await.unwrap();
    let (dropped, swapped) = (
        link.dropped.load(Ordering::Relaxed),
        link.swapped.load(Ordering::Relaxed),
    );
    println!(
        "lossy link: {dropped} datagrams lost, {swapped} overtaken, {} connections",
        device.connects()
    );
    assert!(
        dropped >= 10 && swapped >= 3,
        "the link was good: {dropped} lost, {swapped} overtaken"
    );
    check_stored(&site, &names, COUNT).await;
}

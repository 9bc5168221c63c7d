//! Who is let in, and when; who is sent away when the hub stops, and in which order.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::client::tls::{ClientTls, client_config};
use forebay::wire::close::CloseCode;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::hub::Hub;
use crate::peers::{HOST, Peer, Site, device_token, sample, until, within};

const NEWCOMERS: u32 = 20;
const PER_SECOND: u32 = 10;

/// Waits for the hub's next look at its doors.
async fn look(hub: &Hub, what: &str, is: impl Fn(f64) -> bool) {
    until(what, || is(sample(hub, what)).then_some(())).await;
}

#[tokio::test]
async fn every_door_on_tcp_lets_newcomers_in_at_its_rate() {
    let rates = ["mqtt", "amqp", "https"].map(|door| format!("{door}.handshakes_per_second={PER_SECOND}"));
    let args: Vec<&str> = rates.iter().flat_map(|rate| ["--set", rate]).collect();
    let hub = Hub::start(&args);
    let endpoints = hub.endpoints();
    let mut config = client_config(ClientTls::from_ca_file(&endpoints.ca_file).unwrap()).unwrap();
    Arc::make_mut(&mut config).alpn_protocols.clear();
    let connector = TlsConnector::from(config);
    let ports = [
        ("mqtt", endpoints.mqtt_port),
        ("amqp", endpoints.amqps_port),
        ("https", endpoints.https_port),
    ];
    for (door, port) in ports {
        let address = (Ipv4Addr::LOCALHOST, port);
        let begun = Instant::now();
        let mut coming = JoinSet::new();
        for _ in 0..NEWCOMERS {
            let connector = connector.clone();
            coming.spawn(async move {
                let stream = TcpStream::connect(address).await.unwrap();
                connector.connect(HOST.try_into().unwrap(), stream).await.unwrap()
            });
        }
        let waiting = format!("forebay_admission_waiting{{door=\"{door}\"}}");
        look(&hub, &waiting, |waiting| waiting > 1.0).await;
        // One more, which does not wait for its turn.
        drop(within(TcpStream::connect(address)).await.unwrap());
        let streams = within(coming.join_all()).await;
        // The first comes at once.
        let least = Duration::from_secs((NEWCOMERS - 1).into()) / PER_SECOND;
        assert!(begun.elapsed() >= least, "{door}: {:?}", begun.elapsed());
        let admitted = format!("forebay_admitted_total{{door=\"{door}\"}}");
        look(&hub, &admitted, |admitted| admitted >= NEWCOMERS.into()).await;
        assert_eq!(sample(&hub, &admitted), f64::from(NEWCOMERS), "{door}");
        assert_eq!(
            sample(&hub, &format!("forebay_admission_left_total{{door=\"{door}\"}}")),
            1.0
        );
        let waited = sample(
            &hub,
            &format!("forebay_admission_wait_seconds_total{{door=\"{door}\"}}"),
        );
        assert!(
            (10.0..60.0).contains(&waited),
            "{door}: {waited} s of 20 that waited 0.1 s to 1.9 s each"
        );
        drop(streams);
    }
}

#[tokio::test]
async fn a_rush_over_quic_shows_its_addresses_and_waits_for_its_turn() {
    let hub = Hub::start(&["--set", &format!("quic.handshakes_per_second={PER_SECOND}")]);
    let site = Site::of(&hub);
    let begun = Instant::now();
    let mut coming = JoinSet::new();
    for _ in 0..NEWCOMERS {
        let site = site.clone();
        coming.spawn(async move { Peer::connect(&site).await });
    }
    look(&hub, "forebay_admission_waiting{door=\"quic\"}", |waiting| {
        waiting > 1.0
    })
    .await;
    let peers = within(coming.join_all()).await;
    let least = Duration::from_secs((NEWCOMERS - 1).into()) / PER_SECOND;
    assert!(begun.elapsed() >= least, "{:?}", begun.elapsed());
    let admitted = "forebay_admitted_total{door=\"quic\"}";
    look(&hub, admitted, |admitted| admitted >= NEWCOMERS.into()).await;
    let retried = sample(&hub, "forebay_handshakes_total{outcome=\"retried\"}");
    assert!(retried >= f64::from(NEWCOMERS) / 2.0, "{retried}");
    drop(peers);
}

#[tokio::test]
async fn a_stop_sends_devices_away_at_its_pace_and_services_last() {
    const DEVICES: usize = 20;
    let mut hub = Hub::start(&["--set", "process.drain_sessions_per_second=20"]);
    let site = Site::of(&hub);
    let service = site.service().await;
    let mut peers = Vec::new();
    for n in 0..DEVICES {
        let name = format!("leaving-{n}");
        let key = site.create_device(&name).await;
        peers.push(Peer::device(&site, &name, &device_token(&name, &key, 3600)).await.0);
    }
    let mut leaving = JoinSet::new();
    for peer in &peers {
        let closed = peer.closed();
        leaving.spawn(async move {
            assert_eq!(closed.await.0, CloseCode::Draining);
            Instant::now()
        });
    }
    let service = tokio::spawn(async move {
        service.closed().await;
        Instant::now()
    });
    let hub = tokio::task::spawn_blocking(move || {
        assert_eq!(hub.sigterm().code(), Some(0));
        hub
    });
    // The first has been told, and others stay: nobody comes in any more.
    let first = within(leaving.join_next()).await.unwrap().unwrap();
    let refused = Peer::try_connect(&site, quinn::TransportConfig::default()).await;
    assert!(refused.is_err());
    let others = within(leaving.join_all()).await;
    let last = *others.iter().max().unwrap();
    let spread = last - first;
    // 19 more at 20 a second.
    assert!(spread >= Duration::from_millis(700), "{spread:?}");
    assert!(within(service).await.unwrap() >= last, "services are told last");
    let hub = within(hub).await.unwrap();
    assert!(!hub.output().contains("drain_timeout"), "{}", hub.output());
}

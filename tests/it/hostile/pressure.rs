//! Peers that take what they can get: silence, half-sent frames, unread answers, too many connections, noise.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use forebay::client::device::Receipt;
use forebay::model::Message;
use forebay::wire::close::CloseCode;
use forebay::wire::control::{CONTROL_BYTES_MAX, Control, Credit, Welcome};
use forebay::wire::frame::Kind;
use quinn::{ConnectionError, TransportConfig, TransportErrorCode, VarInt};

use super::{MIB, Scene, changed};
use crate::peers::{
    Chance, Peer, append, close_code, closed_sample, device_token, hello, raw, sample, service_hello, service_token,
    subscribe, until, within,
};

#[tokio::test]
async fn who_says_nothing_is_sent_away_and_holds_little() {
    // Far more than are closed for their number; few enough for the patience of a test.
    const SILENT: usize = 200;
    /// Documented: about 40 KiB a session, here with TLS still in progress, and one control frame being read.
    const EACH_MAX: f64 = 40.0 * 1024.0 + CONTROL_BYTES_MAX as f64;
    /// A debug build, an allocator that keeps what it had, buffers of the endpoint filled for the first time.
    const SLACK: f64 = 24.0 * MIB;
    let scene = Scene::start(&["--set", "quic.handshake_timeout=3s"]).await;
    let before = scene.resident_bytes();
    let half = &hello("hostile", &scene.token()).to_frame()[..40];
    let announced = raw(Kind::Hello, 0, &vec![0; CONTROL_BYTES_MAX as usize]);
    let mut peers = Vec::new();
    for n in 0..SILENT {
        let mut peer = Peer::connect(&scene.site).await;
        match n % 3 {
            0 => {}
            1 => peer.write(half).await,
            _ => peer.write(&announced[..announced.len() - 1]).await,
        }
        peers.push(peer);
        if n % 50 == 0 {
            scene.neighbour_is_well().await;
        }
    }
    let grown = scene.resident_bytes() - before;
    for (n, peer) in peers.iter().enumerate() {
        // A stream on which nothing was written is not opened: the hub waits for its first byte all the same.
        assert_eq!(peer.closed().await.0, CloseCode::TooSlow, "peer {n}");
    }
    assert_eq!(sample(&scene.hub, &closed_sample(CloseCode::TooSlow)), SILENT as f64);
    assert_eq!(
        sample(&scene.hub, "forebay_handshakes_total{outcome=\"timed_out\"}"),
        SILENT as f64
    );
    scene.neighbour_is_well().await;
    println!("{SILENT} silent peers: {:.1} KiB each", grown / SILENT as f64 / 1024.0);
    assert!(
        grown <= SILENT as f64 * EACH_MAX + SLACK,
        "{SILENT} silent peers hold {:.1} MiB",
        grown / MIB
    );
}

#[tokio::test]
async fn unfinished_batches_of_many_devices_hold_what_was_sent_and_no_more() {
    const DEVICES: usize = 60;
    const SENT: usize = 100 * 1024;
    /// A session, and the unfinished frame in a buffer that grows by doubling.
    const EACH_MAX: f64 = 40.0 * 1024.0 + 2.0 * SENT as f64;
    const SLACK: f64 = 24.0 * MIB;
    let scene = Scene::start(&[]).await;
    let mut tokens = Vec::new();
    for n in 0..DEVICES {
        let name = format!("unfinished-{n}");
        let key = scene.site.create_device(&name).await;
        tokens.push((device_token(&name, &key, 3600), name));
    }
    let before = scene.resident_bytes();
    // Announces 1 MiB, sends a tenth of it, and waits.
    let announced = changed(raw(Kind::Append, 0, &[1; SENT]), 0, &(1024 * 1024u32).to_le_bytes());
    let mut peers = Vec::new();
    for (token, name) in &tokens {
        let (mut peer, _) = Peer::device(&scene.site, name, token).await;
        peer.write(&announced).await;
        peers.push(peer);
    }
    scene.neighbour_is_well().await;
    let grown = scene.resident_bytes() - before;
    println!(
        "{DEVICES} unfinished batches of {SENT} bytes: {:.1} KiB each",
        grown / DEVICES as f64 / 1024.0
    );
    assert!(
        grown <= DEVICES as f64 * EACH_MAX + SLACK,
        "{DEVICES} unfinished batches hold {:.1} MiB",
        grown / MIB
    );
    // Cut off in the middle of a frame, each leaves nothing behind.
    for peer in &mut peers {
        peer.send.finish().unwrap();
    }
    for peer in &peers {
        assert_eq!(peer.closed().await.0, CloseCode::Normal);
    }
    until("the sessions are gone", || {
        (sample(&scene.hub, "forebay_sessions{kind=\"device\"}") == 1.0).then_some(())
    })
    .await;
    assert_eq!(
        scene.site.read_by_device().await.len(),
        1,
        "only the neighbour has sent anything whole"
    );
}

#[tokio::test]
async fn a_consumer_that_does_not_read_costs_its_window_and_stops_nobody() {
    /// What one connection's unread deliveries may hold: `quic.consumer_window_bytes`, set here, and one chunk being
    /// cut. The records themselves are mapped pages of the log, which are counted as resident too.
    const SLACK: f64 = 32.0 * MIB;
    const MESSAGES: u64 = 3_000;
    let scene = Scene::start(&["--set", "quic.consumer_window_bytes=256KiB"]).await;
    let mut stalled = Vec::new();
    for _ in 0..3 {
        let mut peer = Peer::connect(&scene.site).await;
        peer.say(&service_hello(&service_token(&scene.site.owner))).await;
        let _: Welcome = peer.hear().await;
        for partition in 0..4 {
            let (mut send, recv) = peer.connection.open_bi().await.unwrap();
            let frames = [
                subscribe(partition, "$Default", u64::MAX).to_frame(),
                // Credit that overflows is as much as there is.
                Credit { bytes: u64::MAX }.to_frame(),
            ];
            send.write_all(&frames.concat()).await.unwrap();
            stalled.push((send, recv));
        }
        stalled.push((peer.send, peer.recv));
    }
    let before = scene.resident_bytes();
    let body = vec![b'x'; 4_000];
    for number in 0..MESSAGES {
        let receipt = within(scene.neighbour.send(&Message::new(body.clone()))).await.unwrap();
        if number % 500 == 499 {
            within(scene.neighbour.acknowledged(receipt)).await.unwrap();
        }
    }
    scene.neighbour_is_well().await;
    let log_bytes = MESSAGES as f64 * body.len() as f64;
    let grown = scene.resident_bytes() - before;
    println!("stalled consumers: resident memory grew {:.1} MiB", grown / MIB);
    assert!(
        grown <= log_bytes + 3.0 * (0.25 + 0.25) * MIB + SLACK,
        "three stalled consumers hold {:.1} MiB",
        grown / MIB
    );
    // Another reader of the same messages is served meanwhile.
    assert!(scene.site.read_by_device().await["neighbour"].len() as u64 > MESSAGES);
}

#[tokio::test]
async fn a_device_that_does_not_read_its_acknowledgements_is_sent_away() {
    let scene = Scene::start(&[]).await;
    // Room for the welcome and a few acknowledgements.
    let mut transport = TransportConfig::default();
    transport.stream_receive_window(VarInt::from_u32(128));
    let mut peer = Peer::connect_with(&scene.site, transport).await;
    peer.say(&hello("hostile", &scene.token())).await;
    let before = sample(&scene.hub, &closed_sample(CloseCode::TooSlow));
    let Peer {
        connection,
        mut send,
        recv,
        ..
    } = peer;
    // It goes on sending: what is not read is the acknowledgements only.
    let sender = tokio::spawn(async move {
        let mut next = 1;
        while send.write_all(&append(next, &[b"deaf"])).await.is_ok() {
            next += 1;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        next
    });
    let closed = within(connection.closed()).await;
    let (code, reason) = close_code(&closed);
    assert_eq!(code, CloseCode::TooSlow, "{reason}");
    assert!(within(sender).await.unwrap() > 10);
    drop(recv);
    assert_eq!(sample(&scene.hub, &closed_sample(CloseCode::TooSlow)), before + 1.0);
    scene.neighbour_is_well().await;
}

#[tokio::test]
async fn more_sessions_than_there_may_be_are_refused_and_counted() {
    // The neighbour is one of them.
    let scene = Scene::start(&["--set", "quic.sessions_max=8"]).await;
    until("the set-up's connections are gone", || {
        (sample(&scene.hub, "forebay_sessions{kind=\"service\"}") == 0.0).then_some(())
    })
    .await;
    let busy = || sample(&scene.hub, &closed_sample(CloseCode::Busy));
    let mut peers = Vec::new();
    let refused = loop {
        match Peer::try_connect(&scene.site, TransportConfig::default()).await {
            Ok(peer) => peers.push(peer),
            Err(refused) => break refused,
        }
        assert!(peers.len() < 8);
    };
    assert_eq!(peers.len(), 7);
    let ConnectionError::ConnectionClosed(close) = &refused else {
        panic!("{refused:?}");
    };
    // RFC 9000 s20.1: CONNECTION_REFUSED; there is no session yet that could carry a code of ours.
    assert_eq!(close.error_code, TransportErrorCode::CONNECTION_REFUSED);
    assert_eq!(busy(), 1.0);
    assert_eq!(sample(&scene.hub, "forebay_handshakes_total{outcome=\"refused\"}"), 1.0);
    scene.neighbour_is_well().await;
    // Who leaves makes room.
    let left = peers.pop().unwrap();
    left.connection.close(VarInt::from_u32(0), b"");
    within(left.endpoint.wait_idle()).await;
    within(async {
        while Peer::try_connect(&scene.site, TransportConfig::default())
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    scene.neighbour_is_well().await;
}

#[tokio::test]
async fn a_rush_of_handshakes_must_show_its_addresses_first() {
    let scene = Scene::start(&["--set", "quic.handshakes_per_second=2"]).await;
    let mut peers = Vec::new();
    for _ in 0..12 {
        // A Retry costs a round trip, and then it waits for its turn.
        peers.push(Peer::device(&scene.site, "hostile", &scene.token()).await);
    }
    assert!(sample(&scene.hub, "forebay_handshakes_total{outcome=\"retried\"}") >= 5.0);
    scene.neighbour_is_well().await;
}

#[tokio::test]
async fn datagrams_of_noise_change_nothing() {
    let scene = Scene::start(&[]).await;
    let noise = tokio::net::UdpSocket::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))
        .await
        .unwrap();
    let mut chance = Chance::new(Chance::seed());
    for _ in 0..500 {
        let length = chance.within(1..=1500) as usize;
        let mut datagram: Vec<u8> = (0..length).map(|_| chance.next() as u8).collect();
        // Half of them claim to be the first packet of QUIC version 1.
        if length > 5 && chance.within(0..=1) == 0 {
            datagram[..5].copy_from_slice(&[0xc3, 0, 0, 0, 1]);
        }
        noise.send_to(&datagram, scene.site.address.address).await.unwrap();
    }
    scene.neighbour_is_well().await;
    let receipt = within(scene.neighbour.send(&Message::new("and again"))).await.unwrap();
    assert_eq!(receipt, Receipt(3));
    within(scene.neighbour.acknowledged(receipt)).await.unwrap();
}

//! What waits for a device: queues as full as they get, locks that nobody holds any more, and changes that come faster
//! than one by one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use forebay::wire::control::{Control, Welcome};
use forebay::wire::device::{Command, CommandsOpen, Desired, Outcome, Ready, Settle, Settled, TwinOpen};
use forebay::wire::frame::Kind;
use forebay::wire::message::MessageRef;
use serde_json::{Map, Value, json};

use crate::http::{Door, versioned};
use crate::hub::Hub;
use crate::peers::{Peer, Site, device_token, hello, within};

/// A session that lasts for as long as its peer does, however little is said.
async fn session(site: &Site, key: &str) -> Peer {
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_secs(5)));
    let mut peer = Peer::connect_with(site, transport).await;
    peer.say(&hello("lamp", &device_token("lamp", key, 3600))).await;
    let _: Welcome = peer.hear().await;
    peer
}

async fn commands(session: &Peer, window: u32) -> Peer {
    let mut stream = session.stream(&CommandsOpen { window }).await;
    stream.hear::<Ready>().await;
    stream
}

async fn queue(site: &Site, bodies: &[String]) {
    let service = site.service().await;
    for body in bodies {
        let command = json!({ "deviceId": "lamp", "body": body });
        within(service.request("c2d.send", &command)).await.unwrap();
    }
    service.close();
}

fn body(command: &Command) -> String {
    let message = MessageRef::check(&command.message).unwrap();
    String::from_utf8(message.body().to_vec()).unwrap()
}

/// So many commands, one after the other, with nothing settled in between.
async fn take(stream: &mut Peer, count: usize) -> Vec<Command> {
    let mut taken = Vec::new();
    while taken.len() < count {
        taken.push(stream.hear().await);
    }
    taken
}

async fn settle(stream: &mut Peer, command: &Command, outcome: Outcome) -> u32 {
    let lock_token = command.lock_token;
    stream.say(&Settle { lock_token, outcome }).await;
    stream.hear::<Settled>().await.code
}

#[tokio::test]
async fn a_full_queue_fills_a_window_and_does_so_again_after_a_lost_connection() {
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let names: Vec<String> = (0..50).map(|n| format!("m-{n}")).collect();
    queue(&site, &names).await;
    let first = session(&site, &key).await;
    let mut stream = commands(&first, 50).await;
    let taken = take(&mut stream, 50).await;
    assert_eq!(taken.iter().map(body).collect::<Vec<_>>(), names);
    assert_eq!(settle(&mut stream, &taken[0], Outcome::Complete).await, 0);
    let began = Instant::now();
    // The device comes back as another; the hub still believes in the first.
    let second = session(&site, &key).await;
    let mut stream = commands(&second, 50).await;
    let mut again = take(&mut stream, 49).await;
    assert!(
        began.elapsed() < Duration::from_secs(30),
        "the locks were given back, and did not run out"
    );
    assert!(
        again.iter().all(|command| command.delivery_count == 0),
        "a lost connection is no abandon"
    );
    again.sort_by_key(|command| command.sequence);
    assert_eq!(again.iter().map(body).collect::<Vec<_>>(), names[1..]);
}

#[tokio::test]
async fn locks_that_a_crash_left_behind_run_out_for_a_device_that_is_connected() {
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    queue(&site, &["a", "b", "c", "d"].map(str::to_owned)).await;
    let before = session(&site, &key).await;
    let taken = take(&mut commands(&before, 4).await, 4).await;
    let mut stream = commands(&before, 4).await;
    // Given back by the first stream, and taken again.
    let taken_again = take(&mut stream, 4).await;
    assert_eq!(settle(&mut stream, &taken[0], Outcome::Complete).await, 412_002);
    let of = |text: &str| taken_again.iter().find(|command| body(command) == text).unwrap();
    assert_eq!(settle(&mut stream, of("a"), Outcome::Complete).await, 0);
    assert_eq!(settle(&mut stream, of("c"), Outcome::Reject).await, 0);
    hub.kill9();
    hub.restart();
    let after = session(&site, &key).await;
    let mut stream = commands(&after, 4).await;
    assert_eq!(
        settle(&mut stream, of("b"), Outcome::Complete).await,
        0,
        "a token from before the crash is good"
    );
    // Nothing else happens that could wake the stream: the lock's end does.
    let frame = tokio::time::timeout(Duration::from_secs(90), async {
        loop {
            match stream.recv.read_chunk(64 << 10, true).await.unwrap() {
                Some(chunk) if chunk.bytes.len() > 8 => return chunk.bytes,
                Some(_) => {}
                None => panic!("the stream ended"),
            }
        }
    });
    let frame = frame.await.expect("a message whose lock ran out is delivered again");
    assert_eq!(frame[4], Kind::Command as u8);
    let again = Command::from_body(&frame[8..]).unwrap();
    assert_eq!(body(&again), "d");
    assert_eq!(settle(&mut stream, of("d"), Outcome::Complete).await, 412_002);
    assert_eq!(settle(&mut stream, &again, Outcome::Complete).await, 0);
}

#[tokio::test]
async fn many_changes_at_once_leave_the_device_where_the_hub_is() {
    const WRITERS: u64 = 4;
    const WRITES: u64 = 25;
    let hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let key = site.create_device("lamp").await;
    let door = Arc::new(Door::of(&hub));
    let peer = session(&site, &key).await;
    let mut stream = peer.stream(&TwinOpen { desired_seen: 1 }).await;
    stream.hear::<Ready>().await;
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let door = door.clone();
            tokio::task::spawn_blocking(move || {
                for n in 0..WRITES {
                    let desired = json!({ format!("w{writer}"): n, "any": n, "flag": (n % 2 == 0).then_some(n) });
                    let body = json!({ "properties": { "desired": desired } });
                    assert_eq!(door.own("PATCH", &versioned("/twins/lamp"), &[], &body).status, 200);
                }
            })
        })
        .collect();
    // As a device applies them: it never hears of an older version, and what it has left out it gets whole.
    let mut version = 1;
    let mut held = Map::new();
    while version < 1 + WRITERS * WRITES {
        let desired: Desired = stream.hear().await;
        assert!(desired.version > version, "{} after {version}", desired.version);
        assert!(
            desired.is_complete || desired.version == version + 1,
            "a gap that is none's"
        );
        version = desired.version;
        if desired.is_complete {
            held.clear();
        }
        let members: Map<String, Value> = serde_json::from_str(&desired.json).unwrap();
        held.extend(members);
        held.retain(|_, value| !value.is_null());
    }
    for writer in writers {
        writer.await.unwrap();
    }
    let twin = door.own("GET", &versioned("/twins/lamp"), &[], &Value::Null).json();
    let mut stored = twin["properties"]["desired"].clone();
    stored.as_object_mut().unwrap().remove("$metadata");
    assert_eq!(Value::Object(held), stored);
}

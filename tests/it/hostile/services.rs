//! Services that break the protocol: on their first stream the connection ends, on a further one that stream.

use forebay::wire::close::CloseCode;
use forebay::wire::control::{CONTROL_BYTES_MAX, Control, Failed, Renew, Subscribed, Welcome};
use forebay::wire::frame::{Decoder, Kind};

use super::{Scene, changed};
use crate::peers::{Peer, append, raw, service_hello, service_token, subscribe, within};

#[tokio::test]
async fn a_service_is_told_what_is_wrong_on_the_stream_where_it_is_wrong() {
    let scene = Scene::start(&[]).await;
    let token = service_token(&scene.site.owner);
    let connect = async || {
        let mut peer = Peer::connect(&scene.site).await;
        peer.say(&service_hello(&token)).await;
        let _: Welcome = peer.hear().await;
        peer
    };
    use CloseCode::{FrameTooLarge, MalformedFrame, Unauthorized, UnexpectedFrame, UnsupportedVersion};
    let table = [
        ("an append", UnexpectedFrame, append(1, &[b"x"])),
        ("a second hello", UnexpectedFrame, service_hello(&token).to_frame()),
        (
            "a subscription on the first stream",
            UnexpectedFrame,
            subscribe(0, "$Default", 1000).to_frame(),
        ),
        (
            "a frame of version 3",
            UnsupportedVersion,
            changed(append(1, &[b"x"]), 5, &[3]),
        ),
        (
            "a large frame",
            FrameTooLarge,
            raw(Kind::Renew, 0, &vec![0; CONTROL_BYTES_MAX as usize + 1]),
        ),
        ("a renewal cut short", MalformedFrame, raw(Kind::Renew, 0, &[0; 3])),
        (
            "a renewal by a device",
            Unauthorized,
            Renew { token: scene.token() }.to_frame(),
        ),
    ];
    for (what, expected, bytes) in table {
        scene
            .check(what, expected, async || {
                let mut peer = connect().await;
                peer.write(&bytes).await;
                peer
            })
            .await;
    }
    // Each further stream is its own: a fault ends it, with the contract's code, and nothing else.
    let peer = connect().await;
    let table = [
        ("an append", 400_003, append(1, &[b"x"])),
        ("a request cut short", 400_006, raw(Kind::Request, 0, &[0; 5])),
        ("a subscription of ones", 400_006, raw(Kind::Subscribe, 0, &[0xff; 60])),
        ("no such partition", 404_000, subscribe(77, "$Default", 1000).to_frame()),
        ("no such group", 404_302, subscribe(0, "nobody", 1000).to_frame()),
        ("a group no group can be", 400_004, subscribe(0, "a/b", 1000).to_frame()),
        ("a frame of version 3", 400_006, changed(append(1, &[b"x"]), 5, &[3])),
        (
            "a large request",
            400_006,
            changed(raw(Kind::Request, 0, b"x"), 0, &[0xff; 4]),
        ),
    ];
    for (what, expected, bytes) in table {
        let failed: Failed = stream_answer(&peer, &bytes).await;
        assert_eq!(failed.code, expected, "{what}: {}", failed.reason);
    }
    let subscribed: Subscribed = stream_answer(&peer, &subscribe(0, "$Default", 0).to_frame()).await;
    assert_eq!(subscribed.first_retained, 0);
    scene.neighbour_is_well().await;
}

/// Opens a further stream with these bytes; the first frame of the answer.
async fn stream_answer<C: Control>(peer: &Peer, bytes: &[u8]) -> C {
    let (mut send, mut recv) = within(peer.connection.open_bi()).await.unwrap();
    send.write_all(bytes).await.unwrap();
    let mut decoder = Decoder::new(1 << 20);
    let frame = within(async {
        loop {
            if let Some(frame) = decoder.poll_frame().unwrap() {
                return frame;
            }
            let chunk = recv.read_chunk(4096, true).await.unwrap().expect("an answer");
            decoder.feed(chunk.bytes);
        }
    })
    .await;
    assert_eq!(frame.kind, C::KIND);
    C::from_body(&frame.body).unwrap()
}

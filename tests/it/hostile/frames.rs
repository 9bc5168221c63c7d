//! Frames that are malformed, cut, too large, of another version, or out of place.

use forebay::model::{Message, SystemKey};
use forebay::wire::batch::PREFIX_BYTES;
use forebay::wire::close::CloseCode;
use forebay::wire::control::{CONTROL_BYTES_MAX, Control, Goodbye, Hello, Renew, Role, Welcome};
use forebay::wire::frame::{HEADER_BYTES, Kind};
use forebay::wire::message::ROOT_BYTES;
use forebay::wire::{message, plain};
use quinn::VarInt;

use super::{Scene, changed};
use crate::peers::{Peer, append, hello, raw, sample};

#[tokio::test]
async fn what_comes_before_a_hello_is_refused_by_the_table() {
    use CloseCode::{FrameTooLarge, MalformedFrame, UnexpectedFrame, UnsupportedVersion};
    let scene = Scene::start(&[]).await;
    let good = hello("hostile", &scene.token());
    let hello_frame = good.to_frame();
    let later = Hello {
        version_min: 2,
        version_max: 9,
        ..hello("hostile", &scene.token())
    };
    let earlier = Hello {
        version_min: 0,
        version_max: 0,
        ..hello("hostile", &scene.token())
    };
    let role_at = role_offset(&good);
    let table = [
        (
            "a frame of version 9",
            UnsupportedVersion,
            changed(hello_frame.clone(), 5, &[9]),
        ),
        (
            "an unknown kind",
            UnsupportedVersion,
            changed(hello_frame.clone(), 4, &[0x7f]),
        ),
        ("HTTP", UnsupportedVersion, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
        ("a client of later versions", UnsupportedVersion, later.to_frame()),
        ("a client of earlier versions", UnsupportedVersion, earlier.to_frame()),
        ("undefined flags", MalformedFrame, changed(hello_frame.clone(), 6, &[1])),
        ("an append", UnexpectedFrame, append(1, &[b"early"])),
        ("a welcome", UnexpectedFrame, raw(Kind::Welcome, 0, b"")),
        ("an acknowledgement", UnexpectedFrame, raw(Kind::Ack, 0, &[0; 8])),
        ("a subscription", UnexpectedFrame, raw(Kind::Subscribe, 0, b"")),
        (
            "a large hello",
            FrameTooLarge,
            raw(Kind::Hello, 0, &vec![0; CONTROL_BYTES_MAX as usize + 1]),
        ),
        (
            "a hello of 4 GiB",
            FrameTooLarge,
            changed(hello_frame.clone(), 0, &[0xff; 4]),
        ),
        ("a hello without a body", MalformedFrame, raw(Kind::Hello, 0, b"")),
        ("a hello of zeros", MalformedFrame, raw(Kind::Hello, 0, &[0; 64])),
        ("a hello of ones", MalformedFrame, raw(Kind::Hello, 0, &[0xff; 64])),
        (
            "a hello of no role",
            MalformedFrame,
            changed(hello_frame.clone(), role_at, &[77]),
        ),
        (
            "a hello cut short",
            MalformedFrame,
            raw(Kind::Hello, 0, &hello_frame[HEADER_BYTES..HEADER_BYTES + 20]),
        ),
    ];
    for (what, expected, bytes) in table {
        scene
            .check(what, expected, async || {
                let mut peer = Peer::connect(&scene.site).await;
                peer.write(&bytes).await;
                peer
            })
            .await;
    }
    for (what, bytes) in [
        ("nothing", &b""[..]),
        ("half a header", &hello_frame[..4]),
        ("half a hello", &hello_frame[..40]),
    ] {
        scene
            .check(
                &format!("a stream that ends after {what}"),
                MalformedFrame,
                async || {
                    let mut peer = Peer::connect(&scene.site).await;
                    peer.write(bytes).await;
                    peer.send.finish().unwrap();
                    peer
                },
            )
            .await;
    }
    let failed = sample(&scene.hub, "forebay_handshakes_total{outcome=\"failed\"}");
    scene
        .check("a stream that is reset", CloseCode::Normal, async || {
            let mut peer = Peer::connect(&scene.site).await;
            peer.write(&hello_frame[..40]).await;
            peer.send.reset(VarInt::from_u32(5)).unwrap();
            peer
        })
        .await;
    assert_eq!(
        sample(&scene.hub, "forebay_handshakes_total{outcome=\"failed\"}"),
        failed + 1.0
    );
}

/// Where the role stands in a hello's frame: the one byte in which the frames of the two roles differ.
fn role_offset(device: &Hello) -> usize {
    let service = Hello {
        role: Role::Service,
        ..device.clone()
    };
    let (device, service) = (device.to_frame(), service.to_frame());
    let differing: Vec<usize> = (0..device.len()).filter(|&at| device[at] != service[at]).collect();
    let [at] = differing[..] else { panic!("{differing:?}") };
    at
}

#[tokio::test]
async fn what_a_device_may_not_send_is_refused_by_the_table() {
    use CloseCode::{
        FrameTooLarge, InvalidMessage, MalformedFrame, MessageTooLarge, SequenceGap, Unauthorized, UnexpectedFrame,
        UnsupportedVersion,
    };
    let scene = Scene::start(&[]).await;
    let again = hello("hostile", &scene.token()).to_frame();
    let two = append(1, &[b"one", b"two"]);
    // Offsets in a frame: header, prefix, table of ends, first archive.
    let (sequence_at, count_at) = (HEADER_BYTES, HEADER_BYTES + 8);
    let ends_at = HEADER_BYTES + PREFIX_BYTES;
    let archive = message_archive(
        &Message::new("a body")
            .property("name", "value")
            .system(SystemKey::MessageId, "m-1"),
    );
    let body_offset_at = archive.len() - ROOT_BYTES + 16;
    let name_at = archive.windows(4).position(|four| four == b"name").unwrap();
    let with_key = |key: u8| changed(archive.clone(), key_offset(), &[key]);
    let too_large = vec![b'x'; 256 * 1024 + 1];
    let just_fits = append_archive(&message_archive(&Message::new(&too_large[1..])));
    let by_properties = Message::new(&too_large[..200 * 1024]).property("p", "v".repeat(56 * 1024));
    let mut plain_message = Vec::new();
    plain::encode(&Message::new("plain").property("name", "value"), &mut plain_message);
    let plain_name_at = plain_message.windows(4).position(|four| four == b"name").unwrap();
    let mut plain_large = Vec::new();
    plain::encode(&Message::new(too_large.clone()), &mut plain_large);

    let table = [
        ("a second hello", UnexpectedFrame, again.clone()),
        ("a welcome", UnexpectedFrame, raw(Kind::Welcome, 0, b"")),
        ("an acknowledgement", UnexpectedFrame, raw(Kind::Ack, 0, &[0; 8])),
        ("a subscription", UnexpectedFrame, raw(Kind::Subscribe, 0, b"")),
        ("log records", UnexpectedFrame, raw(Kind::Deliver, 0, b"")),
        ("a request", UnexpectedFrame, raw(Kind::Request, 0, b"")),
        (
            "a frame of version 0",
            UnsupportedVersion,
            changed(two.clone(), 5, &[0]),
        ),
        ("an unknown kind", UnsupportedVersion, changed(two.clone(), 4, &[0x13])),
        ("an undefined flag", MalformedFrame, changed(two.clone(), 7, &[0x80])),
        (
            "a large frame",
            FrameTooLarge,
            changed(two.clone(), 0, &(1024 * 1024 + 1u32).to_le_bytes()),
        ),
        ("a frame of 4 GiB", FrameTooLarge, changed(two.clone(), 0, &[0xff; 4])),
        (
            "a large renewal",
            FrameTooLarge,
            Renew {
                token: "x".repeat(20_000),
            }
            .to_frame(),
        ),
        ("a renewal of zeros", MalformedFrame, raw(Kind::Renew, 0, &[0; 3])),
        (
            "a renewal by no token",
            Unauthorized,
            Renew { token: "x".into() }.to_frame(),
        ),
        ("an append without a body", MalformedFrame, raw(Kind::Append, 0, b"")),
        (
            "an append of half a prefix",
            MalformedFrame,
            raw(Kind::Append, 0, &[1; 10]),
        ),
        ("a count of none", MalformedFrame, changed(two.clone(), count_at, &[0])),
        (
            "a count of one too few",
            InvalidMessage,
            changed(two.clone(), count_at, &[1]),
        ),
        (
            "a count of one too many",
            InvalidMessage,
            changed(two.clone(), count_at, &[3]),
        ),
        (
            "a count of more than fits",
            MalformedFrame,
            changed(two.clone(), count_at, &[60]),
        ),
        (
            "a count above the limit",
            FrameTooLarge,
            changed(two.clone(), count_at, &[1, 0x40, 0, 0]),
        ),
        (
            "a count of 4 Gi",
            FrameTooLarge,
            changed(two.clone(), count_at, &[0xff; 4]),
        ),
        ("sequence 0", MalformedFrame, changed(two.clone(), sequence_at, &[0])),
        (
            "a sequence that wraps",
            MalformedFrame,
            changed(two.clone(), sequence_at, &[0xff; 8]),
        ),
        (
            "an end within the root",
            MalformedFrame,
            changed(two.clone(), ends_at, &[5]),
        ),
        (
            "an end outside",
            MalformedFrame,
            changed(two.clone(), ends_at + 4, &[0xff; 4]),
        ),
        (
            "ends in disorder",
            MalformedFrame,
            changed(two.clone(), ends_at + 4, &[30]),
        ),
        (
            "bytes behind the last",
            MalformedFrame,
            append_archives(1, 1, &[27], &[&two[ends_at + 8..ends_at + 35], b"x"].concat()),
        ),
        ("an archive of ones", InvalidMessage, append_archive(&[0xff; 64])),
        (
            "a body before the archive",
            InvalidMessage,
            append_archive(&changed(archive.clone(), body_offset_at, &[0, 0, 0, 0x80])),
        ),
        (
            "a body behind the archive",
            InvalidMessage,
            append_archive(&changed(archive.clone(), body_offset_at, &[0xff, 0xff, 0, 0])),
        ),
        (
            "a body of 4 GiB",
            InvalidMessage,
            append_archive(&changed(archive.clone(), body_offset_at + 4, &[0xff; 4])),
        ),
        (
            "a name that is no UTF-8",
            InvalidMessage,
            append_archive(&changed(archive.clone(), name_at, &[0xff, 0xfe])),
        ),
        (
            "an unknown system property",
            InvalidMessage,
            append_archive(&with_key(200)),
        ),
        (
            "plain, cut short",
            InvalidMessage,
            append_plain(&plain_message[..plain_message.len() - 1]),
        ),
        (
            "plain, a name that is no UTF-8",
            InvalidMessage,
            append_plain(&changed(plain_message.clone(), plain_name_at, &[0xff])),
        ),
        (
            "plain, bytes behind the last",
            MalformedFrame,
            append_plain(&[&plain_message[..], b"x"].concat()),
        ),
        ("plain, too large", MessageTooLarge, append_plain(&plain_large)),
        (
            "a large body",
            MessageTooLarge,
            append_archive(&message_archive(&Message::new(too_large.clone()))),
        ),
        (
            "a large message by its properties",
            MessageTooLarge,
            append_archive(&message_archive(&by_properties)),
        ),
        ("a gap", SequenceGap, append(2, &[b"too far"])),
        (
            "a farewell",
            CloseCode::Normal,
            Goodbye {
                code: 0,
                retry_after_ms: 0,
                reason: String::new(),
            }
            .to_frame(),
        ),
    ];
    let mut token = scene.token();
    for (what, expected, bytes) in table {
        scene
            .check(what, expected, async || {
                let (mut peer, welcome) = Peer::device(&scene.site, "hostile", &token).await;
                assert_eq!(welcome.last_sequence, 0, "nothing of what was refused is stored");
                peer.write(&bytes).await;
                peer
            })
            .await;
        token = scene.token();
    }

    // What came before the fault is good, and stored; the fault's own batch is not.
    let refused = |code: CloseCode| {
        sample(
            &scene.hub,
            &format!("forebay_messages_refused_total{{reason=\"{}\"}}", code.label()),
        )
    };
    let gaps = refused(SequenceGap);
    let epoch = 1 << 20;
    scene
        .check("a gap behind a good batch", SequenceGap, async || {
            let mut peer = Peer::connect(&scene.site).await;
            peer.say(&Hello {
                epoch,
                ..hello("hostile", &token)
            })
            .await;
            let _: Welcome = peer.hear().await;
            peer.write(
                &[
                    append(1, &[b"good"]),
                    just_fits_at(2, &just_fits),
                    append(9, &[b"gap", b"gap"]),
                ]
                .concat(),
            )
            .await;
            peer
        })
        .await;
    assert_eq!(refused(SequenceGap), gaps + 2.0, "messages, not batches");
    let mut peer = Peer::connect(&scene.site).await;
    peer.say(&Hello {
        epoch,
        ..hello("hostile", &token)
    })
    .await;
    let welcome: Welcome = peer.hear().await;
    assert_eq!((welcome.epoch, welcome.last_sequence), (epoch, 2));
    scene
        .check("a stale epoch", CloseCode::StaleEpoch, async || {
            let mut peer = Peer::connect(&scene.site).await;
            peer.say(&Hello {
                epoch: epoch - 1,
                ..hello("hostile", &token)
            })
            .await;
            peer
        })
        .await;
    let stored = scene.site.read_by_device().await;
    let hostile: Vec<usize> = stored["hostile"].iter().map(Vec::len).collect();
    assert_eq!(hostile, [4, 256 * 1024]);
}

fn just_fits_at(sequence: u64, frame: &[u8]) -> Vec<u8> {
    changed(frame.to_vec(), HEADER_BYTES, &sequence.to_le_bytes())
}

/// Where the key of the first system property stands in an archive that differs only there.
fn key_offset() -> usize {
    let archive = |key| message_archive(&Message::new("a body").property("name", "value").system(key, "m-1"));
    let (a, b) = (archive(SystemKey::MessageId), archive(SystemKey::UserId));
    let differing: Vec<usize> = (0..a.len()).filter(|&at| a[at] != b[at]).collect();
    let [at] = differing[..] else { panic!("{differing:?}") };
    at
}

fn message_archive(message: &Message) -> Vec<u8> {
    let mut archive = Vec::new();
    message::encode(message, &mut archive);
    archive
}

/// An Append frame of these archives, whatever they are; the numbers may lie.
fn append_archives(first: u64, count: u32, ends: &[u32], archives: &[u8]) -> Vec<u8> {
    let mut body = [&first.to_le_bytes()[..], &count.to_le_bytes(), &[0; 4]].concat();
    ends.iter().for_each(|end| body.extend_from_slice(&end.to_le_bytes()));
    body.extend_from_slice(archives);
    raw(Kind::Append, 0, &body)
}

fn append_archive(archive: &[u8]) -> Vec<u8> {
    append_archives(1, 1, &[archive.len() as u32], archive)
}

fn append_plain(messages: &[u8]) -> Vec<u8> {
    let body = [&1u64.to_le_bytes()[..], &1u32.to_le_bytes(), &[0; 4], messages].concat();
    raw(Kind::AppendPlain, 0, &body)
}

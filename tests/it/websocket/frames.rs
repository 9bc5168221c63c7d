//! What clients say inside a WebSocket, and how it ends.

use super::*;
use crate::peers::Chance;

#[test]
fn a_stream_keeps_its_bytes_however_frames_cut_it() {
    let host = Host::start(Kind::Echo);
    let mut client = host.open();
    let mut chance = Chance::new(0x5eed);
    let mut below = |end: u64| (chance.next() % end) as usize;
    let whole = numbered(600_000);
    let mut rest = &whole[..];
    let mut echoed = Vec::new();
    while !rest.is_empty() {
        // A message of some fragments, of which some are empty, with a ping before the last.
        let mut sent = 0;
        let fragments = 1 + below(4);
        for index in 0..fragments {
            let count = below(9_000).min(rest.len()) * usize::from(below(5) > 0);
            let is_last = index + 1 == fragments;
            if is_last && index > 0 {
                client.send(PING, &[index as u8; 125]);
            }
            let kind = if index == 0 { 0x02 } else { 0x00 };
            client.send(kind | if is_last { 0x80 } else { 0 }, &rest[..count]);
            rest = &rest[count..];
            sent += count;
        }
        let mut pongs = 0;
        let expected = echoed.len() + sent;
        while echoed.len() < expected || pongs < usize::from(fragments > 1) {
            match client.frame() {
                (BINARY, payload) => echoed.extend(payload),
                (PONG, payload) => {
                    assert_eq!(payload, [fragments as u8 - 1; 125]);
                    pongs += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(echoed, whole);
}

#[test]
fn what_no_client_may_send_ends_the_connection_with_its_code() {
    let host = Host::start(Kind::Echo);
    let mut ended = Vec::new();
    let mut check = |what: &str, bytes: &[u8], code: u16| {
        let mut client = host.open();
        client.send(BINARY, b"before");
        assert_eq!(client.bytes(6), b"before", "{what}");
        client.0.write_all(bytes).unwrap();
        assert_eq!(client.closed(), Some(code), "{what}");
        until(what, || host.alive() == 0);
        ended.push(client);
    };
    check("a text frame", &masked(TEXT, b"hello"), 1003);
    check("a text frame in fragments", &masked(0x01, b"hello"), 1003);
    check("no mask", &[BINARY, 5, b'h', b'e', b'l', b'l', b'o'], 1002);
    check("a compressed frame", &masked(0xc2, b"hello"), 1002);
    check("an unknown kind", &masked(0x83, b""), 1002);
    check("a ping in fragments", &masked(0x09, b""), 1002);
    check("a long ping", &masked(PING, &[0; 126]), 1002);
    check("a fragment of nothing", &masked(0x80, b"hello"), 1002);
    check(
        "a message inside another",
        &[masked(0x02, b"a"), masked(BINARY, b"b")].concat(),
        1002,
    );
    check("half a close code", &masked(CLOSE, &[3]), 1002);
    check(
        "a close code that never travels",
        &masked(CLOSE, &1006_u16.to_be_bytes()),
        1002,
    );
    check("a reason that is no text", &masked(CLOSE, &[3, 0xe8, 0xff]), 1007);
    // The frame is announced and never sent.
    let announced = [&[BINARY, 0xff][..], &(4_u64 << 20 | 1).to_be_bytes(), &MASK].concat();
    check("a frame too big", &announced, 1009);
    let endless = [&[BINARY, 0xff][..], &u64::MAX.to_be_bytes(), &MASK].concat();
    check("a frame without end", &endless, 1009);
    assert!(ended.iter_mut().all(Client::is_over));
}

#[test]
fn fragments_that_become_too_much_end_the_connection() {
    let host = Host::start(Kind::Echo);
    let mut client = host.open();
    let part = numbered(1 << 15);
    for index in 0..128 {
        client.send(if index == 0 { 0x02 } else { 0x00 }, &part);
        assert_eq!(client.bytes(part.len()), part);
    }
    client.send(0x00, b"x");
    assert_eq!(client.closed(), Some(1009));
    assert!(client.is_over());
}

#[test]
fn a_close_is_answered_in_kind_and_the_tunnel_ends() {
    let host = Host::start(Kind::Echo);
    let check = |payload: &[u8], answer: Option<u16>| {
        let mut client = host.open();
        assert_eq!(host.alive(), 1);
        client.send(CLOSE, payload);
        // RFC 6455 s5.5.1: nothing that comes behind it is looked at.
        client.send(TEXT, b"too late");
        assert_eq!(client.closed(), answer);
        assert!(client.is_over());
        until("the tunnel ends", || host.alive() == 0);
    };
    check(&[], None);
    check(&1000_u16.to_be_bytes(), Some(1000));
    check(b"\x03\xe9going away", Some(1001));
    check(&4242_u16.to_be_bytes(), Some(4242));
}

#[test]
fn the_last_bytes_of_a_tunnel_come_before_its_close() {
    const COUNT: usize = 700_001;
    let host = Host::start(Kind::Speech(COUNT));
    let mut client = host.open();
    until("the tunnel has written something", || {
        host.written() > 0 || host.alive() == 1
    });
    assert!(client.bytes(COUNT) == numbered(COUNT));
    assert_eq!(client.closed(), Some(1000));
    client.send(CLOSE, &1000_u16.to_be_bytes());
    assert!(client.is_over());
    assert_eq!(host.alive(), 0);
}

#[test]
fn a_quiet_client_is_asked_whether_it_is_there() {
    let host = Host::with(Kind::Deaf, |config| config.stall_timeout = Duration::from_secs(1));
    let mut client = host.open();
    let start = Instant::now();
    for _ in 0..3 {
        assert_eq!(client.frame(), (PING, vec![]));
        client.send(PONG, &[]);
    }
    assert!(start.elapsed() >= Duration::from_millis(1400));
    assert_eq!(host.alive(), 1, "who answers stays");
}

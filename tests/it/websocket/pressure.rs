//! Clients and tunnels that do not read, connections that die, and a server that stops.

use super::*;

/// What a server may keep of one direction: 64 KiB for the tunnel, what is being read or written, and what TLS keeps at
/// both ends.
const SERVER_BYTES: u64 = 512 << 10;

/// Waits until a figure stands still.
#[track_caller]
fn settled(figure: impl Fn() -> u64) -> u64 {
    let start = Instant::now();
    let (mut last, mut since) = (figure(), Instant::now());
    while since.elapsed() < Duration::from_millis(400) {
        assert!(start.elapsed() < PATIENCE, "it never stands still");
        std::thread::sleep(Duration::from_millis(5));
        let now = figure();
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// What the kernel keeps of one direction.
fn kernel_bytes() -> u64 {
    let listener = listener(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let stream = connect(listener.local_addr().unwrap());
    let _other = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let taken = AtomicU64::new(0);
    settled(|| {
        while let Ok(count) = (&stream).write(&[0; 16_000]) {
            taken.fetch_add(count as u64, Ordering::SeqCst);
        }
        taken.load(Ordering::SeqCst)
    })
}

/// Sends frames until no more are taken; how many bytes were.
fn fill(client: &mut Client, frame: &[u8], bytes_max: u64) -> u64 {
    client
        .0
        .sock
        .set_write_timeout(Some(Duration::from_millis(400)))
        .unwrap();
    let mut taken = 0;
    while taken < bytes_max && client.0.write_all(frame).is_ok() {
        taken += frame.len() as u64;
    }
    client.0.sock.set_write_timeout(Some(PATIENCE)).unwrap();
    taken
}

/// Ends a connection without a word: the other side finds out when it next sends.
fn kill(client: Client) {
    let socket = socket2::SockRef::from(&client.0.sock);
    socket.set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn a_tunnel_that_does_not_read_stops_its_client() {
    const MUCH: u64 = 64 << 20;
    let kernel_bytes = kernel_bytes();
    let host = Host::start(Kind::Deaf);
    for size in [1, 100, 16_000] {
        let mut client = host.open();
        let frame = masked(BINARY, &vec![1; size as usize]);
        let frames = frame.repeat(8_000 / frame.len() + 1);
        // The tunnel's 64 KiB have no frames.
        let taken = fill(&mut client, &frames, MUCH) / frame.len() as u64 * size;
        assert!(taken < kernel_bytes + SERVER_BYTES, "{taken} bytes in frames of {size}");
    }
    // One frame that goes on and on.
    let mut client = host.open();
    client
        .0
        .write_all(&[&[BINARY, 0xff][..], &(4_u64 << 20).to_be_bytes(), &MASK].concat())
        .unwrap();
    let taken = fill(&mut client, &[0; 16_000], 4 << 20);
    assert!(taken < kernel_bytes + SERVER_BYTES, "{taken} bytes of a frame");
}

#[test]
fn a_client_that_does_not_read_stops_its_tunnel_and_goes_on_when_it_reads() {
    let host = Host::start(Kind::Talker);
    let mut client = host.open();
    let written = settled(|| host.written());
    assert!(written < kernel_bytes() + SERVER_BYTES, "{written} bytes written");
    let more = 4 * written as usize;
    assert!(client.bytes(more).iter().all(|byte| *byte == 7));
    assert!(host.written() >= more as u64);
}

#[test]
fn a_client_that_sends_and_never_reads_is_held_by_its_echo() {
    let host = Host::start(Kind::Echo);
    let mut client = host.open();
    let taken = fill(&mut client, &masked(BINARY, &[1; 5_000]), 64 << 20);
    assert!(taken < 2 * (kernel_bytes() + SERVER_BYTES), "{taken} bytes");
}

#[test]
fn of_pings_nobody_reads_the_answers_to_the_last_is_answered() {
    let host = Host::start(Kind::Talker);
    let mut client = host.open();
    settled(|| host.written());
    // None of their answers can go out, and none of them is kept.
    const COUNT: u32 = 100_000;
    let mut bytes = Vec::new();
    for number in 0..COUNT {
        bytes.extend(masked(PING, &number.to_be_bytes().repeat(30)));
    }
    client.0.write_all(&bytes).unwrap();
    let (mut pongs, mut last) = (0, Vec::new());
    while last != (COUNT - 1).to_be_bytes().repeat(30) {
        if let (PONG, payload) = client.frame() {
            (pongs, last) = (pongs + 1, payload);
        }
    }
    assert!(pongs < COUNT / 2, "{pongs}");
}

#[test]
fn a_client_that_takes_nothing_is_gone_after_a_while() {
    let host = Host::with(Kind::Talker, |config| config.stall_timeout = Duration::from_secs(1));
    let client = host.open();
    settled(|| host.written());
    let waited = until("the connection ends", || host.alive() == 0);
    assert!(waited < Duration::from_secs(8), "{waited:?}");
    drop(client);
}

#[test]
fn a_client_that_takes_nothing_cannot_keep_a_finished_tunnel_open() {
    let host = Host::with(Kind::Speech(16 << 20), |config| {
        config.stall_timeout = Duration::from_secs(1);
        config.connections_max = 1;
    });
    let client = host.open();
    until("the tunnel is broken off", || host.alive() == 0);
    // Its place is free again.
    drop(host.open());
    drop(client);
}

#[test]
fn nothing_is_left_of_a_connection_that_dies() {
    let check = |kind: Kind, end: fn(Client)| {
        let host = Host::with(kind, |config| config.stall_timeout = Duration::from_secs(1));
        let mut clients: Vec<_> = (0..4).map(|_| host.open()).collect();
        for client in &mut clients {
            client.send(BINARY, b"something");
        }
        until("all are open", || host.alive() == 4);
        clients.into_iter().for_each(end);
        until(&format!("{kind:?} ends"), || host.alive() == 0);
    };
    let silently = |client: Client| drop(client);
    for end in [kill, silently] {
        check(Kind::Echo, end);
        check(Kind::Talker, end);
        // Learns of it by its end, and is dropped since that does not move it.
        check(Kind::Deaf, end);
    }
}

#[test]
fn a_connection_that_dies_while_its_tunnel_does_not_read_is_noticed() {
    let host = Host::with(Kind::Deaf, |config| config.stall_timeout = Duration::from_secs(2));
    let mut client = host.open();
    fill(&mut client, &masked(BINARY, &[1; 16_000]), 64 << 20);
    assert_eq!(host.alive(), 1);
    kill(client);
    until("the tunnel ends", || host.alive() == 0);
}

#[test]
fn a_stop_tells_tunnels_and_closes_behind_their_last_word() {
    let mut host = Host::start(Kind::Patient);
    let mut clients: Vec<_> = (0..3).map(|_| host.open()).collect();
    let start = Instant::now();
    let stopped = host.stop(true);
    for client in &mut clients {
        assert_eq!(client.bytes(8), b"farewell");
        assert_eq!(client.closed(), Some(1001));
        client.send(CLOSE, &1001_u16.to_be_bytes());
    }
    drop(clients);
    stopped.join().unwrap();
    assert!(start.elapsed() < Duration::from_millis(1900), "{:?}", start.elapsed());
    assert_eq!(host.alive(), 0);
}

#[test]
fn a_stop_does_not_hang_on_tunnels_that_do_not_listen() {
    let mut host = Host::with(Kind::Deaf, |config| config.drain_timeout = Duration::from_secs(4));
    let mut client = host.open();
    let start = Instant::now();
    let stopped = host.stop(true);
    assert_eq!(client.closed(), Some(1001));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    drop(client);
    stopped.join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(host.alive(), 0);
}

#[test]
fn a_stop_does_not_hang_on_clients_that_do_not_read() {
    let mut host = Host::start(Kind::Talker);
    let client = host.open();
    settled(|| host.written());
    let start = Instant::now();
    host.stop(true).join().unwrap();
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(host.alive(), 0);
    drop(client);
}

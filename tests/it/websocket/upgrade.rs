//! Which requests open a tunnel, and with what answer.

use serde_json::Value;

use super::*;

/// As the Python device SDK reads an answer's lines, which is stricter than HTTP.
// IoT Hub, SDKs, 4.1.
fn is_understood_by_hand_made_readers(head: &str) -> bool {
    let mut accepted = None;
    for line in head.lines() {
        let lower = line.to_ascii_lowercase();
        if lower.contains("connection") && !lower.contains("upgrade") {
            return false;
        }
        if lower.contains("sec-websocket-accept") {
            accepted = line.split_once(": ").map(|(_, proof)| proof.to_owned());
        }
    }
    // RFC 6455 s1.3.
    accepted.as_deref() == Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
}

#[test]
fn the_sub_protocol_opens_the_tunnel_on_either_path() {
    let host = Host::start(Kind::Echo);
    let check = |path: &str, offered: &str, echoed: &str| {
        let mut client = host.connect();
        let mut headers = upgrade_headers(offered);
        // As Node sends them.
        headers.push((
            "Sec-WebSocket-Extensions",
            "permessage-deflate; client_max_window_bits".into(),
        ));
        headers.push(("Origin", "https://localhost:443".into()));
        let head = client.ask(&request(path, &headers));
        assert!(
            head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"),
            "{path}: {head}"
        );
        assert!(
            head.contains(&format!("sec-websocket-protocol: {echoed}\r\n")),
            "{head}"
        );
        assert!(is_understood_by_hand_made_readers(&head), "{head}");
        let lower = head.to_ascii_lowercase();
        assert!(
            lower.contains("upgrade: websocket\r\n") && !lower.contains("extensions"),
            "{head}"
        );
        assert!(
            !lower.contains("content-length") && !lower.contains("transfer-encoding"),
            "{head}"
        );
        client.send(BINARY, b"AMQP\x03\x01\x00\x00");
        assert_eq!(client.bytes(8), b"AMQP\x03\x01\x00\x00");
    };
    check("/$iothub/websocket", "AMQPWSB10", "AMQPWSB10");
    check(
        "/$iothub/websocket?iothub-no-client-cert=true",
        "AMQPWSB10",
        "AMQPWSB10",
    );
    check("/$iothub/websocket/", "amqpwsb10", "amqpwsb10");
    check("/$servicebus/websocket", "AMQPWSB10, amqp", "AMQPWSB10");
    check("/$servicebus/websocket/", "amqp", "amqp");
    check("/$servicebus/websocket/?x=y", "soap, mqtt ,amqp", "amqp");
    check("/%24iothub/WebSocket", "AMQPWSB10", "AMQPWSB10");
    assert_eq!(*host.facts.0.lock().unwrap(), ["amqp"; 7]);
}

#[test]
fn what_opens_no_tunnel_is_told_why() {
    let host = Host::start(Kind::Echo);
    let all = upgrade_headers("AMQPWSB10");
    let without = |name: &str| all.iter().filter(|(key, _)| *key != name).cloned().collect::<Vec<_>>();
    let with = |name: &'static str, value: &str| {
        let mut headers = without(name);
        headers.push((name, value.to_owned()));
        headers
    };
    let mut ended = Vec::new();
    let mut check = |request: &str, status: u16, reason: &str| {
        let mut client = host.connect();
        let head = client.ask(request);
        assert_eq!(
            head.split(' ').nth(1),
            Some(&status.to_string()[..]),
            "{reason}: {head}"
        );
        let name = if status == 426 {
            "GenericUpgradeRequired"
        } else {
            "GenericBadRequest"
        };
        assert!(head.contains(&format!("iothub-errorcode: {name}\r\n")), "{head}");
        assert_eq!(head.contains("sec-websocket-version: 13\r\n"), status == 426, "{head}");
        assert_eq!(head.contains("upgrade: websocket\r\n"), status == 426, "{head}");
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        client.0.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert!(
            body["Message"]
                .as_str()
                .unwrap()
                .starts_with(&format!("ErrorCode:{name};")),
            "{body}"
        );
        assert_eq!(host.facts.0.lock().unwrap().pop(), Some(reason));
        ended.push(client);
    };
    let path = "/$iothub/websocket";
    check(&request(path, &[]), 426, "not_websocket");
    check(&request(path, &without("Upgrade")), 426, "not_websocket");
    check(&request(path, &without("Connection")), 426, "not_websocket");
    check(&request(path, &with("Connection", "keep-alive")), 426, "not_websocket");
    check(&request(path, &with("Upgrade", "h2c")), 426, "not_websocket");
    check(&request(path, &with("Content-Length", "0")), 426, "not_websocket");
    check(
        &request(path, &all).replace("HTTP/1.1", "HTTP/1.0"),
        426,
        "not_websocket",
    );
    check(&request(path, &all).replace("GET", "PUT"), 426, "not_websocket");
    check(&request(path, &with("Sec-WebSocket-Version", "8")), 426, "version");
    check(&request(path, &without("Sec-WebSocket-Version")), 426, "version");
    check(&request(path, &without("Sec-WebSocket-Key")), 400, "key");
    check(&request(path, &with("Sec-WebSocket-Key", "c2hvcnQ=")), 400, "key");
    let twice = [&all[..], &[("Sec-WebSocket-Key", KEY.to_owned())]].concat();
    check(&request(path, &twice), 400, "key");
    check(&request(path, &without("Sec-WebSocket-Protocol")), 400, "protocol");
    check(&request(path, &with("Sec-WebSocket-Protocol", "mqtt")), 400, "protocol");
    check(
        &request(path, &with("Sec-WebSocket-Protocol", "amqp10 amqp")),
        400,
        "protocol",
    );
    assert!(ended.iter_mut().all(Client::is_over));
    assert_eq!(host.alive(), 0);
}

#[test]
fn half_a_handshake_is_not_waited_for() {
    let host = Host::with(Kind::Echo, |config| config.head_timeout = Duration::from_millis(500));
    let mut client = host.connect();
    let whole = request("/$iothub/websocket", &upgrade_headers("AMQPWSB10"));
    client.0.write_all(&whole.as_bytes()[..whole.len() - 2]).unwrap();
    assert!(client.head().starts_with("HTTP/1.1 408 "));
    assert!(client.is_over());
    assert_eq!(host.alive(), 0);
}

#[test]
fn frames_that_come_with_the_request_are_not_lost() {
    let host = Host::start(Kind::Echo);
    let mut client = host.connect();
    let mut bytes = request("/$iothub/websocket", &upgrade_headers("AMQPWSB10")).into_bytes();
    bytes.extend(masked(BINARY, b"at once"));
    client.0.write_all(&bytes).unwrap();
    assert!(client.head().starts_with("HTTP/1.1 101 "));
    assert_eq!(client.bytes(7), b"at once");
}

#[test]
fn a_tunnel_learns_who_its_client_is() {
    let mut host = Host::start(Kind::Echo);
    let client = host.open();
    let address = client.0.sock.local_addr().unwrap();
    assert_eq!(*host.tunnel.peers.lock().unwrap(), [(0, Some(address))]);

    host.tls = host.tls_with_certificate.clone();
    let client = host.open();
    let address = client.0.sock.local_addr().unwrap();
    assert_eq!(host.tunnel.peers.lock().unwrap()[1..], [(1, Some(address))]);
}

#[test]
fn tunnels_count_as_connections() {
    let host = Host::with(Kind::Echo, |config| config.connections_max = 1);
    let mut first = host.open();
    let mut second = host.connect();
    second
        .0
        .sock
        .set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let refused = second
        .0
        .write_all(request("/$iothub/websocket", &upgrade_headers("amqp")).as_bytes());
    assert!(refused.is_err(), "the handshake of TLS has to wait");
    second.0.sock.set_read_timeout(Some(PATIENCE)).unwrap();
    first.send(CLOSE, &[]);
    assert_eq!(first.closed(), None);
    let start = Instant::now();
    let head = second.ask(&request("/$iothub/websocket", &upgrade_headers("amqp")));
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(start.elapsed() < PATIENCE / 2);
}

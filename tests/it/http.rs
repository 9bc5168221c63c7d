//! The HTTPS door of a real hub: registry, telemetry, errors, and clients that mean no good.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use forebay::client::service::Subscription;
use forebay::client::tls::read_certificates;
use forebay::hub::sas;
use forebay::model::{Message, SystemKey};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};

use crate::hub::{Hub, PATIENCE};
use crate::peers::{Chance, HOST, Rooms, Site, within};

type Stream = StreamOwned<ClientConnection, TcpStream>;

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The error's name, if header and body agree.
    #[track_caller]
    pub fn error(&self) -> &str {
        let name = self.header("iothub-errorcode");
        let message = self.json()["Message"].as_str().unwrap_or_default().to_owned();
        let inner: Option<Value> = serde_json::from_str(&message).ok();
        match inner {
            Some(inner) => assert_eq!(inner["errorCode"].as_u64().unwrap() / 1000, u64::from(self.status)),
            None => assert!(message.starts_with(&format!("ErrorCode:{name};")), "{self:?}"),
        }
        assert!(!self.header("iothub-servicetrackingid").is_empty());
        name
    }
}

/// The hub's HTTPS port, and credentials for it.
#[derive(Clone)]
pub struct Door {
    port: u16,
    tls: Arc<ClientConfig>,
    owner: (String, String),
}

impl Door {
    pub fn of(hub: &Hub) -> Self {
        Self::with_versions(hub, rustls::ALL_VERSIONS)
    }

    fn with_versions(hub: &Hub, versions: &[&'static rustls::SupportedProtocolVersion]) -> Self {
        Self::with(hub, versions, None)
    }

    /// With these versions of TLS, and whatever certificate and key the client shows.
    pub fn with(
        hub: &Hub,
        versions: &[&'static rustls::SupportedProtocolVersion],
        identity: Option<Arc<dyn ResolvesClientCert>>,
    ) -> Self {
        let mut roots = RootCertStore::empty();
        for root in read_certificates("CA file", &hub.endpoints().ca_file).unwrap() {
            roots.add(root).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots);
        let tls = match identity {
            Some(identity) => tls.with_client_cert_resolver(identity),
            None => tls.with_no_client_auth(),
        };
        let site = Site::of(hub);
        Self {
            port: hub.endpoints().https_port,
            tls: Arc::new(tls),
            owner: (site.owner.policy, site.owner.key),
        }
    }

    fn connect(&self) -> Stream {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let name = ServerName::try_from(HOST).unwrap();
        StreamOwned::new(ClientConnection::new(self.tls.clone(), name).unwrap(), stream)
    }

    pub fn owner_token(&self) -> String {
        token(HOST, &self.owner.1, Some(&self.owner.0), 3600)
    }

    /// A request with these headers besides the usual ones, on a connection of its own.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect();
        write_request(&mut stream, method, path, headers, body);
        read_reply(&mut stream).unwrap()
    }

    /// As `ask`, where the handshake may fail: whether there is an answer.
    pub fn is_heard(&self, path: &str) -> bool {
        let mut stream = self.connect();
        let head = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let _ = stream.write_all(head.as_bytes());
        read_reply(&mut stream).is_some()
    }

    /// As the owner, with JSON.
    pub fn own(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &Value) -> Reply {
        let token = self.owner_token();
        let mut headers = headers.to_vec();
        headers.push(("Authorization", &token));
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.ask(method, path, &headers, body.as_bytes())
    }

    pub fn create_device(&self, id: &str) -> String {
        let made = self.own(
            "PUT",
            &versioned(&format!("/devices/{id}")),
            &[],
            &json!({ "deviceId": id }),
        );
        assert_eq!(made.status, 200, "{made:?}");
        key_of(&made.json())
    }

    fn send(&self, device: &str, token: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut headers = headers.to_vec();
        headers.push(("Authorization", token));
        self.ask("POST", &events(device), &headers, body)
    }
}

fn key_of(identity: &Value) -> String {
    let key = &identity["authentication"]["symmetricKey"]["primaryKey"];
    key.as_str().expect("the hub makes keys").to_owned()
}

pub fn versioned(path: &str) -> String {
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}api-version=2021-04-12")
}

fn events(device: &str) -> String {
    versioned(&format!("/devices/{device}/messages/events"))
}

/// A token that runs out in so many seconds.
fn token(resource: &str, key: &str, policy: Option<&str>, seconds: i64) -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs() as i64;
    let key = STANDARD.decode(key).unwrap();
    sas::generate(resource, &key, (now + seconds) as u64, policy)
}

pub fn device_token(device: &str, key: &str) -> String {
    token(&format!("{HOST}/devices/{device}"), key, None, 3600)
}

fn write_request(stream: &mut Stream, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) {
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += "\r\n";
    stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
    stream.flush().unwrap();
}

/// `None` when the connection ends first.
fn read_reply(stream: &mut Stream) -> Option<Reply> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return None,
            Ok(_) => bytes.push(byte[0]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no answer in time"),
            Err(_) => return None,
        }
    };
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: BTreeMap<String, String> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let length = headers
        .get("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).unwrap();
    Some(Reply { status, headers, body })
}

/// Whether the hub has closed the connection, within patience.
fn is_closed(stream: &mut Stream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => true,
        Ok(_) => false,
        Err(error) => error.kind() != ErrorKind::WouldBlock,
    }
}

#[test]
fn identities_are_made_changed_listed_and_deleted() {
    let hub = Hub::start(&[]);
    for versions in [&[&rustls::version::TLS12][..], &[&rustls::version::TLS13]] {
        let door = Door::with_versions(&hub, versions);
        let path = versioned("/Devices/a%23b");
        let wanted = json!({ "deviceId": "a#b", "status": "enabled", "statusReason": "fresh", "unknown": [1] });
        let made = door.own("PUT", &path, &[], &wanted);
        assert_eq!(made.status, 200, "{made:?}");
        let etag = made.json()["etag"].as_str().unwrap().to_owned();
        assert_eq!(made.header("etag"), format!("\"{etag}\""));
        assert_eq!(made.header("content-type"), "application/json; charset=utf-8");
        assert!(!made.header("x-ms-request-id").is_empty());
        let got = door.own("GET", &path, &[], &Value::Null);
        assert_eq!((got.status, got.json()), (200, made.json()));

        let mut changed = made.json();
        changed["status"] = "disabled".into();
        for form in [format!("\"{etag}\""), "*".into(), "\"*\"".into()] {
            let reply = door.own("PUT", &path, &[("If-Match", &form)], &changed);
            assert_eq!(
                (reply.status, &reply.json()["status"]),
                (200, &json!("disabled")),
                "{form}"
            );
            assert_ne!(reply.json()["etag"], etag, "each change makes a new version");
        }

        let module = versioned("/devices/a%23b/modules/m");
        let wanted = json!({ "deviceId": "a#b", "moduleId": "m", "managedBy": "owner" });
        let made = door.own("PUT", &module, &[], &wanted);
        assert_eq!((made.status, &made.json()["managedBy"]), (201, &json!("owner")));
        let etag = made.header("etag").to_owned();
        let weak = format!("W/{etag}");
        let updated = door.own("PUT", &module, &[("If-Match", &weak)], &made.json());
        assert_eq!(updated.status, 200, "{updated:?}");
        let modules = door.own("GET", &versioned("/devices/a%23b/modules"), &[], &Value::Null);
        assert_eq!(modules.json(), json!([updated.json()]));
        assert_eq!(
            door.own("DELETE", &module, &[("If-Match", "*")], &Value::Null).status,
            204
        );
        let gone = door.own("GET", &module, &[], &Value::Null);
        assert_eq!((gone.status, gone.error()), (404, "ModuleNotFound"));

        door.create_device("second");
        let all = door
            .own("GET", &versioned("/devices?top=1001"), &[], &Value::Null)
            .json();
        let mut ids: Vec<_> = all
            .as_array()
            .unwrap()
            .iter()
            .map(|d| d["deviceId"].as_str().unwrap())
            .collect();
        ids.sort_unstable();
        assert_eq!(ids, ["a#b", "second"]);
        let one = door.own("GET", &versioned("/devices?top=1"), &[], &Value::Null).json();
        assert_eq!(one.as_array().unwrap().len(), 1);
        let statistics = door
            .own("GET", &versioned("/statistics/devices"), &[], &Value::Null)
            .json();
        let expected = json!({ "totalDeviceCount": 2, "enabledDeviceCount": 1, "disabledDeviceCount": 1 });
        assert_eq!(statistics, expected);
        let connected = door
            .own("GET", &versioned("/statistics/service"), &[], &Value::Null)
            .json();
        assert_eq!(connected, json!({ "connectedDeviceCount": 0 }));
        for id in ["a%23b", "second"] {
            let path = versioned(&format!("/devices/{id}"));
            let deleted = door.own("DELETE", &path, &[("If-Match", "*")], &Value::Null);
            assert_eq!((deleted.status, deleted.body.len()), (204, 0));
        }
    }
}

#[test]
fn every_refusal_has_its_code() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let own = door.owner_token();
    let device = device_token("d", &key);
    let batch = ("Content-Type", "application/vnd.microsoft.iothub.json");
    let large = vec![b'x'; 262_145];
    let many = json!(vec![json!({ "id": "x" }); 101]).to_string();
    let check = |request: &str, token: &str, headers: &[(&str, &str)], body: &[u8], status: u16, name: &str| {
        let (method, path) = request.split_once(' ').unwrap();
        let mut headers = headers.to_vec();
        if !token.is_empty() {
            headers.push(("Authorization", token));
        }
        let reply = door.ask(method, path, &headers, body);
        assert_eq!((reply.status, reply.error()), (status, name), "{request}: {reply:?}");
    };
    let v = |request: &str| versioned(request);
    check("GET /devices/d", &own, &[], b"", 400, "InvalidProtocolVersion");
    check(
        "GET /devices/d?api-version=",
        &own,
        &[],
        b"",
        400,
        "InvalidProtocolVersion",
    );
    check(&v("GET /devices/%zz"), &own, &[], b"", 400, "GenericBadRequest");
    check(&v("GET /nothing"), &own, &[], b"", 404, "GenericNotFound");
    check(&v("GET /jobs"), &device, &[], b"", 404, "GenericNotFound");
    check(&v("POST /devices/d"), &own, &[], b"", 405, "GenericMethodNotAllowed");
    check(&v("GET /devices/a%2Fb"), &own, &[], b"", 400, "ArgumentInvalid");
    check(&v("GET /devices/d"), "", &[], b"", 401, "IotHubUnauthorized");
    check(&v("GET /devices/d"), "Bearer x", &[], b"", 401, "IotHubUnauthorized");
    check(&v("GET /devices/d"), &device, &[], b"", 401, "IotHubUnauthorized");
    check(&v("GET /devices/no"), &own, &[], b"", 404, "DeviceNotFound");
    check(&v("GET /devices/no/modules"), &own, &[], b"", 404, "DeviceNotFound");
    check(
        &v("PUT /devices/d"),
        &own,
        &[],
        br#"{"deviceId":"d"}"#,
        409,
        "DeviceAlreadyExists",
    );
    check(
        &v("PUT /devices/d"),
        &own,
        &[],
        br#"{"deviceId":"e"}"#,
        400,
        "ArgumentInvalid",
    );
    check(
        &v("PUT /devices/d"),
        &own,
        &[],
        br#"{"deviceId":"#,
        400,
        "IotHubFormatError",
    );
    check(
        &v("PUT /devices/d"),
        &own,
        &[("If-Match", "x")],
        br#"{"deviceId":"d"}"#,
        412,
        "PreconditionFailed",
    );
    check(&v("DELETE /devices/d"), &own, &[], b"", 412, "PreconditionFailed");
    check(
        &v("DELETE /devices/d/modules/m"),
        &own,
        &[("If-Match", "*")],
        b"",
        404,
        "ModuleNotFound",
    );
    check(&v("POST /devices"), &own, &[], many.as_bytes(), 413, "TooManyDevices");
    check(
        &v("POST /devices"),
        &own,
        &[],
        &vec![b' '; 1 << 20 | 1],
        413,
        "GenericRequestEntityTooLarge",
    );
    let regenerate = br#"{"policyKey":"third","devices":[]}"#;
    check(
        &v("POST /devices/keys/regenerate"),
        &own,
        &[],
        regenerate,
        400,
        "InvalidPolicyKey",
    );
    check(
        &v("POST /devices/d/files"),
        &device,
        &[],
        b"{}",
        400,
        "DefaultStorageEndpointNotConfigured",
    );
    let notified = v("POST /devices/d/files/notifications/id");
    check(
        &notified,
        &device,
        &[],
        b"{}",
        400,
        "DefaultStorageEndpointNotConfigured",
    );
    let events = format!("POST {}", events("d"));
    check(&events, &device, &[], &large, 413, "MessageTooLarge");
    check(
        &events,
        &device,
        &[("iothub-app-n", "v")],
        &large[..262_143],
        413,
        "MessageTooLarge",
    );
    check(&events, &device, &[batch], b"[]", 400, "ArgumentInvalid");
    check(&events, &device, &[batch], b"{", 400, "ArgumentInvalid");
    check(
        &events,
        &device,
        &[("iothub-creationtimeutc", "yesterday")],
        b"",
        400,
        "ArgumentInvalid",
    );
    let halves = json!(vec![json!({ "body": "x".repeat(131_073), "base64Encoded": false }); 2]).to_string();
    check(&events, &device, &[batch], halves.as_bytes(), 413, "MessageTooLarge");
    let text = hub.metrics();
    let sample = "forebay_http_requests_total{route=\"device_events\",status=\"413\"} 3";
    assert!(text.contains(sample), "{text}");
}

#[test]
fn each_route_asks_for_its_permission() {
    let mut hub = Hub::start(&[]);
    hub.sigterm();
    let policies: Vec<_> = {
        let offline = Rooms::open(&hub.data());
        let names = ["service", "device", "registryRead", "registryReadWrite"];
        names.map(|name| offline.policy(name)).into()
    };
    hub.restart();
    let door = Door::of(&hub);
    door.create_device("d");
    let routes = [
        ("GET", "/devices", [false, false, true, true]),
        ("GET", "/devices/d", [false, false, true, true]),
        ("GET", "/devices/d/modules", [false, false, true, true]),
        ("GET", "/statistics/devices", [false, false, true, true]),
        ("GET", "/statistics/service", [true, false, false, false]),
        ("PUT", "/devices/d", [false, false, false, true]),
        ("DELETE", "/devices/d", [false, false, false, true]),
        ("POST", "/devices", [false, false, false, true]),
        ("POST", "/devices/keys/regenerate", [false, false, false, true]),
        ("PUT", "/devices/d/modules/m", [false, false, false, true]),
        ("DELETE", "/devices/d/modules/m", [false, false, false, true]),
        ("GET", "/devices/d/modules/m", [false, false, true, true]),
        ("POST", "/devices/d/messages/events", [false, true, false, false]),
    ];
    for (method, path, allowed) in routes {
        for (policy, is_allowed) in policies.iter().zip(allowed) {
            let token = token(HOST, &policy.key, Some(&policy.policy), 3600);
            // A stale version, so that nothing is changed.
            let headers = [("Authorization", &*token), ("If-Match", "stale")];
            let reply = door.ask(method, &versioned(path), &headers, b"");
            let is_refused = reply.status == 401 && reply.error() == "IotHubUnauthorizedAccess";
            assert_eq!(
                is_refused, !is_allowed,
                "{method} {path} as {}: {reply:?}",
                policy.policy
            );
        }
    }
}

#[tokio::test]
async fn telemetry_is_read_back_as_it_was_sent() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let token = device_token("d", &key);
    let headers = [
        ("Content-Type", "binary/octet-stream"),
        ("IoTHub-MessageId", "m-1"),
        ("iothub-contenttype", "application/json"),
        ("iothub-creationtimeutc", "2026-01-31T10:00:00Z"),
        ("iothub-app-Level", "high"),
        ("iothub-app-place", "T\u{fc}r"),
        ("X-Other", "no"),
    ];
    assert_eq!(door.send("d", &token, &headers, b"{\"t\":1}").status, 204);
    // As text, since the order of properties counts.
    let batch = r#"[
        {"body":"AP8=","properties":{"iothub-app-z":"1","iothub-app-a":"2","iothub-correlationid":"c"}},
        {"body":"text","base64Encoded":false}
    ]"#;
    let batch_type = [("Content-Type", "application/vnd.microsoft.iothub.json")];
    assert_eq!(door.send("d", &token, &batch_type, batch.as_bytes()).status, 204);
    let module = json!({ "deviceId": "d", "moduleId": "m" });
    let module = door.own("PUT", &versioned("/devices/d/modules/m"), &[], &module).json();
    let module_token = self::token(&format!("{HOST}/devices/d/modules/m"), &key_of(&module), None, 3600);
    let path = versioned("/devices/d/modules/m/messages/events");
    let full = vec![b'f'; 262_144];
    assert_eq!(
        door.ask("POST", &path, &[("Authorization", &module_token)], &full)
            .status,
        204
    );
    let wrong = door.ask("POST", &path, &[("Authorization", &token)], b"x");
    assert_eq!(
        wrong.error(),
        "IotHubUnauthorized",
        "a device's key does not cover its modules"
    );

    let site = Site::of(&hub);
    let service = site.service().await;
    let hub_document = within(service.request("hub.get", &json!({}))).await.unwrap();
    let mut read = Vec::new();
    for range in hub_document["partitions"].as_array().unwrap() {
        let next = range["next"].as_u64().unwrap();
        let partition = u16::try_from(range["id"].as_u64().unwrap()).unwrap();
        let mut cursor = within(service.subscribe(&Subscription::earliest(partition)))
            .await
            .unwrap();
        let mut count = 0;
        while count < next {
            let chunk = within(cursor.next()).await.unwrap();
            for event in chunk.events() {
                let event = event.unwrap();
                count += 1;
                read.push((event.origin.clone(), event.message.to_message()));
            }
        }
    }
    service.close();
    let first = Message::new("{\"t\":1}")
        .system(SystemKey::MessageId, "m-1")
        .system(SystemKey::ContentType, "application/json")
        .system(SystemKey::CreationTimeUtc, "2026-01-31T10:00:00Z")
        // A header's name has no case.
        .property("level", "high")
        .property("place", "Tür");
    let second = Message::new([0, 255])
        .system(SystemKey::CorrelationId, "c")
        .property("z", "1")
        .property("a", "2");
    let mut messages: Vec<Message> = read.iter().map(|(_, message)| message.clone()).collect();
    // Headers have no order.
    messages[0].system.sort_unstable();
    messages[0].properties.sort_unstable();
    let last = messages.pop().unwrap();
    assert!(last == Message::new(full), "{} bytes", last.body.len());
    assert_eq!(messages, [first, second, Message::new("text")]);
    let origins: Vec<_> = read
        .iter()
        .map(|(origin, _)| (&*origin.device_id, &*origin.module_id))
        .collect();
    assert_eq!(origins, [("d", ""), ("d", ""), ("d", ""), ("d", "m")]);
    assert!(
        read[0].0.auth_method.contains("\"scope\":\"device\"")
            && read[3].0.auth_method.contains("\"scope\":\"module\"")
    );
    assert_eq!(read[0].0.generation.to_string().len(), 18);
}

#[test]
fn a_credential_opens_its_own_device_and_no_longer_than_it_lives() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let other = door.create_device("other");
    let check = |token: &str, status: u16, name: &str| {
        let reply = door.send("d", token, &[], b"x");
        if status == 204 {
            assert_eq!(reply.status, 204, "{reply:?}");
        } else {
            assert_eq!((reply.status, reply.error()), (status, name), "{reply:?}");
        }
    };
    let policy = Some(&*door.owner.0);
    check(&device_token("d", &key), 204, "");
    check(&token(HOST, &door.owner.1, policy, 3600), 204, "");
    check(
        &token(&format!("{HOST}/devices/other"), &door.owner.1, policy, 3600),
        401,
        "IotHubUnauthorized",
    );
    check(&device_token("other", &other), 401, "IotHubUnauthorized");
    check(&device_token("d", &other), 401, "IotHubUnauthorized");
    check(
        &token(&format!("{HOST}/devices/d"), &key, None, -301),
        401,
        "IotHubUnauthorized",
    );
    check(
        &token("elsewhere/devices/d", &key, None, 3600),
        401,
        "IotHubUnauthorized",
    );
    check("", 401, "IotHubUnauthorized");
    let unknown = door.send("nobody", &device_token("nobody", &key), &[], b"x");
    assert_eq!((unknown.status, unknown.error()), (401, "IotHubUnauthorized"));

    let path = versioned("/devices/d");
    let disabled = json!({ "deviceId": "d", "status": "disabled" });
    assert_eq!(door.own("PUT", &path, &[("If-Match", "*")], &disabled).status, 200);
    check(&device_token("d", &key), 403, "DeviceDisabled");
    let enabled = json!({ "deviceId": "d", "status": "enabled" });
    assert_eq!(door.own("PUT", &path, &[("If-Match", "*")], &enabled).status, 200);
    check(&device_token("d", &key), 204, "");
    let wanted = json!({ "policyKey": "primaryKey", "devices": [{ "id": "d" }, { "id": "nobody" }] });
    let reply = door.own("POST", &versioned("/devices/keys/regenerate"), &[], &wanted);
    assert_eq!(reply.status, 207, "{reply:?}");
    let reply = reply.json();
    assert_eq!(reply["errors"][0]["errorCode"], "DeviceNotFound");
    let rotated = &reply["rotatedKeys"][0];
    check(&device_token("d", &key), 401, "IotHubUnauthorized");
    check(&device_token("d", rotated["primaryKey"].as_str().unwrap()), 204, "");
    check(&device_token("d", rotated["secondaryKey"].as_str().unwrap()), 204, "");
    assert_eq!(
        door.own("DELETE", &path, &[("If-Match", "*")], &Value::Null).status,
        204
    );
    check(&device_token("d", &key), 401, "IotHubUnauthorized");
}

#[tokio::test]
async fn disabling_a_device_here_ends_its_session_there() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let site = Site::of(&hub);
    let key = door.create_device("d");
    let device = site.device("d", &key);
    let receipt = within(device.send(&Message::new("x"))).await.unwrap();
    within(device.acknowledged(receipt)).await.unwrap();
    let connected = door
        .own("GET", &versioned("/statistics/service"), &[], &Value::Null)
        .json();
    assert_eq!(connected, json!({ "connectedDeviceCount": 1 }));
    // `POST /devices` cuts off too.
    let entries = json!([{ "id": "d", "importMode": "update", "status": "disabled" }]);
    let reply = door.own("POST", &versioned("/devices"), &[], &entries);
    assert_eq!(
        (reply.status, &reply.json()["isSuccessful"]),
        (200, &json!(true)),
        "{reply:?}"
    );
    crate::peers::until("the session ends", || {
        let text = hub.metrics();
        text.contains("forebay_sessions{kind=\"device\"} 0").then_some(())
    })
    .await;
    assert!(
        hub.metrics()
            .contains("forebay_connections_closed_total{reason=\"device_disabled\"} 1")
    );
}

#[test]
fn bulk_entries_stand_alone() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let bulk = |entries: &Value| {
        let reply = door.own("POST", &versioned("/devices"), &[], entries);
        (reply.status, reply.json())
    };
    let create: Vec<Value> = (0..100)
        .map(|n| json!({ "id": format!("b{n}"), "importMode": "create" }))
        .collect();
    let (status, result) = bulk(&json!(create));
    assert_eq!(
        (status, result),
        (200, json!({ "isSuccessful": true, "errors": [], "warnings": [] }))
    );
    let (status, result) = bulk(&json!([
        { "id": "b0", "importMode": "create" },
        { "id": "b1", "importMode": "updateIfMatchETag", "eTag": "stale", "status": "disabled" },
        { "id": "b2", "importMode": "delete" },
        { "id": "b2", "importMode": "delete" },
        { "id": "b3", "moduleId": "m", "importMode": "create" },
        { "id": "b3", "moduleId": "n", "importMode": "deleteIfMatchETag", "eTag": "x" },
        { "id": "not/valid", "importMode": "create" },
    ]));
    assert_eq!(status, 200);
    assert_eq!(result["isSuccessful"], false);
    let errors: Vec<_> = result["errors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["deviceId"].as_str().unwrap(), e["errorCode"].as_str().unwrap()))
        .collect();
    let expected = [
        ("b0", "DeviceAlreadyExists"),
        ("b1", "PreconditionFailed"),
        ("b2", "DeviceDefinedMultipleTimes"),
        ("b3", "ModuleNotFound"),
        ("not/valid", "ArgumentInvalid"),
    ];
    assert_eq!(errors, expected);
    assert_eq!(
        door.own("GET", &versioned("/devices/b2"), &[], &Value::Null).status,
        404
    );
    assert_eq!(
        door.own("GET", &versioned("/devices/b3/modules/m"), &[], &Value::Null)
            .status,
        200
    );
    // A new identity may come with its twin.
    let with_twin = json!([{
        "id": "with-twin", "importMode": "create", "statusReason": "ü".repeat(128),
        "tags": { "room": "hall" }, "properties": { "desired": { "on": true } },
    }]);
    assert_eq!(bulk(&with_twin).0, 200);
    let twin = door
        .own("GET", &versioned("/twins/with-twin"), &[], &Value::Null)
        .json();
    assert_eq!(twin["tags"], json!({ "room": "hall" }));
    assert_eq!(twin["properties"]["desired"]["on"], true);
    let long = json!([{ "id": "long", "importMode": "create", "statusReason": "u".repeat(129) }]);
    assert_eq!(bulk(&long).1["errors"][0]["errorCode"], "ArgumentInvalid");
    let (status, result) = bulk(&json!([{ "id": "b0", "importMode": "create" }]));
    assert_eq!((status, &result["isSuccessful"]), (400, &json!(false)));
}

#[test]
fn slow_clients_are_let_go() {
    let hub = Hub::start(&[
        "--set",
        "https.head_timeout=1s",
        "--set",
        "https.body_timeout=1s",
        "--set",
        "https.keep_alive=1s",
    ]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let token = device_token("d", &key);

    // Nothing at all, not even TLS.
    let mut silent = TcpStream::connect((Ipv4Addr::LOCALHOST, door.port)).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(silent.read(&mut [0; 8]).unwrap_or(0), 0);

    // A head, byte by byte, as the first request and as the second of its connection.
    for is_second in [false, true] {
        let mut stream = door.connect();
        if is_second {
            write_request(&mut stream, "GET", &versioned("/nothing"), &[], b"");
            assert_eq!(read_reply(&mut stream).unwrap().status, 404);
        }
        let started = Instant::now();
        let trickle = std::iter::repeat_n(b"x-a: b\r\n", 10_000).flatten();
        let head = b"GET /devices HTTP/1.1\r\n".iter().chain(trickle);
        let ended = head.copied().find(|byte| {
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(&[*byte]).and_then(|()| stream.flush()).is_err() || started.elapsed() > PATIENCE
        });
        assert!(ended.is_some() && started.elapsed() < PATIENCE, "second: {is_second}");
    }

    let mut stream = door.connect();
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\nContent-Length: 10\r\n\r\n12345",
        events("d")
    );
    stream.write_all(head.as_bytes()).unwrap();
    let reply = read_reply(&mut stream).unwrap();
    assert_eq!((reply.status, reply.error()), (400, "RequestTimedOut"));
    assert!(is_closed(&mut stream));
    assert_eq!(door.send("d", &token, &[], b"x").status, 204, "others are served");
}

#[test]
fn an_oversized_body_is_not_read_to_its_end() {
    let hub = Hub::start(&[]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let token = device_token("d", &key);
    let start = format!(
        "POST {} HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: {token}\r\n",
        events("d")
    );
    // Announced: refused before any of it came.
    let mut stream = door.connect();
    stream
        .write_all(format!("{start}Content-Length: 1000000000\r\n\r\n").as_bytes())
        .unwrap();
    let reply = read_reply(&mut stream).unwrap();
    assert_eq!((reply.status, reply.error()), (413, "MessageTooLarge"));
    assert!(is_closed(&mut stream));
    // Not announced: refused as soon as it is too much.
    let mut stream = door.connect();
    stream
        .write_all(format!("{start}Transfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    let chunk = [b"4000\r\n", &[b'x'; 0x4000][..], b"\r\n"].concat();
    for _ in 0..17 {
        stream.write_all(&chunk).unwrap();
    }
    let reply = read_reply(&mut stream).unwrap();
    assert_eq!((reply.status, reply.error()), (413, "MessageTooLarge"));
    assert!(is_closed(&mut stream));
    // Refused before it was looked at: nobody without a credential holds a connection by a body without end.
    let mut stream = door.connect();
    let start = start.replace("Authorization", "Other");
    stream
        .write_all(format!("{start}Transfer-Encoding: chunked\r\n\r\n").as_bytes())
        .unwrap();
    stream.write_all(&chunk).unwrap();
    assert_eq!(read_reply(&mut stream).unwrap().error(), "IotHubUnauthorized");
    assert!(is_closed(&mut stream));
}

#[test]
fn a_hub_that_stores_too_slowly_says_when_to_come_back() {
    let hub = Hub::start(&["--set", "process.sync_gap=1s", "--set", "https.busy_timeout=10ms"]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let token = device_token("d", &key);
    let busy = (0..20)
        .map(|_| door.send("d", &token, &[], b"x"))
        .find(|reply| reply.status != 204);
    let busy = busy.expect("one of them comes within the gap");
    assert_eq!((busy.status, busy.error()), (503, "ServerBusy"));
    assert_eq!(busy.header("retry-after"), "1");
}

#[test]
fn kill_9_loses_nothing_acknowledged() {
    let mut hub = Hub::start(&["--set", "log.segment_bytes=1MiB"]);
    let door = Door::of(&hub);
    let key = door.create_device("d");
    let token = device_token("d", &key);
    let mut chance = Chance::new(Chance::seed());
    let mut acknowledged: Vec<u64> = Vec::new();
    let mut number = 0;
    for _ in 0..5 {
        let mut stream = door.connect();
        // Requests one behind the other on one connection; the last of them are under way when the hub goes.
        for _ in 0..chance.within(5..=40) {
            number += 1;
            write_request(
                &mut stream,
                "POST",
                &events("d"),
                &[("Authorization", &token)],
                number.to_string().as_bytes(),
            );
            assert_eq!(read_reply(&mut stream).unwrap().status, 204);
            acknowledged.push(number);
        }
        number += 1;
        write_request(
            &mut stream,
            "POST",
            &events("d"),
            &[("Authorization", &token)],
            number.to_string().as_bytes(),
        );
        hub.kill9();
        if read_reply(&mut stream).is_some() {
            acknowledged.push(number);
        }
        hub.restart();
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let stored = runtime.block_on(Site::of(&hub).read_by_device()).remove("d").unwrap();
    let stored: Vec<u64> = stored
        .iter()
        .map(|body| String::from_utf8_lossy(body).parse().unwrap())
        .collect();
    assert!(stored.is_sorted_by(|a, b| a < b), "in the order of sending: {stored:?}");
    for number in acknowledged {
        assert!(
            stored.contains(&number),
            "{number} was acknowledged, stored are {stored:?}"
        );
    }
}

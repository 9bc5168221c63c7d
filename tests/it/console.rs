//! The console of a real hub, asked as its page asks: who is let in, what each policy may do, what is refused and
//! counted, and what a reader of the live tail gets. The page itself is driven in a browser by `.ci/console`.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use forebay::client::credential::PolicyKey;
use serde_json::{Value, json};

use crate::hub::{Hub, PATIENCE};
use crate::peers::{Site, sample};

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
    body: String,
}

impl Reply {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Status and code of a refusal.
    fn error(&self) -> (u16, String) {
        let error = &self.json()["error"];
        assert_eq!(error["status"], self.status, "{self:?}");
        assert!(
            error["message"].as_str().is_some_and(|text| !text.is_empty()),
            "{self:?}"
        );
        (self.status, error["code"].as_str().unwrap().to_owned())
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

type Headers = Vec<(&'static str, String)>;

/// A browser with the console's page open.
struct Browser {
    port: u16,
    cookie: Option<String>,
    etag: Option<String>,
}

impl Browser {
    fn of(hub: &Hub) -> Self {
        Self {
            port: hub.endpoints().ops_port,
            cookie: None,
            etag: None,
        }
    }

    fn signed_in(hub: &Hub, key: &PolicyKey) -> Self {
        let mut browser = Self::of(hub);
        let reply = browser.sign_in(key);
        assert_eq!(reply.status, 200, "{reply:?}");
        browser
    }

    fn sign_in(&mut self, key: &PolicyKey) -> Reply {
        let reply = self.ask("POST", "session", &json!({ "policy": key.policy, "key": key.key }));
        let cookie = reply.header("set-cookie").split(';').next().unwrap_or_default();
        self.cookie = (!cookie.is_empty()).then(|| cookie.to_owned());
        reply
    }

    fn host(&self) -> String {
        format!("localhost:{}", self.port)
    }

    /// The headers that a page of the console sends with a change.
    fn own_headers(&self) -> Headers {
        let mut headers = vec![
            ("Host", self.host()),
            ("Origin", format!("http://{}", self.host())),
            ("Sec-Fetch-Site", "same-origin".to_owned()),
            ("X-Forebay-Console", "1".to_owned()),
        ];
        headers.extend(self.cookie.clone().map(|cookie| ("Cookie", cookie)));
        headers.extend(self.etag.clone().map(|etag| ("If-Match", format!("\"{etag}\""))));
        headers
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Reply {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        self.raw(
            method,
            &format!("/console/api/{path}"),
            &self.own_headers(),
            body.as_bytes(),
        )
    }

    fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &Value::Null)
    }

    fn raw(&self, method: &str, path: &str, headers: &[(&str, String)], body: &[u8]) -> Reply {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nConnection: close\r\n");
        if method != "GET" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += "\r\n";
        stream.write_all(&[head.as_bytes(), body].concat()).unwrap();
        read_reply(&mut stream)
    }
}

fn read_reply(stream: &mut TcpStream) -> Reply {
    let mut bytes = Vec::new();
    // A connection that is closed over an unread body may end in a reset, behind the answer.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8(bytes).unwrap();
    let (head, body) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {text:?}"));
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    Reply {
        status,
        headers,
        body: body.to_owned(),
    }
}

fn owner(hub: &Hub) -> PolicyKey {
    Site::of(hub).owner
}

fn policy(hub: &Hub, name: &str) -> PolicyKey {
    let shown = hub.run(&["policy", "show", name, "--json"]).expect_success();
    let policy: Value = serde_json::from_str(&shown).unwrap();
    PolicyKey {
        policy: name.to_owned(),
        key: policy["primaryKey"].as_str().unwrap().to_owned(),
    }
}

#[test]
fn the_page_and_its_files_come_under_a_strict_policy() {
    let hub = Hub::start(&[]);
    let browser = Browser::of(&hub);
    let headers = [("Host", browser.host())];
    let page = browser.raw("GET", "/console/", &headers, b"");
    assert_eq!(
        (page.status, page.header("content-type")),
        (200, "text/html; charset=utf-8")
    );
    let script = browser.raw("GET", "/console/main.js", &headers, b"");
    assert_eq!(
        (script.status, script.header("content-type")),
        (200, "text/javascript; charset=utf-8")
    );
    let refused = browser.get("devices");
    for reply in [&page, &script, &refused] {
        let policy = reply.header("content-security-policy");
        assert!(
            policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"),
            "{reply:?}"
        );
        assert!(!policy.contains("unsafe") && !policy.contains('*'), "{policy}");
        assert_eq!(reply.header("x-frame-options"), "DENY");
        assert_eq!(reply.header("x-content-type-options"), "nosniff");
        assert_eq!(reply.header("cache-control"), "no-store");
        assert_eq!(reply.header("cross-origin-resource-policy"), "same-origin");
        assert_eq!(reply.header("access-control-allow-origin"), "");
    }
    let bare = browser.raw("GET", "/console", &headers, b"");
    assert_eq!((bare.status, bare.header("location")), (308, "/console/"));
    assert_eq!(browser.raw("GET", "/console/other.js", &headers, b"").error().0, 404);
    assert_eq!(browser.raw("POST", "/console/", &headers, b"").error().0, 405);
    assert_eq!(browser.raw("GET", "/console/../metrics", &headers, b"").status, 404);
}

#[test]
fn bad_requests_are_refused_and_counted() {
    let hub = Hub::start(&[]);
    let owner = Browser::signed_in(&hub, &owner(&hub));
    let reader = Browser::signed_in(&hub, &policy(&hub, "registryRead"));
    let service = Browser::signed_in(&hub, &policy(&hub, "service"));
    hub.run(&["device", "create", "d"]).expect_success();
    let no_device = Browser::of(&hub).sign_in(&policy(&hub, "device"));
    assert_eq!(
        no_device.error(),
        (403, "NotPermitted".into()),
        "DeviceConnect shows nothing"
    );

    let nobody = Browser::of(&hub);
    let check = |browser: &Browser, method: &str, path: &str, body: Value, status: u16, code: &str| {
        let reply = browser.ask(method, path, &body);
        assert_eq!(reply.error(), (status, code.to_owned()), "{method} {path}");
    };
    let null = || Value::Null;
    // No session.
    for path in [
        "session",
        "overview",
        "hub",
        "configuration",
        "devices",
        "devices/d",
        "partitions",
        "tail",
    ] {
        check(&nobody, "GET", path, null(), 401, "NotSignedIn");
    }
    check(
        &nobody,
        "POST",
        "devices",
        json!({ "deviceId": "x" }),
        401,
        "NotSignedIn",
    );
    let guessed = Browser {
        cookie: Some(format!(
            "forebay-console-{}=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            owner.port
        )),
        ..Browser::of(&hub)
    };
    check(&guessed, "GET", "session", null(), 401, "NotSignedIn");
    // No right.
    let message = || json!({ "body": "x" });
    for (browser, method, path, body) in [
        (&reader, "POST", "devices", json!({ "deviceId": "x" })),
        (&reader, "PATCH", "devices/d", json!({ "status": "disabled" })),
        (&reader, "DELETE", "devices/d", null()),
        (&reader, "GET", "devices/d/twin", null()),
        (&reader, "PUT", "devices/d/twin", json!({ "tags": {} })),
        (&reader, "POST", "devices/d/messages", message()),
        (&reader, "POST", "devices/d/methods", json!({ "methodName": "m" })),
        (&reader, "DELETE", "devices/d/queue", null()),
        (&reader, "POST", "query", json!({ "query": "SELECT * FROM devices" })),
        (&reader, "GET", "partitions", null()),
        (&reader, "POST", "groups", json!({ "name": "g" })),
        (&reader, "GET", "tail", null()),
        (&reader, "GET", "configuration", null()),
        (&service, "GET", "devices", null()),
        (&service, "GET", "devices/d", null()),
        (&service, "GET", "devices/d/keys", null()),
        (&service, "POST", "devices", json!({ "deviceId": "x" })),
        (&service, "DELETE", "devices/d", null()),
    ] {
        check(browser, method, path, body, 403, "NotPermitted");
    }
    assert_eq!(reader.get("devices").json()["total"], 1);
    assert_eq!(service.get("devices/d/twin").json()["deviceId"], "d");
    // No such thing, or not like that.
    check(&owner, "GET", "nothing", null(), 404, "NotFound");
    check(&owner, "GET", "devices/d/nothing", null(), 404, "NotFound");
    check(&owner, "PUT", "devices", json!({}), 405, "MethodNotAllowed");
    check(&owner, "GET", "devices/nobody", null(), 404, "DeviceNotFound");
    check(&owner, "GET", "devices/nobody/twin", null(), 404, "DeviceNotFound");
    check(&owner, "GET", "devices/d/twin?module=m", null(), 404, "ModuleNotFound");
    check(
        &owner,
        "POST",
        "devices/nobody/messages",
        message(),
        404,
        "DeviceNotFound",
    );
    check(&owner, "DELETE", "devices/nobody/queue", null(), 404, "DeviceNotFound");
    check(
        &owner,
        "POST",
        "devices/nobody/methods",
        json!({ "methodName": "m" }),
        404,
        "DeviceNotFound",
    );
    check(
        &owner,
        "POST",
        "devices/d/methods",
        json!({ "methodName": "m" }),
        404,
        "DeviceNotOnline",
    );
    check(
        &owner,
        "POST",
        "devices/d/methods",
        json!({ "methodName": "" }),
        400,
        "ArgumentInvalid",
    );
    check(
        &owner,
        "POST",
        "devices",
        json!({ "deviceId": "d" }),
        409,
        "DeviceAlreadyExists",
    );
    check(
        &owner,
        "POST",
        "devices",
        json!({ "deviceId": "<b>" }),
        400,
        "BadRequest",
    );
    check(
        &owner,
        "POST",
        "devices",
        json!({ "deviceId": "x", "other": 1 }),
        400,
        "ArgumentInvalid",
    );
    check(
        &owner,
        "POST",
        "devices/d/messages",
        json!({ "body": "%", "isBase64": true }),
        400,
        "BadRequest",
    );
    check(
        &owner,
        "POST",
        "devices/d/messages",
        json!({ "body": "x", "ack": "maybe" }),
        400,
        "ArgumentInvalid",
    );
    check(
        &owner,
        "POST",
        "devices/d/messages",
        json!({ "body": "x".repeat(70_000) }),
        413,
        "MessageTooLarge",
    );
    check(
        &owner,
        "POST",
        "query",
        json!({ "query": "SELECT" }),
        400,
        "ArgumentInvalid",
    );
    check(&owner, "POST", "groups", json!({ "name": "a b" }), 400, "BadRequest");
    check(&owner, "DELETE", "groups/nobody", null(), 404, "GroupNotFound");
    check(&owner, "DELETE", "groups/$Default", null(), 400, "ArgumentInvalid");
    check(&owner, "DELETE", "devices/d", null(), 400, "BadRequest");
    check(
        &owner,
        "PUT",
        "devices/d/twin",
        json!({ "tags": {} }),
        400,
        "BadRequest",
    );
    let stale = Browser {
        etag: Some("stale".into()),
        cookie: owner.cookie.clone(),
        ..Browser::of(&hub)
    };
    check(&stale, "DELETE", "devices/d", null(), 412, "PreconditionFailed");
    check(
        &stale,
        "PATCH",
        "devices/d",
        json!({ "status": "disabled" }),
        412,
        "PreconditionFailed",
    );
    check(
        &stale,
        "PUT",
        "devices/d/twin",
        json!({ "tags": {} }),
        412,
        "PreconditionFailed",
    );
    check(
        &stale,
        "PUT",
        "devices/d/twin",
        json!({ "tags": 1 }),
        400,
        "ArgumentInvalid",
    );
    for path in [
        "tail?partition=9",
        "tail?partition=x",
        "tail?at=0-x",
        "tail?at=9-1",
        "tail?from=noon",
        "devices?status=odd",
        "devices?limit=x",
        "devices?after=%3C",
        "overview?since=x",
    ] {
        check(&owner, "GET", path, null(), 400, "BadRequest");
    }
    check(&owner, "GET", "devices/%zz", null(), 400, "BadRequest");

    let raw = |body: &[u8]| {
        owner
            .raw("POST", "/console/api/devices", &owner.own_headers(), body)
            .error()
    };
    assert_eq!(raw(b"{"), (400, "IotHubFormatError".into()));
    assert_eq!(raw(b"[]"), (400, "ArgumentInvalid".into()));
    assert_eq!(raw(&vec![b' '; 192 * 1024 + 1]), (413, "TooLarge".into()));
    let reply = owner.raw(
        "POST",
        "/console/api/session",
        &owner.own_headers(),
        &vec![b' '; 5 * 1024],
    );
    assert_eq!(reply.error(), (413, "TooLarge".into()));

    let counted = |reason: &str| sample(&hub, &format!("forebay_console_refused_total{{reason=\"{reason}\"}}"));
    for (reason, least) in [
        ("session", 10.0),
        ("permission", 18.0),
        ("path", 3.0),
        ("body", 15.0),
        ("hub", 15.0),
    ] {
        assert!(counted(reason) >= least, "{reason}: {}", counted(reason));
    }
    assert_eq!((counted("host"), counted("origin")), (0.0, 0.0));
}

#[test]
fn a_page_of_somebody_else_changes_nothing() {
    let hub = Hub::start(&[]);
    let browser = Browser::signed_in(&hub, &owner(&hub));
    let attempt = |change: &dyn Fn(&mut Headers)| {
        let mut headers = browser.own_headers();
        change(&mut headers);
        browser.raw("POST", "/console/api/devices", &headers, br#"{"deviceId":"x"}"#)
    };
    let without = |name: &'static str| attempt(&move |headers| headers.retain(|(known, _)| *known != name));
    let with = |name: &'static str, value: &'static str| {
        attempt(&move |headers| {
            headers.retain(|(known, _)| *known != name);
            headers.push((name, value.to_owned()));
        })
    };
    let foreign = (403, "ForeignOrigin".to_owned());
    assert_eq!(without("Origin").error(), foreign);
    assert_eq!(without("X-Forebay-Console").error(), foreign);
    assert_eq!(
        with("Origin", "http://localhost:3000").error(),
        foreign,
        "another port of this machine"
    );
    assert_eq!(with("Origin", "http://evil.example").error(), foreign);
    assert_eq!(with("Origin", "null").error(), foreign);
    assert_eq!(with("Sec-Fetch-Site", "same-site").error(), foreign);
    assert_eq!(with("Host", "evil.example").error(), (421, "MisdirectedRequest".into()));
    assert_eq!(browser.get("devices").json()["total"], 0, "nothing was made");

    // Under another name nothing is shown either, not even the page.
    let rebound = [
        ("Host", "evil.example".to_owned()),
        ("Cookie", browser.cookie.clone().unwrap()),
    ];
    for path in ["/console/", "/console/api/devices"] {
        assert_eq!(browser.raw("GET", path, &rebound, b"").error().0, 421, "{path}");
    }
    let mut reader = browser.own_headers();
    reader.retain(|(name, _)| *name != "Sec-Fetch-Site");
    reader.push(("Sec-Fetch-Site", "cross-site".into()));
    assert_eq!(
        browser.raw("GET", "/console/api/devices", &reader, b"").error(),
        foreign
    );
    let counted = |reason: &str| sample(&hub, &format!("forebay_console_refused_total{{reason=\"{reason}\"}}"));
    assert_eq!((counted("origin"), counted("host")), (7.0, 3.0));
}

#[test]
fn signing_in_is_slow_for_who_guesses_and_ends_with_the_key() {
    let hub = Hub::start(&[]);
    let service = policy(&hub, "service");
    let wrong = |policy: &str| PolicyKey {
        policy: policy.to_owned(),
        key: "bm90IHRoZSBrZXk=".into(),
    };
    // Nobody learns which policies there are.
    let begun = Instant::now();
    let (known, unknown) = (
        Browser::of(&hub).sign_in(&wrong("service")),
        Browser::of(&hub).sign_in(&wrong("nobody")),
    );
    assert_eq!(known.error(), (401, "SignInRefused".into()));
    assert_eq!(known.body, unknown.body);
    assert!(begun.elapsed() >= Duration::from_secs(2), "a guess costs a second");
    // Many at a time are not looked at.
    let replies: Vec<_> = std::thread::scope(|scope| {
        let attempt = || Browser::of(&hub).sign_in(&wrong("service"));
        let attempts: Vec<_> = (0..12).map(|_| scope.spawn(attempt)).collect();
        attempts.into_iter().map(|attempt| attempt.join().unwrap()).collect()
    });
    let slowed: Vec<_> = replies.iter().filter(|reply| reply.status == 429).collect();
    assert!(slowed.len() >= 4, "{}", slowed.len());
    assert!(
        slowed
            .iter()
            .all(|reply| reply.header("retry-after") == "1" && reply.error().1 == "SignInSlowed")
    );

    let mut browser = Browser::of(&hub);
    let reply = browser.sign_in(&service);
    let cookie = reply.header("set-cookie").to_owned();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/console"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    let session = browser.get("session").json();
    assert_eq!(session["policy"], "service");
    let rights = json!({ "registryRead": false, "registryWrite": false, "serviceConnect": true });
    assert_eq!(session["rights"], rights);
    let second = Browser::signed_in(&hub, &service);
    assert_ne!(second.cookie, browser.cookie);
    assert_eq!(second.ask("DELETE", "session", &Value::Null).status, 204);
    assert_eq!(second.get("session").status, 401, "signed out in the hub too");
    assert_eq!(browser.get("session").status, 200, "the other one goes on");
    let counted = |outcome: &str| {
        sample(
            &hub,
            &format!("forebay_console_sign_ins_total{{outcome=\"{outcome}\"}}"),
        )
    };
    assert_eq!((counted("accepted"), counted("slowed")), (2.0, slowed.len() as f64));
    assert_eq!(counted("refused"), 14.0 - slowed.len() as f64);
    let guesses = sample(&hub, "forebay_credentials_refused_total{reason=\"signature\"}");
    assert!(guesses >= 1.0, "{guesses}");

    // A right that is taken away counts from the next request on; a changed key ends the session.
    let rights = ["policy", "update", "service", "--rights"];
    hub.run(&[&rights[..], &["RegistryRead"]].concat()).expect_success();
    assert_eq!(browser.get("partitions").error().0, 403);
    assert_eq!(browser.get("devices").status, 200);
    hub.run(&["policy", "rotate", "service", "--key", "secondary"])
        .expect_success();
    assert_eq!(
        browser.get("session").status,
        200,
        "the key that was shown is still one"
    );
    hub.run(&["policy", "rotate", "service", "--key", "primary"])
        .expect_success();
    assert_eq!(browser.get("session").error(), (401, "NotSignedIn".into()));
    assert_eq!(browser.sign_in(&service).error(), (401, "SignInRefused".into()));
    let mut late = Browser::signed_in(&hub, &policy(&hub, "registryRead"));
    hub.run(&["policy", "delete", "registryRead"]).expect_success();
    assert_eq!(late.get("session").status, 401);
    late.cookie = None;
    assert_eq!(late.get("session").status, 401);
}

#[test]
fn devices_are_looked_after() {
    let hub = Hub::start(&[]);
    let mut browser = Browser::signed_in(&hub, &owner(&hub));
    for n in 0..120 {
        let made = browser.ask("POST", "devices", &json!({ "deviceId": format!("d-{n:03}") }));
        assert_eq!(made.status, 201, "{made:?}");
        assert!(!made.body.contains("Key"), "{made:?}");
    }
    let first = browser.get("devices?limit=50").json();
    let ids = |page: &Value| -> Vec<String> {
        let devices = page["devices"].as_array().unwrap().iter();
        devices
            .map(|device| device["deviceId"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(
        (ids(&first).len(), &*ids(&first)[0], &first["total"]),
        (50, "d-000", &json!(120))
    );
    let next = first["next"].as_str().unwrap();
    let second = browser.get(&format!("devices?limit=50&after={next}")).json();
    assert_eq!(ids(&second)[0], "d-050");
    let found = browser
        .get("devices?contains=D-11&status=enabled&connection=disconnected")
        .json();
    assert_eq!((ids(&found).len(), &found["next"]), (10, &Value::Null));

    let keys = browser.get("devices/d-000/keys").json();
    let shown = hub.run(&["device", "show", "d-000"]).expect_success();
    let string = keys["primaryConnectionString"].as_str().unwrap();
    assert!(shown.trim().ends_with(&format!(" {string}")), "{shown}");

    let twin = browser.get("devices/d-000/twin").json();
    browser.etag = Some(twin["etag"].as_str().unwrap().to_owned());
    let update = r#"{"tags":{"n":21.0},"properties":{"desired":{"on":true}}}"#;
    let path = "/console/api/devices/d-000/twin";
    let changed = browser
        .raw("PUT", path, &browser.own_headers(), update.as_bytes())
        .json();
    assert_eq!(changed["tags"]["text"], "{\n  \"n\": 21.0\n}");
    assert_eq!(changed["properties"]["desired"]["version"], 2);
    browser.etag = Some(changed["etag"].as_str().unwrap().to_owned());
    let patched = browser.ask(
        "PATCH",
        "devices/d-000/twin",
        &json!({ "properties": { "desired": { "on": null } } }),
    );
    assert_eq!(patched.json()["properties"]["desired"]["text"], "{}");

    let message = json!({ "body": "AP8=", "isBase64": true, "properties": { "a": "b" }, "messageId": "m-1", "ack": "full", "ttlSeconds": 60 });
    let queued = browser.ask("POST", "devices/d-000/messages", &message).json();
    assert_eq!((&queued["sequenceNumber"], &queued["waiting"]), (&json!(1), &json!(1)));
    assert_eq!(browser.get("devices/d-000").json()["cloudToDeviceMessageCount"], 1);
    let purged = browser.ask("DELETE", "devices/d-000/queue", &Value::Null).json();
    assert_eq!(purged["purged"], 1);

    let identity = browser.get("devices/d-000").json();
    browser.etag = Some(identity["etag"].as_str().unwrap().to_owned());
    let off = browser
        .ask(
            "PATCH",
            "devices/d-000",
            &json!({ "status": "disabled", "statusReason": "<b>" }),
        )
        .json();
    assert_eq!(
        (&off["status"], &off["statusReason"]),
        (&json!("disabled"), &json!("<b>"))
    );
    let kept = browser.get("devices/d-000/keys").json();
    assert_eq!(kept["primaryKey"], keys["primaryKey"], "nothing else was changed");
    browser.etag = Some("*".into());
    assert_eq!(browser.ask("DELETE", "devices/d-000", &Value::Null).status, 204);
    assert_eq!(browser.get("devices/d-000").error().1, "DeviceNotFound");

    let query = json!({ "query": "SELECT deviceId FROM devices WHERE status = 'enabled'" });
    let page = browser.ask("POST", "query", &query).json();
    assert_eq!(
        (page["items"].as_array().unwrap().len(), &page["itemType"]),
        (100, &json!("raw"))
    );
    let rest = json!({ "query": query["query"], "continuation": page["continuation"] });
    let rest = browser.ask("POST", "query", &rest).json();
    assert_eq!(
        (rest["items"].as_array().unwrap().len(), &rest["continuation"]),
        (19, &Value::Null)
    );
}

#[test]
fn groups_figures_and_configuration_are_shown_without_secrets() {
    let secret = "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3I=";
    let hub = Hub::start(&["--set", &format!("identity.owner_key={secret}"), "--fleet", "1"]);
    let browser = Browser::signed_in(&hub, &owner(&hub));
    assert_eq!(browser.ask("POST", "groups", &json!({ "name": "extra" })).status, 201);
    let shown = browser.get("partitions").json();
    assert_eq!(shown["partitions"].as_array().unwrap().len(), 4);
    let groups = shown["groups"].as_array().unwrap();
    let names: Vec<_> = groups.iter().map(|group| group["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["$Default", "cg2", "extra"]);
    assert_eq!(browser.ask("DELETE", "groups/extra", &Value::Null).status, 204);
    assert_eq!(browser.get("partitions").json()["groups"].as_array().unwrap().len(), 2);

    let configuration = browser.get("configuration");
    assert!(!configuration.body.contains(secret), "the owner's key is shown");
    assert!(configuration.body.contains("(hidden)") && configuration.body.contains("\"owner_key\""));
    let about = browser.get("hub").json();
    assert_eq!(
        (&about["about"]["partitions"], &about["health"]["isReady"]),
        (&json!(4), &json!(true))
    );

    let figures = crate::hub::until("a sample with telemetry", || {
        let samples = browser.get("overview").json()["samples"].as_array()?.clone();
        samples
            .into_iter()
            .find(|sample| sample["messagesIn"].as_f64() > Some(0.0))
    });
    assert!(figures["ackP99"].as_f64().unwrap() > 0.0, "{figures}");
    let quic = figures["sessions"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["protocol"] == "QUIC");
    assert_eq!(quic.unwrap()["count"], 1, "{figures}");
    let since = figures["number"].as_u64().unwrap();
    let later = browser.get(&format!("overview?since={since}")).json();
    assert!(
        later["samples"]
            .as_array()
            .unwrap()
            .iter()
            .all(|sample| sample["number"].as_u64().unwrap() > since)
    );
}

#[test]
fn the_tail_goes_on_where_it_was_and_filters() {
    let hub = Hub::start(&[]);
    let browser = Browser::signed_in(&hub, &owner(&hub));
    for device in ["pump-1", "lamp-1"] {
        hub.run(&["device", "create", device]).expect_success();
    }
    let lines: String = (0..500).map(|n| format!("reading {n}\n")).collect();
    hub.run_with_input(&["send", "pump-1", "--lines"], lines.as_bytes())
        .expect_success();
    hub.run(&[
        "send",
        "lamp-1",
        "<script>alert(1)</script>",
        "--property",
        "level=high",
    ])
    .expect_success();

    // All of it, in order, each once; no answer has more than its share.
    let (mut at, mut bodies) = (String::new(), Vec::new());
    while bodies.len() < 501 {
        let place = if at.is_empty() {
            "from=earliest".to_owned()
        } else {
            format!("at={at}")
        };
        let answer = browser.get(&format!("tail?{place}")).json();
        let messages = answer["messages"].as_array().unwrap();
        assert!(messages.len() <= 200, "{}", messages.len());
        bodies.extend(
            messages
                .iter()
                .map(|message| message["body"].as_str().unwrap().to_owned()),
        );
        at = answer["at"].as_str().unwrap().to_owned();
    }
    let readings: Vec<_> = bodies.iter().filter(|body| body.starts_with("reading")).collect();
    assert_eq!(readings.len(), 500);
    assert!(
        readings
            .iter()
            .enumerate()
            .all(|(n, body)| **body == format!("reading {n}"))
    );

    // A filter looks at everything and shows what is wanted.
    let mut at = "from=earliest".to_owned();
    let shown = loop {
        let answer = browser.get(&format!("tail?{at}&device=LAMP&text=hig")).json();
        assert!(answer["scanned"].as_u64().unwrap() > 0);
        at = format!("at={}", answer["at"].as_str().unwrap());
        if let Some(message) = answer["messages"].as_array().unwrap().first() {
            break message.clone();
        }
    };
    assert_eq!(
        (&shown["deviceId"], &shown["body"]),
        (&json!("lamp-1"), &json!("<script>alert(1)</script>"))
    );
    assert_eq!(shown["properties"], json!([["level", "high"]]));

    // Who is at the end waits until something comes.
    let end = browser.get("tail?from=latest&at=").status;
    assert_eq!(end, 400, "an empty place is none");
    let begun = Instant::now();
    let waited = std::thread::scope(|scope| {
        let tail = scope.spawn(|| {
            let answer = browser.get("tail?live=1&device=lamp").json();
            answer["messages"][0]["body"].as_str().map(str::to_owned)
        });
        std::thread::sleep(Duration::from_millis(500));
        hub.run(&["send", "lamp-1", "now"]).expect_success();
        tail.join().unwrap()
    });
    assert_eq!(waited.as_deref(), Some("now"));
    assert!(
        begun.elapsed() < Duration::from_secs(14),
        "it did not wait for the end of its time"
    );
}

#[test]
fn readers_that_do_not_read_cost_a_bounded_number_of_places() {
    let hub = Hub::start(&[]);
    let browser = Browser::signed_in(&hub, &owner(&hub));
    let ask = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, browser.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut head = "GET /console/api/tail HTTP/1.1\r\nConnection: close\r\n".to_owned();
        for (name, value) in browser.own_headers() {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
        stream
    };
    let waiting: Vec<_> = (0..8).map(|_| ask()).collect();
    let refused = crate::hub::until("a ninth is refused", || {
        let mut ninth = ask();
        ninth.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut byte = [0; 12];
        // One that got a place waits, and gives it back when it goes.
        ninth.read_exact(&mut byte).ok()?;
        Some(byte)
    });
    assert_eq!(&refused, b"HTTP/1.1 503");
    // The rest of the port answers as ever.
    assert_eq!(hub.get("/healthz").0, 200);
    drop(waiting);
    hub.run(&["device", "create", "d"]).expect_success();
    hub.run(&["send", "d", "x"]).expect_success();
    let begun = Instant::now();
    crate::hub::until("places come back", || {
        (browser.get("tail?from=earliest").status == 200).then_some(())
    });
    assert!(begun.elapsed() < Duration::from_secs(10), "they do not wait for nobody");
}

#[test]
fn the_console_may_be_off() {
    let hub = Hub::start(&["--set", "ops.console=off"]);
    let (status, text) = hub.get("/console/");
    assert_eq!(status, 404);
    assert!(text.contains("ops.console"), "{text}");
    assert_eq!(hub.get("/console/api/session").0, 404);
    assert_eq!(hub.get("/readyz").0, 200);
}

//! kill -9 of the hub while messages to devices, twins and the registry are written by many at once: what was answered
//! holds, what was completed does not come again, no version goes backwards, and feedback tells what happened.
//!
//! `cargo test` kills a hub a few times; `FOREBAY_KILL9_POINTS=100 cargo test --test it kill9_state -- --nocapture` does
//! it for longer. `FOREBAY_SEED=n` draws the same moments again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use forebay::client::ClientError;
use forebay::client::endpoint::ClientEndpoint;
use forebay::client::service::{Service, ServiceOptions};
use forebay::client::streams::Outcome;
use forebay::model::SystemKey;
use serde_json::{Value, json};

use crate::hub::{Hub, PATIENCE};
use crate::kill9::points;
use crate::peers::{Chance, Site, within};

const DEVICES: usize = 3;
const QUEUE_FULL: u32 = 403_004;
const BUSY: u32 = 503_005;
const LOCK_LOST: u32 = 412_002;

/// What a request came to.
enum Said {
    Done(Value),
    Refused(u32),
    /// The connection was lost: done or not, nobody knows.
    Unknown,
}

/// A service that connects again whenever it has to.
struct Asker {
    site: Site,
    endpoint: ClientEndpoint,
    service: Option<Service>,
}

impl Asker {
    fn new(site: &Site) -> Self {
        Self {
            site: site.clone(),
            endpoint: site.endpoint(),
            service: None,
        }
    }

    async fn ask(&mut self, operation: &str, document: &Value) -> Said {
        let service = match self.service.take() {
            Some(service) => service,
            None => within(self.connect()).await,
        };
        match tokio::time::timeout(PATIENCE, service.request(operation, document)).await {
            Ok(Ok(answer)) => {
                self.service = Some(service);
                Said::Done(answer)
            }
            Ok(Err(ClientError::Refused { code, .. })) => {
                self.service = Some(service);
                Said::Refused(code)
            }
            Ok(Err(error)) if error.is_transient() => Said::Unknown,
            Ok(Err(error)) => panic!("{operation}: {error}"),
            Err(_) => panic!("{operation} was not answered"),
        }
    }

    async fn connect(&self) -> Service {
        let options = ServiceOptions {
            hub: self.site.address.clone(),
            key: self.site.owner.clone(),
        };
        loop {
            match tokio::time::timeout(Duration::from_secs(2), Service::connect(&self.endpoint, &options)).await {
                Ok(Ok(service)) => return service,
                Ok(Err(_)) | Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    /// A request that can be repeated until it is answered.
    async fn insist(&mut self, operation: &str, document: &Value) -> Value {
        loop {
            match self.ask(operation, document).await {
                Said::Done(answer) => return answer,
                Said::Refused(BUSY) | Said::Unknown => {}
                Said::Refused(code) => panic!("{operation} {document}: {code}"),
            }
        }
    }
}

/// What all who load the hub know together.
#[derive(Default)]
struct Known {
    stop: Cell<bool>,
    /// Messages that the hub said it has, and those it may have.
    queued: RefCell<BTreeSet<String>>,
    maybe_queued: RefCell<BTreeSet<String>>,
    /// Messages that a device ended, and how; only those it was told of.
    ended: RefCell<BTreeMap<String, &'static str>>,
    /// What feedback says of each message.
    outcomes: RefCell<BTreeMap<String, BTreeSet<String>>>,
    /// Of each device: versions and values of desired and reported properties that were answered.
    desired: RefCell<BTreeMap<String, (u64, u64)>>,
    reported: RefCell<BTreeMap<String, (u64, u64)>>,
    /// Devices of the registry and their status, `None` for deleted; not those of which nobody knows.
    registry: RefCell<BTreeMap<String, Option<&'static str>>>,
}

impl Known {
    fn is_stopped(&self) -> bool {
        self.stop.get()
    }
}

/// Queues messages for a device as fast as its queue takes them.
async fn queue(known: Rc<Known>, mut asker: Asker, device: String) {
    for number in 0.. {
        let id = format!("{device}-{number}");
        let message = json!({
            "deviceId": device, "body": id, "system": { "message-id": id, "iothub-ack": "full" },
        });
        loop {
            if known.is_stopped() {
                return;
            }
            match asker.ask("c2d.send", &message).await {
                Said::Done(_) => drop(known.queued.borrow_mut().insert(id.clone())),
                Said::Unknown => drop(known.maybe_queued.borrow_mut().insert(id.clone())),
                Said::Refused(QUEUE_FULL | BUSY) => {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                    continue;
                }
                Said::Refused(code) => panic!("{id}: {code}"),
            }
            break;
        }
    }
}

/// Takes a device's messages: completes most, rejects and abandons some.
async fn take(known: Rc<Known>, device: forebay::client::device::Device) {
    let mut commands = device.commands(8);
    for turn in 0_u64.. {
        let command = loop {
            if known.is_stopped() {
                return;
            }
            if let Ok(next) = tokio::time::timeout(Duration::from_millis(50), commands.next()).await {
                break next.unwrap();
            }
        };
        let id = command.message.get(SystemKey::MessageId).unwrap().to_owned();
        let ended = known.ended.borrow().get(&id).copied();
        assert!(ended.is_none(), "{id} ended with {ended:?}, and comes again");
        let (outcome, end) = match turn % 7 {
            0 => (Outcome::Reject, Some("Rejected")),
            1 if command.delivery_count < 3 => (Outcome::Abandon, None),
            _ => (Outcome::Complete, Some("Success")),
        };
        if commands.settle(&command, outcome).await.is_ok()
            && let Some(end) = end
        {
            known.ended.borrow_mut().insert(id, end);
        }
    }
}

async fn feedback(known: Rc<Known>, mut asker: Asker, until_all: bool) {
    let is_over = || {
        let (outcomes, queued) = (known.outcomes.borrow(), known.queued.borrow());
        let is_complete = queued.iter().all(|id| outcomes.contains_key(id));
        if until_all { is_complete } else { known.is_stopped() }
    };
    while !is_over() {
        let wait = json!({ "waitSeconds": 1 });
        let Said::Done(batch) = asker.ask("feedback.receive", &wait).await else {
            continue;
        };
        let Some(token) = batch["lockToken"].as_str() else {
            continue;
        };
        for record in batch["records"].as_array().unwrap() {
            let text = |name: &str| record[name].as_str().unwrap().to_owned();
            let mut outcomes = known.outcomes.borrow_mut();
            outcomes
                .entry(text("originalMessageId"))
                .or_default()
                .insert(text("statusCode"));
        }
        match asker.ask("feedback.complete", &json!({ "lockToken": token })).await {
            Said::Done(_) | Said::Unknown | Said::Refused(LOCK_LOST) => {}
            Said::Refused(code) => panic!("feedback: {code}"),
        }
    }
}

/// Patches desired properties, each time with a larger number.
async fn patch(known: Rc<Known>, mut asker: Asker, device: String) {
    for number in 1_u64.. {
        if known.is_stopped() {
            return;
        }
        let change = json!({ "deviceId": device, "twin": { "properties": { "desired": { "n": number } } } });
        let Said::Done(twin) = asker.ask("twin.patch", &change).await else {
            continue;
        };
        let desired = &twin["properties"]["desired"];
        let version = desired["$version"].as_u64().unwrap();
        let mut known = known.desired.borrow_mut();
        let (last, _) = known.entry(device.clone()).or_default();
        assert!(version > *last, "desired {version} after {last}");
        known.insert(device.clone(), (version, desired["n"].as_u64().unwrap()));
    }
}

async fn report(known: Rc<Known>, device: forebay::client::device::Device) {
    let name = device.device_id().as_str().to_owned();
    let mut twin = device.twin(0);
    for number in 1_u64.. {
        if known.is_stopped() {
            return;
        }
        let version = match within(twin.report(&format!(r#"{{"n":{number}}}"#), None)).await {
            Ok(version) => version,
            Err(error) => {
                // A device that was given up answers at once and for ever.
                assert!(device.failure().is_none(), "{name}: {error}");
                tokio::time::sleep(Duration::from_millis(1)).await;
                continue;
            }
        };
        let mut known = known.reported.borrow_mut();
        let (last, _) = known.entry(name.clone()).or_default();
        assert!(version > *last, "reported {version} after {last}");
        known.insert(name.clone(), (version, number));
    }
}

/// Reads twins all the time: what was answered before shows, and nothing goes back.
async fn observe(known: Rc<Known>, mut asker: Asker, devices: Vec<String>) {
    let mut seen: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    while !known.is_stopped() {
        for device in &devices {
            let answered =
                |of: &RefCell<BTreeMap<String, (u64, u64)>>| of.borrow().get(device).copied().unwrap_or((1, 0));
            let (desired, reported) = (answered(&known.desired), answered(&known.reported));
            let Said::Done(twin) = asker.ask("twin.get", &json!({ "deviceId": device })).await else {
                continue;
            };
            let versions = ["desired", "reported"].map(|section| {
                let section = &twin["properties"][section];
                (
                    section["$version"].as_u64().unwrap(),
                    section["n"].as_u64().unwrap_or(0),
                )
            });
            let [of_desired, of_reported] = versions;
            assert!(
                of_desired.0 >= desired.0 && of_desired.1 >= desired.1,
                "{of_desired:?} {desired:?}"
            );
            assert!(
                of_reported.0 >= reported.0 && of_reported.1 >= reported.1,
                "{of_reported:?} {reported:?}"
            );
            let before = seen
                .insert(device.clone(), [of_desired.0, of_reported.0])
                .unwrap_or_default();
            assert!(
                of_desired.0 >= before[0] && of_reported.0 >= before[1],
                "{versions:?} after {before:?}"
            );
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
}

/// Makes devices, disables every second and deletes every third.
async fn register(known: Rc<Known>, mut asker: Asker) {
    for number in 0.. {
        let id = format!("registered-{number}");
        let name = json!({ "deviceId": id });
        let mut steps = vec![("device.create", name.clone(), Some("enabled"))];
        if number % 2 == 0 {
            let disabled = json!({ "deviceId": id, "status": "disabled", "etag": "*" });
            steps.push(("device.update", disabled, Some("disabled")));
        }
        if number % 3 == 0 {
            steps.push(("device.delete", name, None));
        }
        for (operation, document, status) in steps {
            if known.is_stopped() {
                return;
            }
            match asker.ask(operation, &document).await {
                Said::Done(_) => drop(known.registry.borrow_mut().insert(id.clone(), status)),
                Said::Refused(BUSY) => break,
                Said::Refused(code) => panic!("{operation} {id}: {code}"),
                Said::Unknown => {
                    known.registry.borrow_mut().remove(&id);
                    break;
                }
            }
        }
    }
}

#[test]
fn what_was_answered_holds_over_kills_under_load() {
    let points = points(4);
    let seed = Chance::seed();
    println!("kill9 of a hub's state: {points} points, seed {seed}");
    let mut chance = Chance::new(seed);
    let mut hub = Hub::start(&[]);
    let site = Site::of(&hub);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let known = Rc::new(Known::default());
        let names: Vec<String> = (0..DEVICES).map(|n| format!("lamp-{n}")).collect();
        let mut running = Vec::new();
        for name in &names {
            let key = site.create_device(name).await;
            let device = site.device(name, &key);
            running.push(tokio::task::spawn_local(take(known.clone(), device.clone())));
            running.push(tokio::task::spawn_local(report(known.clone(), device)));
            running.push(tokio::task::spawn_local(queue(
                known.clone(),
                Asker::new(&site),
                name.clone(),
            )));
            running.push(tokio::task::spawn_local(patch(
                known.clone(),
                Asker::new(&site),
                name.clone(),
            )));
        }
        running.push(tokio::task::spawn_local(feedback(
            known.clone(),
            Asker::new(&site),
            false,
        )));
        running.push(tokio::task::spawn_local(observe(
            known.clone(),
            Asker::new(&site),
            names.clone(),
        )));
        running.push(tokio::task::spawn_local(register(known.clone(), Asker::new(&site))));
        for _ in 0..points {
            tokio::time::sleep(Duration::from_millis(chance.within(20..=500))).await;
            // The load goes on meanwhile.
            hub = tokio::task::spawn_blocking(move || {
                hub.kill9();
                hub.restart();
                hub
            })
            .await
            .unwrap();
            // Not only while everybody connects again. Queues that are full of locks of sessions that are gone take none.
            let before = known.queued.borrow().len();
            let more = async {
                while known.queued.borrow().len() < before + 20 {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let _ = tokio::time::timeout(Duration::from_secs(1), more).await;
        }
        // However unlucky one was with the kills: beside a hub that stays, everybody gets on.
        let answered = || [known.desired.borrow().clone(), known.reported.borrow().clone()];
        let before = answered();
        let is_ahead = |now: &BTreeMap<String, (u64, u64)>, before: &BTreeMap<String, (u64, u64)>| {
            names.iter().all(|name| now.get(name) > before.get(name))
        };
        within(async {
            while !answered()
                .iter()
                .zip(&before)
                .all(|(now, before)| is_ahead(now, before))
            {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        known.stop.set(true);
        for task in running {
            within(task).await.unwrap();
        }
        check(&known, &site, &names).await;
    });
}

async fn check(known: &Rc<Known>, site: &Site, names: &[String]) {
    let mut asker = Asker::new(site);
    // What is left, locked by sessions that are gone too, ends here, so that everything has an outcome.
    let mut purged = 0;
    for name in names {
        let answer = asker.insist("c2d.purge", &json!({ "deviceId": name })).await;
        purged += answer["totalMessagesPurged"].as_u64().unwrap();
    }
    within(feedback(known.clone(), Asker::new(site), true)).await;
    check_outcomes(known);
    for name in names {
        let twin = asker.insist("twin.get", &json!({ "deviceId": name })).await;
        for (section, answered) in [("desired", &known.desired), ("reported", &known.reported)] {
            let (version, number) = answered.borrow()[name];
            let section = &twin["properties"][section];
            assert!(
                section["$version"].as_u64().unwrap() >= version,
                "{name}: {section} {version}"
            );
            assert!(section["n"].as_u64().unwrap() >= number, "{name}: {section} {number}");
        }
    }
    let registry = known.registry.borrow().clone();
    for (id, status) in &registry {
        let found = asker.ask("device.get", &json!({ "deviceId": id })).await;
        match (found, status) {
            (Said::Done(device), Some(status)) => assert_eq!(device["status"], *status, "{id}"),
            (Said::Refused(404_001), None) => {}
            (Said::Done(_), None) => panic!("{id} was deleted"),
            (Said::Refused(code), _) => panic!("{id}: {code}"),
            (Said::Unknown, _) => panic!("{id}: the hub is gone"),
        }
    }
    println!(
        "{} messages queued, {} ended by devices, {purged} purged; twins {:?} {:?}; {} devices of the registry",
        known.queued.borrow().len(),
        known.ended.borrow().len(),
        known.desired.borrow(),
        known.reported.borrow(),
        registry.len()
    );
}

/// Each message ended once, and as its device was told.
fn check_outcomes(known: &Known) {
    let (queued, maybe, ended) = (known.queued.borrow(), known.maybe_queued.borrow(), known.ended.borrow());
    for (id, outcomes) in known.outcomes.borrow().iter() {
        assert!(queued.contains(id) || maybe.contains(id), "nobody sent {id}");
        assert_eq!(outcomes.len(), 1, "{id} ended more than once: {outcomes:?}");
        if let Some(end) = ended.get(id) {
            assert!(outcomes.contains(*end), "{id} ended with {end}, told is {outcomes:?}");
        }
    }
}

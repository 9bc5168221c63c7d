//! The throttles of a hub on a clock that the test holds.

use std::sync::Mutex;

use super::*;
use crate::model::DeviceId;
use crate::state::MemoryState;

#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Observer for Heard {
    fn delayed(&self, limit: Limit, wait: Duration) {
        self.0.lock().unwrap().push(format!("{} waits {wait:?}", limit.label()));
    }

    fn refused(&self, limit: Limit) {
        self.0.lock().unwrap().push(format!("{} refused", limit.label()));
    }
}

fn rate(per_second: u32, burst: u32) -> Rate {
    Rate { per_second, burst }
}

fn config() -> Config {
    Config {
        hub: [Rate::NONE; Class::ALL.len()],
        device: DeviceRates {
            messages: Rate::NONE,
            bytes: Rate::NONE,
        },
        wait_max: Duration::from_secs(2),
        waiters_max: 2,
        daily_messages_max: 0,
    }
}

fn open(config: Config) -> (Arc<Throttles>, Instant, Arc<Heard>) {
    let (origin, heard) = (Instant::now(), Arc::new(Heard::default()));
    let throttles = Throttles::open(config, MemoryState::new(), origin, heard.clone()).unwrap();
    (Arc::new(throttles), origin, heard)
}

fn device(name: &str) -> IdentityName {
    IdentityName {
        device: DeviceId::new(name).unwrap(),
        module: None,
    }
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

const TODAY: UtcMillis = UtcMillis(0);

#[test]
fn labels_and_indices_are_one_each() {
    for (index, limit) in Limit::ALL.into_iter().enumerate() {
        assert_eq!(limit.index(), index);
        assert_eq!(
            Limit::ALL.iter().filter(|other| other.label() == limit.label()).count(),
            1
        );
    }
}

#[test]
fn a_burst_goes_through_then_requests_wait_then_they_are_refused() {
    let mut config = config();
    config.hub[Class::TwinReads as usize] = rate(1, 3);
    config.waiters_max = 10;
    let (throttles, now, heard) = open(config);
    for _ in 0..3 {
        assert_eq!(throttles.admit(Class::TwinReads, 1, now).unwrap().until(), None);
    }
    let first = throttles.admit(Class::TwinReads, 1, now).unwrap();
    let second = throttles.admit(Class::TwinReads, 1, now).unwrap();
    assert_eq!(
        (first.until(), second.until()),
        (Some(now + seconds(1)), Some(now + seconds(2)))
    );
    let refused = throttles.admit(Class::TwinReads, 1, now).err().unwrap();
    assert_eq!((refused.code(), refused.wait()), (ErrorCode::THROTTLED, seconds(3)));
    // Another class is not concerned, and a second later there is room for one more.
    assert_eq!(throttles.admit(Class::TwinUpdates, 100, now).unwrap().until(), None);
    let later = throttles.admit(Class::TwinReads, 1, now + seconds(1)).unwrap();
    assert_eq!(later.until(), Some(now + seconds(3)));
    let heard = heard.0.lock().unwrap();
    let expected = [
        "twin_reads waits 1s",
        "twin_reads waits 2s",
        "twin_reads refused",
        "twin_reads waits 2s",
    ];
    assert_eq!(*heard, expected);
}

/// A request that finds no place to wait must not use up what others wait for.
#[test]
fn of_too_many_that_wait_the_rest_is_refused_and_takes_nothing() {
    let mut config = config();
    config.hub[Class::Registry as usize] = rate(2, 1);
    let (throttles, now, _) = open(config);
    assert_eq!(throttles.admit(Class::Registry, 1, now).unwrap().until(), None);
    let waiting: Vec<_> = (0..2)
        .map(|_| throttles.admit(Class::Registry, 1, now).unwrap())
        .collect();
    for _ in 0..100 {
        let refused = throttles.admit(Class::Registry, 1, now).err().unwrap();
        assert_eq!(refused.code(), ErrorCode::THROTTLE_BACKLOG);
        assert_eq!(refused.wait(), seconds(3) / 2);
    }
    drop(waiting);
    let next = throttles.admit(Class::Registry, 1, now).unwrap();
    assert_eq!(next.until(), Some(now + seconds(3) / 2));
}

#[test]
fn one_device_above_its_rate_is_refused_beside_others() {
    let mut config = config();
    config.device.messages = rate(1, 5);
    config.device.bytes = rate(1000, 2000);
    let (throttles, now, heard) = open(config);
    let send = |name, messages, bytes, at| throttles.admit_telemetry(&device(name), messages, bytes, at, TODAY);
    assert_eq!(send("noisy", 5, 0, now).unwrap().until(), None);
    assert_eq!(send("noisy", 1, 0, now).unwrap().until(), Some(now + seconds(1)));
    let refused = send("noisy", 2, 0, now).err().unwrap();
    assert_eq!(
        (refused.code(), refused.wait()),
        (ErrorCode::DEVICE_THROTTLED, seconds(3))
    );
    assert_eq!(send("quiet", 5, 2000, now).unwrap().until(), None);
    assert_eq!(send("large", 1, 3500, now).unwrap().until(), Some(now + seconds(3) / 2));
    assert_eq!(send("noisy", 1, 0, now + seconds(2)).unwrap().until(), None);
    assert!(heard.0.lock().unwrap().iter().all(|line| line.starts_with("device ")));
}

/// Half of a refused request must not count: neither the device's part nor the hub's.
#[test]
fn what_one_bucket_refuses_the_other_does_not_take() {
    let mut config = config();
    config.device.messages = rate(1, 4);
    config.hub[Class::D2cMessages as usize] = rate(1, 6);
    let (throttles, now, _) = open(config);
    let send = |name, messages| throttles.admit_telemetry(&device(name), messages, 0, now, TODAY);
    for _ in 0..10 {
        assert_eq!(send("a", 7).err().unwrap().code(), ErrorCode::DEVICE_THROTTLED);
    }
    assert_eq!(send("a", 4).unwrap().until(), None);
    assert_eq!(send("b", 2).unwrap().until(), None);
    for _ in 0..10 {
        assert_eq!(send("b", 3).err().unwrap().code(), ErrorCode::THROTTLED);
    }
    assert_eq!(
        send("b", 2).unwrap().until(),
        Some(now + seconds(2)),
        "the hub's, not the device's"
    );
}

#[test]
fn the_day_is_full_for_requests_and_sessions_alike() {
    let mut config = config();
    config.daily_messages_max = 3;
    let (throttles, now, heard) = open(config);
    let noon = UtcMillis(12 * 3_600_000);
    let mut pace = throttles.pace();
    assert_eq!(pace.pass(Gate::Device, 2, 0, now, noon), (Gate::Open, None));
    assert!(throttles.admit_command(now, noon).is_ok());
    let refused = throttles.admit_telemetry(&device("d"), 1, 0, now, noon).err().unwrap();
    assert_eq!(refused.code(), ErrorCode::QUOTA_EXCEEDED);
    assert_eq!(refused.wait(), seconds(12 * 3600));
    assert!(throttles.admit_command(now, noon).is_err());
    assert_eq!(
        pace.pass(Gate::Device, 1, 0, now, noon),
        (Gate::Quota, Some(now + QUOTA_LOOK_EVERY))
    );
    let tomorrow = UtcMillis(24 * 3_600_000);
    assert_eq!(pace.pass(Gate::Quota, 1, 0, now, tomorrow), (Gate::Open, None));
    assert!(
        heard
            .0
            .lock()
            .unwrap()
            .iter()
            .all(|line| line.starts_with("daily_messages "))
    );
}

/// A batch that waits for its device's rate takes nothing of the hub's until it may go.
#[test]
fn a_session_passes_its_gates_in_turn_and_is_never_refused() {
    let mut config = config();
    config.device.messages = rate(1, 10);
    config.hub[Class::D2cMessages as usize] = rate(10, 10);
    let (throttles, now, _) = open(config);
    let (mut noisy, mut quiet) = (throttles.pace(), throttles.pace());
    assert_eq!(
        noisy.pass(Gate::Device, 1000, 0, now, TODAY),
        (Gate::Quota, Some(now + seconds(990)))
    );
    assert_eq!(quiet.pass(Gate::Device, 10, 0, now, TODAY), (Gate::Open, None));
    assert_eq!(
        quiet.pass(Gate::Device, 10, 0, now + seconds(10), TODAY),
        (Gate::Open, None)
    );
    let due = now + seconds(990);
    assert_eq!(
        noisy.pass(Gate::Quota, 1000, 0, due, TODAY),
        (Gate::Open, Some(due + seconds(99)))
    );
    assert_eq!(
        noisy.pass(Gate::Open, 1000, 0, due + seconds(99), TODAY),
        (Gate::Open, None)
    );
}

#[test]
fn without_throttles_nothing_holds_a_session() {
    let (throttles, now, _) = open(config());
    let mut pace = throttles.pace();
    assert_eq!(
        pace.pass(Gate::Device, u64::MAX, u64::MAX, now, TODAY),
        (Gate::Open, None)
    );
}

#[test]
fn what_is_allowed_may_change_under_open_sessions() {
    let (throttles, start, _) = open(config());
    let mut pace = throttles.pace();
    assert_eq!(pace.pass(Gate::Device, 1_000, 0, start, TODAY), (Gate::Open, None));
    let now = start + seconds(1_000);
    let mut slower = config();
    slower.device.messages = rate(10, 10);
    slower.hub[Class::Queries as usize] = rate(1, 1);
    slower.waiters_max = 0;
    slower.daily_messages_max = 100;
    throttles.set(slower.clone(), now);
    assert_eq!(format!("{:?}", throttles.config()), format!("{slower:?}"));
    assert_eq!(
        pace.pass(Gate::Device, 30, 0, now, TODAY),
        (Gate::Quota, Some(now + seconds(2)))
    );
    assert!(throttles.admit(Class::Queries, 1, now).is_ok());
    let refused = throttles.admit(Class::Queries, 1, now).err().unwrap();
    assert_eq!(refused.code(), ErrorCode::THROTTLE_BACKLOG);
    assert!(throttles.admit_telemetry(&device("d"), 101, 0, now, TODAY).is_err());
    // Lifted again: what was spent of a rate is not waited for.
    throttles.set(config(), now);
    assert_eq!(pace.pass(Gate::Device, 1_000, 0, now, TODAY), (Gate::Open, None));
    assert!(throttles.admit(Class::Queries, 1_000, now).is_ok());
}

//! Who is reached, who is not, and that nothing is left behind.

use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::hub::method::{CALLS_PER_TARGET_MAX, MethodAnswer, MethodCall, MethodError};
use crate::hub::twin::{TwinChange, TwinChanged};
use crate::hub::{Twin, TwinUpdate};
use crate::model::{DeviceId, Generation, ModuleId, UtcMillis};

fn device(id: &str) -> IdentityName {
    IdentityName::device(DeviceId::new(id).unwrap())
}

fn call(connect_seconds: u64) -> MethodCall {
    MethodCall {
        name: "reboot".into(),
        payload: "{}".into(),
        response_timeout: Duration::from_secs(30),
        connect_timeout: Duration::from_secs(connect_seconds),
    }
}

fn ok(status: i32) -> Result<MethodAnswer, MethodError> {
    MethodAnswer::check(status, "")
}

/// Time stands still but for what is waited for.
fn run(test: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).build().unwrap().block_on(test);
}

/// Lets tasks run that can.
async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

fn invoke(lines: &Lines, name: &IdentityName, connect_seconds: u64) -> tokio::task::JoinHandle<Result<i32, u32>> {
    let (lines, name) = (lines.clone(), name.clone());
    tokio::spawn(async move {
        let answer = lines.invoke(&name, call(connect_seconds)).await;
        answer.map(|answer| answer.status).map_err(|error| error.code().number)
    })
}

#[test]
fn a_call_reaches_the_one_who_listens_and_nobody_else() {
    run(async {
        let lines = Lines::default();
        let (name, other) = (device("a"), device("b"));
        let module = IdentityName::module(name.device.clone(), ModuleId::new("m").unwrap());
        let mut calls = lines.listen_for_calls(&name);
        for (name, expected) in [(&other, Err(404_103)), (&module, Err(404_103))] {
            assert_eq!(invoke(&lines, name, 0).await.unwrap(), expected);
        }
        let not_online = lines
            .calls_ended()
            .find(|(outcome, _)| *outcome == MethodOutcome::NotOnline);
        assert_eq!(not_online, Some((MethodOutcome::NotOnline, 2)));
        let answer = invoke(&lines, &name, 0);
        let call = calls.next().await.unwrap();
        assert_eq!((call.name.as_str(), call.payload.as_str()), ("reboot", "{}"));
        call.answer(ok(207));
        assert_eq!(answer.await.unwrap(), Ok(207));
        assert_eq!(lines.len(), 1, "only who listens is kept");
        drop(calls);
        assert!(lines.is_empty());
    });
}

#[test]
fn a_call_waits_for_its_device_as_long_as_it_may() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        let (short, long) = (invoke(&lines, &name, 5), invoke(&lines, &name, 60));
        tokio::time::sleep(Duration::from_secs(10)).await;
        assert_eq!(short.await.unwrap(), Err(404_103));
        let mut calls = lines.listen_for_calls(&name);
        calls.next().await.unwrap().answer(ok(200));
        assert_eq!(long.await.unwrap(), Ok(200));
        drop(calls);
        assert!(lines.is_empty());
        assert_eq!(lines.shared.parked.load(Ordering::Relaxed), 0);
    });
}

#[test]
fn an_answer_that_does_not_come_ends_in_time() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        let mut calls = lines.listen_for_calls(&name);
        let answer = invoke(&lines, &name, 300);
        let call = calls.next().await.unwrap();
        let began = tokio::time::Instant::now();
        assert_eq!(answer.await.unwrap(), Err(504_101));
        assert_eq!(began.elapsed().as_secs(), 30);
        // Too late, and nobody minds.
        call.answer(ok(200));
        drop(calls);
        assert!(lines.is_empty());
    });
}

#[test]
fn a_session_that_ends_tells_its_callers() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        let mut calls = lines.listen_for_calls(&name);
        let (taken, queued) = (invoke(&lines, &name, 0), invoke(&lines, &name, 0));
        let call = calls.next().await.unwrap();
        settle().await;
        drop(calls);
        assert_eq!(queued.await.unwrap(), Err(404_103));
        drop(call);
        assert_eq!(taken.await.unwrap(), Err(404_103));
        assert!(lines.is_empty());
    });
}

#[test]
fn who_listens_later_takes_the_place() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        let mut earlier = lines.listen_for_calls(&name);
        let mut later = lines.listen_for_calls(&name);
        assert!(earlier.next().await.is_none(), "the earlier one hears of it");
        drop(earlier);
        let answer = invoke(&lines, &name, 0);
        later.next().await.unwrap().answer(ok(200));
        assert_eq!(
            answer.await.unwrap(),
            Ok(200),
            "leaving took nothing from the later one"
        );
    });
}

#[test]
fn calls_of_one_target_are_bounded_also_while_they_wait() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        let waiting: Vec<_> = (0..CALLS_PER_TARGET_MAX).map(|_| invoke(&lines, &name, 60)).collect();
        settle().await;
        assert_eq!(invoke(&lines, &name, 60).await.unwrap(), Err(403_800));
        let mut calls = lines.listen_for_calls(&name);
        let mut taken = Vec::new();
        for _ in 0..CALLS_PER_TARGET_MAX {
            taken.push(calls.next().await.unwrap());
        }
        assert_eq!(invoke(&lines, &name, 0).await.unwrap(), Err(403_800));
        taken.pop().unwrap().answer(ok(200));
        settle().await;
        let next = invoke(&lines, &name, 0);
        taken.push(calls.next().await.unwrap());
        for call in taken {
            call.answer(ok(200));
        }
        assert_eq!(next.await.unwrap(), Ok(200));
        for answer in waiting {
            assert_eq!(answer.await.unwrap(), Ok(200));
        }
    });
}

#[test]
fn calls_that_wait_are_bounded_over_all_devices() {
    run(async {
        let lines = Lines::default();
        let mut waiting = Vec::new();
        for n in 0..PARKED_MAX {
            waiting.push(invoke(&lines, &device(&format!("d{n}")), 60));
        }
        settle().await;
        assert_eq!(invoke(&lines, &device("x"), 60).await.unwrap(), Err(503_005));
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), Err(404_103));
        }
        assert!(lines.is_empty(), "callers that give up leave nothing behind");
        assert_eq!(lines.shared.parked.load(Ordering::Relaxed), 0);
    });
}

fn changed(name: &IdentityName, version: u64) -> TwinChanged {
    let mut twin = Twin::fresh();
    twin.desired.version = version;
    TwinChanged {
        identity: name.clone(),
        generation: Generation(1),
        change: Arc::new(TwinChange::Patched(
            TwinUpdate::from_json(br#"{"properties": {"desired": {"a": 1}}}"#).unwrap(),
        )),
        at: UtcMillis(0),
        twin: Arc::new(twin),
    }
}

#[test]
fn changes_come_in_order_and_a_full_mailbox_keeps_the_newest() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        lines.desired_changed(&changed(&name, 1));
        let changes = lines.observe_desired(&name);
        lines.desired_changed(&changed(&name, 2));
        lines.desired_changed(&changed(&name, 3));
        let versions = |news: &News| -> Vec<u64> { news.changes.iter().map(|c| c.twin.desired.version).collect() };
        let news = changes.next().await;
        assert_eq!(versions(&news), [2, 3]);
        for version in 4..40 {
            lines.desired_changed(&changed(&name, version));
        }
        let news = changes.next().await;
        assert!(news.changes.len() <= 16);
        assert_eq!(versions(&news).last(), Some(&39), "the newest is not the one left out");
        let later = lines.observe_desired(&name);
        assert!(changes.next().await.is_replaced);
        drop(changes);
        lines.desired_changed(&changed(&name, 40));
        assert_eq!(versions(&later.next().await), [40]);
        drop(later);
        assert!(lines.is_empty());
    });
}

#[test]
fn a_bell_rings_for_the_one_who_listens_last() {
    run(async {
        let lines = Lines::default();
        let name = device("a");
        lines.message_waits(&name);
        let earlier = lines.listen_for_messages(&name);
        lines.message_waits(&name);
        assert_eq!(earlier.rings().await, Ok(()));
        let later = lines.listen_for_messages(&name);
        assert!(earlier.rings().await.is_err());
        drop(earlier);
        lines.message_waits(&name);
        assert_eq!(later.rings().await, Ok(()));
        drop(later);
        assert!(lines.is_empty());
    });
}

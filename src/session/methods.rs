//! Direct methods of one device, apart from how its door says them: calls out, answers back, each in its time.
//!
//! Dropping a call tells its caller that the device is gone, so the end of a session needs no bookkeeping.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::hub::IdentityName;
use crate::hub::method::{MethodAnswer, MethodError};
use crate::shard::lines::{Call, Calls, Lines, Replaced};
use crate::shard::timing::sleep_until;

/// A call to hand to the device.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    /// Comes back with the answer; from 1, each once a session.
    pub id: u64,
    pub name: String,
    /// JSON; empty for none.
    pub payload: String,
    /// How long the caller waits yet.
    pub time_left: Duration,
}

/// The calls of one device or module, for the session that listens for them.
pub struct Methods {
    calls: Calls,
    window: usize,
    under_way: HashMap<u64, Call>,
    next_id: u64,
}

impl Methods {
    /// Listens from now on, in place of whoever did before. `window`: calls the device has at a time.
    pub fn listen(lines: &Lines, name: &IdentityName, window: usize) -> Self {
        Self {
            calls: lines.listen_for_calls(name),
            window,
            under_way: HashMap::new(),
            next_id: 1,
        }
    }

    /// Waits for the next call, and tells the callers of those that the device has not answered in time; cancelling the
    /// wait loses nothing.
    ///
    /// # Errors
    /// `Replaced`: another session listens.
    pub async fn next(&mut self) -> Result<Invocation, Replaced> {
        loop {
            let next_timeout = self.under_way.values().map(|call| call.deadline).min();
            tokio::select! {
                call = self.calls.next(), if self.under_way.len() < self.window => {
                    if let Some(invocation) = self.begin(call.ok_or(Replaced)?) {
                        return Ok(invocation);
                    }
                }
                () = sleep_until(next_timeout.map(Instant::into_std)) => self.handle_timeout(),
            }
        }
    }

    /// Passes on what the device answered; one that came too late is nobody's any more.
    pub fn answer(&mut self, id: u64, status: i32, payload: &str) {
        if let Some(call) = self.under_way.remove(&id) {
            call.answer(MethodAnswer::check(status, payload));
        }
    }

    /// Tells a caller that the device does not listen for this method.
    pub fn refuse(&mut self, id: u64) {
        self.under_way.remove(&id);
    }

    fn begin(&mut self, mut call: Call) -> Option<Invocation> {
        let time_left = call.deadline.saturating_duration_since(Instant::now());
        if time_left == Duration::ZERO {
            return None;
        }
        let invocation = Invocation {
            id: self.next_id,
            name: std::mem::take(&mut call.name),
            payload: std::mem::take(&mut call.payload),
            time_left,
        };
        self.under_way.insert(self.next_id, call);
        self.next_id += 1;
        Some(invocation)
    }

    fn handle_timeout(&mut self) {
        let now = Instant::now();
        for (_, call) in self.under_way.extract_if(|_, call| call.deadline <= now) {
            call.answer(Err(MethodError::TimedOut));
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::JoinHandle;

    use super::*;
    use crate::hub::method::MethodCall;
    use crate::model::DeviceId;

    const RESPONSE: Duration = Duration::from_secs(30);

    struct Caller {
        lines: Lines,
        name: IdentityName,
    }

    impl Caller {
        fn new() -> Self {
            Self {
                lines: Lines::default(),
                name: IdentityName::device(DeviceId::new("d").unwrap()),
            }
        }

        /// The answer's status and payload, or the error's number.
        fn call(&self, method: &str) -> JoinHandle<Result<(i32, Option<String>), u32>> {
            let (lines, name) = (self.lines.clone(), self.name.clone());
            let call = MethodCall {
                name: method.into(),
                payload: "[1]".into(),
                response_timeout: RESPONSE,
                connect_timeout: Duration::ZERO,
            };
            tokio::spawn(async move {
                let answer = lines.invoke(&name, call).await;
                let read = |answer: MethodAnswer| (answer.status, answer.payload.map(|json| json.get().to_owned()));
                answer.map(read).map_err(|error| error.code().number)
            })
        }

        fn listen(&self, window: usize) -> Methods {
            Methods::listen(&self.lines, &self.name, window)
        }
    }

    async fn is_silent(methods: &mut Methods, time: Duration) -> bool {
        tokio::time::timeout(time, methods.next()).await.is_err()
    }

    #[tokio::test(start_paused = true)]
    async fn answers_go_to_their_callers() {
        let caller = Caller::new();
        let mut methods = caller.listen(10);
        let first = caller.call("first");
        let invocation = methods.next().await.unwrap();
        assert_eq!((invocation.id, invocation.name.as_str()), (1, "first"));
        assert_eq!((invocation.payload.as_str(), invocation.time_left), ("[1]", RESPONSE));
        let second = caller.call("second");
        assert_eq!(methods.next().await.unwrap().id, 2);
        methods.answer(2, 200, "{}");
        methods.answer(1, 500, "");
        methods.answer(3, 200, "nobody asked");
        assert_eq!(first.await.unwrap(), Ok((500, None)));
        assert_eq!(second.await.unwrap(), Ok((200, Some("{}".into()))));
        let third = caller.call("third");
        methods.next().await.unwrap();
        methods.answer(3, 200, "no JSON");
        assert_eq!(third.await.unwrap(), Err(502_000));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_that_does_not_answer_gives_its_place_back() {
        let caller = Caller::new();
        let mut methods = caller.listen(1);
        let slow = caller.call("slow");
        methods.next().await.unwrap();
        assert!(is_silent(&mut methods, RESPONSE / 2).await);
        let next = caller.call("next");
        // The window is full until the first caller gives up.
        let begun = Instant::now();
        let invocation = methods.next().await.unwrap();
        assert_eq!((invocation.id, invocation.name.as_str()), (2, "next"));
        let waited = begun.elapsed().as_secs();
        assert_eq!(waited, RESPONSE.as_secs() / 2);
        assert_eq!(slow.await.unwrap(), Err(504_101));
        methods.answer(1, 200, "too late");
        methods.answer(2, 200, "");
        assert_eq!(next.await.unwrap(), Ok((200, None)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_tells_the_callers_and_its_successor_takes_over() {
        let caller = Caller::new();
        let mut methods = caller.listen(2);
        let lost = caller.call("lost");
        methods.next().await.unwrap();
        let mut successor = caller.listen(2);
        assert_eq!(methods.next().await, Err(Replaced));
        drop(methods);
        assert_eq!(lost.await.unwrap(), Err(404_103));
        let kept = caller.call("kept");
        assert_eq!(successor.next().await.unwrap().name, "kept");
        drop(successor);
        assert_eq!(kept.await.unwrap(), Err(404_103));
    }
}

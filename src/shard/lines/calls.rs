//! Direct methods: calls go to the one who listens, or wait for one to come.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::{Lines, PARKED_MAX, Shared};
use crate::hub::IdentityName;
use crate::hub::method::{CALLS_PER_TARGET_MAX, MethodAnswer, MethodCall, MethodError, MethodOutcome};

/// A call on its way to the device. Dropping it unanswered tells the caller that the device is not online any more.
#[derive(Debug)]
pub struct Call {
    pub name: String,
    /// JSON; empty for none.
    pub payload: String,
    /// When the caller gives up.
    pub deadline: Instant,
    reply: oneshot::Sender<Result<MethodAnswer, MethodError>>,
    _place: Place,
}

/// One of the calls that an identity may have at a time. Never dropped under the lock of its part.
struct Place {
    permit: Option<OwnedSemaphorePermit>,
    shared: Weak<Shared>,
    name: IdentityName,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Place")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.permit.take());
        if let Some(shared) = self.shared.upgrade() {
            // The line may have been kept by this call alone.
            shared.change(&self.name, |_| ());
        }
    }
}

impl Call {
    pub fn answer(self, answer: Result<MethodAnswer, MethodError>) {
        // The caller may have given up.
        let _ = self.reply.send(answer);
    }
}

/// A call before it is known who takes it.
struct Parked {
    call: MethodCall,
    reply: oneshot::Sender<Result<MethodAnswer, MethodError>>,
    taken: oneshot::Sender<Instant>,
    place: Place,
    _count: ParkedCount,
}

/// Counts a call among those that wait, for as long as it does.
struct ParkedCount(Weak<Shared>);

impl Drop for ParkedCount {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.parked.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
pub(super) struct Line {
    listener: Option<(u64, mpsc::Sender<Call>)>,
    parked: Vec<Parked>,
    /// One permit for each call under way or waiting; `None` while there are none.
    places: Option<Arc<Semaphore>>,
}

impl Line {
    pub fn is_unused(&self) -> bool {
        let is_idle = |places: &Arc<Semaphore>| places.available_permits() == CALLS_PER_TARGET_MAX;
        self.listener.is_none() && self.parked.is_empty() && self.places.as_ref().is_none_or(is_idle)
    }

    fn place(&mut self) -> Result<OwnedSemaphorePermit, MethodError> {
        let places = self
            .places
            .get_or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_TARGET_MAX)));
        places
            .clone()
            .try_acquire_owned()
            .map_err(|_| MethodError::TooManyInFlight)
    }
}

/// The calls of one identity, for the session that listens.
pub struct Calls {
    receiver: mpsc::Receiver<Call>,
    shared: Weak<Shared>,
    name: IdentityName,
    listener: u64,
}

impl Calls {
    /// The next call; `None` once another listens in this one's place.
    pub async fn next(&mut self) -> Option<Call> {
        self.receiver.recv().await
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        if let Some(shared) = self.shared.upgrade() {
            shared.change(&self.name, |line| {
                if line
                    .calls
                    .listener
                    .as_ref()
                    .is_some_and(|(listener, _)| *listener == self.listener)
                {
                    line.calls.listener = None;
                }
            });
        }
    }
}

impl Lines {
    /// Listens for calls from now on, in place of whoever did before; those that wait come first.
    pub fn listen_for_calls(&self, name: &IdentityName) -> Calls {
        // There is never more than this, because each call holds a place.
        let (sender, receiver) = mpsc::channel(CALLS_PER_TARGET_MAX);
        let listener = self.shared.listener();
        let mut part = self.shared.part(name);
        let line = &mut part.entry(name.clone()).or_default().calls;
        let parked = std::mem::take(&mut line.parked);
        line.listener = Some((listener, sender.clone()));
        drop(part);
        for parked in parked {
            parked.hand_to(&sender);
        }
        Calls {
            receiver,
            shared: Arc::downgrade(&self.shared),
            name: name.clone(),
            listener,
        }
    }

    /// Calls a method and waits for its answer. The identity is known to exist.
    ///
    /// # Errors
    /// `NotOnline`, `TimedOut`, `TooManyInFlight`, `Busy`, `BadAnswer`.
    pub async fn invoke(&self, name: &IdentityName, call: MethodCall) -> Result<MethodAnswer, MethodError> {
        let answer = self.call(name, call).await;
        let outcome = MethodOutcome::of(&answer);
        self.shared.calls_ended[outcome as usize].fetch_add(1, Ordering::Relaxed);
        answer
    }

    async fn call(&self, name: &IdentityName, call: MethodCall) -> Result<MethodAnswer, MethodError> {
        let (reply, answer) = oneshot::channel();
        let (taken, is_taken) = oneshot::channel();
        let connect_timeout = call.connect_timeout;
        self.dispatch(name, call, reply, taken)?;
        // Whoever waits here no longer leaves nothing behind, however this ends.
        let _leaving = Leaving { lines: self, name };
        let Ok(Ok(deadline)) = tokio::time::timeout(connect_timeout, is_taken).await else {
            return Err(MethodError::NotOnline);
        };
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            // The session ended with the call.
            Ok(Err(_)) if Instant::now() < deadline => Err(MethodError::NotOnline),
            Ok(Err(_)) | Err(_) => Err(MethodError::TimedOut),
        }
    }

    fn dispatch(
        &self,
        name: &IdentityName,
        call: MethodCall,
        reply: oneshot::Sender<Result<MethodAnswer, MethodError>>,
        taken: oneshot::Sender<Instant>,
    ) -> Result<(), MethodError> {
        let mut part = self.shared.part(name);
        let is_listening = part.get(name).is_some_and(|line| line.calls.listener.is_some());
        if !is_listening && call.connect_timeout.is_zero() {
            return Err(MethodError::NotOnline);
        }
        if !is_listening && self.shared.parked.load(Ordering::Relaxed) >= PARKED_MAX {
            return Err(MethodError::Busy);
        }
        let line = &mut part.entry(name.clone()).or_default().calls;
        // A refusal leaves a line that has calls.
        let permit = line.place()?;
        let place = Place {
            permit: Some(permit),
            shared: Arc::downgrade(&self.shared),
            name: name.clone(),
        };
        self.shared.parked.fetch_add(1, Ordering::Relaxed);
        let parked = Parked {
            call,
            reply,
            taken,
            place,
            _count: ParkedCount(Arc::downgrade(&self.shared)),
        };
        match &line.listener {
            Some((_, sender)) => {
                let sender = sender.clone();
                drop(part);
                parked.hand_to(&sender);
            }
            None => line.parked.push(parked),
        }
        Ok(())
    }
}

impl Parked {
    fn hand_to(self, sender: &mpsc::Sender<Call>) {
        let deadline = Instant::now() + self.call.response_timeout;
        if self.taken.send(deadline).is_err() {
            // The caller has given up waiting.
            return;
        }
        let call = Call {
            name: self.call.name,
            payload: self.call.payload,
            deadline,
            reply: self.reply,
            _place: self.place,
        };
        // A listener that is just leaving drops it, which tells the caller.
        let _ = sender.try_send(call);
    }
}

/// Takes a caller's call out of those that wait, if it still does.
struct Leaving<'a> {
    lines: &'a Lines,
    name: &'a IdentityName,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        let mut gone = Vec::new();
        self.lines.shared.change(self.name, |line| {
            gone = line
                .calls
                .parked
                .extract_if(.., |parked| parked.taken.is_closed())
                .collect();
        });
        drop(gone);
    }
}

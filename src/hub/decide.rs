//! Read, decide, write; and again if another writer was faster.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::state::{State, StateError, WriteBatch};

/// How often a decision is made anew before the caller is told the hub is busy.
const ATTEMPTS_MAX: u32 = 16;

/// Reads the store and answers with the writes that follow from it, preconditions included, and what to tell the caller.
pub type Attempt<R, E> = Box<dyn FnMut(&dyn State) -> Result<(WriteBatch, R), E> + Send>;
pub type Answer<R, E> = Box<dyn FnOnce(Result<R, E>) + Send>;

/// Commits what `attempt` decides. When a precondition fails, something it read has changed since: it is asked again.
pub fn decide<R, E>(state: &Arc<dyn State>, attempt: Attempt<R, E>, done: Answer<R, E>)
where
    R: Send + 'static,
    E: From<StateError> + Send + 'static,
{
    step(Arc::clone(state), attempt, done, ATTEMPTS_MAX);
}

fn step<R, E>(state: Arc<dyn State>, mut attempt: Attempt<R, E>, done: Answer<R, E>, attempts_left: u32)
where
    R: Send + 'static,
    E: From<StateError> + Send + 'static,
{
    let (batch, answer) = match attempt(&*state) {
        Ok(decided) => decided,
        Err(error) => return done(Err(error)),
    };
    // What was read is durable; an answer that changes nothing need not wait for the disk.
    if batch.is_empty() {
        return done(Ok(answer));
    }
    let again = Arc::clone(&state);
    let committed = move |result: Result<(), StateError>| match result {
        Ok(()) => done(Ok(answer)),
        Err(StateError::Conflict { .. }) if attempts_left > 1 => step(again, attempt, done, attempts_left - 1),
        Err(StateError::Conflict { .. }) => done(Err(StateError::Busy.into())),
        Err(error) => done(Err(error.into())),
    };
    state.commit(batch, Box::new(committed));
}

pub fn encode<T: Serialize>(record: &T) -> Vec<u8> {
    serde_json::to_vec(record).expect("records have text keys and no values that can fail")
}

/// A stored record. One that cannot be read is damage, not an answer.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    serde_json::from_slice(bytes).map_err(|error| StateError::Failed(Arc::new(error)))
}

//! The TLS sessions that may be resumed, each once.
//!
//! rustls' own memory looks through all it holds for every session it hands out, which a fleet of ten thousand that
//! reconnects turns into most of a handshake's cost.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustls::server::StoresServerSessions;

type Key = Vec<u8>;

/// Remembers the last sessions put into it; one that is taken is forgotten.
///
/// Memory: at most `sessions_max` values, and as many keys again for the order in which they came.
#[derive(Debug)]
pub struct Resumptions {
    held: Mutex<Held>,
    sessions_max: usize,
}

#[derive(Debug, Default)]
struct Held {
    /// The value, and the number of its `put`.
    sessions: HashMap<Key, (u64, Vec<u8>), foldhash::fast::RandomState>,
    /// In the order of putting. An entry whose number is not that of the session any more was taken or replaced.
    order: VecDeque<(u64, Key)>,
    puts: u64,
}

impl Resumptions {
    /// `sessions_max`: at least 1.
    pub fn new(sessions_max: usize) -> Self {
        assert!(sessions_max > 0, "without resumption nothing is stored");
        Self {
            held: Mutex::default(),
            sessions_max,
        }
    }

    /// Nothing that was put before can be taken after.
    pub fn forget(&self) {
        let mut held = self.hold();
        held.sessions.clear();
        held.order.clear();
    }

    fn hold(&self) -> MutexGuard<'_, Held> {
        // No step below leaves a half-made state that matters: at worst a session is not resumed.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoresServerSessions for Resumptions {
    fn put(&self, key: Vec<u8>, value: Vec<u8>) -> bool {
        let mut held = self.hold();
        held.puts += 1;
        let number = held.puts;
        held.sessions.insert(key.clone(), (number, value));
        held.order.push_back((number, key));
        while held.order.len() > self.sessions_max {
            let (number, key) = held.order.pop_front().expect("longer than something");
            if held.sessions.get(&key).is_some_and(|(current, _)| *current == number) {
                held.sessions.remove(&key);
            }
        }
        true
    }

    fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.hold().sessions.get(key).map(|(_, value)| value.clone())
    }

    fn take(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.hold().sessions.remove(key).map(|(_, value)| value)
    }

    fn can_cache(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(store: &Resumptions, key: u8, value: u8) {
        assert!(store.put(vec![key], vec![value]));
    }

    #[test]
    fn a_session_is_handed_out_once() {
        let store = Resumptions::new(4);
        put(&store, 1, 10);
        assert_eq!(store.get(&[1]), Some(vec![10]));
        assert_eq!(store.take(&[1]), Some(vec![10]));
        assert_eq!(store.take(&[1]), None);
        assert_eq!(store.get(&[1]), None);
    }

    #[test]
    fn the_oldest_go_first_and_the_bound_holds() {
        let store = Resumptions::new(3);
        for key in 0..10 {
            put(&store, key, key);
            let held = store.hold();
            assert!(held.sessions.len() <= 3 && held.order.len() <= 3);
        }
        assert_eq!(
            (0..10).filter_map(|key| store.take(&[key])).collect::<Vec<_>>(),
            [[7], [8], [9]]
        );
        put(&store, 1, 1);
        assert_eq!(store.take(&[1]), Some(vec![1]));
    }

    #[test]
    fn what_is_forgotten_is_gone_and_others_may_come() {
        let store = Resumptions::new(2);
        put(&store, 1, 10);
        store.forget();
        assert_eq!(store.take(&[1]), None);
        put(&store, 2, 20);
        assert_eq!(store.take(&[2]), Some(vec![20]));
    }

    #[test]
    fn a_replaced_session_lives_as_long_as_its_last_value() {
        let store = Resumptions::new(2);
        put(&store, 1, 10);
        put(&store, 1, 11);
        put(&store, 2, 20);
        assert_eq!(
            store.get(&[1]),
            Some(vec![11]),
            "only its first value is past the bound"
        );
    }
}

//! Lanes: what is to be done for one key waits for what was asked before it.
//!
//! ```text
//!   enter ──> nothing under way? ── yes ──> work ──> answered ──> the next group of the lane
//!                    └── no: waits in the lane, bounded ──────────────┘
//! ```
//!
//! Deciding on what is durable and trying again ([`super::decide`]) would be enough to be right. But of many writers of
//! one record all but one would lose each round, the unlucky would lose every round, and who lost would come after
//! one that was asked later.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::decide::{Answer, Attempt, decide};
use crate::state::{State, StateError};

/// How much may wait.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub per_lane_max: usize,
    /// Memory of all that waits, so that many lanes at once do not multiply the bound above.
    pub bytes_max: usize,
    /// What is done together.
    pub group_max: usize,
}

/// The lanes of an owner. A key with work under way has one.
pub struct Lanes<K, W> {
    bounds: Bounds,
    inner: Mutex<Inner<K, W>>,
}

struct Inner<K, W> {
    waiting: HashMap<K, VecDeque<(W, usize)>>,
    bytes: usize,
}

/// Called once a group is answered.
pub type Answered = Box<dyn FnOnce() + Send>;

/// Whose work goes through lanes.
pub trait Owner: Send + Sync + 'static {
    type Key: Clone + Eq + Hash + Send + 'static;
    type Work: Send + 'static;

    fn lanes(&self) -> &Lanes<Self::Key, Self::Work>;

    /// Does a group of one key in order and answers it, here or on another thread; then calls `answered`.
    fn work(self: Arc<Self>, key: &Self::Key, group: Vec<Self::Work>, answered: Answered);
}

/// Does work of a key, now or when what came before it is answered. `bytes` is what it costs while it waits.
///
/// # Errors
/// Too much waits: the work back.
pub fn enter<O: Owner>(owner: &Arc<O>, key: O::Key, work: O::Work, bytes: usize) -> Result<(), O::Work> {
    match owner.lanes().admit(&key, work, bytes) {
        Admitted::First(work) => run(Arc::clone(owner), key, vec![work]),
        Admitted::Waits => {}
        Admitted::Refused(work) => return Err(work),
    }
    Ok(())
}

/// Does a group, and the groups that have come since, until nothing waits.
///
/// A group may be answered before `work` returns or later, on another thread. Whoever is second to see that goes on, so
/// that groups which are answered at once make a loop and not a recursion as deep as there are groups.
fn run<O: Owner>(owner: Arc<O>, key: O::Key, mut group: Vec<O::Work>) {
    while !group.is_empty() {
        let is_second = Arc::new(AtomicBool::new(false));
        let (again, subject, is_second_there) = (Arc::clone(&owner), key.clone(), Arc::clone(&is_second));
        let answered = move || {
            if is_second_there.swap(true, Ordering::AcqRel) {
                let group = again.lanes().next(&subject);
                run(again, subject, group);
            }
        };
        Arc::clone(&owner).work(&key, group, Box::new(answered));
        if !is_second.swap(true, Ordering::AcqRel) {
            return;
        }
        group = owner.lanes().next(&key);
    }
}

enum Admitted<W> {
    /// Nothing is under way: the caller does it.
    First(W),
    Waits,
    Refused(W),
}

impl<K: Clone + Eq + Hash, W> Lanes<K, W> {
    pub fn new(bounds: Bounds) -> Self {
        let inner = Mutex::new(Inner {
            waiting: HashMap::new(),
            bytes: 0,
        });
        Self { bounds, inner }
    }

    fn admit(&self, key: &K, work: W, bytes: usize) -> Admitted<W> {
        let mut inner = self.inner();
        let all_bytes = inner.bytes + bytes;
        let Some(lane) = inner.waiting.get_mut(key) else {
            inner.waiting.insert(key.clone(), VecDeque::new());
            return Admitted::First(work);
        };
        if lane.len() == self.bounds.per_lane_max || all_bytes > self.bounds.bytes_max {
            return Admitted::Refused(work);
        }
        lane.push_back((work, bytes));
        inner.bytes = all_bytes;
        Admitted::Waits
    }

    /// The next group; when nothing waits, the lane is closed.
    fn next(&self, key: &K) -> Vec<W> {
        let mut inner = self.inner();
        let Some(lane) = inner.waiting.get_mut(key) else {
            return Vec::new();
        };
        let count = lane.len().min(self.bounds.group_max);
        let (group, bytes): (Vec<W>, Vec<usize>) = lane.drain(..count).unzip();
        inner.bytes -= bytes.iter().sum::<usize>();
        if group.is_empty() {
            inner.waiting.remove(key);
        }
        group
    }

    fn inner(&self) -> MutexGuard<'_, Inner<K, W>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        let inner = self.inner();
        inner.waiting.is_empty() && inner.bytes == 0
    }
}

/// One decision about one record; calls what it is given once it is answered.
pub type Job = Box<dyn FnOnce(Answered) + Send>;

/// The lanes of records that are decided on one at a time.
pub struct DecisionLanes<K>(Lanes<K, Job>);

impl<K: Clone + Eq + Hash + Send + 'static> Owner for DecisionLanes<K> {
    type Key = K;
    type Work = Job;

    fn lanes(&self) -> &Lanes<K, Job> {
        &self.0
    }

    fn work(self: Arc<Self>, _: &K, mut group: Vec<Job>, answered: Answered) {
        // One alone: what the next one reads is what this one left.
        assert_eq!(group.len(), 1, "the bound of these lanes");
        let job = group.pop().expect("there is one");
        job(answered);
    }
}

impl<K: Clone + Eq + Hash + Send + 'static> DecisionLanes<K> {
    pub fn new(per_lane_max: usize, bytes_max: usize) -> Arc<Self> {
        Arc::new(Self(Lanes::new(Bounds {
            per_lane_max,
            bytes_max,
            group_max: 1,
        })))
    }

    /// [`decide`], in the lane of `key`: two decisions that go through here never get into each other's way. `Busy` when
    /// too many wait.
    pub fn decide<R, E>(
        self: &Arc<Self>,
        state: &Arc<dyn State>,
        key: K,
        bytes: usize,
        attempt: Attempt<R, E>,
        done: Answer<R, E>,
    ) where
        R: Send + 'static,
        E: From<StateError> + Send + 'static,
    {
        let state = Arc::clone(state);
        // Shared between the job and the refusal of it: of the two one comes.
        let done = Arc::new(Mutex::new(Some(done)));
        let take = |done: &Mutex<Option<Answer<R, E>>>| done.lock().unwrap_or_else(PoisonError::into_inner).take();
        let of_job = Arc::clone(&done);
        let job: Job = Box::new(move |answered| {
            let answer = move |result| {
                if let Some(done) = take(&of_job) {
                    done(result);
                }
                // Only now, so that the next answer cannot overtake this one.
                answered();
            };
            decide(&state, attempt, Box::new(answer));
        });
        if enter(self, key, job, bytes).is_err()
            && let Some(done) = take(&done)
        {
            done(Err(StateError::Busy.into()));
        }
    }

    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_for_a_lane_and_for_all() {
        let lanes = Lanes::new(Bounds {
            per_lane_max: 2,
            bytes_max: 10,
            group_max: 2,
        });
        assert!(matches!(lanes.admit(&'a', 0, 10), Admitted::First(0)));
        assert!(matches!(lanes.admit(&'b', 0, 10), Admitted::First(0)));
        assert!(matches!(lanes.admit(&'a', 1, 9), Admitted::Waits));
        assert!(
            matches!(lanes.admit(&'b', 1, 2), Admitted::Refused(1)),
            "too much for all"
        );
        assert!(matches!(lanes.admit(&'a', 2, 1), Admitted::Waits));
        assert!(
            matches!(lanes.admit(&'a', 3, 0), Admitted::Refused(3)),
            "too many for one"
        );
        assert_eq!(lanes.next(&'a'), [1, 2]);
        assert!(
            matches!(lanes.admit(&'b', 1, 10), Admitted::Waits),
            "there is room again"
        );
        assert!(
            matches!(lanes.admit(&'a', 4, 0), Admitted::Waits),
            "a group is under way"
        );
        assert_eq!(lanes.next(&'a'), [4]);
        assert!(lanes.next(&'a').is_empty());
        assert!(
            matches!(lanes.admit(&'a', 5, 0), Admitted::First(5)),
            "the lane was closed"
        );
        assert_eq!(lanes.next(&'b'), [1]);
        assert!(lanes.next(&'b').is_empty() && lanes.next(&'a').is_empty());
        assert!(lanes.is_empty());
    }

    /// Groups that are answered at once must not pile up on the stack.
    #[test]
    fn a_long_lane_is_a_loop() {
        struct Counter(Lanes<(), u32>, Mutex<Vec<u32>>, Mutex<Option<Answered>>);
        impl Owner for Counter {
            type Key = ();
            type Work = u32;

            fn lanes(&self) -> &Lanes<(), u32> {
                &self.0
            }

            fn work(self: Arc<Self>, (): &(), group: Vec<u32>, answered: Answered) {
                self.1.lock().unwrap().extend(group.iter().copied());
                if group == [0] {
                    *self.2.lock().unwrap() = Some(answered);
                } else {
                    answered();
                }
            }
        }
        const COUNT: u32 = 200_000;
        let lanes = Lanes::new(Bounds {
            per_lane_max: usize::MAX,
            bytes_max: usize::MAX,
            group_max: 1,
        });
        let owner = Arc::new(Counter(lanes, Mutex::default(), Mutex::default()));
        for n in 0..COUNT {
            assert!(enter(&owner, (), n, 1).is_ok());
        }
        let first = owner.2.lock().unwrap().take().unwrap();
        assert_eq!(owner.1.lock().unwrap().len(), 1, "all others wait");
        first();
        assert!(owner.1.lock().unwrap().iter().copied().eq(0..COUNT));
        assert!(owner.0.is_empty());
    }
}

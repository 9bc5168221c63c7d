//! The bounded queue in front of a shard; the budgets keep it from filling.
//!
//! A hop between threads is the dearest thing on the path, so it carries a wake-up only when the shard is not already
//! awake: any number of commands pushed before the shard drains share one.
//!
//! Invariant: a batch enters only with bytes from the budgets, at least `APPEND_BUDGET_BYTES_MIN` of them, so
//! that appends alone can never fill the queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam::queue::ArrayQueue;

use super::budget::{APPEND_BUDGET_BYTES_MIN, Budgets, Reserved};
use super::command::Command;

/// Commands other than appends that may wait at a time; more are refused with "busy".
const CONTROL_COMMANDS_MAX: usize = 16 * 1024;

/// Something that makes the owner of the queue drain it soon.
pub trait Waker: Send + Sync {
    fn wake(&self);
}

/// One per shard, shared by all doors.
pub struct Inbox {
    commands: ArrayQueue<Command>,
    /// What may be on its way into the log.
    pub budgets: Arc<Budgets>,
    is_awake: AtomicBool,
    waker: std::sync::OnceLock<Box<dyn Waker>>,
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("commands", &self.commands.len())
            .finish_non_exhaustive()
    }
}

/// The queue has no room for a command that is not an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard's queue is full")]
pub struct Full;

impl Inbox {
    pub fn new(budgets: Budgets) -> Arc<Self> {
        Arc::new(Self {
            commands: ArrayQueue::new(budgets.batches_max() + CONTROL_COMMANDS_MAX),
            budgets: Arc::new(budgets),
            is_awake: AtomicBool::new(false),
            waker: std::sync::OnceLock::new(),
        })
    }

    /// Set once, by the shard's actor, before the first door opens.
    pub fn set_waker(&self, waker: Box<dyn Waker>) {
        assert!(self.waker.set(waker).is_ok(), "a shard starts once");
        self.wake();
    }

    /// The shard's alone, once a batch stands in the log.
    pub(crate) fn release(&self, reserved: Reserved) {
        self.budgets.release(reserved);
    }

    /// Commands waiting now.
    pub fn depth(&self) -> usize {
        self.commands.len()
    }

    /// Queues an append that has its budget.
    pub fn push_append(&self, append: super::command::Append) {
        self.push_paid(append.reserved.bytes(), Command::Append(append));
    }

    /// Queues a post that has its budget.
    pub fn push_post(&self, post: super::command::Post) {
        self.push_paid(post.reserved.bytes(), Command::Post(Box::new(post)));
    }

    fn push_paid(&self, bytes: u32, command: Command) {
        assert!(bytes >= APPEND_BUDGET_BYTES_MIN);
        // Control commands leave room for everything the budget allows.
        self.commands.push(command).expect("the budget bounds the appends");
        self.wake();
    }

    /// # Errors
    /// `Full`: the door answers with its "busy" code, or tries again.
    pub fn push_control(&self, command: Command) -> Result<(), Full> {
        if self.commands.len() >= CONTROL_COMMANDS_MAX {
            return Err(Full);
        }
        self.commands.push(command).map_err(|_| Full)?;
        self.wake();
        Ok(())
    }

    /// The next command; the shard alone takes them.
    pub fn pop(&self) -> Option<Command> {
        self.commands.pop()
    }

    /// Makes the shard drain, also without a command: a durable mark moved, or room came back.
    pub fn wake(&self) {
        if !self.is_awake.swap(true, Ordering::AcqRel) {
            match self.waker.get() {
                Some(waker) => waker.wake(),
                None => self.is_awake.store(false, Ordering::Release),
            }
        }
    }

    /// The shard calls this before it drains: whatever is pushed from here on wakes it again.
    pub fn going_to_drain(&self) {
        self.is_awake.store(false, Ordering::Release);
        std::sync::atomic::fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    struct Count(Arc<AtomicUsize>);
    impl Waker for Count {
        fn wake(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn commands_pushed_before_a_drain_share_one_wake_up() {
        let inbox = Inbox::new(Budgets::new(1 << 20, 1 << 20, 1));
        let wakes = Arc::new(AtomicUsize::new(0));
        inbox.set_waker(Box::new(Count(wakes.clone())));
        for n in 0..5 {
            inbox
                .push_control(Command::Close(super::super::command::SessionId(n)))
                .unwrap();
        }
        assert_eq!(wakes.load(Ordering::SeqCst), 1);
        inbox.going_to_drain();
        while inbox.pop().is_some() {}
        inbox
            .push_control(Command::Close(super::super::command::SessionId(9)))
            .unwrap();
        assert_eq!(wakes.load(Ordering::SeqCst), 2);
    }

    #[test]
    fn a_full_queue_refuses_control_commands() {
        let inbox = Inbox::new(Budgets::new(APPEND_BUDGET_BYTES_MIN, APPEND_BUDGET_BYTES_MIN, 1));
        let close = || Command::Close(super::super::command::SessionId(0));
        for _ in 0..CONTROL_COMMANDS_MAX {
            inbox.push_control(close()).unwrap();
        }
        assert_eq!(inbox.push_control(close()), Err(Full));
    }
}

//! The mailbox around a [`Shard`]: it takes the moment from the system, drains the inbox, and hands snapshots on.

use std::sync::Arc;
use std::time::Instant;

use actix::{Actor, ActorContext, AsyncContext, Context, Handler, Message};

use super::command::Command;
use super::inbox::{Inbox, Waker};
use super::observer::Observer;
use super::shard::{Now, Shard, Snapshot};
use super::syncer::Bell;
use crate::hub::filter::PersistedFilter;
use crate::log::Storage;
use crate::model::time::Clock;

/// Commands taken up before connections on the same thread get their turn.
const DRAIN_COMMANDS_MAX: usize = 512;

/// Drain the inbox.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Wake;

/// Stop taking sessions; answered with how many there are.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Stop;

/// Tell so many of the sessions that a stop found to go; answered with how many were told, fewer only if there are no
/// more.
#[derive(Message)]
#[rtype(result = "usize")]
pub struct Dismiss {
    pub count: usize,
    pub reason: String,
}

/// How far a stop has come.
#[derive(Message)]
#[rtype(result = "Drained")]
pub struct Poll;

#[derive(Clone, Copy, Debug, actix::MessageResponse)]
pub struct Drained {
    pub sessions: usize,
    /// Every append is acknowledged and every filter snapshot stored.
    pub is_idle: bool,
}

/// Runs one shard on its arbiter.
pub struct ShardActor<S: Storage, O: Observer> {
    shard: Box<Shard<S, O>>,
    inbox: Arc<Inbox>,
    clock: Arc<dyn Clock>,
    /// Rings the syncer after writes; `None` when nothing is synced.
    bell: Option<Arc<Bell>>,
    persisted: PersistedFilter,
}

struct Address<S: Storage, O: Observer + Unpin + 'static>(actix::Addr<ShardActor<S, O>>);

impl<S: Storage, O: Observer + Unpin + 'static> Waker for Address<S, O> {
    fn wake(&self) {
        // At most one is on its way: the inbox asks again only after the drain it caused.
        self.0.do_send(Wake);
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> ShardActor<S, O> {
    pub fn new(
        shard: Shard<S, O>,
        inbox: Arc<Inbox>,
        clock: Arc<dyn Clock>,
        bell: Option<Arc<Bell>>,
        persisted: PersistedFilter,
    ) -> Self {
        Self {
            shard: Box::new(shard),
            inbox,
            clock,
            bell,
            persisted,
        }
    }

    fn now(&self) -> Now {
        Now {
            utc: self.clock.now(),
            instant: Instant::now(),
        }
    }

    fn progress(&mut self) {
        if self.shard.take_written()
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
        let now = self.now();
        self.shard.handle_progress(now);
        // What was stalled may have been written just now.
        if self.shard.take_written()
            && let Some(bell) = &self.bell
        {
            bell.ring();
        }
        while let Some(snapshot) = self.shard.poll_snapshot() {
            self.save(snapshot);
        }
    }

    fn save(&self, snapshot: Snapshot) {
        let Snapshot {
            partition,
            covered,
            positions,
        } = snapshot;
        let inbox = self.inbox.clone();
        self.persisted.save(partition, covered, positions, move |result| {
            if let Err(error) = &result {
                tracing::warn!(%partition, %error, "duplicate filter not stored; kept in memory and tried again");
            }
            let mut command = Command::FilterSaved {
                partition,
                saved: result.is_ok(),
            };
            // The answer must arrive; the queue is drained all the time, and this is the store's own thread.
            while inbox.push_control(command).is_err() {
                std::thread::sleep(std::time::Duration::from_millis(1));
                command = Command::FilterSaved {
                    partition,
                    saved: result.is_ok(),
                };
            }
        });
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> Actor for ShardActor<S, O> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.inbox.set_waker(Box::new(Address(ctx.address())));
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> Handler<Wake> for ShardActor<S, O> {
    type Result = ();

    fn handle(&mut self, _: Wake, _: &mut Self::Context) {
        self.inbox.going_to_drain();
        let more = self.shard.drain(DRAIN_COMMANDS_MAX, self.now());
        self.progress();
        if more {
            self.inbox.wake();
        }
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> Handler<Stop> for ShardActor<S, O> {
    type Result = usize;

    fn handle(&mut self, _: Stop, _: &mut Self::Context) -> usize {
        self.shard.stop();
        self.shard.take_snapshots();
        self.progress();
        self.shard.session_count()
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> Handler<Dismiss> for ShardActor<S, O> {
    type Result = usize;

    fn handle(&mut self, dismiss: Dismiss, _: &mut Self::Context) -> usize {
        self.shard.dismiss(dismiss.count, &dismiss.reason)
    }
}

impl<S: Storage, O: Observer + Unpin + 'static> Handler<Poll> for ShardActor<S, O> {
    type Result = Drained;

    fn handle(&mut self, _: Poll, _: &mut Self::Context) -> Drained {
        // Appends that came after `Stop` are in the last snapshot too.
        if self.shard.session_count() == 0 {
            self.shard.take_snapshots();
        }
        self.progress();
        Drained {
            sessions: self.shard.session_count(),
            is_idle: self.shard.is_idle(),
        }
    }
}

/// Ends the actor, and with it the shard's hold on its partitions.
#[derive(Message)]
#[rtype(result = "()")]
pub struct End;

impl<S: Storage, O: Observer + Unpin + 'static> Handler<End> for ShardActor<S, O> {
    type Result = ();

    fn handle(&mut self, _: End, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

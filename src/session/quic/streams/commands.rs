//! Messages to a device: locked, delivered, settled.
//!
//! A message is locked durably before it is sent. What is unsettled when the stream ends is given back at once, so that the
//! next session need not wait for the locks to run out. Locks that nobody gave back are waited for.

use std::collections::HashMap;
use std::time::Instant;

use tokio::sync::mpsc;

use super::{Fault, PENDING_MAX, Stream, Target, read, refused, replaced, unexpected};
use crate::hub::OutboxError;
use crate::hub::outbox::{Delivered, LockToken, Settlement};
use crate::model::UtcMillis;
use crate::shard::timing::sleep_until;
use crate::wire::device::{Command, CommandsOpen, Outcome, Ready, Settle, Settled};
use crate::wire::frame::Kind;
use crate::wire::message;

/// A queue holds no more.
const WINDOW_MAX: u32 = 50;
/// Messages locked by one write of the store.
const FETCH_MAX: usize = 16;

/// What the store has answered.
enum Answered {
    Fetched(Result<Vec<Delivered>, OutboxError>),
    Settled(LockToken, Result<(), OutboxError>),
}

struct Queue {
    window: usize,
    /// Delivered, with the end of the lock.
    unsettled: HashMap<LockToken, UtcMillis>,
    /// Messages that the store was asked for and has not answered yet; 0 for none.
    fetching: usize,
    settling: usize,
    /// There may be messages that were not looked for.
    may_have_more: bool,
    /// When the first lock of the queue ends. It need not be ours: a hub that crashed leaves locks behind, and another
    /// door may hold some.
    look_again: Option<Instant>,
    answers: mpsc::UnboundedSender<Answered>,
}

pub(super) async fn run(stream: &mut Stream, open: CommandsOpen) -> Result<(), Fault> {
    let window = open.window.clamp(1, WINDOW_MAX);
    let (answers, mut answered) = mpsc::unbounded_channel();
    let mut queue = Queue {
        window: window as usize,
        unsettled: HashMap::new(),
        fetching: 0,
        settling: 0,
        may_have_more: true,
        look_again: None,
        answers,
    };
    let ended = serve(stream, &mut queue, &mut answered, window).await;
    queue.give_back(&stream.target, &mut answered).await;
    ended
}

async fn serve(
    stream: &mut Stream,
    queue: &mut Queue,
    answered: &mut mpsc::UnboundedReceiver<Answered>,
    window: u32,
) -> Result<(), Fault> {
    let target = stream.target.clone();
    let waiting = target.door.lines.listen_for_messages(&target.name);
    stream.write(&Ready { window }).await?;
    loop {
        queue.fetch(&target);
        tokio::select! {
            rung = waiting.rings() => match rung {
                Ok(()) => queue.may_have_more = true,
                Err(_) => return Err(replaced()),
            },
            Some(answer) = answered.recv() => match answer {
                Answered::Fetched(fetched) => {
                    let asked = std::mem::take(&mut queue.fetching);
                    let fetched = fetched.map_err(|error| refused(error.code(), error))?;
                    // Noted first: what cannot be sent any more is given back too.
                    queue.unsettled.extend(fetched.iter().map(|message| (message.token, message.locked_until)));
                    queue.may_have_more |= fetched.len() == asked;
                    let locked_until = target.door.outboxes.locked_until(&target.name);
                    let locked_until = locked_until.map_err(|error| refused(error.code(), error))?;
                    queue.look_again = locked_until.map(|until| target.door.instant_of(until));
                    for delivered in fetched {
                        stream.write(&command(&delivered)).await?;
                    }
                }
                Answered::Settled(token, result) => {
                    queue.settling -= 1;
                    let (code, reason) = match result {
                        Ok(()) => (0, String::new()),
                        Err(error) => (error.code().number, error.to_string()),
                    };
                    stream.write(&Settled { lock_token: token.into(), code, reason }).await?;
                }
            },
            frame = stream.next_frame(), if queue.settling < PENDING_MAX => match frame? {
                None => return Ok(()),
                Some(frame) if frame.kind == Kind::Settle => queue.settle(&target, read(&frame)?),
                Some(frame) => return Err(unexpected(frame.kind)),
            },
            () = sleep_until(queue.look_again) => {
                let now = target.door.clock.now();
                queue.unsettled.retain(|_, until| *until > now);
                queue.may_have_more = true;
                // For a window that is still full: then the store is not asked.
                queue.look_again = queue.unsettled.values().min().map(|until| target.door.instant_of(*until));
            }
        }
    }
}

impl Queue {
    /// Locks what there is room for; one request at a time.
    fn fetch(&mut self, target: &Target) {
        let room = self.window.saturating_sub(self.unsettled.len()).min(FETCH_MAX);
        if self.fetching > 0 || !self.may_have_more || room == 0 {
            return;
        }
        self.fetching = room;
        self.may_have_more = false;
        let answers = self.answers.clone();
        target
            .door
            .outboxes
            .receive(&target.name, room, target.door.clock.now(), move |fetched| {
                drop(answers.send(Answered::Fetched(fetched)));
            });
    }

    fn settle(&mut self, target: &Target, settle: Settle) {
        let token = LockToken::from(settle.lock_token);
        let settlement = match settle.outcome {
            Outcome::Complete => Settlement::Complete,
            Outcome::Reject => Settlement::Reject,
            Outcome::Abandon => Settlement::Abandon,
        };
        if self.unsettled.remove(&token).is_some() {
            self.may_have_more = true;
        }
        self.settling += 1;
        let answers = self.answers.clone();
        target.door.outboxes.settle(
            &target.name,
            token,
            settlement,
            target.door.clock.now(),
            move |result| {
                drop(answers.send(Answered::Settled(token, result)));
            },
        );
    }

    /// Ends the locks of what was delivered, or was about to be.
    async fn give_back(mut self, target: &Target, answered: &mut mpsc::UnboundedReceiver<Answered>) {
        while self.fetching > 0 {
            match answered.recv().await {
                Some(Answered::Fetched(fetched)) => {
                    self.fetching = 0;
                    let fetched = fetched.unwrap_or_default();
                    self.unsettled
                        .extend(fetched.iter().map(|message| (message.token, message.locked_until)));
                }
                Some(Answered::Settled(..)) => {}
                None => return,
            }
        }
        if self.unsettled.is_empty() {
            return;
        }
        let tokens = self.unsettled.into_keys().collect();
        let now = target.door.clock.now();
        // If it fails, the locks run out.
        target.door.outboxes.release(&target.name, tokens, now, |_| ());
    }
}

fn command(delivered: &Delivered) -> Command {
    let mut archive = Vec::new();
    message::encode(&delivered.message, &mut archive);
    Command {
        lock_token: delivered.token.into(),
        sequence: delivered.sequence,
        delivery_count: delivered.delivery_count,
        enqueued_ms: delivered.enqueued.0,
        expires_ms: delivered.expires.0,
        message: archive,
    }
}

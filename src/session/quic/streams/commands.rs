//! Messages to a device as frames. What is locked, settled and given back is [`crate::session::commands`]'s.

use super::{Fault, PENDING_MAX, Stream, read, refused, replaced, unexpected};
use crate::hub::outbox::{Delivered, QUEUE_DEPTH_MAX, Settlement};
use crate::session::commands::{Event, Queue};
use crate::wire::device::{Command, CommandsOpen, Outcome, Ready, Settle, Settled};
use crate::wire::frame::Kind;
use crate::wire::message;

pub(super) async fn run(stream: &mut Stream, open: CommandsOpen) -> Result<(), Fault> {
    let window = open.window.clamp(1, QUEUE_DEPTH_MAX as u32);
    let target = stream.target.clone();
    let door = &target.door;
    let (outboxes, clock) = (door.outboxes.clone(), door.clock.clone());
    let mut queue = Queue::open(outboxes, &door.lines, target.name.clone(), clock, window as usize);
    stream.write(&Ready { window }).await?;
    loop {
        tokio::select! {
            event = queue.next() => match event {
                Event::Deliver(delivered) => {
                    for delivered in delivered {
                        stream.write(&command(&delivered)).await?;
                    }
                }
                Event::Settled(token, result) => {
                    let (code, reason) = match result {
                        Ok(()) => (0, String::new()),
                        Err(error) => (error.code().number, error.to_string()),
                    };
                    stream.write(&Settled { lock_token: token.into(), code, reason }).await?;
                }
                Event::Replaced => return Err(replaced()),
                Event::Failed(error) => return Err(refused(error.code(), error)),
            },
            frame = stream.next_frame(), if queue.settling() < PENDING_MAX => match frame? {
                None => return Ok(()),
                Some(frame) if frame.kind == Kind::Settle => {
                    let Settle { lock_token, outcome } = read(&frame)?;
                    queue.settle(lock_token.into(), settlement(outcome));
                }
                Some(frame) => return Err(unexpected(frame.kind)),
            },
        }
    }
}

fn settlement(outcome: Outcome) -> Settlement {
    match outcome {
        Outcome::Complete => Settlement::Complete,
        Outcome::Reject => Settlement::Reject,
        Outcome::Abandon => Settlement::Abandon,
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

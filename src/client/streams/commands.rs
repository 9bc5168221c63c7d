//! Messages to the device: taken, and settled.

use std::collections::VecDeque;

use super::{Ended, Outcome, Stream, protocol, read, refused, unexpected};
use crate::client::ClientError;
use crate::client::device::Device;
use crate::model::{Message, UtcMillis};
use crate::wire::control::Control as _;
use crate::wire::device::{self, CommandsOpen, Settle, Settled};
use crate::wire::frame::Kind;
use crate::wire::message::MessageRef;

/// A message to the device. It is locked for it until it is settled, for a minute at most.
#[derive(Clone, Debug)]
pub struct Command {
    pub message: Message,
    /// Place in the queue.
    pub sequence: u64,
    /// How often it was abandoned. A message can also come again because its lock ran out or the connection was lost,
    /// which is not counted: compare message ids.
    pub delivery_count: u8,
    pub enqueued: UtcMillis,
    pub expires: UtcMillis,
    lock_token: [u8; 16],
}

/// See [`Device::commands`].
pub struct Commands {
    device: Device,
    window: u32,
    stream: Option<Stream>,
    taken: VecDeque<Command>,
}

impl Commands {
    pub(super) fn new(device: Device, window: u32) -> Self {
        Self {
            device,
            window,
            stream: None,
            taken: VecDeque::new(),
        }
    }

    /// Begins to listen: what is queued is delivered from now on. `next` does it too.
    ///
    /// # Errors
    /// As `next`.
    pub async fn listen(&mut self) -> Result<(), ClientError> {
        if self.stream.is_none() {
            // What was taken on a session that is gone will come again.
            self.taken.clear();
            let window = self.window;
            self.stream = Some(Stream::open(&self.device, &CommandsOpen { window }).await?);
        }
        Ok(())
    }

    /// The next message, in the order of the queue. Waits over lost connections.
    ///
    /// # Errors
    /// The device has ended, or another stream took this one's place (`Refused`, 409003).
    pub async fn next(&mut self) -> Result<Command, ClientError> {
        loop {
            self.listen().await?;
            if let Some(command) = self.taken.pop_front() {
                return Ok(command);
            }
            match self.hear().await {
                Ok(_) => {}
                Err(Ended::Lost(_)) => self.stream = None,
                Err(Ended::Failed(error)) => return Err(error),
            }
        }
    }

    /// Says what became of a message, and waits until that is durable.
    ///
    /// # Errors
    /// `Refused` with 412002: the lock was lost, and the message is or was delivered again. `Unreachable`: the connection
    /// ended first, whether it is settled is unknown; the message comes again if not.
    pub async fn settle(&mut self, command: &Command, outcome: Outcome) -> Result<(), ClientError> {
        let lock_token = command.lock_token;
        let settled = self.settle_on_stream(Settle { lock_token, outcome }).await;
        match settled {
            Ok(Settled { code: 0, .. }) => Ok(()),
            Ok(Settled { code, reason, .. }) => Err(refused(code, reason)),
            Err(ended) => {
                self.stream = None;
                Err(ended.into())
            }
        }
    }

    async fn settle_on_stream(&mut self, settle: Settle) -> Result<Settled, Ended> {
        let lost = || Ended::Lost("the connection on which the message came is gone".into());
        // Taken out: a write that is cancelled half-way must be the stream's last.
        let mut stream = self.stream.take().ok_or_else(lost)?;
        stream.write(&settle).await?;
        self.stream = Some(stream);
        loop {
            if let Some(settled) = self.hear().await?
                && settled.lock_token == settle.lock_token
            {
                return Ok(settled);
            }
        }
    }

    /// One frame: a message, which is kept, or what became of a settlement.
    async fn hear(&mut self) -> Result<Option<Settled>, Ended> {
        let stream = self.stream.as_mut().ok_or_else(|| Ended::Lost(String::new()))?;
        let frame = stream.next().await?;
        match frame.kind {
            Kind::Settled => Ok(Some(read(&frame)?)),
            Kind::Command => {
                let command = device::Command::from_body(&frame.body).map_err(protocol)?;
                self.taken.push_back(decode(command)?);
                Ok(None)
            }
            kind => Err(unexpected(kind)),
        }
    }
}

fn decode(command: device::Command) -> Result<Command, Ended> {
    let message = MessageRef::check(&command.message)
        .map_err(|error| Ended::Failed(ClientError::Protocol(error.to_string())))?
        .to_message();
    Ok(Command {
        message,
        sequence: command.sequence,
        delivery_count: command.delivery_count,
        enqueued: UtcMillis(command.enqueued_ms),
        expires: UtcMillis(command.expires_ms),
        lock_token: command.lock_token,
    })
}

//! A link that sends: messages with their outcome outstanding, as many as a window allows.

use std::collections::VecDeque;
use std::time::Instant;

use anyhow::{bail, ensure};
use forebay::proto::amqp::frame::{self, FrameKind};
use forebay::proto::amqp::performative::{Disposition, Performative, SenderSettles, Terminus, Transfer};
use forebay::proto::amqp::{DeliveryState, Role};

use super::{Connection, FRAME_BYTES_MAX};

/// A connection that sends to one address.
pub struct Sender {
    connection: Connection,
    /// Messages that the hub lets the link send in all.
    may_send: u32,
    sent: u32,
    /// When each was sent whose outcome is not there, oldest first; `None` for one that is settled out of turn.
    unsettled: VecDeque<Option<Instant>>,
}

impl Sender {
    /// # Errors
    /// The hub refuses the link.
    pub async fn attach(mut connection: Connection, address: &str) -> anyhow::Result<Self> {
        let (source, target) = (Terminus::new("bench"), Terminus::new(address));
        connection
            .attach(0, address, Role::Sender, SenderSettles::Unsettled, source, target)
            .await?;
        let mut sender = Self {
            connection,
            may_send: 0,
            sent: 0,
            unsettled: VecDeque::new(),
        };
        while sender.may_send == 0 {
            let performative = sender.connection.performative().await?;
            sender.handle(performative, &mut |_| ())?;
        }
        Ok(sender)
    }

    /// Messages whose outcome is outstanding.
    pub fn unsettled(&self) -> usize {
        self.unsettled.len()
    }

    pub fn may_send(&self) -> bool {
        self.sent < self.may_send
    }

    /// Puts a message into the buffer; it leaves with the next `flush`. The payload fits into one frame.
    /// `since`: from when its latency counts.
    pub fn put(&mut self, payload: &[u8], since: Instant) {
        let transfer = Transfer {
            handle: 0,
            delivery_id: Some(self.sent),
            delivery_tag: Some(self.sent.to_be_bytes().to_vec().into()),
            message_format: Some(0),
            settled: Some(false),
            ..Transfer::default()
        };
        frame::put(&mut self.connection.output, FrameKind::Amqp, 0, |body| {
            Performative::Transfer(transfer).write(body);
            body.extend_from_slice(payload);
        });
        self.sent += 1;
        self.unsettled.push_back(Some(since));
    }

    /// # Errors
    /// The hub is gone.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        self.connection.flush().await
    }

    /// Waits for the hub and takes all it has said; `accepted` is told when each accepted message was sent.
    ///
    /// # Errors
    /// The hub is gone, ends the link, or does not accept a message.
    pub async fn wait(&mut self, mut accepted: impl FnMut(Instant)) -> anyhow::Result<()> {
        self.connection.read().await?;
        while let Some(frame) = frame::take(&mut self.connection.input, FRAME_BYTES_MAX)? {
            if !frame.body.is_empty() {
                let (performative, _) = Performative::read(&frame.body)?;
                self.handle(performative, &mut accepted)?;
            }
        }
        Ok(())
    }

    fn handle(&mut self, performative: Performative, accepted: &mut impl FnMut(Instant)) -> anyhow::Result<()> {
        match performative {
            Performative::Flow(flow) => {
                if let (Some(count), Some(credit)) = (flow.delivery_count, flow.link_credit) {
                    self.may_send = count + credit;
                }
                Ok(())
            }
            Performative::Disposition(disposition) => self.settle(&disposition, accepted),
            other => bail!("the hub says {other:?}"),
        }
    }

    fn settle(&mut self, disposition: &Disposition, accepted: &mut impl FnMut(Instant)) -> anyhow::Result<()> {
        ensure!(
            disposition.state == Some(DeliveryState::Accepted),
            "a message came out as {:?}",
            disposition.state
        );
        let oldest = self.sent - u32::try_from(self.unsettled.len())?;
        for id in disposition.first..=disposition.last {
            let at = id.checked_sub(oldest).map(|at| at as usize);
            let sent = at.and_then(|at| self.unsettled.get_mut(at)).and_then(Option::take);
            ensure!(sent.is_some(), "message {id} is settled twice, or was never sent");
            sent.into_iter().for_each(&mut *accepted);
        }
        while self.unsettled.pop_front_if(|sent| sent.is_none()).is_some() {}
        Ok(())
    }
}

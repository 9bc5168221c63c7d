//! Deliveries: put together from transfers, cut into transfers, and settled.

use bytes::Bytes;

use super::{Connection, Delivery, Event, Link, LinkId, LinkPhase, Partial, Session, Settled, no_session};
use crate::proto::amqp::error::{Condition, Error};
use crate::proto::amqp::frame::{self, FrameKind};
use crate::proto::amqp::performative::{DeliveryState, Disposition, Performative, Role, Transfer, write_transfer};
use crate::proto::amqp::value::Writer;

/// What a wrong transfer ends.
enum Fault {
    Link(Error),
    Session(Error),
    Connection(Error),
}

impl Connection {
    pub(super) fn handle_transfer(
        &mut self,
        channel: u16,
        transfer: Transfer,
        payload: Bytes,
    ) -> Result<Option<Event>, Error> {
        if !self.sessions.contains_key(&channel) {
            return Err(no_session(channel));
        }
        let window = self.limits.session_window;
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        if session.incoming_window == 0 {
            let error = Error::new(Condition::WINDOW_VIOLATION, "more transfers than the window allows");
            self.end_session(channel, error);
            return Ok(None);
        }
        session.incoming_window -= 1;
        session.next_incoming_id = session.next_incoming_id.wrapping_add(1);
        let needs_window = session.incoming_window <= window / 2;
        let Some(id) = session.handles.get(&transfer.handle).copied() else {
            let reason = format!("handle {} is not attached", transfer.handle);
            self.end_session(channel, Error::new(Condition::UNATTACHED_HANDLE, reason));
            return Ok(None);
        };
        if needs_window {
            self.put_flow(channel, None);
        }
        let result = self.assemble(id, transfer, payload);
        match result {
            Ok(delivery) => Ok(delivery.map(|delivery| Event::Delivered(id, delivery))),
            Err(Fault::Link(error)) => {
                self.detach(id, Some(error));
                Ok(Some(Event::Detached(id)))
            }
            Err(Fault::Session(error)) => {
                self.end_session(channel, error);
                Ok(None)
            }
            Err(Fault::Connection(error)) => Err(error),
        }
    }

    fn assemble(&mut self, id: LinkId, transfer: Transfer, payload: Bytes) -> Result<Option<Delivery>, Fault> {
        let link = self.links.get_mut(&id).expect("handles lead to links");
        if link.phase == LinkPhase::Detaching {
            // Sent before the peer saw the detach.
            return Ok(None);
        }
        if link.role == Role::Sender {
            let error = Error::new(Condition::NOT_ALLOWED, "a transfer on a link that receives");
            return Err(Fault::Session(error));
        }
        if transfer.aborted {
            self.assembling_bytes -= link.partial.take().map_or(0, |partial| partial.payload.len());
            return Ok(None);
        }
        if payload.len() + link.partial.as_ref().map_or(0, |partial| partial.payload.len())
            > self.limits.message_bytes_max
        {
            let reason = format!("a message exceeds {} bytes", self.limits.message_bytes_max);
            return Err(Fault::Link(Error::new(Condition::MESSAGE_SIZE_EXCEEDED, reason)));
        }
        if link.partial.is_none() {
            let Some(delivery_id) = transfer.delivery_id else {
                let error = Error::new(Condition::INVALID_FIELD, "a delivery without delivery-id");
                return Err(Fault::Session(error));
            };
            if link.credit == 0 {
                return Err(Fault::Link(Error::new(
                    Condition::TRANSFER_LIMIT_EXCEEDED,
                    "a message without credit",
                )));
            }
            link.credit -= 1;
            link.delivery_count = link.delivery_count.wrapping_add(1);
            let is_settled = transfer.settled.unwrap_or(link.is_settled);
            let tag = transfer.delivery_tag.unwrap_or_default();
            let format = transfer.message_format.unwrap_or(0);
            if !transfer.more {
                return Ok(Some(Delivery {
                    id: delivery_id,
                    tag,
                    is_settled,
                    format,
                    payload,
                }));
            }
            link.partial = Some(Partial {
                id: delivery_id,
                tag,
                is_settled,
                format,
                payload: Vec::new(),
            });
        }
        let partial = link.partial.as_mut().expect("made above");
        if transfer.delivery_id.is_some_and(|id| id != partial.id) {
            let error = Error::new(Condition::INVALID_FIELD, "a delivery begins inside another");
            return Err(Fault::Session(error));
        }
        self.assembling_bytes += payload.len();
        if self.assembling_bytes > self.limits.assembling_bytes_max {
            let reason = "too much of messages that are not complete";
            return Err(Fault::Connection(Error::new(
                Condition::RESOURCE_LIMIT_EXCEEDED,
                reason,
            )));
        }
        partial.payload.extend_from_slice(&payload);
        partial.is_settled |= transfer.settled.unwrap_or(false);
        if transfer.more {
            return Ok(None);
        }
        let partial = link.partial.take().expect("it was there a line ago");
        self.assembling_bytes -= partial.payload.len();
        Ok(Some(Delivery {
            id: partial.id,
            tag: partial.tag,
            is_settled: partial.is_settled,
            format: partial.format,
            payload: partial.payload.into(),
        }))
    }

    /// Settles deliveries of the peer: of one link, `first` to `last`.
    pub fn dispose(&mut self, id: LinkId, first: u32, last: u32, state: DeliveryState) {
        let Some(link) = self.links.get(&id) else { return };
        if link.phase == LinkPhase::Detaching {
            return;
        }
        let disposition = Disposition {
            role: Role::Receiver,
            first,
            last,
            settled: true,
            state: Some(state),
        };
        let channel = link.channel;
        self.put(channel, &Performative::Disposition(disposition));
    }

    pub(super) fn handle_disposition(&mut self, channel: u16, disposition: &Disposition) {
        if disposition.role == Role::Sender {
            // Of deliveries that the hub has settled, or forgets with their link.
            return;
        }
        let Some(session) = self.session(channel) else { return };
        let span = disposition.last.wrapping_sub(disposition.first);
        let is_meant = |id: u32| id.wrapping_sub(disposition.first) <= span;
        // Each of the hub's own: never each of the range, which the peer chooses.
        let mut meant: Vec<(u32, LinkId)> = session
            .unsettled
            .iter()
            .filter(|(id, _)| is_meant(**id))
            .map(|(id, link)| (*id, *link))
            .collect();
        meant.sort_unstable_by_key(|(id, _)| id.wrapping_sub(disposition.first));
        if disposition.settled {
            for (id, _) in &meant {
                session.unsettled.remove(id);
            }
        }
        if meant.is_empty() && !disposition.settled {
            // Of deliveries whose outcome nobody waits for: the peer does.
            let answer = Disposition {
                role: Role::Sender,
                settled: true,
                ..disposition.clone()
            };
            self.put(channel, &Performative::Disposition(answer));
        }
        self.events.extend(meant.into_iter().map(|(id, link)| {
            Event::Settled(
                link,
                Settled {
                    id,
                    state: disposition.state.clone(),
                    is_final: disposition.settled,
                },
            )
        }));
    }

    /// The hub's last word on a delivery to the peer, which waits for it.
    pub fn settle(&mut self, id: LinkId, delivery: u32, state: DeliveryState) {
        let Some(channel) = self.links.get(&id).map(|link| link.channel) else {
            return;
        };
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        if session.unsettled.remove(&delivery).is_some() {
            let disposition = Disposition {
                role: Role::Sender,
                first: delivery,
                last: delivery,
                settled: true,
                state: Some(state),
            };
            self.put(channel, &Performative::Disposition(disposition));
        }
    }

    /// The link as one that sends; `None` if it is gone.
    pub fn outgoing(&mut self, id: LinkId) -> Option<Outgoing<'_>> {
        let link = self.links.get_mut(&id)?;
        Some(Outgoing {
            session: self.sessions.get_mut(&link.channel)?,
            link,
            id,
            output: &mut self.output,
            frame_bytes_max: self.remote_frame_bytes_max as usize,
        })
    }

    /// Whether a message may be sent now.
    pub fn can_send(&mut self, id: LinkId) -> bool {
        self.outgoing(id).is_some_and(|outgoing| outgoing.can_send())
    }

    /// Sends a message, which `write` appends. Only where `can_send` says so. Returns the delivery's id in its session.
    pub fn send(&mut self, id: LinkId, tag: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let mut outgoing = self.outgoing(id).expect("only a link with credit is sent on");
        outgoing.send(tag, write)
    }

    pub(super) fn release_stalled(&mut self, channel: u16) {
        if let Some(session) = self.sessions.get_mut(&channel) {
            session.release_stalled(&mut self.output);
        }
    }
}

impl Session {
    fn release_stalled(&mut self, output: &mut Vec<u8>) {
        while self.remote_incoming_window > 0
            && let Some(whole) = self.stalled.pop_front()
        {
            self.remote_incoming_window -= 1;
            self.next_outgoing_id = self.next_outgoing_id.wrapping_add(1);
            output.extend(whole);
        }
    }
}

/// A link that sends, looked up once for many messages.
pub struct Outgoing<'a> {
    link: &'a mut Link,
    session: &'a mut Session,
    id: LinkId,
    output: &'a mut Vec<u8>,
    frame_bytes_max: usize,
}

impl Outgoing<'_> {
    /// Whether a message may be sent now.
    pub fn can_send(&self) -> bool {
        self.link.phase == LinkPhase::Attached
            && self.link.credit > 0
            && self.session.remote_incoming_window > 0
            && self.session.stalled.is_empty()
    }

    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    /// As `Connection::send`.
    pub fn send(&mut self, tag: &[u8], write: impl FnOnce(&mut Vec<u8>)) -> u32 {
        let Self {
            link,
            session,
            id,
            output,
            frame_bytes_max,
        } = self;
        assert!(link.credit > 0, "only a link with credit is sent on");
        link.credit -= 1;
        link.delivery_count = link.delivery_count.wrapping_add(1);
        let delivery_id = session.next_delivery_id;
        session.next_delivery_id = delivery_id.wrapping_add(1);
        if link.tracks_outcomes && !link.is_settled {
            session.unsettled.insert(delivery_id, *id);
        }
        let mut transfer = Transfer {
            handle: link.handle,
            delivery_id: Some(delivery_id),
            delivery_tag: None,
            message_format: Some(0),
            settled: Some(link.is_settled),
            more: false,
            aborted: false,
        };
        let start = frame::begin(output, FrameKind::Amqp, session.channel);
        write_transfer(&transfer, Some(tag), &mut Writer(output));
        let payload_start = output.len();
        write(output);
        if output.len() - start <= *frame_bytes_max {
            frame::finish(output, start);
            session.next_outgoing_id = session.next_outgoing_id.wrapping_add(1);
            session.remote_incoming_window -= 1;
            return delivery_id;
        }
        let payload = output.split_off(payload_start);
        output.truncate(start);
        let room = *frame_bytes_max - (payload_start - start);
        let mut chunks = payload.chunks(room).peekable();
        while let Some(chunk) = chunks.next() {
            transfer.more = chunks.peek().is_some();
            let mut whole = Vec::with_capacity(chunk.len() + 64);
            frame::put(&mut whole, FrameKind::Amqp, session.channel, |body| {
                write_transfer(&transfer, Some(tag), &mut Writer(body));
                body.extend_from_slice(chunk);
            });
            session.stalled.push_back(whole);
        }
        session.release_stalled(output);
        delivery_id
    }
}

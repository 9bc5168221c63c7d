//! Links: attached, refused and detached, and how much each may send.

use super::{Accept, Connection, Event, Link, LinkId, LinkPhase, no_session};
use crate::proto::amqp::error::{Condition, Error};
use crate::proto::amqp::performative::{Attach, Detach, Flow, Performative, Role, SenderSettles, Terminus};

impl Connection {
    pub(super) fn handle_attach(&mut self, channel: u16, attach: Box<Attach>) -> Result<Option<Event>, Error> {
        let links_max = self.limits.links_max;
        let is_full = self.links.len() >= links_max;
        if !self.sessions.contains_key(&channel) {
            return Err(no_session(channel));
        }
        let id = LinkId(self.next_link);
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        let handle = attach.handle;
        // AMQP 1.0 s2.7.2: a handle above the maximum is a framing error.
        if handle as usize >= links_max {
            return Err(Error::new(
                Condition::FRAMING_ERROR,
                format!("handle {handle} is above {}", links_max - 1),
            ));
        }
        if session.handles.contains_key(&handle) {
            let error = Error::new(Condition::HANDLE_IN_USE, format!("handle {handle} is in use"));
            self.end_session(channel, error);
            return Ok(None);
        }
        if is_full {
            let error = Error::new(
                Condition::RESOURCE_LIMIT_EXCEEDED,
                format!("a connection has at most {links_max} links"),
            );
            self.end_session(channel, error);
            return Ok(None);
        }
        session.handles.insert(handle, id);
        self.next_link += 1;
        let role = match attach.role {
            Role::Sender => Role::Receiver,
            Role::Receiver => Role::Sender,
        };
        self.links.insert(
            id,
            Link {
                channel,
                handle,
                phase: LinkPhase::Attaching,
                role,
                attach: Some(attach.clone()),
                credit: 0,
                delivery_count: if role == Role::Receiver {
                    attach.initial_delivery_count.unwrap_or(0)
                } else {
                    0
                },
                drain: false,
                is_settled: attach.sender_settles == SenderSettles::Settled,
                tracks_outcomes: false,
                partial: None,
            },
        );
        Ok(Some(Event::Attached(id, attach)))
    }

    /// Answers an attach. Does nothing if the link is gone.
    pub fn accept(&mut self, id: LinkId, accept: Accept) {
        let message_bytes_max = self.limits.message_bytes_max;
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(attach) = link.attach.take() else { return };
        link.phase = LinkPhase::Attached;
        let sender_settles = accept.sender_settles.unwrap_or(attach.sender_settles);
        link.is_settled = sender_settles == SenderSettles::Settled;
        link.tracks_outcomes = accept.tracks_outcomes;
        let answer = Attach {
            name: attach.name,
            handle: link.handle,
            role: link.role,
            sender_settles,
            receiver_settles: attach.receiver_settles,
            source: Some(attach.source.unwrap_or_default()),
            target: Some(attach.target.unwrap_or_default()),
            initial_delivery_count: (link.role == Role::Sender).then_some(0),
            max_message_size: Some(message_bytes_max as u64),
            offered_capabilities: accept.offered_capabilities,
            desired_capabilities: Vec::new(),
            properties: accept.properties,
        };
        let channel = link.channel;
        let is_receiver = link.role == Role::Receiver;
        self.put(channel, &Performative::Attach(Box::new(answer)));
        if is_receiver && accept.credit > 0 {
            self.grant(id, accept.credit);
        }
    }

    /// Refuses an attach: answers it with a link that has no end, and detaches that.
    pub fn refuse(&mut self, id: LinkId, error: Error) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let Some(attach) = link.attach.take() else { return };
        link.phase = LinkPhase::Detaching;
        let (channel, handle, role) = (link.channel, link.handle, link.role);
        // AMQP 1.0 s2.6.3: the end that is refused is null.
        let none = |terminus: Option<Terminus>, keeps: bool| terminus.filter(|_| keeps);
        let answer = Attach {
            name: attach.name,
            handle,
            role,
            sender_settles: attach.sender_settles,
            receiver_settles: attach.receiver_settles,
            source: none(attach.source, role == Role::Receiver),
            target: none(attach.target, role == Role::Sender),
            initial_delivery_count: (role == Role::Sender).then_some(0),
            max_message_size: None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: None,
        };
        self.put(channel, &Performative::Attach(Box::new(answer)));
        self.put(
            channel,
            &Performative::Detach(Detach {
                handle,
                closed: true,
                error: Some(error),
            }),
        );
    }

    /// Detaches a link, for a reason or because the hub is done with it. No event follows.
    pub fn detach(&mut self, id: LinkId, error: Option<Error>) {
        match self.links.get_mut(&id) {
            Some(link) if link.phase == LinkPhase::Attached => {
                link.phase = LinkPhase::Detaching;
                self.assembling_bytes -= link.partial.take().map_or(0, |partial| partial.payload.len());
                let (channel, handle) = (link.channel, link.handle);
                if let Some(session) = self.sessions.get_mut(&channel) {
                    session.unsettled.retain(|_, link| *link != id);
                }
                let detach = Detach {
                    handle,
                    closed: true,
                    error,
                };
                self.put(channel, &Performative::Detach(detach));
            }
            Some(link) if link.phase == LinkPhase::Attaching => {
                let error = error.unwrap_or_else(|| Error::new(Condition::DETACH_FORCED, ""));
                self.refuse(id, error);
            }
            Some(_) | None => {}
        }
    }

    pub(super) fn handle_detach(&mut self, channel: u16, detach: &Detach) -> Option<Event> {
        let session = self.session(channel)?;
        let id = session.handles.remove(&detach.handle)?;
        session.unsettled.retain(|_, link| *link != id);
        let link = self.links.remove(&id)?;
        self.assembling_bytes -= link.partial.map_or(0, |partial| partial.payload.len());
        if link.phase == LinkPhase::Detaching {
            return None;
        }
        let answer = Detach {
            handle: detach.handle,
            closed: detach.closed,
            error: None,
        };
        self.put(channel, &Performative::Detach(answer));
        Some(Event::Detached(id))
    }

    pub(super) fn handle_flow(&mut self, channel: u16, flow: Flow) -> Result<Option<Event>, Error> {
        let Some(session) = self.session(channel) else {
            return Ok(None);
        };
        // AMQP 1.0 s2.5.6: the peer's window as of what it has seen.
        let seen = flow.next_incoming_id.unwrap_or(0);
        session.remote_incoming_window = seen
            .wrapping_add(flow.incoming_window)
            .wrapping_sub(session.next_outgoing_id)
            .min(flow.incoming_window);
        let has_room = session.remote_incoming_window > 0;
        let id = match flow.handle {
            None => None,
            Some(handle) => match session.handles.get(&handle) {
                Some(id) => Some(*id),
                None => {
                    let error = Error::new(Condition::UNATTACHED_HANDLE, format!("handle {handle} is not attached"));
                    self.end_session(channel, error);
                    return Ok(None);
                }
            },
        };
        if has_room {
            self.release_stalled(channel);
        }
        let mut changed = None;
        if let Some(id) = id
            && let Some(link) = self.links.get_mut(&id)
            && link.role == Role::Sender
            && link.phase != LinkPhase::Detaching
        {
            // AMQP 1.0 s2.6.7.
            let credit = flow.link_credit.unwrap_or(0);
            let left = flow
                .delivery_count
                .unwrap_or(0)
                .wrapping_add(credit)
                .wrapping_sub(link.delivery_count);
            // What the receiver has not seen yet may be more than it grants now.
            link.credit = if left > credit { 0 } else { left };
            link.drain = flow.drain;
            changed = Some(id);
        }
        if flow.echo {
            self.put_flow(channel, id);
        }
        if has_room {
            // The window is the session's: any of its links may have waited for it.
            let session = &self.sessions[&channel];
            let others = session.handles.values().filter(|other| Some(**other) != changed);
            let is_sender = |id: &&LinkId| self.links.get(id).is_some_and(|link| link.role == Role::Sender);
            let mut senders: Vec<LinkId> = others.filter(is_sender).copied().collect();
            senders.sort_unstable();
            self.events.extend(senders.into_iter().map(Event::Flow));
        }
        Ok(changed.map(Event::Flow))
    }

    /// Tells the peer how things stand, of a link or of the session alone.
    pub(super) fn put_flow(&mut self, channel: u16, id: Option<LinkId>) {
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        session.incoming_window = self.limits.session_window;
        let link = id
            .and_then(|id| self.links.get(&id))
            .filter(|link| link.phase != LinkPhase::Detaching);
        let flow = Flow {
            next_incoming_id: Some(session.next_incoming_id),
            incoming_window: session.incoming_window,
            next_outgoing_id: session.next_outgoing_id,
            outgoing_window: self.limits.session_window,
            handle: link.map(|link| link.handle),
            delivery_count: link.map(|link| link.delivery_count),
            link_credit: link.map(|link| link.credit),
            available: link.map(|_| 0),
            drain: link.is_some_and(|link| link.drain),
            echo: false,
        };
        self.put(channel, &Performative::Flow(flow));
    }

    /// Sets how many messages the peer may send from now on.
    pub fn grant(&mut self, id: LinkId, credit: u32) {
        if let Some(link) = self.links.get_mut(&id)
            && link.phase == LinkPhase::Attached
        {
            link.credit = credit;
            let channel = link.channel;
            self.put_flow(channel, Some(id));
        }
    }

    /// Messages the other side of a link may send: the peer if the hub receives, the hub if it sends.
    pub fn credit(&self, id: LinkId) -> u32 {
        self.links.get(&id).map_or(0, |link| link.credit)
    }

    /// Whether the peer wants the rest of its credit used up or given back.
    pub fn is_draining(&self, id: LinkId) -> bool {
        self.links.get(&id).is_some_and(|link| link.drain && link.credit > 0)
    }

    /// There is nothing more to send: gives the credit back that a draining peer waits for.
    pub fn drained(&mut self, id: LinkId) {
        if let Some(link) = self.links.get_mut(&id)
            && link.drain
            && link.phase == LinkPhase::Attached
        {
            link.delivery_count = link.delivery_count.wrapping_add(link.credit);
            link.credit = 0;
            let channel = link.channel;
            self.put_flow(channel, Some(id));
        }
    }
}

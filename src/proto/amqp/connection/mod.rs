//! One connection: headers, SASL, sessions with their windows, links with their credit, deliveries and their outcomes.
//!
//! ```text
//!   Header ──SASL header──> Sasl ──init, outcome──> AmqpHeader ──┐
//!      └────────AMQP header──────────────────────────────────────┴─> Opening ──open──> Open ──close──> Closed
//!
//!   link:  Attaching ──accept──> Attached ──detach of either side──> Detaching ──detach of the other──> gone
//!              └─────refuse──────────────────────────────────────────────^
//! ```
//!
//! The caller feeds bytes, takes one event after the other, answers it, and sends what stands in `output`. Frames are read
//! one at a time, so that the answer to an attach counts for what the peer has sent behind it already.
//!
//! Invariants:
//! - What a peer has not sent completely is bounded by `Limits::assembling_bytes_max` for all links together.
//! - Nothing is sent beyond a link's credit, a session's window, or the peer's frame size.
//! - A violation ends exactly what AMQP says it ends: the link, the session or the connection.

mod deliveries;
mod links;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

pub use self::deliveries::Outgoing;

use bytes::{Bytes, BytesMut};
use foldhash::{HashMap, HashMapExt as _};

use super::error::{Condition, Error};
use super::frame::{self, FrameKind};
use super::performative::{
    Attach, Begin, DeliveryState, Open, Performative, Role, SaslInit, SenderSettles, write_sasl_mechanisms,
    write_sasl_outcome,
};

/// How much of everything one connection may have.
#[derive(Clone, Debug)]
pub struct Limits {
    pub container_id: String,
    /// SASL mechanisms offered, in order.
    pub mechanisms: &'static [&'static str],
    pub frame_bytes_max: u32,
    pub sessions_max: u16,
    /// Of all sessions.
    pub links_max: usize,
    /// Transfers a session may send before it is told that it may send more.
    pub session_window: u32,
    /// Of one message with all its sections.
    pub message_bytes_max: usize,
    /// Of messages that are not complete, on all links together.
    pub assembling_bytes_max: usize,
    /// Silence after which the connection may be closed; told to the peer.
    pub idle_timeout_ms: u32,
}

/// A link of this connection; never given twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkId(u32);

/// What the peer did.
#[derive(Debug, PartialEq)]
pub enum Event {
    /// Answer with `sasl_outcome`.
    Sasl(SaslInit),
    Opened {
        hostname: Option<String>,
        /// The peer wants to hear something in this time.
        idle_timeout_ms: Option<u32>,
    },
    /// Answer with `accept` or `refuse`, at once or later.
    Attached(LinkId, Box<Attach>),
    Delivered(LinkId, Delivery),
    Settled(LinkId, Settled),
    /// Credit came, or the peer wants what is left of it used up.
    Flow(LinkId),
    /// The link is gone, by its own end or with its session.
    Detached(LinkId),
    /// The peer has closed the connection.
    Closed(Option<Error>),
    /// The peer broke a rule, and the connection is being closed for it.
    Failed(Error),
}

/// A whole message from the peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// In its session; what `dispose` takes.
    pub id: u32,
    pub tag: Bytes,
    pub is_settled: bool,
    pub format: u32,
    pub payload: Bytes,
}

/// What the peer says of a message it was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    pub id: u32,
    pub state: Option<DeliveryState>,
    /// Otherwise the peer waits for `settle`.
    pub is_final: bool,
}

/// How an attach is answered.
#[derive(Clone, Debug, Default)]
pub struct Accept {
    /// Messages the peer may send.
    pub credit: u32,
    /// Of what is sent: whether without waiting for outcomes. `None` as the peer asked.
    pub sender_settles: Option<SenderSettles>,
    /// Outcomes of what is sent are wanted.
    pub tracks_outcomes: bool,
    pub properties: Option<Bytes>,
    pub offered_capabilities: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Header,
    Sasl,
    AmqpHeader,
    Opening,
    Open,
    Closed,
}

#[derive(Debug)]
struct Session {
    /// Both sides use the number that the peer chose.
    channel: u16,
    next_incoming_id: u32,
    incoming_window: u32,
    next_outgoing_id: u32,
    remote_incoming_window: u32,
    next_delivery_id: u32,
    handles: HashMap<u32, LinkId>,
    /// Deliveries to the peer whose outcome somebody waits for.
    unsettled: HashMap<u32, LinkId>,
    /// Whole frames beyond the peer's window.
    stalled: VecDeque<Vec<u8>>,
    /// The hub has ended it; the peer's end is awaited.
    is_ending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LinkPhase {
    Attaching,
    Attached,
    /// The hub has sent its detach.
    Detaching,
}

#[derive(Debug)]
struct Link {
    channel: u16,
    handle: u32,
    phase: LinkPhase,
    /// Ours.
    role: Role,
    /// As the peer asked; used once.
    attach: Option<Box<Attach>>,
    /// What may still be sent, by the side that sends.
    credit: u32,
    delivery_count: u32,
    drain: bool,
    is_settled: bool,
    tracks_outcomes: bool,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    id: u32,
    tag: Bytes,
    is_settled: bool,
    format: u32,
    payload: Vec<u8>,
}

/// The state of one connection.
#[derive(Debug)]
pub struct Connection {
    limits: Limits,
    phase: Phase,
    input: BytesMut,
    output: Vec<u8>,
    sessions: HashMap<u16, Session>,
    links: HashMap<LinkId, Link>,
    next_link: u32,
    remote_frame_bytes_max: u32,
    assembling_bytes: usize,
    /// Events that one frame caused beside the first.
    events: VecDeque<Event>,
}

impl Connection {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            phase: Phase::Header,
            input: BytesMut::new(),
            output: Vec::new(),
            sessions: HashMap::new(),
            links: HashMap::new(),
            next_link: 0,
            remote_frame_bytes_max: frame::FRAME_BYTES_MIN,
            assembling_bytes: 0,
            events: VecDeque::new(),
        }
    }

    /// Where what was read is put.
    pub fn input(&mut self) -> &mut BytesMut {
        &mut self.input
    }

    /// What is to be sent; the caller takes it from the front.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    pub fn has_output(&self) -> bool {
        !self.output.is_empty()
    }

    pub fn output_bytes(&self) -> usize {
        self.output.len()
    }

    pub fn is_open(&self) -> bool {
        self.phase == Phase::Open
    }

    /// Whether the hub has said its last word.
    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    pub fn links(&self) -> usize {
        self.links.len()
    }

    /// The number of a link's session; what is answered on a session is asked on it.
    pub fn channel(&self, id: LinkId) -> Option<u16> {
        self.links.get(&id).map(|link| link.channel)
    }

    /// The next thing the peer did; `None` until more was read.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.phase == Phase::Closed {
                self.input.clear();
                return None;
            }
            if matches!(self.phase, Phase::Header | Phase::AmqpHeader) {
                match self.header() {
                    Ok(true) => continue,
                    Ok(false) => return None,
                    Err(error) => return Some(self.fail(error)),
                }
            }
            let frame = match frame::take(&mut self.input, self.limits.frame_bytes_max) {
                Ok(Some(frame)) => frame,
                Ok(None) => return None,
                Err(error) => {
                    return Some(self.fail(Error::new(Condition::FRAMING_ERROR, error.to_string())));
                }
            };
            match self.frame(&frame) {
                Ok(Some(event)) => return Some(event),
                Ok(None) => {}
                Err(error) => return Some(self.fail(error)),
            }
        }
    }

    /// Whether a header was there.
    fn header(&mut self) -> Result<bool, Error> {
        let Some(header) = self.input.first_chunk::<{ frame::PROTOCOL_HEADER_BYTES }>() else {
            return Ok(false);
        };
        let header = *header;
        match (self.phase, header) {
            (Phase::Header, frame::SASL_HEADER) => {
                self.output.extend(frame::SASL_HEADER);
                let mechanisms = self.limits.mechanisms;
                frame::put(&mut self.output, FrameKind::Sasl, 0, |body| {
                    write_sasl_mechanisms(mechanisms, body);
                });
                self.phase = Phase::Sasl;
            }
            (Phase::Header | Phase::AmqpHeader, frame::AMQP_HEADER) => {
                self.output.extend(frame::AMQP_HEADER);
                self.phase = Phase::Opening;
            }
            _ => {
                // AMQP 1.0 s2.2: answer with a header that would be accepted, and close.
                self.output.extend(frame::SASL_HEADER);
                self.phase = Phase::Closed;
                return Err(Error::new(Condition::FRAMING_ERROR, "another protocol's header"));
            }
        }
        let _ = self.input.split_to(frame::PROTOCOL_HEADER_BYTES);
        Ok(true)
    }

    /// Tells the peer the outcome of its SASL exchange; after a refusal the connection is over.
    pub fn sasl_outcome(&mut self, is_ok: bool) {
        frame::put(&mut self.output, FrameKind::Sasl, 0, |body| {
            write_sasl_outcome(is_ok, body);
        });
        self.phase = if is_ok { Phase::AmqpHeader } else { Phase::Closed };
    }

    fn frame(&mut self, frame: &frame::Frame) -> Result<Option<Event>, Error> {
        let decode = |error: super::value::ValueError| Error::new(Condition::DECODE_ERROR, error.to_string());
        let kind = if self.phase == Phase::Sasl {
            FrameKind::Sasl
        } else {
            FrameKind::Amqp
        };
        if frame.kind != kind {
            return Err(Error::new(Condition::ILLEGAL_STATE, "a frame of another protocol"));
        }
        if kind == FrameKind::Sasl {
            return SaslInit::read(&frame.body)
                .map(|init| Some(Event::Sasl(init)))
                .map_err(decode);
        }
        if frame.body.is_empty() {
            return Ok(None);
        }
        let (performative, payload) = Performative::read(&frame.body).map_err(decode)?;
        if self.phase == Phase::Opening && !matches!(performative, Performative::Open(_)) {
            return Err(Error::new(Condition::ILLEGAL_STATE, "a frame before the open"));
        }
        match performative {
            Performative::Open(open) => self.handle_open(open).map(Some),
            Performative::Begin(begin) => self.handle_begin(frame.channel, begin).map(|()| None),
            Performative::Close(error) => {
                if self.phase == Phase::Open {
                    self.put(0, &Performative::Close(None));
                }
                self.phase = Phase::Closed;
                Ok(Some(Event::Closed(error)))
            }
            Performative::End(_) => {
                self.handle_end(frame.channel);
                Ok(None)
            }
            Performative::Attach(attach) => self.handle_attach(frame.channel, attach),
            Performative::Flow(flow) => self.handle_flow(frame.channel, flow),
            Performative::Transfer(transfer) => {
                let payload = frame.body.slice_ref(payload);
                self.handle_transfer(frame.channel, transfer, payload)
            }
            Performative::Disposition(disposition) => {
                self.handle_disposition(frame.channel, &disposition);
                Ok(None)
            }
            Performative::Detach(detach) => Ok(self.handle_detach(frame.channel, &detach)),
        }
    }

    fn put(&mut self, channel: u16, performative: &Performative) {
        frame::put(&mut self.output, FrameKind::Amqp, channel, |body| {
            performative.write(body);
        });
    }

    fn handle_open(&mut self, open: Open) -> Result<Event, Error> {
        if self.phase == Phase::Open {
            return Err(Error::new(Condition::ILLEGAL_STATE, "a second open"));
        }
        if open.max_frame_size < frame::FRAME_BYTES_MIN {
            return Err(Error::new(
                Condition::INVALID_FIELD,
                format!(
                    "max-frame-size {} is below {}",
                    open.max_frame_size,
                    frame::FRAME_BYTES_MIN
                ),
            ));
        }
        self.remote_frame_bytes_max = open.max_frame_size;
        self.answer_open();
        Ok(Event::Opened {
            hostname: open.hostname,
            idle_timeout_ms: open.idle_timeout_ms,
        })
    }

    fn answer_open(&mut self) {
        let answer = Open {
            container_id: self.limits.container_id.clone(),
            hostname: None,
            max_frame_size: self.limits.frame_bytes_max,
            channel_max: self.limits.sessions_max - 1,
            idle_timeout_ms: Some(self.limits.idle_timeout_ms),
        };
        self.put(0, &Performative::Open(answer));
        self.phase = Phase::Open;
    }

    fn handle_begin(&mut self, channel: u16, begin: Begin) -> Result<(), Error> {
        // AMQP 1.0 s2.7.1: a channel above the maximum is a framing error.
        if channel >= self.limits.sessions_max {
            return Err(Error::new(
                Condition::FRAMING_ERROR,
                format!("channel {channel} is above {}", self.limits.sessions_max - 1),
            ));
        }
        if self.sessions.contains_key(&channel) {
            return Err(Error::new(
                Condition::ILLEGAL_STATE,
                format!("channel {channel} is in use"),
            ));
        }
        let session = Session {
            channel,
            next_incoming_id: begin.next_outgoing_id,
            incoming_window: self.limits.session_window,
            next_outgoing_id: 0,
            remote_incoming_window: begin.incoming_window,
            next_delivery_id: 0,
            handles: HashMap::new(),
            unsettled: HashMap::new(),
            stalled: VecDeque::new(),
            is_ending: false,
        };
        let answer = Begin {
            remote_channel: Some(channel),
            next_outgoing_id: 0,
            incoming_window: self.limits.session_window,
            outgoing_window: self.limits.session_window,
            handle_max: u32::try_from(self.limits.links_max).unwrap_or(u32::MAX) - 1,
        };
        self.sessions.insert(channel, session);
        self.put(channel, &Performative::Begin(answer));
        Ok(())
    }

    fn handle_end(&mut self, channel: u16) {
        if let Some(session) = self.sessions.remove(&channel) {
            if !session.is_ending {
                self.put(channel, &Performative::End(None));
            }
            self.forget_links(session.handles.into_values());
        }
    }

    fn forget_links(&mut self, links: impl Iterator<Item = LinkId>) {
        // A map's order is chance.
        let mut links: Vec<LinkId> = links.collect();
        links.sort_unstable();
        for id in links {
            if let Some(link) = self.links.remove(&id) {
                self.assembling_bytes -= link.partial.map_or(0, |partial| partial.payload.len());
                if link.phase != LinkPhase::Detaching {
                    self.events.push_back(Event::Detached(id));
                }
            }
        }
    }

    /// Ends a session for what the peer did in it.
    fn end_session(&mut self, channel: u16, error: Error) {
        let Some(session) = self.sessions.get_mut(&channel) else {
            return;
        };
        session.is_ending = true;
        session.stalled.clear();
        session.unsettled.clear();
        let links: Vec<_> = session.handles.drain().map(|(_, link)| link).collect();
        self.put(channel, &Performative::End(Some(error)));
        self.forget_links(links.into_iter());
    }

    /// The session of a frame. What comes on a channel that was ended is passed over: some clients detach after their end
    /// (azure-eventhub).
    fn session(&mut self, channel: u16) -> Option<&mut Session> {
        self.sessions.get_mut(&channel).filter(|session| !session.is_ending)
    }

    /// Something to hear for a peer that would take silence for death.
    pub fn heartbeat(&mut self) {
        if self.phase == Phase::Open {
            frame::put(&mut self.output, FrameKind::Amqp, 0, |_| ());
        }
    }

    /// Closes the connection; nothing that comes after it is read.
    pub fn close(&mut self, error: Option<Error>) {
        match self.phase {
            Phase::Open => self.put(0, &Performative::Close(error)),
            Phase::Opening => {
                // AMQP 1.0 s2.4.1: a close follows an open.
                self.answer_open();
                self.put(0, &Performative::Close(error));
            }
            Phase::Header | Phase::Sasl | Phase::AmqpHeader | Phase::Closed => {}
        }
        self.phase = Phase::Closed;
    }

    fn fail(&mut self, error: Error) -> Event {
        self.close(Some(error.clone()));
        Event::Failed(error)
    }
}

fn no_session(channel: u16) -> Error {
    Error::new(
        Condition::ILLEGAL_STATE,
        format!("no session was begun on channel {channel}"),
    )
}

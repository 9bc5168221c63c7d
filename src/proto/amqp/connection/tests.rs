//! A scripted peer: what it sends, and what it must see.

use bytes::BytesMut;

use super::*;
use crate::proto::amqp::performative::{Detach, Disposition, Flow, Transfer};
use crate::proto::amqp::value::Writer;

fn limits() -> Limits {
    Limits {
        container_id: "hub".into(),
        mechanisms: &["MSSBCBS", "ANONYMOUS", "PLAIN", "EXTERNAL"],
        frame_bytes_max: 1024,
        sessions_max: 4,
        links_max: 4,
        session_window: 8,
        message_bytes_max: 4096,
        assembling_bytes_max: 6000,
        idle_timeout_ms: 240_000,
    }
}

/// A hub's connection and what its peer sees of it.
struct Peer {
    hub: Connection,
    seen: BytesMut,
}

impl Peer {
    fn new() -> Self {
        Self {
            hub: Connection::new(limits()),
            seen: BytesMut::new(),
        }
    }

    /// With an open connection, and one session on channel 1.
    fn begun() -> Self {
        let mut peer = Self::new();
        peer.send(&frame::AMQP_HEADER);
        peer.says(0, &open(512));
        assert!(matches!(peer.hub.poll_event(), Some(Event::Opened { .. })));
        peer.says(1, &begin(100));
        assert_eq!(peer.hub.poll_event(), None);
        peer.header(frame::AMQP_HEADER);
        assert!(matches!(peer.sees(), (0, Performative::Open(_))));
        assert!(matches!(peer.sees(), (1, Performative::Begin(_))));
        peer
    }

    fn send(&mut self, bytes: &[u8]) {
        self.hub.input().extend_from_slice(bytes);
    }

    fn says(&mut self, channel: u16, performative: &Performative) {
        self.says_with(channel, performative, b"");
    }

    fn says_with(&mut self, channel: u16, performative: &Performative, payload: &[u8]) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, FrameKind::Amqp, channel, |body| {
            performative.write(body);
            body.extend_from_slice(payload);
        });
        self.send(&bytes);
    }

    fn header(&mut self, expected: [u8; 8]) {
        self.seen.extend(self.hub.output().drain(..));
        assert_eq!(self.seen.split_to(8)[..], expected);
    }

    fn sees_with_payload(&mut self) -> (u16, Performative, Vec<u8>) {
        self.seen.extend(self.hub.output().drain(..));
        let frame = frame::take(&mut self.seen, u32::MAX).unwrap().expect("a frame");
        let (performative, payload) = Performative::read(&frame.body).unwrap();
        (frame.channel, performative, payload.to_vec())
    }

    fn sees(&mut self) -> (u16, Performative) {
        let (channel, performative, _) = self.sees_with_payload();
        (channel, performative)
    }

    fn sees_nothing(&mut self) {
        self.seen.extend(self.hub.output().drain(..));
        assert_eq!(self.seen.len(), 0);
    }

    /// Attaches a link whose end is the peer's `role`, and accepts it with credit 3.
    fn attached(&mut self, handle: u32, role: Role, settles: SenderSettles, tracks_outcomes: bool) -> LinkId {
        self.says(1, &attach(handle, role, settles));
        let Some(Event::Attached(id, _)) = self.hub.poll_event() else {
            panic!("an attach")
        };
        let accept = Accept {
            credit: 3,
            tracks_outcomes,
            ..Accept::default()
        };
        self.hub.accept(id, accept);
        assert!(matches!(self.sees(), (1, Performative::Attach(_))));
        if role == Role::Sender {
            let (_, Performative::Flow(flow)) = self.sees() else {
                panic!("credit")
            };
            assert_eq!(flow.link_credit, Some(3));
        }
        id
    }

    fn transfers(&mut self, handle: u32, delivery: u32, more: bool, payload: &[u8]) {
        let transfer = Transfer {
            handle,
            delivery_id: Some(delivery),
            more,
            ..Transfer::default()
        };
        self.says_with(1, &Performative::Transfer(transfer), payload);
    }

    /// What the connection is closed for.
    fn fails_with(&mut self, condition: &Condition) {
        let event = self.hub.poll_event();
        assert!(
            matches!(&event, Some(Event::Failed(error)) if error.condition == *condition),
            "{event:?}"
        );
        assert!(self.hub.is_closed());
        loop {
            if let (_, Performative::Close(error)) = self.sees() {
                assert_eq!(error.unwrap().condition, *condition);
                return;
            }
        }
    }

    /// What the session is ended for; its links go with it.
    fn session_ends_with(&mut self, condition: &Condition) {
        while let Some(event) = self.hub.poll_event() {
            assert!(matches!(event, Event::Detached(_)), "{event:?}");
        }
        loop {
            if let (1, Performative::End(error)) = self.sees() {
                assert_eq!(error.unwrap().condition, *condition);
                break;
            }
        }
        assert_eq!(self.hub.links(), 0);
        // What the peer sent before it knew is passed over; its end frees the channel.
        self.transfers(0, 9, false, b"late");
        self.says(1, &Performative::End(None));
        self.says(1, &begin(100));
        assert_eq!(self.hub.poll_event(), None);
        while !matches!(self.sees(), (1, Performative::Begin(_))) {}
    }
}

fn open(max_frame_size: u32) -> Performative {
    Performative::Open(Open {
        container_id: "peer".into(),
        hostname: Some("hub.example".into()),
        max_frame_size,
        channel_max: u16::MAX,
        idle_timeout_ms: Some(60_000),
    })
}

fn begin(incoming_window: u32) -> Performative {
    Performative::Begin(Begin {
        remote_channel: None,
        next_outgoing_id: 0,
        incoming_window,
        outgoing_window: 100,
        handle_max: u32::MAX,
    })
}

fn attach(handle: u32, role: Role, sender_settles: SenderSettles) -> Performative {
    Performative::Attach(Box::new(Attach {
        name: format!("link-{handle}"),
        handle,
        role,
        sender_settles,
        receiver_settles: Default::default(),
        source: Some(Default::default()),
        target: Some(Default::default()),
        initial_delivery_count: (role == Role::Sender).then_some(0),
        max_message_size: None,
        offered_capabilities: Vec::new(),
        desired_capabilities: Vec::new(),
        properties: None,
    }))
}

fn credit(handle: u32, delivery_count: u32, credit: u32, window: u32, drain: bool) -> Performative {
    Performative::Flow(Flow {
        next_incoming_id: Some(delivery_count),
        incoming_window: window,
        next_outgoing_id: 0,
        outgoing_window: 100,
        handle: Some(handle),
        delivery_count: Some(delivery_count),
        link_credit: Some(credit),
        drain,
        ..Flow::default()
    })
}

#[test]
fn sasl_comes_first_or_not_at_all() {
    let mut peer = Peer::new();
    peer.send(&frame::SASL_HEADER);
    let mut init = Vec::new();
    frame::put(&mut init, FrameKind::Sasl, 0, |body| {
        SaslInit {
            mechanism: "PLAIN".into(),
            response: Some(Bytes::from_static(b"\0user\0key")),
        }
        .write(body);
    });
    peer.send(&init);
    let Some(Event::Sasl(read)) = peer.hub.poll_event() else {
        panic!("an init")
    };
    assert_eq!(read.response.as_deref(), Some(&b"\0user\0key"[..]));
    peer.hub.sasl_outcome(true);
    peer.send(&frame::AMQP_HEADER);
    peer.says(0, &open(65_536));
    assert!(matches!(
        peer.hub.poll_event(),
        Some(Event::Opened {
            idle_timeout_ms: Some(60_000),
            ..
        })
    ));
    peer.header(frame::SASL_HEADER);
    let mechanisms = frame::take(&mut peer.seen, 512).unwrap().unwrap();
    assert_eq!(mechanisms.kind, FrameKind::Sasl);
    let offered = super::super::performative::SaslFrame::read(&mechanisms.body).unwrap();
    assert!(matches!(offered, super::super::performative::SaslFrame::Mechanisms(m) if m.len() == 4));
}

#[test]
fn a_refused_exchange_ends_the_connection() {
    let mut peer = Peer::new();
    peer.send(&frame::SASL_HEADER);
    assert_eq!(peer.hub.poll_event(), None);
    peer.hub.sasl_outcome(false);
    peer.send(&frame::AMQP_HEADER);
    assert_eq!(peer.hub.poll_event(), None);
    assert!(peer.hub.is_closed());
}

#[test]
fn another_protocol_is_answered_with_ours() {
    let mut peer = Peer::new();
    peer.send(b"GET / HTTP/1.1\r\n");
    assert!(matches!(peer.hub.poll_event(), Some(Event::Failed(_))));
    peer.header(frame::SASL_HEADER);
    assert!(peer.hub.is_closed());
}

#[test]
fn messages_come_whole_from_many_transfers() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Sender, SenderSettles::Unsettled, false);
    peer.transfers(0, 0, false, b"one");
    peer.transfers(0, 1, true, b"tw");
    peer.transfers(0, 1, false, b"o");
    let payloads: Vec<_> = std::iter::from_fn(|| peer.hub.poll_event())
        .map(|event| match event {
            Event::Delivered(link, delivery) if link == id => (delivery.id, delivery.payload.to_vec()),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(payloads, [(0, b"one".to_vec()), (1, b"two".to_vec())]);
    peer.hub.dispose(id, 0, 1, DeliveryState::Accepted);
    let (_, Performative::Disposition(disposition)) = peer.sees() else {
        panic!("a disposition")
    };
    assert_eq!((disposition.first, disposition.last, disposition.settled), (0, 1, true));
}

#[test]
fn an_aborted_message_is_forgotten() {
    let mut peer = Peer::begun();
    peer.attached(0, Role::Sender, SenderSettles::Unsettled, false);
    peer.transfers(0, 0, true, b"gone");
    let aborted = Transfer {
        handle: 0,
        aborted: true,
        ..Transfer::default()
    };
    peer.says(1, &Performative::Transfer(aborted));
    peer.transfers(0, 1, false, b"kept");
    assert!(matches!(peer.hub.poll_event(), Some(Event::Delivered(_, delivery)) if &delivery.payload[..] == b"kept"));
    assert_eq!(peer.hub.assembling_bytes, 0);
}

#[test]
fn nothing_is_sent_beyond_credit_window_and_frame_size() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Receiver, SenderSettles::Unsettled, true);
    assert!(!peer.hub.can_send(id));
    peer.says(1, &credit(0, 0, 2, 3, false));
    assert_eq!(peer.hub.poll_event(), Some(Event::Flow(id)));
    assert!(peer.hub.can_send(id));
    // 1,200 bytes take three frames of 512: the whole window.
    peer.hub.send(id, b"tag", |out| out.extend([7; 1200]));
    assert!(!peer.hub.can_send(id), "the window is used up");
    let mut payload = Vec::new();
    for n in 0..3 {
        let (_, performative, part) = peer.sees_with_payload();
        let Performative::Transfer(transfer) = performative else {
            panic!("a transfer")
        };
        assert_eq!((transfer.delivery_id, transfer.more), (Some(0), n < 2));
        payload.extend(part);
    }
    assert_eq!(payload, [7; 1200]);
    peer.sees_nothing();
    // A window of two for a message of three frames: the third waits.
    let mut window = credit(0, 1, 1, 2, false);
    if let Performative::Flow(flow) = &mut window {
        flow.next_incoming_id = Some(3);
    }
    peer.says(1, &window);
    assert_eq!(peer.hub.poll_event(), Some(Event::Flow(id)));
    peer.hub.send(id, b"tag", |out| out.extend([8; 1200]));
    assert!(matches!(peer.sees(), (1, Performative::Transfer(_))));
    assert!(matches!(peer.sees(), (1, Performative::Transfer(_))));
    peer.sees_nothing();
    let mut more = credit(0, 2, 5, 10, false);
    if let Performative::Flow(flow) = &mut more {
        flow.next_incoming_id = Some(5);
    }
    peer.says(1, &more);
    peer.hub.poll_event();
    assert!(matches!(peer.sees(), (1, Performative::Transfer(t)) if !t.more));
    assert_eq!(peer.hub.credit(id), 5);
}

#[test]
fn outcomes_reach_the_link_once_and_only_for_what_is_unsettled() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Receiver, SenderSettles::Unsettled, true);
    peer.says(1, &credit(0, 0, 10, 100, false));
    peer.hub.poll_event();
    for _ in 0..3 {
        peer.hub.send(id, b"t", |out| out.push(1));
        peer.sees();
    }
    let settle = |first, last, settled| {
        Performative::Disposition(Disposition {
            role: Role::Receiver,
            first,
            last,
            settled,
            state: Some(DeliveryState::Accepted),
        })
    };
    // A range of four billion costs what there is in it.
    peer.says(1, &settle(1, 0, true));
    let ids: Vec<_> = std::iter::from_fn(|| peer.hub.poll_event())
        .map(|event| match event {
            Event::Settled(link, settled) if link == id && settled.is_final => settled.id,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(ids, [1, 2, 0]);
    // Settled twice: passed over.
    peer.says(1, &settle(0, 2, true));
    assert_eq!(peer.hub.poll_event(), None);
    peer.sees_nothing();
    // The peer waits for the hub's word, which comes once.
    let delivery = peer.hub.send(id, b"t", |out| out.push(1));
    peer.sees();
    peer.says(1, &settle(delivery, delivery, false));
    assert!(matches!(peer.hub.poll_event(), Some(Event::Settled(_, settled)) if !settled.is_final));
    peer.hub.settle(id, delivery, DeliveryState::Accepted);
    let (_, Performative::Disposition(answer)) = peer.sees() else {
        panic!("the hub's word")
    };
    assert_eq!((answer.role, answer.settled), (Role::Sender, true));
    peer.hub.settle(id, delivery, DeliveryState::Accepted);
    peer.sees_nothing();
}

#[test]
fn outcomes_that_nobody_waits_for_cost_nothing() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Receiver, SenderSettles::Unsettled, false);
    peer.says(1, &credit(0, 0, 10, 100, false));
    peer.hub.poll_event();
    peer.hub.send(id, b"t", |out| out.push(1));
    peer.sees();
    assert!(peer.hub.sessions[&1].unsettled.is_empty());
    peer.says(
        1,
        &Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: 0,
            last: 0,
            settled: false,
            state: Some(DeliveryState::Accepted),
        }),
    );
    assert_eq!(peer.hub.poll_event(), None);
    assert!(matches!(peer.sees(), (1, Performative::Disposition(answer)) if answer.settled));
}

#[test]
fn a_draining_peer_gets_its_credit_back() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Receiver, SenderSettles::Settled, false);
    peer.says(1, &credit(0, 0, 10, 100, true));
    assert_eq!(peer.hub.poll_event(), Some(Event::Flow(id)));
    assert!(peer.hub.is_draining(id));
    peer.hub.send(id, b"t", |out| out.push(1));
    peer.sees();
    peer.hub.drained(id);
    let (_, Performative::Flow(flow)) = peer.sees() else {
        panic!("a flow")
    };
    assert_eq!(
        (flow.delivery_count, flow.link_credit, flow.drain),
        (Some(10), Some(0), true)
    );
}

#[test]
fn a_link_is_refused_without_its_end_and_then_detached() {
    let mut peer = Peer::begun();
    peer.says(1, &attach(0, Role::Receiver, SenderSettles::Mixed));
    let Some(Event::Attached(id, _)) = peer.hub.poll_event() else {
        panic!("an attach")
    };
    peer.hub.refuse(id, Error::new(Condition::NOT_FOUND, "no such thing"));
    let (_, Performative::Attach(answer)) = peer.sees() else {
        panic!("an attach")
    };
    assert_eq!(answer.source, None);
    let (_, Performative::Detach(detach)) = peer.sees() else {
        panic!("a detach")
    };
    assert_eq!(detach.error.unwrap().condition, Condition::NOT_FOUND);
    assert_eq!(peer.hub.links(), 1, "until the peer has answered");
    peer.says(
        1,
        &Performative::Detach(Detach {
            handle: 0,
            closed: true,
            error: None,
        }),
    );
    assert_eq!(peer.hub.poll_event(), None);
    assert_eq!(peer.hub.links(), 0);
    peer.sees_nothing();
}

#[test]
fn what_breaks_the_connection_is_named() {
    let fails = |script: &dyn Fn(&mut Peer), condition: Condition| {
        let mut peer = Peer::begun();
        script(&mut peer);
        peer.fails_with(&condition);
    };
    fails(&|peer| peer.send(&[0, 0, 0, 4, 2, 0, 0, 0]), Condition::FRAMING_ERROR);
    fails(&|peer| peer.send(&[0, 1, 0, 0, 2, 0, 0, 0]), Condition::FRAMING_ERROR);
    fails(&|peer| peer.send(&[0, 0, 0, 8, 2, 9, 0, 0]), Condition::FRAMING_ERROR);
    fails(&|peer| peer.send(&[0, 0, 0, 8, 2, 1, 0, 0]), Condition::ILLEGAL_STATE);
    fails(
        &|peer| peer.send(&[0, 0, 0, 9, 2, 0, 0, 0, 0x99]),
        Condition::DECODE_ERROR,
    );
    fails(&|peer| peer.says(0, &open(65_536)), Condition::ILLEGAL_STATE);
    fails(&|peer| peer.says(1, &begin(1)), Condition::ILLEGAL_STATE);
    fails(&|peer| peer.says(4, &begin(1)), Condition::FRAMING_ERROR);
    fails(
        &|peer| peer.says(3, &attach(0, Role::Sender, SenderSettles::Mixed)),
        Condition::ILLEGAL_STATE,
    );
    fails(
        &|peer| peer.says(1, &attach(4, Role::Sender, SenderSettles::Mixed)),
        Condition::FRAMING_ERROR,
    );
    fails(
        &|peer| {
            // Two links with messages that never end.
            for handle in 0..2 {
                peer.attached(handle, Role::Sender, SenderSettles::Mixed, false);
            }
            for handle in 0..2 {
                for _ in 0..4 {
                    peer.transfers(handle, handle, true, &[0; 900]);
                    if peer.hub.assembling_bytes + 900 <= 6000 {
                        assert_eq!(peer.hub.poll_event(), None);
                    }
                }
            }
        },
        Condition::RESOURCE_LIMIT_EXCEEDED,
    );
}

#[test]
fn a_frame_before_the_open_is_named() {
    let mut peer = Peer::new();
    peer.send(&frame::AMQP_HEADER);
    peer.says(0, &begin(1));
    assert!(matches!(peer.hub.poll_event(), Some(Event::Failed(error)) if error.condition == Condition::ILLEGAL_STATE));
    peer.header(frame::AMQP_HEADER);
    // AMQP 1.0 s2.4.1: a close follows an open.
    assert!(matches!(peer.sees(), (0, Performative::Open(_))));
    assert!(matches!(peer.sees(), (0, Performative::Close(Some(_)))));
}

#[test]
fn a_frame_size_below_the_least_is_refused() {
    let mut peer = Peer::new();
    peer.send(&frame::AMQP_HEADER);
    peer.says(0, &open(511));
    peer.fails_with_after_header(&Condition::INVALID_FIELD);
}

impl Peer {
    fn fails_with_after_header(&mut self, condition: &Condition) {
        let event = self.hub.poll_event();
        assert!(matches!(&event, Some(Event::Failed(error)) if error.condition == *condition));
        self.header(frame::AMQP_HEADER);
        assert!(matches!(self.sees(), (0, Performative::Open(_))));
        assert!(matches!(self.sees(), (0, Performative::Close(Some(_)))));
    }
}

#[test]
fn what_breaks_the_session_is_named() {
    let fails = |script: &dyn Fn(&mut Peer), condition: Condition| {
        let mut peer = Peer::begun();
        script(&mut peer);
        peer.session_ends_with(&condition);
    };
    let sender = |peer: &mut Peer| {
        peer.attached(0, Role::Sender, SenderSettles::Mixed, false);
    };
    fails(&|peer| peer.transfers(2, 0, false, b"x"), Condition::UNATTACHED_HANDLE);
    fails(
        &|peer| peer.says(1, &credit(3, 0, 1, 1, false)),
        Condition::UNATTACHED_HANDLE,
    );
    fails(
        &|peer| {
            sender(peer);
            peer.says(1, &attach(0, Role::Sender, SenderSettles::Mixed));
        },
        Condition::HANDLE_IN_USE,
    );
    fails(
        &|peer| {
            sender(peer);
            let transfer = Transfer::default();
            peer.says_with(1, &Performative::Transfer(transfer), b"x");
        },
        Condition::INVALID_FIELD,
    );
    fails(
        &|peer| {
            sender(peer);
            peer.transfers(0, 0, true, b"x");
            peer.transfers(0, 1, true, b"x");
        },
        Condition::INVALID_FIELD,
    );
    fails(
        &|peer| {
            peer.attached(0, Role::Receiver, SenderSettles::Mixed, false);
            peer.transfers(0, 0, false, b"x");
        },
        Condition::NOT_ALLOWED,
    );
    fails(
        &|peer| {
            for handle in 0..4 {
                peer.attached(handle, Role::Sender, SenderSettles::Mixed, false);
            }
            // A handle that is free, and one link too many.
            peer.says(
                1,
                &Performative::Detach(Detach {
                    handle: 3,
                    closed: true,
                    error: None,
                }),
            );
            assert!(matches!(peer.hub.poll_event(), Some(Event::Detached(_))));
            peer.says(2, &begin(10));
            assert_eq!(peer.hub.poll_event(), None);
            peer.says(2, &attach(0, Role::Sender, SenderSettles::Mixed));
            assert!(matches!(peer.hub.poll_event(), Some(Event::Attached(..))));
            peer.says(1, &attach(3, Role::Sender, SenderSettles::Mixed));
            assert_eq!(
                peer.hub.poll_event().map(|event| matches!(event, Event::Detached(_))),
                Some(true)
            );
            peer.says(2, &Performative::End(None));
        },
        Condition::RESOURCE_LIMIT_EXCEEDED,
    );
}

#[test]
fn what_breaks_the_link_is_named() {
    let mut peer = Peer::begun();
    let id = peer.attached(0, Role::Sender, SenderSettles::Mixed, false);
    for delivery in 0..4 {
        peer.transfers(0, delivery, false, b"x");
    }
    for _ in 0..3 {
        assert!(matches!(peer.hub.poll_event(), Some(Event::Delivered(..))));
    }
    assert_eq!(peer.hub.poll_event(), Some(Event::Detached(id)));
    let condition_of = |peer: &mut Peer| loop {
        if let (_, Performative::Detach(detach)) = peer.sees() {
            return detach.error.unwrap().condition;
        }
    };
    assert_eq!(condition_of(&mut peer), Condition::TRANSFER_LIMIT_EXCEEDED);
    // Sent before the peer saw it: passed over.
    peer.transfers(0, 5, false, b"x");
    assert_eq!(peer.hub.poll_event(), None);
    let id = peer.attached(1, Role::Sender, SenderSettles::Mixed, false);
    for _ in 0..5 {
        peer.transfers(1, 6, true, &[0; 900]);
    }
    assert_eq!(peer.hub.poll_event(), Some(Event::Detached(id)));
    assert_eq!(condition_of(&mut peer), Condition::MESSAGE_SIZE_EXCEEDED);
    assert_eq!(peer.hub.assembling_bytes, 0);
}

#[test]
fn a_window_is_renewed_before_it_is_used_up_and_must_be_kept() {
    let mut peer = Peer::begun();
    peer.attached(0, Role::Sender, SenderSettles::Mixed, false);
    for _ in 0..20 {
        // One message of many small transfers.
        peer.transfers(0, 0, true, b"x");
        assert_eq!(peer.hub.poll_event(), None);
    }
    let renewed = std::iter::from_fn(|| {
        peer.seen.extend(peer.hub.output().drain(..));
        frame::take(&mut peer.seen, u32::MAX).unwrap()
    });
    assert!(renewed.count() >= 4);
    // The rule that the peer breaks when it sends more.
    peer.hub.sessions.get_mut(&1).unwrap().incoming_window = 0;
    peer.transfers(0, 0, true, b"x");
    peer.session_ends_with(&Condition::WINDOW_VIOLATION);
}

#[test]
fn what_comes_on_an_ended_channel_is_passed_over() {
    let mut peer = Peer::begun();
    peer.says(1, &Performative::End(None));
    // azure-eventhub detaches on a channel that it has ended.
    let detach = Detach {
        handle: 0,
        closed: true,
        error: None,
    };
    peer.says(1, &Performative::Detach(detach));
    assert_eq!(peer.hub.poll_event(), None);
    assert!(matches!(peer.sees(), (1, Performative::End(None))));
    peer.sees_nothing();
    assert!(peer.hub.is_open());
}

#[test]
fn a_close_is_answered_and_nothing_follows() {
    let mut peer = Peer::begun();
    peer.says(0, &Performative::Close(None));
    peer.says(0, &open(512));
    assert_eq!(peer.hub.poll_event(), Some(Event::Closed(None)));
    assert_eq!(peer.hub.poll_event(), None);
    assert!(matches!(peer.sees(), (0, Performative::Close(None))));
    peer.sees_nothing();
}

#[test]
fn every_frame_has_all_its_fields() {
    // azure-eventhub indexes fields by position.
    let counts = [
        (open(512), 10),
        (begin(1), 8),
        (attach(1, Role::Sender, SenderSettles::Mixed), 14),
        (credit(1, 0, 0, 0, false), 11),
        (Performative::Transfer(Transfer::default()), 11),
        (
            Performative::Disposition(Disposition {
                role: Role::Sender,
                first: 1,
                last: 1,
                settled: true,
                state: None,
            }),
            6,
        ),
        (
            Performative::Detach(Detach {
                handle: 0,
                closed: true,
                error: None,
            }),
            3,
        ),
        (Performative::End(None), 1),
        (Performative::Close(None), 1),
    ];
    for (performative, count) in counts {
        let mut bytes = Vec::new();
        performative.write(&mut bytes);
        assert_eq!(bytes[..2], [0x00, 0x53], "the descriptor is a small number");
        assert_eq!(bytes[3], 0xd0, "a list of 32 bits");
        assert_eq!(bytes[8..12], u32::to_be_bytes(count), "{performative:?}");
    }
    let mut bytes = Vec::new();
    Writer(&mut bytes).symbols(&["a"]);
    assert_eq!(bytes[0], 0xf0, "mechanisms are an array");
}

//! An AMQP 1.0 client that says what a test wants said, frame by frame, over TLS.
//!
//! It keeps what it is told until a test asks for it, and answers detaches; nothing else happens by itself.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;
use std::sync::Arc;

use bytes::BytesMut;
use forebay::client::tls::{ClientTls, Identity};
use forebay::proto::amqp::frame::{self, FrameKind};
use forebay::proto::amqp::message::{Id, Message, MessageWriter, Properties};
use forebay::proto::amqp::performative::{
    Begin, Detach, Disposition, Flow, Open, Performative, ReceiverSettles, SaslFrame, SaslInit, SenderSettles,
    Terminus, Transfer,
};
use forebay::proto::amqp::value::{Value, Writer};
use forebay::proto::amqp::{Attach, DeliveryState, Error, Role};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hub::Hub;
use crate::peers::{HOST, within};

const CBS_SENDER: u32 = 100;
const CBS_RECEIVER: u32 = 101;
const SELECTOR: &str = "apache.org:selector-filter:string";
const CORRELATION: &str = "com.microsoft:channel-correlation-id";

/// A message from the hub.
#[derive(Clone, Debug)]
pub struct Received {
    pub handle: u32,
    pub id: u32,
    pub tag: Vec<u8>,
    pub is_settled: bool,
    pub payload: Vec<u8>,
}

/// How a link is asked for.
pub struct Asked<'a> {
    pub role: Role,
    pub address: &'a str,
    pub sender_settles: SenderSettles,
    pub receiver_settles: ReceiverSettles,
    pub correlation: &'a str,
    /// The model that a device says it follows.
    pub model_id: &'a str,
    /// Where a reader of events begins.
    pub selector: Option<&'a str>,
    /// A reader's owner level.
    pub level: Option<i64>,
}

impl<'a> Asked<'a> {
    pub fn sender(address: &'a str) -> Self {
        Self {
            role: Role::Sender,
            address,
            sender_settles: SenderSettles::Mixed,
            receiver_settles: ReceiverSettles::First,
            correlation: "",
            model_id: "",
            selector: None,
            level: None,
        }
    }

    pub fn receiver(address: &'a str) -> Self {
        Self {
            role: Role::Receiver,
            ..Self::sender(address)
        }
    }
}

#[derive(Default)]
struct Credit {
    sent: u32,
    /// So many may be sent in all.
    may_send: u32,
}

/// One connection with one session.
pub struct AmqpPeer {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    is_over: bool,
    /// Why the hub closed the connection.
    closed: Option<Error>,
    next_delivery: u32,
    next_request: u32,
    credit: BTreeMap<u32, Credit>,
    attached: BTreeMap<u32, bool>,
    detached: BTreeMap<u32, Option<Error>>,
    /// Of messages to the hub.
    outcomes: BTreeMap<u32, DeliveryState>,
    /// The hub's last words on messages from it.
    settled: BTreeMap<u32, Option<DeliveryState>>,
    received: VecDeque<Received>,
    partial: Option<Received>,
}

impl AmqpPeer {
    /// Connects without SASL, as the Node and C# clients do.
    pub async fn connect(hub: &Hub) -> Self {
        Self::connect_with(hub, None, None).await
    }

    /// Connects with a client certificate, or with a SASL mechanism and its response.
    pub async fn connect_with(hub: &Hub, identity: Option<Identity>, sasl: Option<(&str, &str)>) -> Self {
        let endpoints = hub.endpoints();
        let mut tls = ClientTls::from_ca_file(&endpoints.ca_file).unwrap();
        tls.identity = identity;
        let mut config = forebay::client::tls::client_config(tls).unwrap();
        Arc::make_mut(&mut config).alpn_protocols.clear();
        let stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, endpoints.amqps_port)))
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        let connecting = TlsConnector::from(config).connect(HOST.try_into().unwrap(), stream);
        let mut peer = Self {
            stream: within(connecting).await.unwrap(),
            input: BytesMut::new(),
            is_over: false,
            closed: None,
            next_delivery: 0,
            next_request: 0,
            credit: BTreeMap::new(),
            attached: BTreeMap::new(),
            detached: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            settled: BTreeMap::new(),
            received: VecDeque::new(),
            partial: None,
        };
        if let Some((mechanism, response)) = sasl {
            peer.sign_in(mechanism, response).await;
        }
        peer.write(&frame::AMQP_HEADER).await;
        peer.say(&Performative::Open(Open {
            container_id: "test".into(),
            hostname: Some(HOST.into()),
            max_frame_size: 64 * 1024,
            channel_max: 0,
            idle_timeout_ms: None,
        }))
        .await;
        peer.say(&Performative::Begin(Begin {
            remote_channel: None,
            next_outgoing_id: 0,
            incoming_window: 1 << 20,
            outgoing_window: 1 << 20,
            handle_max: 1000,
        }))
        .await;
        peer
    }

    async fn sign_in(&mut self, mechanism: &str, response: &str) {
        self.write(&frame::SASL_HEADER).await;
        let init = SaslInit {
            mechanism: mechanism.to_owned(),
            response: Some(response.to_owned().into()),
        };
        let mut bytes = Vec::new();
        frame::put(&mut bytes, FrameKind::Sasl, 0, |body| init.write(body));
        self.write(&bytes).await;
        let signing_in = async {
            loop {
                if self.input.starts_with(b"AMQP") && self.input.len() >= frame::PROTOCOL_HEADER_BYTES {
                    let _ = self.input.split_to(frame::PROTOCOL_HEADER_BYTES);
                }
                while !self.input.starts_with(b"AMQP")
                    && let Some(frame) = frame::take(&mut self.input, u32::MAX).unwrap()
                {
                    if let SaslFrame::Outcome { is_ok } = SaslFrame::read(&frame.body).unwrap() {
                        return is_ok;
                    }
                }
                assert!(self.stream.read_buf(&mut self.input).await.unwrap() > 0);
            }
        };
        assert!(within(signing_in).await, "{mechanism} is refused");
    }

    /// Connects and shows a token.
    pub async fn with_token(hub: &Hub, token: &str) -> Self {
        let mut peer = Self::connect(hub).await;
        assert_eq!(peer.put_token(token).await, 200);
        peer
    }

    async fn write(&mut self, bytes: &[u8]) {
        // What the hub says of it is read later.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    async fn say(&mut self, performative: &Performative) {
        let mut bytes = Vec::new();
        frame::put(&mut bytes, FrameKind::Amqp, 0, |body| performative.write(body));
        self.write(&bytes).await;
    }

    /// Reads until there is what `look` wants.
    async fn until<T>(&mut self, mut look: impl FnMut(&mut Self) -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(found) = look(self) {
                    return found;
                }
                assert!(!self.is_over, "the connection is over");
                self.pump().await;
            }
        };
        within(waiting).await
    }

    /// Reads what comes next, and all of it.
    async fn pump(&mut self) {
        match self.stream.read_buf(&mut self.input).await {
            Ok(0) | Err(_) => self.is_over = true,
            Ok(_) => {}
        }
        if self.input.starts_with(b"AMQP") && self.input.len() >= frame::PROTOCOL_HEADER_BYTES {
            let _ = self.input.split_to(frame::PROTOCOL_HEADER_BYTES);
        }
        while !self.input.starts_with(b"AMQP")
            && let Some(frame) = frame::take(&mut self.input, u32::MAX).unwrap()
        {
            if frame.body.is_empty() {
                continue;
            }
            let (performative, payload) = Performative::read(&frame.body).unwrap();
            if let Some(answer) = self.handle(performative, payload) {
                self.say(&answer).await;
            }
        }
    }

    fn handle(&mut self, performative: Performative, payload: &[u8]) -> Option<Performative> {
        match performative {
            Performative::Attach(attach) => {
                let terminus = match attach.role {
                    Role::Receiver => attach.target,
                    Role::Sender => attach.source,
                };
                self.attached.insert(attach.handle, terminus.is_some());
            }
            Performative::Flow(flow) => {
                if let (Some(handle), Some(credit)) = (flow.handle, flow.link_credit) {
                    self.credit.entry(handle).or_default().may_send = flow.delivery_count.unwrap_or(0) + credit;
                }
            }
            Performative::Transfer(transfer) => self.take_transfer(transfer, payload),
            Performative::Disposition(disposition) => {
                for id in disposition.first..=disposition.last {
                    match disposition.role {
                        Role::Receiver => {
                            let state = disposition.state.clone().expect("an outcome");
                            let earlier = self.outcomes.insert(id, state);
                            assert_eq!(earlier, None, "delivery {id} is settled once");
                        }
                        Role::Sender => drop(self.settled.insert(id, disposition.state.clone())),
                    }
                }
            }
            Performative::Detach(detach) => {
                let was_ours = self.detached.insert(detach.handle, detach.error).is_some();
                self.attached.remove(&detach.handle);
                return (!was_ours).then_some(Performative::Detach(Detach {
                    handle: detach.handle,
                    closed: true,
                    error: None,
                }));
            }
            Performative::Close(error) => {
                self.closed = error;
                self.is_over = true;
            }
            Performative::End(_) => self.is_over = true,
            Performative::Open(_) | Performative::Begin(_) => {}
        }
        None
    }

    fn take_transfer(&mut self, transfer: Transfer, payload: &[u8]) {
        let received = match &mut self.partial {
            Some(partial) => {
                partial.payload.extend(payload);
                partial
            }
            partial @ None => partial.insert(Received {
                handle: transfer.handle,
                id: transfer.delivery_id.unwrap(),
                tag: transfer.delivery_tag.unwrap().to_vec(),
                is_settled: transfer.settled == Some(true),
                payload: payload.to_vec(),
            }),
        };
        if !transfer.more {
            self.received.push_back(received.clone());
            self.partial = None;
        }
    }

    /// Asks for a link; its error if it is refused.
    pub async fn attach(&mut self, handle: u32, asked: Asked<'_>) -> Result<(), Error> {
        let (mut source, target) = match asked.role {
            Role::Sender => (Terminus::new("mine"), Terminus::new(asked.address)),
            Role::Receiver => (Terminus::new(asked.address), Terminus::new("mine")),
        };
        source.filter = asked.selector.map(|selector| {
            let mut filter = Vec::new();
            Writer(&mut filter).map(1, |map| {
                map.symbol(SELECTOR);
                map.raw(&[0]);
                map.symbol(SELECTOR);
                map.string(selector);
            });
            filter.into()
        });
        let mut properties = Vec::new();
        Writer(&mut properties).map(2 + usize::from(asked.level.is_some()), |map| {
            map.symbol(CORRELATION);
            map.string(asked.correlation);
            map.symbol("com.microsoft:model-id");
            map.string(asked.model_id);
            if let Some(level) = asked.level {
                map.symbol("com.microsoft:epoch");
                map.long(level);
            }
        });
        self.detached.remove(&handle);
        self.credit.remove(&handle);
        self.say(&Performative::Attach(Box::new(Attach {
            name: format!("link-{handle}-{}", self.next_request),
            handle,
            role: asked.role,
            sender_settles: asked.sender_settles,
            receiver_settles: asked.receiver_settles,
            source: Some(source),
            target: Some(target),
            initial_delivery_count: (asked.role == Role::Sender).then_some(0),
            max_message_size: None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: Some(properties.into()),
        })))
        .await;
        self.next_request += 1;
        self.until(move |peer| match peer.attached.get(&handle) {
            Some(true) => Some(Ok(())),
            // The reason follows.
            Some(false) | None => peer
                .detached
                .get(&handle)
                .map(|error| Err(error.clone().expect("a reason"))),
        })
        .await
    }

    /// Why the hub ended a link.
    pub async fn ended(&mut self, handle: u32) -> Option<Error> {
        self.until(|peer| peer.detached.get(&handle).cloned()).await
    }

    pub async fn detach(&mut self, handle: u32) {
        self.detached.insert(handle, None);
        self.say(&Performative::Detach(Detach {
            handle,
            closed: true,
            error: None,
        }))
        .await;
        self.until(|peer| (!peer.attached.contains_key(&handle)).then_some(()))
            .await;
    }

    /// Sends a message as soon as there is credit; returns its delivery's id.
    pub async fn send(&mut self, handle: u32, payload: &[u8], settled: bool, format: u32) -> u32 {
        self.until(|peer| {
            let credit = peer.credit.entry(handle).or_default();
            (credit.sent < credit.may_send).then_some(())
        })
        .await;
        self.credit.get_mut(&handle).unwrap().sent += 1;
        let id = self.next_delivery;
        self.next_delivery += 1;
        let chunks: Vec<&[u8]> = payload.chunks(60_000).collect();
        let mut bytes = Vec::new();
        for (n, chunk) in chunks.iter().enumerate() {
            let transfer = Performative::Transfer(Transfer {
                handle,
                delivery_id: Some(id),
                delivery_tag: Some(id.to_be_bytes().to_vec().into()),
                message_format: Some(format),
                settled: Some(settled),
                more: n + 1 < chunks.len(),
                aborted: false,
            });
            frame::put(&mut bytes, FrameKind::Amqp, 0, |body| {
                transfer.write(body);
                body.extend_from_slice(chunk);
            });
        }
        self.write(&bytes).await;
        id
    }

    /// What became of a message that was sent.
    pub async fn outcome(&mut self, id: u32) -> DeliveryState {
        self.until(|peer| peer.outcomes.get(&id).cloned()).await
    }

    /// Lets so many more messages come.
    pub async fn grant(&mut self, handle: u32, seen: u32, credit: u32) {
        self.say(&Performative::Flow(Flow {
            next_incoming_id: Some(0),
            incoming_window: 1 << 20,
            next_outgoing_id: 0,
            outgoing_window: 1 << 20,
            handle: Some(handle),
            delivery_count: Some(seen),
            link_credit: Some(credit),
            ..Flow::default()
        }))
        .await;
    }

    /// The next message on a link.
    pub async fn receive(&mut self, handle: u32) -> Received {
        self.until(|peer| {
            let at = peer.received.iter().position(|message| message.handle == handle)?;
            peer.received.remove(at)
        })
        .await
    }

    /// Says how a message came out.
    pub async fn settle(&mut self, id: u32, state: DeliveryState, is_settled: bool) {
        self.say(&Performative::Disposition(Disposition {
            role: Role::Receiver,
            first: id,
            last: id,
            settled: is_settled,
            state: Some(state),
        }))
        .await;
    }

    /// The hub's answer to an outcome that was not settled.
    pub async fn answered(&mut self, id: u32) -> DeliveryState {
        let state = self.until(|peer| peer.settled.remove(&id)).await;
        state.expect("a settled disposition has a state")
    }

    /// Shows a token; the status that the hub answers.
    pub async fn put_token(&mut self, token: &str) -> i32 {
        if !self.attached.contains_key(&CBS_SENDER) {
            self.attach(CBS_SENDER, Asked::sender("$cbs")).await.unwrap();
            self.attach(CBS_RECEIVER, Asked::receiver("$cbs")).await.unwrap();
            self.grant(CBS_RECEIVER, 0, 1000).await;
        }
        let mut bytes = Vec::new();
        let mut writer = MessageWriter::new(&mut bytes);
        writer.properties(&Properties {
            message_id: Some(Id::Text("put")),
            to: Some("$cbs"),
            reply_to: Some("cbs"),
            ..Properties::default()
        });
        writer.application_properties(3, |map| {
            for (name, value) in [
                ("operation", "put-token"),
                ("type", "servicebus.windows.net:sastoken"),
                ("name", "localhost"),
            ] {
                map.string(name);
                map.string(value);
            }
        });
        writer.value(|value| value.string(token));
        self.send(CBS_SENDER, &bytes, false, 0).await;
        let received = self.receive(CBS_RECEIVER).await;
        let message = Message::read(&received.payload).unwrap();
        match message.application_property("status-code") {
            Some(Value::Int(status)) => status,
            other => panic!("no status: {other:?}"),
        }
    }

    /// Waits for the connection's end, and why.
    pub async fn closed(&mut self) -> Option<Error> {
        within(async {
            while !self.is_over {
                self.pump().await;
            }
        })
        .await;
        self.closed.take()
    }

    /// Ends the connection without a word.
    pub fn drop_connection(self) {
        drop(self.stream);
    }
}

/// A message with a body alone.
pub fn data(body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    MessageWriter::new(&mut bytes).data(body);
    bytes
}

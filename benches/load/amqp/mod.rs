//! A lean AMQP client: it shares the cores with the hub it measures, so it reads of each frame only what it counts.
//!
//! One connection, one session, one link. [`Connection`] signs in and attaches; [`sink`] counts what arrives, [`sender`]
//! what is accepted.

pub mod sender;
pub mod sink;

use anyhow::{Context as _, bail, ensure};
use bytes::{Bytes, BytesMut};
use forebay::proto::amqp::Role;
use forebay::proto::amqp::frame::{self, AMQP_HEADER, Frame, FrameKind, PROTOCOL_HEADER_BYTES, SASL_HEADER};
use forebay::proto::amqp::performative::{
    Attach, Begin, Flow, Open, Performative, ReceiverSettles, SaslFrame, SaslInit, SenderSettles, Terminus,
};
use forebay::proto::amqp::value::Writer;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::https::client_config;
use crate::hub::Hub;

/// What is read at a time at most.
const READ_BYTES: usize = 256 << 10;
/// As the SDKs announce.
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Frames a session may have under way: no limit, since link credit is the one that is measured.
const WINDOW: u32 = i32::MAX as u32;
const FILTER: &str = "apache.org:selector-filter:string";

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection with one session.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: Vec<u8>,
    /// The hub's first transfer has this number in the session.
    first_incoming_id: u32,
}

impl Connection {
    /// Signs in with the hub's policy and its key and begins a session.
    ///
    /// # Errors
    /// The hub is gone or refuses.
    pub async fn open(hub: &Hub, is_plain: bool) -> anyhow::Result<Self> {
        let door = hub.amqp_door(is_plain)?;
        Self::open_as(hub, is_plain, &door.policy, &door.key).await
    }

    /// Signs in as somebody and begins a session.
    ///
    /// # Errors
    /// The hub is gone or refuses.
    pub async fn open_as(hub: &Hub, is_plain: bool, user: &str, password: &str) -> anyhow::Result<Self> {
        let door = hub.amqp_door(is_plain)?;
        let stream = TcpStream::connect((hub.address(), door.port)).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = if is_plain {
            Box::new(stream)
        } else {
            let connector = TlsConnector::from(client_config(hub.ca_file())?);
            let name = ServerName::try_from(hub.host_name().to_owned())?;
            Box::new(connector.connect(name, stream).await.context("the TLS handshake")?)
        };
        let mut connection = Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            first_incoming_id: 0,
        };
        connection.sign_in(user, password).await?;
        connection.begin(hub.host_name()).await?;
        Ok(connection)
    }

    async fn sign_in(&mut self, user: &str, password: &str) -> anyhow::Result<()> {
        self.output.extend(SASL_HEADER);
        // Built-in endpoint section 4.1: the policy's name and its key as text. IoT Hub, AMQP section 2.1: a device and its token.
        let init = SaslInit {
            mechanism: "PLAIN".to_owned(),
            response: Some(Bytes::from(format!("\0{user}\0{password}"))),
        };
        frame::put(&mut self.output, FrameKind::Sasl, 0, |body| init.write(body));
        self.flush().await?;
        self.protocol_header(SASL_HEADER).await?;
        loop {
            match SaslFrame::read(&self.frame().await?.body)? {
                SaslFrame::Mechanisms(offered) => {
                    ensure!(offered.iter().any(|name| name == "PLAIN"), "the hub offers no PLAIN");
                }
                SaslFrame::Outcome { is_ok } => {
                    ensure!(is_ok, "the hub refuses {user}");
                    return Ok(());
                }
            }
        }
    }

    async fn begin(&mut self, host_name: &str) -> anyhow::Result<()> {
        self.output.extend(AMQP_HEADER);
        self.put(&Performative::Open(Open {
            container_id: "forebay-bench".to_owned(),
            hostname: Some(host_name.to_owned()),
            max_frame_size: FRAME_BYTES_MAX,
            channel_max: 0,
            idle_timeout_ms: None,
        }));
        self.put(&Performative::Begin(Begin {
            remote_channel: None,
            next_outgoing_id: 0,
            incoming_window: WINDOW,
            outgoing_window: WINDOW,
            handle_max: u32::MAX,
        }));
        self.flush().await?;
        self.protocol_header(AMQP_HEADER).await?;
        loop {
            match self.performative().await? {
                Performative::Open(_) => {}
                Performative::Begin(begin) => {
                    self.first_incoming_id = begin.next_outgoing_id;
                    return Ok(());
                }
                other => bail!("the hub answers a session with {other:?}"),
            }
        }
    }

    /// Attaches a receiver that reads from `address`, the events from `sequence` on. A connection that is read has one link
    /// with the handle 0.
    ///
    /// # Errors
    /// The hub refuses the link.
    pub async fn receive(&mut self, handle: u32, address: &str, sequence: u64, is_settled: bool) -> anyhow::Result<()> {
        let source = Terminus {
            filter: Some(from_sequence(sequence)),
            ..Terminus::new(address)
        };
        let settles = if is_settled {
            SenderSettles::Settled
        } else {
            SenderSettles::Unsettled
        };
        self.attach(handle, address, Role::Receiver, settles, source, Terminus::new("bench"))
            .await
    }

    async fn attach(
        &mut self,
        handle: u32,
        address: &str,
        role: Role,
        sender_settles: SenderSettles,
        source: Terminus,
        target: Terminus,
    ) -> anyhow::Result<()> {
        self.put(&Performative::Attach(Box::new(Attach {
            name: format!("{address}/{handle}"),
            handle,
            role,
            sender_settles,
            receiver_settles: ReceiverSettles::First,
            source: Some(source),
            target: Some(target),
            initial_delivery_count: (role == Role::Sender).then_some(0),
            max_message_size: None,
            offered_capabilities: Vec::new(),
            desired_capabilities: Vec::new(),
            properties: None,
        })));
        self.flush().await?;
        loop {
            match self.performative().await? {
                // AMQP 1.0 s2.6.3: without its end the link is refused, and the detach says why.
                Performative::Attach(attach) => {
                    let end = if role == Role::Receiver {
                        attach.source
                    } else {
                        attach.target
                    };
                    if end.is_some() {
                        return Ok(());
                    }
                }
                Performative::Flow(_) => {}
                other => bail!("the hub answers {address} with {other:?}"),
            }
        }
    }

    /// Gives the link `credit` when it has had `deliveries` in `transfers` frames. Leaves with the next flush.
    pub fn put_credit(&mut self, credit: u32, deliveries: u32, transfers: u32) {
        self.put(&Performative::Flow(Flow {
            next_incoming_id: Some(self.first_incoming_id.wrapping_add(transfers)),
            incoming_window: WINDOW,
            next_outgoing_id: 0,
            outgoing_window: WINDOW,
            handle: Some(0),
            delivery_count: Some(deliveries),
            link_credit: Some(credit),
            ..Flow::default()
        }));
    }

    pub fn put(&mut self, performative: &Performative) {
        frame::put(&mut self.output, FrameKind::Amqp, 0, |body| performative.write(body));
    }

    /// # Errors
    /// The hub is gone.
    pub async fn flush(&mut self) -> anyhow::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.stream.flush().await?;
            self.output.clear();
        }
        Ok(())
    }

    /// Waits for more input and hands out all there is; what `input` keeps comes again.
    ///
    /// # Errors
    /// The hub is gone.
    pub async fn read(&mut self) -> anyhow::Result<&mut BytesMut> {
        self.input.reserve(READ_BYTES);
        ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the hub has hung up");
        Ok(&mut self.input)
    }

    async fn protocol_header(&mut self, expected: [u8; PROTOCOL_HEADER_BYTES]) -> anyhow::Result<()> {
        while self.input.len() < PROTOCOL_HEADER_BYTES {
            self.read().await?;
        }
        ensure!(
            self.input.split_to(PROTOCOL_HEADER_BYTES)[..] == expected,
            "the hub speaks no AMQP 1.0"
        );
        Ok(())
    }

    async fn frame(&mut self) -> anyhow::Result<Frame> {
        loop {
            match frame::take(&mut self.input, FRAME_BYTES_MAX)? {
                // A heartbeat.
                Some(frame) if frame.body.is_empty() => {}
                Some(frame) => return Ok(frame),
                None => drop(self.read().await?.len()),
            }
        }
    }

    async fn performative(&mut self) -> anyhow::Result<Performative> {
        Ok(Performative::read(&self.frame().await?.body)?.0)
    }
}

/// A source's filter, as the Event Hubs clients write it.
// Built-in endpoint section 4.4.
fn from_sequence(sequence: u64) -> Bytes {
    let mut filter = Vec::new();
    Writer(&mut filter).map(1, |map| {
        map.symbol(FILTER);
        // The descriptor is a symbol too.
        map.raw(&[0]);
        map.symbol(FILTER);
        map.string(&format!("amqp.annotation.x-opt-sequence-number >= '{sequence}'"));
    });
    filter.into()
}

#[cfg(test)]
mod tests {
    use forebay::proto::amqp::value::{Reader, Value};

    use super::*;

    #[test]
    fn the_filter_is_a_described_string_under_its_own_name() {
        let filter = from_sequence(7);
        let Ok(Value::Map(map)) = Reader::new(&filter).value() else {
            panic!("no map");
        };
        let (key, value) = map.pairs().next().unwrap().unwrap();
        let Value::Described(described) = value else {
            panic!("no described value");
        };
        assert_eq!(key.as_text(), Some(FILTER));
        assert_eq!(described.descriptor().unwrap().as_text(), Some(FILTER));
        let selector = described.value().unwrap();
        assert_eq!(selector.as_text(), Some("amqp.annotation.x-opt-sequence-number >= '7'"));
    }
}

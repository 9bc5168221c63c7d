//! MQTT 3.1.1 as a device speaks it, with a hub or with any other broker.
//!
//! [`Connection`] signs in, subscribes and says one thing at a time; [`sender`] publishes many before the first is
//! acknowledged.

pub mod sender;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::time::SystemTime;

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BytesMut};
use forebay::hub::sas;
use forebay::proto::mqtt::{Ack, Connect, Filter, Packet, Properties, Publish, QoS, Reason, Version};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

use crate::https::client_config;
use crate::hub::{Hub, Member};
use crate::progress::Progress;

/// What is read at a time of what answers few messages.
const READ_BYTES: usize = 4 << 10;
const TOKEN_SECONDS: u64 = 3600;
/// Longer than any measurement.
const KEEP_ALIVE_SECONDS: u16 = 1000;
const VERSION: Version = Version::V3;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// What a device has for its handshakes; kept, it resumes the session of the one before. Without anything: no TLS.
#[derive(Clone)]
pub struct Tls(Option<TlsConnector>);

impl Tls {
    /// # Errors
    /// The CA cannot be read.
    pub fn new(hub: &Hub) -> anyhow::Result<Self> {
        let Some(ca) = hub.mqtt_ca() else {
            return Ok(Self(None));
        };
        Ok(Self(Some(TlsConnector::from(client_config(ca)?))))
    }
}

/// Who connects where.
struct Caller {
    host: String,
    address: SocketAddr,
    id: String,
    /// User name and password; other brokers let anybody in.
    credential: Option<(String, String)>,
}

impl Caller {
    fn of(hub: &Hub, member: &Member) -> anyhow::Result<Self> {
        let (host, id) = (hub.host_name(), member.id.as_str());
        let mut caller = Self {
            host: host.to_owned(),
            address: (hub.address(), hub.mqtt_port()?).into(),
            id: id.to_owned(),
            credential: None,
        };
        if !hub.is_other_broker() {
            let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
            let key = STANDARD.decode(&member.key)?;
            let token = sas::generate(&format!("{host}/devices/{id}"), &key, now + TOKEN_SECONDS, None);
            caller.credential = Some((format!("{host}/{id}/?api-version=2021-04-12"), token));
        }
        Ok(caller)
    }
}

/// A device's connection, with a session that is kept as SDKs do.
pub struct Connection {
    stream: Box<dyn Stream>,
    input: BytesMut,
    output: Vec<u8>,
}

impl Connection {
    async fn connect(caller: &Caller, tls: &Tls) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(caller.address).await?;
        stream.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &tls.0 {
            None => Box::new(stream),
            Some(connector) => {
                let name = ServerName::try_from(caller.host.clone())?;
                Box::new(connector.connect(name, stream).await.context("the TLS handshake")?)
            }
        };
        let mut connection = Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
        };
        let credential = caller.credential.as_ref();
        connection.put(&Packet::Connect(Connect {
            version: VERSION,
            is_clean: false,
            keep_alive: KEEP_ALIVE_SECONDS,
            client_id: &caller.id,
            will: None,
            user_name: credential.map(|(user, _)| user.as_str()),
            password: credential.map(|(_, password)| password.as_bytes()),
            properties: Properties::NONE,
        }))?;
        connection.flush().await?;
        connection
            .hear(|packet| match packet {
                Packet::ConnAck(ack) => {
                    ensure!(ack.code == 0, "{} is refused with code {}", caller.id, ack.code);
                    Ok(Some(()))
                }
                other => bail!("a CONNECT is answered with {other:?}"),
            })
            .await?;
        // A quiet client holds little.
        (connection.input, connection.output) = (BytesMut::new(), Vec::new());
        Ok(connection)
    }

    /// Connects a device and subscribes to what comes under `filter`, of the QoS.
    ///
    /// # Errors
    /// The hub is gone or refuses.
    pub async fn subscribed(hub: &Hub, member: &Member, filter: &str, qos: QoS) -> anyhow::Result<Self> {
        let mut connection = Self::connect(&Caller::of(hub, member)?, &Tls::new(hub)?).await?;
        let (id, filters) = (NonZeroU16::MIN, [Filter::new(filter, qos)]);
        Packet::encode_subscribe(id, &Properties::NONE, &filters, VERSION, &mut connection.output)?;
        connection.flush().await?;
        connection
            .hear(|packet| match packet {
                Packet::SubAck(ack) => {
                    ensure!(ack.codes == [qos as u8], "the hub grants {:?} of {filter}", ack.codes);
                    Ok(Some(()))
                }
                _ => Ok(None),
            })
            .await?;
        Ok(connection)
    }

    /// Puts a packet into the buffer; it leaves with the next `flush`.
    ///
    /// # Errors
    /// It is larger than a packet may be.
    pub fn put(&mut self, packet: &Packet<'_>) -> anyhow::Result<()> {
        Ok(packet.encode(VERSION, &mut self.output)?)
    }

    /// Says something that nobody acknowledges.
    ///
    /// # Errors
    /// The hub is gone.
    pub async fn say(&mut self, topic: &str, payload: &[u8]) -> anyhow::Result<()> {
        self.put(&Packet::Publish(Publish {
            is_dup: false,
            qos: QoS::AtMostOnce,
            is_retain: false,
            topic,
            packet_id: None,
            properties: Properties::NONE,
            payload,
        }))?;
        self.flush().await
    }

    /// # Errors
    /// The hub is gone.
    pub async fn acknowledge(&mut self, id: NonZeroU16) -> anyhow::Result<()> {
        self.put(&Packet::PubAck(Ack::new(id, Reason::SUCCESS)))?;
        self.flush().await
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

    /// Takes packets until one is what was waited for. Cancelling the wait loses nothing that was not taken.
    ///
    /// # Errors
    /// The hub is gone, or what `take` says.
    pub async fn hear<T>(
        &mut self,
        mut take: impl FnMut(&Packet<'_>) -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        loop {
            while let Some((packet, used)) = Packet::decode(&self.input, VERSION)? {
                let taken = take(&packet)?;
                self.input.advance(used);
                if let Some(taken) = taken {
                    return Ok(taken);
                }
            }
            self.read(READ_BYTES).await?;
        }
    }

    async fn read(&mut self, bytes_max: usize) -> anyhow::Result<()> {
        self.input.reserve(bytes_max);
        ensure!(self.stream.read_buf(&mut self.input).await? > 0, "the hub has hung up");
        Ok(())
    }
}

/// Connects every member, so many at a time; in the members' order. `tls` says whose handshakes a member goes on with.
///
/// # Errors
/// The hub refuses one.
pub async fn connect_all(
    hub: &Hub,
    members: &[Member],
    parallel: usize,
    tls: impl Fn(usize) -> Tls,
) -> anyhow::Result<Vec<sender::Device>> {
    let mut progress = Progress::new("connect", members.len() as u64);
    let mut devices: Vec<Option<sender::Device>> = members.iter().map(|_| None).collect();
    let mut connecting = JoinSet::new();
    let mut next = members.iter().enumerate();
    loop {
        while connecting.len() < parallel.max(1)
            && let Some((index, member)) = next.next()
        {
            let (caller, tls) = (Caller::of(hub, member)?, tls(index));
            connecting.spawn(async move {
                let connection = Connection::connect(&caller, &tls).await?;
                anyhow::Ok((index, sender::Device::new(connection, &caller.id)))
            });
        }
        let Some(connected) = connecting.join_next().await else {
            return Ok(devices.into_iter().flatten().collect());
        };
        let (index, device) = connected??;
        devices[index] = Some(device);
        progress.add(1);
    }
}

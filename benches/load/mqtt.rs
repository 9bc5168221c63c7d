//! MQTT 3.1.1 as a device speaks it, reduced to what is measured: a connection that publishes.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, BytesMut};
use forebay::hub::sas;
use forebay::proto::mqtt::{Connect, Packet, Properties, Publish, QoS, Version};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::https::client_config;
use crate::hub::{Hub, Member};
use crate::progress::Progress;

/// What is read at a time at most.
const READ_BYTES: usize = 64 << 10;
const TOKEN_SECONDS: u64 = 3600;
/// Longer than any measurement.
const KEEP_ALIVE_SECONDS: u16 = 1000;

/// What a device has for its handshakes; kept, it resumes the session of the one before.
#[derive(Clone)]
pub struct Tls(TlsConnector);

impl Tls {
    /// # Errors
    /// The hub's CA cannot be read.
    pub fn new(hub: &Hub) -> anyhow::Result<Self> {
        Ok(Self(TlsConnector::from(client_config(hub.ca_file())?)))
    }
}

/// Who connects where.
struct Caller {
    host: String,
    address: IpAddr,
    port: u16,
    id: String,
    token: String,
}

impl Caller {
    fn of(hub: &Hub, member: &Member) -> anyhow::Result<Self> {
        let (host, id) = (hub.host_name(), member.id.as_str());
        let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        let key = STANDARD.decode(&member.key)?;
        Ok(Self {
            token: sas::generate(&format!("{host}/devices/{id}"), &key, now + TOKEN_SECONDS, None),
            host: host.to_owned(),
            address: hub.address(),
            port: hub.mqtt_port()?,
            id: id.to_owned(),
        })
    }
}

/// A device's connection.
pub struct Device {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    output: Vec<u8>,
    topic: Arc<str>,
    next_id: NonZeroU16,
    /// When each was sent that is not acknowledged, oldest first.
    unacknowledged: VecDeque<(NonZeroU16, Instant)>,
}

impl Device {
    /// Connects, with a session that is kept as SDKs do.
    ///
    /// # Errors
    /// The hub is gone or refuses.
    async fn connect(caller: Caller, tls: Tls) -> anyhow::Result<Self> {
        let Caller {
            host,
            address,
            port,
            id,
            token,
        } = &caller;
        let stream = TcpStream::connect((*address, *port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(host.clone())?;
        let stream = tls.0.connect(name, stream).await.context("the TLS handshake")?;
        let mut device = Self {
            stream,
            input: BytesMut::new(),
            output: Vec::new(),
            topic: format!("devices/{id}/messages/events/").into(),
            next_id: NonZeroU16::MIN,
            unacknowledged: VecDeque::new(),
        };
        let connect = Connect {
            version: Version::V3,
            is_clean: false,
            keep_alive: KEEP_ALIVE_SECONDS,
            client_id: id,
            will: None,
            user_name: Some(&format!("{host}/{id}/?api-version=2021-04-12")),
            password: Some(token.as_bytes()),
            properties: Properties::NONE,
        };
        Packet::Connect(connect).encode(Version::V3, &mut device.output)?;
        device.flush().await?;
        while device.input.len() < 4 {
            device.read().await?;
        }
        match Packet::decode(&device.input, Version::V3)? {
            Some((Packet::ConnAck(ack), used)) => {
                ensure!(ack.code == 0, "the hub refuses {id} with code {}", ack.code);
                device.input.advance(used);
            }
            other => bail!("the hub answers {other:?}"),
        }
        // A quiet client holds little.
        device.input = BytesMut::new();
        Ok(device)
    }

    /// Messages that are not acknowledged.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged.len()
    }

    /// Puts a message of QoS 1 into the buffer; it leaves with the next `flush`. `since`: from when its latency counts.
    ///
    /// # Errors
    /// The payload is larger than a packet may be.
    pub fn put(&mut self, payload: &[u8], since: Instant) -> anyhow::Result<()> {
        let id = self.next_id;
        self.next_id = id.checked_add(1).unwrap_or(NonZeroU16::MIN);
        let publish = Publish {
            is_dup: false,
            qos: QoS::AtLeastOnce,
            is_retain: false,
            topic: &self.topic,
            packet_id: Some(id),
            properties: Properties::NONE,
            payload,
        };
        Packet::Publish(publish).encode(Version::V3, &mut self.output)?;
        self.unacknowledged.push_back((id, since));
        Ok(())
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

    /// Waits for the hub and takes all it has said; `acknowledged` is told since when each message counts. Cancelling the
    /// wait loses nothing.
    ///
    /// # Errors
    /// The hub is gone, or acknowledges what was not sent.
    pub async fn wait(&mut self, mut acknowledged: impl FnMut(Instant)) -> anyhow::Result<()> {
        self.read().await?;
        let mut used = 0;
        while let Some((packet, bytes)) = Packet::decode(&self.input[used..], Version::V3)? {
            let Packet::PubAck(ack) = packet else {
                bail!("the hub says {packet:?}")
            };
            let (id, since) = self.unacknowledged.pop_front().context("nothing was sent")?;
            // MQTT 3.1.1 [MQTT-4.6.0-2].
            ensure!(
                id == ack.packet_id,
                "message {} is acknowledged before {id}",
                ack.packet_id
            );
            acknowledged(since);
            used += bytes;
        }
        self.input.advance(used);
        Ok(())
    }

    async fn read(&mut self) -> anyhow::Result<()> {
        self.input
            .reserve(READ_BYTES.min(if self.unacknowledged.is_empty() { 64 } else { READ_BYTES }));
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
) -> anyhow::Result<Vec<Device>> {
    let mut progress = Progress::new("connect", members.len() as u64);
    let mut devices: Vec<Option<Device>> = members.iter().map(|_| None).collect();
    let mut connecting = JoinSet::new();
    let mut next = members.iter().enumerate();
    loop {
        while connecting.len() < parallel.max(1)
            && let Some((index, member)) = next.next()
        {
            let (caller, tls) = (Caller::of(hub, member)?, tls(index));
            connecting.spawn(async move { anyhow::Ok((index, Device::connect(caller, tls).await?)) });
        }
        let Some(connected) = connecting.join_next().await else {
            return Ok(devices.into_iter().flatten().collect());
        };
        let (index, device) = connected??;
        devices[index] = Some(device);
        progress.add(1);
    }
}

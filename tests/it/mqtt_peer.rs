//! An MQTT client that says what a test wants said, packet by packet or byte by byte, over TLS or through a WebSocket.
//!
//! It acknowledges nothing by itself, and keeps no session.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use forebay::client::tls::{ClientTls, Identity};
use forebay::proto::mqtt::{
    Ack, Connect, Filter, Packet, Properties, Property, PropertyBuf, Publish, QoS, Reason, Version, Will,
};
use tokio::io::{
    AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader, DuplexStream,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::hub::Hub;
use crate::peers::{HOST, within};

/// What a packet from the hub said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    ConnAck {
        present: bool,
        code: u8,
    },
    Publish(Message),
    PubAck(u16, u8),
    SubAck(u16, Vec<u8>),
    UnsubAck(u16, Vec<u8>),
    PingResp,
    Disconnect(u8),
    /// The hub has closed the connection.
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub qos: u8,
    pub id: Option<u16>,
    pub payload: Vec<u8>,
    /// `Debug` of MQTT 5's.
    pub properties: String,
}

/// How a client connects.
pub struct Hello<'a> {
    pub version: Version,
    pub is_clean: bool,
    pub keep_alive: u16,
    pub client_id: &'a str,
    pub user_name: &'a str,
    pub password: &'a str,
    pub will: Option<Will<'a>>,
    pub properties: &'a [Property<'a>],
}

impl<'a> Hello<'a> {
    /// Of the device `lamp`, as SDKs connect.
    pub fn lamp(version: Version, token: &'a str) -> Self {
        Self {
            version,
            is_clean: false,
            keep_alive: 60,
            client_id: "lamp",
            user_name: "localhost/lamp/?api-version=2021-04-12",
            password: token,
            will: None,
            properties: &[],
        }
    }
}

/// How a client reaches the hub.
#[derive(Default)]
pub struct Way {
    /// What it shows of itself in the handshake.
    pub identity: Option<Identity>,
    /// The sub-protocol of a WebSocket, and what follows its path.
    pub websocket: Option<(&'static str, &'static str)>,
    /// What its kernel takes in before it reads; 0 for as much as it likes.
    pub receive_bytes: u32,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub struct MqttPeer {
    stream: Box<dyn Stream>,
    input: BytesMut,
    version: Version,
}

impl MqttPeer {
    /// A connection on which nothing was said.
    pub async fn open(hub: &Hub, version: Version) -> Self {
        Self::open_by(hub, version, Way::default()).await
    }

    /// Likewise, on another way.
    pub async fn open_by(hub: &Hub, version: Version, way: Way) -> Self {
        let endpoints = hub.endpoints();
        let port = match way.websocket {
            None => endpoints.mqtt_port,
            Some(_) => endpoints.https_port,
        };
        let mut tls = ClientTls::from_ca_file(&endpoints.ca_file).unwrap();
        tls.identity = way.identity;
        let mut config = forebay::client::tls::client_config(tls).unwrap();
        Arc::make_mut(&mut config).alpn_protocols.clear();
        let socket = TcpSocket::new_v4().unwrap();
        if way.receive_bytes > 0 {
            socket.set_recv_buffer_size(way.receive_bytes).unwrap();
        }
        let connecting = socket.connect((Ipv4Addr::LOCALHOST, port).into());
        let stream = within(connecting).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connecting = TlsConnector::from(config).connect(HOST.try_into().unwrap(), stream);
        let stream = within(connecting).await.unwrap();
        let stream: Box<dyn Stream> = match way.websocket {
            None => Box::new(stream),
            Some((protocol, query)) => Box::new(within(through_websocket(stream, protocol, query)).await),
        };
        Self {
            stream,
            input: BytesMut::new(),
            version,
        }
    }

    /// What the hub says to the CONNECT.
    pub async fn greet(hub: &Hub, hello: Hello<'_>) -> (Self, Said) {
        Self::greet_by(hub, hello, Way::default()).await
    }

    /// Likewise, on another way.
    pub async fn greet_by(hub: &Hub, hello: Hello<'_>, way: Way) -> (Self, Said) {
        let mut peer = Self::open_by(hub, hello.version, way).await;
        let mut properties = PropertyBuf::default();
        hello.properties.iter().for_each(|property| properties.push(*property));
        let connect = Connect {
            version: hello.version,
            is_clean: hello.is_clean,
            keep_alive: hello.keep_alive,
            client_id: hello.client_id,
            will: hello.will,
            user_name: Some(hello.user_name),
            // Who shows a certificate has none.
            password: (!hello.password.is_empty()).then_some(hello.password.as_bytes()),
            properties: properties.as_properties(),
        };
        peer.say(&Packet::Connect(connect)).await;
        let said = peer.hear().await;
        (peer, said)
    }

    /// A session that the hub accepts; whether it goes on with an earlier one.
    pub async fn connect(hub: &Hub, hello: Hello<'_>) -> (Self, bool) {
        match Self::greet(hub, hello).await {
            (peer, Said::ConnAck { present, code: 0 }) => (peer, present),
            (_, other) => panic!("not accepted: {other:?}"),
        }
    }

    /// Says one thing again and again until the hub has gone.
    pub async fn flood(&mut self, bytes: &[u8]) {
        let chunk = bytes.repeat(64 * 1024 / bytes.len());
        while self.stream.write_all(&chunk).await.is_ok() {}
    }

    pub async fn write(&mut self, bytes: &[u8]) {
        // A hub that has closed meanwhile is heard next.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    pub async fn say(&mut self, packet: &Packet<'_>) {
        let mut bytes = Vec::new();
        packet.encode(self.version, &mut bytes).unwrap();
        self.write(&bytes).await;
    }

    pub async fn publish(&mut self, id: u16, topic: &str, payload: &[u8]) {
        self.publish_with(id, topic, payload, false, &[]).await;
    }

    /// With QoS 1, or 0 if the id is.
    pub async fn publish_with(
        &mut self,
        id: u16,
        topic: &str,
        payload: &[u8],
        is_dup: bool,
        properties: &[Property<'_>],
    ) {
        let mut buf = PropertyBuf::default();
        properties.iter().for_each(|property| buf.push(*property));
        let packet_id = NonZeroU16::new(id);
        self.say(&Packet::Publish(Publish {
            is_dup,
            qos: if packet_id.is_some() {
                QoS::AtLeastOnce
            } else {
                QoS::AtMostOnce
            },
            is_retain: false,
            topic,
            packet_id,
            properties: buf.as_properties(),
            payload,
        }))
        .await;
    }

    pub async fn subscribe(&mut self, filters: &[(&str, QoS)]) -> Vec<u8> {
        let filters: Vec<Filter<'_>> = filters.iter().map(|(filter, qos)| Filter::new(filter, *qos)).collect();
        let id = NonZeroU16::new(9).unwrap();
        let mut bytes = Vec::new();
        Packet::encode_subscribe(id, &Properties::NONE, &filters, self.version, &mut bytes).unwrap();
        self.write(&bytes).await;
        match self.hear().await {
            Said::SubAck(9, codes) => codes,
            other => panic!("no SUBACK: {other:?}"),
        }
    }

    pub async fn unsubscribe(&mut self, filter: &str) -> Vec<u8> {
        let id = NonZeroU16::new(10).unwrap();
        let mut bytes = Vec::new();
        Packet::encode_unsubscribe(id, &Properties::NONE, &[filter], self.version, &mut bytes).unwrap();
        self.write(&bytes).await;
        match self.hear().await {
            Said::UnsubAck(10, codes) => codes,
            other => panic!("no UNSUBACK: {other:?}"),
        }
    }

    pub async fn acknowledge(&mut self, id: u16, reason: u8) {
        let ack = Ack::new(NonZeroU16::new(id).unwrap(), Reason(reason));
        self.say(&Packet::PubAck(ack)).await;
    }

    /// The next message; panics at anything else.
    pub async fn message(&mut self) -> Message {
        match self.hear().await {
            Said::Publish(message) => message,
            other => panic!("no message: {other:?}"),
        }
    }

    /// The next thing the hub says.
    pub async fn hear(&mut self) -> Said {
        within(async {
            loop {
                if let Some(said) = self.take() {
                    return said;
                }
                match self.stream.read_buf(&mut self.input).await {
                    Ok(0) | Err(_) => return Said::Closed,
                    Ok(_) => {}
                }
            }
        })
        .await
    }

    fn take(&mut self) -> Option<Said> {
        let (packet, used) = Packet::decode(&self.input, self.version).unwrap()?;
        let said = match packet {
            Packet::ConnAck(ack) => Said::ConnAck {
                present: ack.is_session_present,
                code: ack.code,
            },
            Packet::Publish(publish) => Said::Publish(Message {
                topic: publish.topic.to_owned(),
                qos: publish.qos as u8,
                id: publish.packet_id.map(NonZeroU16::get),
                payload: publish.payload.to_vec(),
                properties: format!("{:?}", publish.properties),
            }),
            Packet::PubAck(ack) => Said::PubAck(ack.packet_id.get(), ack.reason.0),
            Packet::SubAck(ack) => Said::SubAck(ack.packet_id.get(), ack.codes.to_vec()),
            Packet::UnsubAck(ack) => Said::UnsubAck(ack.packet_id.get(), ack.codes.to_vec()),
            Packet::PingResp => Said::PingResp,
            Packet::Disconnect(disconnect) => Said::Disconnect(disconnect.reason.0),
            other => panic!("a server says no {other:?}"),
        };
        self.input.advance(used);
        Some(said)
    }

    /// How the connection ends, if that is the next thing: the reason of MQTT 5, 0 for none.
    pub async fn end(&mut self) -> u8 {
        match self.hear().await {
            Said::Closed => 0,
            Said::Disconnect(reason) => {
                assert_eq!(self.hear().await, Said::Closed);
                reason
            }
            other => panic!("not the end: {other:?}"),
        }
    }
}

/// Opens a WebSocket, and carries bytes in it both ways: each write is a frame of its own. It ends without a word when
/// either side does.
async fn through_websocket(stream: TlsStream<TcpStream>, protocol: &str, query: &str) -> DuplexStream {
    let mut stream = BufReader::new(stream);
    let request = format!(
        "GET /$iothub/websocket{query} HTTP/1.1\r\nHost: localhost:443\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_until(b'\n', &mut head).await.unwrap() > 0, "no answer");
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    // As the client wrote it.
    assert!(head.contains(&format!(": {protocol}\r\n")), "{head}");
    let (own, other) = tokio::io::duplex(64 * 1024);
    let (mut said, mut heard) = tokio::io::split(other);
    let (mut from_hub, mut to_hub) = tokio::io::split(stream);
    tokio::spawn(async move {
        while let Ok(payload) = frame(&mut from_hub).await
            && heard.write_all(&payload).await.is_ok()
        {}
        let _ = heard.shutdown().await;
    });
    tokio::spawn(async move {
        let mut payload = vec![0; 16 * 1024];
        while let Ok(count @ 1..) = said.read(&mut payload).await {
            // Binary, whole, masked with zeros.
            let mut bytes = vec![0x82, 0x80 | 126];
            bytes.extend((count as u16).to_be_bytes());
            bytes.extend([0; 4]);
            bytes.extend(&payload[..count]);
            if to_hub.write_all(&bytes).await.is_err() || to_hub.flush().await.is_err() {
                return;
            }
        }
        let _ = to_hub.shutdown().await;
    });
    own
}

/// The payload of the next binary frame.
async fn frame(stream: &mut (impl AsyncRead + Unpin)) -> std::io::Result<Vec<u8>> {
    let (first, length) = (stream.read_u8().await?, stream.read_u8().await?);
    let length = match length {
        126 => usize::from(stream.read_u16().await?),
        127 => stream.read_u64().await? as usize,
        short => usize::from(short),
    };
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    match first {
        0x82 => Ok(payload),
        // A close.
        _ => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}

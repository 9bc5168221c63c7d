//! An MQTT client that says what a test wants said, packet by packet or byte by byte, over TLS.
//!
//! It acknowledges nothing by itself, and keeps no session.

use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::sync::Arc;

use bytes::{Buf as _, BytesMut};
use forebay::client::tls::ClientTls;
use forebay::proto::mqtt::{
    Ack, Connect, Filter, Packet, Properties, Property, PropertyBuf, Publish, QoS, Reason, Version, Will,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
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

pub struct MqttPeer {
    stream: TlsStream<TcpStream>,
    input: BytesMut,
    version: Version,
}

impl MqttPeer {
    /// A connection on which nothing was said.
    pub async fn open(hub: &Hub, version: Version) -> Self {
        let endpoints = hub.endpoints();
        let tls = ClientTls::from_ca_file(&endpoints.ca_file).unwrap();
        let mut config = forebay::client::tls::client_config(tls).unwrap();
        Arc::make_mut(&mut config).alpn_protocols.clear();
        let stream = within(TcpStream::connect((Ipv4Addr::LOCALHOST, endpoints.mqtt_port)))
            .await
            .unwrap();
        stream.set_nodelay(true).unwrap();
        let connecting = TlsConnector::from(config).connect(HOST.try_into().unwrap(), stream);
        Self {
            stream: within(connecting).await.unwrap(),
            input: BytesMut::new(),
            version,
        }
    }

    /// What the hub says to the CONNECT.
    pub async fn greet(hub: &Hub, hello: Hello<'_>) -> (Self, Said) {
        let mut peer = Self::open(hub, hello.version).await;
        let mut properties = PropertyBuf::default();
        hello.properties.iter().for_each(|property| properties.push(*property));
        let connect = Connect {
            version: hello.version,
            is_clean: hello.is_clean,
            keep_alive: hello.keep_alive,
            client_id: hello.client_id,
            will: hello.will,
            user_name: Some(hello.user_name),
            password: Some(hello.password.as_bytes()),
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

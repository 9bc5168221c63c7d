//! What stands around a hub under test: devices and consumers of the client library, and [`Peer`], which says on a raw
//! QUIC connection whatever a test wants said.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay::client::backoff::BackoffConfig;
use forebay::client::credential::{Credential, PolicyKey};
use forebay::client::device::{Device, DeviceOptions};
use forebay::client::endpoint::{ClientEndpoint, HubAddress, TransportOptions};
use forebay::client::service::{Service, ServiceOptions, Subscription};
use forebay::client::tls::{ClientTls, Identity, client_config};
use forebay::hub::connection_string::ConnectionString;
use forebay::hub::sas;
use forebay::hub::{Authorities, Policies, Registry};
use forebay::model::{DeviceId, PolicyName};
use forebay::server::SystemEntropy;
use forebay::state::{RedbConfig, RedbState, State};
use forebay::wire::batch::BatchBuilder;
use forebay::wire::close::CloseCode;
use forebay::wire::control::{Control, From, Hello, Role, Subscribe, Welcome};
use forebay::wire::frame::{self, Decoder, Frame, Kind, VERSION};
use quinn::{ConnectionError, RecvStream, SendStream};
use serde_json::{Value, json};

use crate::hub::{Hub, PATIENCE};

/// A host name that the development certificate and the tokens are made for.
pub const HOST: &str = "localhost";

/// A hub as its clients see it: address, CA, the owner's key.
#[derive(Clone)]
pub struct Site {
    pub address: HubAddress,
    pub owner: PolicyKey,
    tls: Arc<rustls::ClientConfig>,
    ca_file: std::path::PathBuf,
}

impl Site {
    pub fn of(hub: &Hub) -> Self {
        let endpoints = hub.endpoints();
        let owner = ConnectionString::parse(&endpoints.iothub_connection_string).unwrap();
        let mut site = Self::reach(endpoints.quic_port, &endpoints.ca_file);
        site.owner = PolicyKey {
            policy: owner.shared_access_key_name.unwrap(),
            key: owner.shared_access_key.unwrap(),
        };
        site
    }

    /// For devices only: nobody's policy is known.
    pub fn reach(port: u16, ca_file: &Path) -> Self {
        Self {
            address: HubAddress {
                address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
                host_name: HOST.to_owned(),
            },
            owner: PolicyKey {
                policy: String::new(),
                key: String::new(),
            },
            tls: client_config(ClientTls::from_ca_file(ca_file).unwrap()).unwrap(),
            ca_file: ca_file.to_owned(),
        }
    }

    /// The same hub, reached by way of something in between.
    pub fn at(&self, address: SocketAddr) -> Self {
        let mut site = self.clone();
        site.address.address = address;
        site
    }

    /// The TLS of a client that shows this certificate.
    pub fn with_certificate(&self, identity: Identity) -> Self {
        let mut tls = ClientTls::from_ca_file(&self.ca_file).unwrap();
        tls.identity = Some(identity);
        Self {
            tls: client_config(tls).unwrap(),
            ..self.clone()
        }
    }

    pub fn endpoint(&self) -> ClientEndpoint {
        ClientEndpoint::new(self.tls.clone(), &TransportOptions::default()).unwrap()
    }

    pub fn options(&self, device: &str, credential: Credential) -> DeviceOptions {
        let mut options = DeviceOptions::new(self.address.clone(), DeviceId::new(device).unwrap(), credential);
        // Tests have no fleet to spread out, and no time.
        options.backoff = BackoffConfig {
            wait_min: Duration::from_millis(10),
            wait_max: Duration::from_millis(100),
            ..BackoffConfig::default()
        };
        options
    }

    pub fn device(&self, device: &str, key: &str) -> Device {
        self.device_at(self.endpoint(), device, key)
    }

    pub fn device_at(&self, endpoint: ClientEndpoint, device: &str, key: &str) -> Device {
        Device::start(endpoint, self.options(device, Credential::Key(key.to_owned()))).unwrap()
    }

    pub async fn service(&self) -> Service {
        self.service_of(self.owner.clone()).await
    }

    pub async fn service_of(&self, key: PolicyKey) -> Service {
        let options = ServiceOptions {
            hub: self.address.clone(),
            key,
        };
        within(Service::connect(&self.endpoint(), &options)).await.unwrap()
    }

    /// Makes a device; returns its primary key.
    pub async fn create_device(&self, device: &str) -> String {
        let made = self.request("device.create", &json!({ "deviceId": device })).await;
        let key = &made["authentication"]["symmetricKey"]["primaryKey"];
        key.as_str().expect("the hub makes keys").to_owned()
    }

    pub async fn request(&self, operation: &str, document: &Value) -> Value {
        let service = self.service().await;
        let answer = within(service.request(operation, document)).await.unwrap();
        service.close();
        answer
    }

    /// Everything that is stored and durable, partition by partition, in order.
    ///
    /// # Panics
    /// If sequence numbers are not dense from 0.
    pub async fn read_all(&self) -> Vec<Vec<Stored>> {
        let service = self.service().await;
        let hub = within(service.request("hub.get", &json!({}))).await.unwrap();
        let mut partitions = Vec::new();
        for range in hub["partitions"].as_array().unwrap() {
            let partition = u16::try_from(range["id"].as_u64().unwrap()).unwrap();
            let next = range["next"].as_u64().unwrap();
            assert_eq!(range["first"], 0, "nothing is old enough to be deleted");
            let mut stored = Vec::new();
            let mut cursor = within(service.subscribe(&Subscription::earliest(partition)))
                .await
                .unwrap();
            while (stored.len() as u64) < next {
                let chunk = within(cursor.next()).await.unwrap();
                for event in chunk.events() {
                    let event = event.unwrap();
                    assert_eq!(event.sequence.0, stored.len() as u64, "sequence numbers are dense");
                    stored.push(Stored {
                        device: event.origin.device_id.clone(),
                        module: event.origin.module_id.clone(),
                        body: event.message.body().to_vec(),
                    });
                }
            }
            assert_eq!(stored.len() as u64, next);
            partitions.push(stored);
        }
        service.close();
        partitions
    }

    /// Everything that is stored, device by device, each in its order.
    ///
    /// # Panics
    /// If a device's messages are in more than one partition.
    pub async fn read_by_device(&self) -> BTreeMap<String, Vec<Vec<u8>>> {
        let mut devices: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
        for partition in self.read_all().await {
            let mut here: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
            for stored in partition {
                here.entry(stored.device).or_default().push(stored.body);
            }
            for (device, bodies) in here {
                let earlier = devices.insert(device.clone(), bodies);
                assert!(earlier.is_none(), "{device} is in two partitions");
            }
        }
        devices
    }
}

/// A message as a consumer got it.
pub struct Stored {
    pub device: String,
    pub module: String,
    pub body: Vec<u8>,
}

/// Waits no longer than patience lasts.
#[track_caller]
pub fn within<T>(future: impl Future<Output = T>) -> impl Future<Output = T> {
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, future).await {
            Ok(value) => value,
            Err(_) => panic!("waited in vain at {caller}"),
        }
    }
}

/// Looks every few milliseconds until there is something.
#[track_caller]
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> impl Future<Output = T> {
    let what = what.to_owned();
    let looking = async move {
        loop {
            match look() {
                Some(found) => return found,
                None => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    };
    let caller = std::panic::Location::caller();
    async move {
        match tokio::time::timeout(PATIENCE, looking).await {
            Ok(found) => found,
            Err(_) => panic!("waited in vain at {caller}: {what}"),
        }
    }
}

pub fn now_seconds() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.unwrap().as_secs()
}

pub fn decode_key(key: &str) -> Vec<u8> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(key).unwrap()
}

/// A device's token that ends `seconds` from now, the hub's tolerance for clocks included.
pub fn device_token(device: &str, key: &str, seconds: u64) -> String {
    let expiry = now_seconds() + seconds - forebay::model::limits::TOKEN_CLOCK_SKEW_SECONDS;
    sas::generate(&format!("{HOST}/devices/{device}"), &decode_key(key), expiry, None)
}

/// The rooms of a stopped hub, for tests that are about something else than the doors to them.
pub struct Rooms {
    pub registry: Registry,
    pub policies: Policies,
    pub authorities: Authorities,
}

impl Rooms {
    /// Opens what a hub left in its data folder. Drop it before the hub starts again.
    pub fn open(data: &Path) -> Self {
        let state = RedbState::open(&data.join("state.redb"), &RedbConfig::default()).unwrap();
        let state: Arc<dyn State> = Arc::new(state);
        let entropy = Arc::new(SystemEntropy);
        Self {
            registry: Registry::open(state.clone(), entropy.clone(), PARTITION_COUNT).unwrap(),
            policies: Policies::open(state.clone(), entropy.clone()).unwrap(),
            authorities: Authorities::open(state, entropy).unwrap(),
        }
    }

    pub fn policy(&self, name: &str) -> PolicyKey {
        let policy = self.policies.get(&PolicyName::new(name).unwrap()).unwrap();
        PolicyKey {
            policy: name.to_owned(),
            key: policy.keys.primary_key.unwrap(),
        }
    }
}

/// The default of `identity.partition_count`.
pub const PARTITION_COUNT: u16 = 4;

/// The value of one sample, named as in the text format.
pub fn sample(hub: &Hub, name: &str) -> f64 {
    let text = hub.metrics();
    let line = text.lines().find(|line| {
        line.split_at_checked(name.len())
            .is_some_and(|(head, tail)| head == name && tail.starts_with(' '))
    });
    // A label that was never counted may have no sample yet; a misspelt one never gets one, and then no test passes.
    line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

pub fn closed_sample(code: CloseCode) -> String {
    format!("forebay_connections_closed_total{{reason=\"{}\"}}", code.label())
}

/// A raw QUIC connection with its first stream.
pub struct Peer {
    pub endpoint: quinn::Endpoint,
    pub connection: quinn::Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    decoder: Decoder,
}

impl Peer {
    pub async fn connect(site: &Site) -> Self {
        Self::connect_with(site, quinn::TransportConfig::default()).await
    }

    pub async fn connect_with(site: &Site, transport: quinn::TransportConfig) -> Self {
        Self::try_connect(site, transport).await.unwrap()
    }

    pub async fn try_connect(site: &Site, transport: quinn::TransportConfig) -> Result<Self, ConnectionError> {
        let endpoint = quinn::Endpoint::client(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(site.tls.clone()).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint.connect_with(config, site.address.address, HOST).unwrap();
        let connection = within(connecting).await?;
        let (send, recv) = connection.open_bi().await?;
        Ok(Self {
            endpoint,
            connection,
            send,
            recv,
            decoder: Decoder::new(64 << 20),
        })
    }

    /// Connects and says hello as a device.
    pub async fn device(site: &Site, device: &str, token: &str) -> (Self, Welcome) {
        let mut peer = Self::connect(site).await;
        peer.say(&hello(device, token)).await;
        let welcome = peer.hear().await;
        (peer, welcome)
    }

    /// A further stream of the connection, with its first frame.
    pub async fn stream(&self, first: &impl Control) -> Self {
        let (send, recv) = within(self.connection.open_bi()).await.unwrap();
        let mut stream = Self {
            endpoint: self.endpoint.clone(),
            connection: self.connection.clone(),
            send,
            recv,
            decoder: Decoder::new(64 << 20),
        };
        stream.say(first).await;
        stream
    }

    pub async fn say(&mut self, frame: &impl Control) {
        self.write(&frame.to_frame()).await;
    }

    /// The hub may close in the middle of it: what it says then is looked at elsewhere.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.send.write_all(bytes).await;
    }

    pub async fn hear<C: Control>(&mut self) -> C {
        let frame = self.frame().await.unwrap_or_else(|| panic!("a {:?} was due", C::KIND));
        assert_eq!(frame.kind, C::KIND);
        C::from_body(&frame.body).unwrap()
    }

    /// As `hear`, for what comes behind acknowledgements.
    pub async fn hear_past_acks<C: Control>(&mut self) -> C {
        loop {
            let frame = self.frame().await.unwrap_or_else(|| panic!("a {:?} was due", C::KIND));
            if frame.kind != Kind::Ack {
                assert_eq!(frame.kind, C::KIND);
                return C::from_body(&frame.body).unwrap();
            }
        }
    }

    /// `None` when the stream or the connection has ended.
    pub async fn frame(&mut self) -> Option<Frame> {
        within(async {
            loop {
                if let Some(frame) = self.decoder.poll_frame().unwrap() {
                    return Some(frame);
                }
                let chunk = self.recv.read_chunk(64 << 10, true).await.ok()??;
                self.decoder.feed(chunk.bytes);
            }
        })
        .await
    }

    /// Waits for the hub to close the connection: why, and what it says.
    #[track_caller]
    pub fn closed(&self) -> impl Future<Output = (CloseCode, String)> + use<> {
        let connection = self.connection.clone();
        let closed = within(async move { connection.closed().await });
        async { close_code(&closed.await) }
    }
}

/// What an application close says.
///
/// # Panics
/// If the connection ended in another way.
pub fn close_code(error: &ConnectionError) -> (CloseCode, String) {
    let ConnectionError::ApplicationClosed(close) = error else {
        panic!("{error:?} is no close by the hub");
    };
    let code = CloseCode::from_number(close.error_code.into_inner());
    (
        code.expect("a documented code"),
        String::from_utf8(close.reason.to_vec()).unwrap(),
    )
}

pub fn hello(device: &str, token: &str) -> Hello {
    Hello {
        version_min: VERSION,
        version_max: VERSION,
        role: Role::Device,
        device_id: device.to_owned(),
        module_id: String::new(),
        token: token.to_owned(),
        epoch: 0,
        agent: "test".to_owned(),
    }
}

pub fn service_hello(token: &str) -> Hello {
    Hello {
        role: Role::Service,
        ..hello("", token)
    }
}

pub fn service_token(policy: &PolicyKey) -> String {
    sas::generate(
        HOST,
        &decode_key(&policy.key),
        now_seconds() + 600,
        Some(&policy.policy),
    )
}

/// Everything of a partition, for a reader that owns nothing.
pub fn subscribe(partition: u16, group: &str, credit_bytes: u64) -> Subscribe {
    Subscribe {
        partition,
        group: group.to_owned(),
        from: From::Earliest,
        value: 0,
        owner_level: 0,
        owner: String::new(),
        credit_bytes,
    }
}

/// An Append frame with these bodies.
pub fn append(first_sequence: u64, bodies: &[&[u8]]) -> Vec<u8> {
    let mut builder = BatchBuilder::default();
    bodies.iter().for_each(|body| builder.push_body(body));
    let mut frame = Vec::new();
    builder.finish(first_sequence, false, &mut frame);
    frame
}

/// A frame of any kind with any body.
pub fn raw(kind: Kind, flags: u16, body: &[u8]) -> Vec<u8> {
    [&frame::header(kind, flags, body.len())[..], body].concat()
}

/// A small generator: what is drawn from one seed is the same everywhere.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A new seed, or the one that `FOREBAY_SEED` names to repeat a run.
    pub fn seed() -> u64 {
        match std::env::var("FOREBAY_SEED") {
            Ok(seed) => seed.parse().expect("FOREBAY_SEED is a number"),
            Err(_) => {
                let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                since.unwrap().subsec_nanos().into()
            }
        }
    }

    // SplitMix64.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `range`, evenly enough.
    pub fn within(&mut self, range: std::ops::RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }
}

//! Puts the parts together: start order, readiness, graceful stop.
//!
//! ```text
//!  start:  state ─> log (recovery) ─> duplicate filters ─> shards ─> syncer, keeper ─> doors ─> ready
//!  stop:   not ready ─> doors refuse ─> devices told to go, at a pace ─> consumers and services told to go
//!          ─> appends acknowledged, filters stored ─> sync ─> end
//! ```
//!
//! Everything is checked before the first port opens. A stop is over within the configured time; what it cuts short is
//! only unacknowledged work.

mod amqp;
pub mod certificate;
mod console;
pub mod demo;
pub mod drain;
pub mod logging;
mod mqtt;
mod openapi;
mod presence;
pub mod reload;
mod resumption;
mod running;
mod sampling;
mod settings;
mod shards;
mod sweeper;
mod throttles;
pub mod tls;

use amqp::AmqpTunnel;
pub use amqp::EVENTHUB_NAME;
use mqtt::MqttTunnel;

use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use actix::Addr;
use actix_rt::Arbiter;
use anyhow::Context as _;
use tokio::sync::oneshot;

use crate::config::Config;
use crate::http;
use crate::hub::filter::PersistedFilter;
use crate::hub::{
    Authenticator, Authorities, Entropy, Events, Feedbacks, Groups, HubConfig, Live, Outboxes, Policies, Presence,
    Recorder, Registry, Subscriptions, Throttles, Twins, meta::HubMeta,
};
use crate::log::{DiskStorage, Log};
use crate::metrics::console::ConsoleFacts;
use crate::metrics::mqtt::MqttFacts;
use crate::metrics::observe::{AmqpFacts, DiskFacts, HttpFacts, QuicFacts, ShardFacts, ThrottleFacts};
use crate::metrics::{self, Metrics, OpsState, Phase, Readiness, SessionKind};
use crate::model::time::Clock;
use crate::model::{PolicyName, UtcMillis};
use crate::net::admission::Admission;
use crate::service::amqp::Services;
use crate::service::eventhubs::{self, EventHubs};
use crate::service::rest::Rest;
use crate::session::amqp::Devices as AmqpDevices;
use crate::session::http::Devices;
use crate::session::quic::door::{self, Door, HubParts};
use crate::shard::Durability;
use crate::shard::actor::{End, Poll, ShardActor};
use crate::shard::budget::Budgets;
use crate::shard::inbox::Inbox;
use crate::shard::keeper::Keeper;
use crate::shard::lines::Lines;
use crate::shard::router::Router;
use crate::shard::syncer::{Bell, Syncer};
use crate::state::{RedbConfig, RedbState, State};

use running::Running;
use sampling::{Told, beat, sample};
use settings::{Settings, event_kinds, event_settings, queue_settings};
use shards::{replay_filters, start_shards};
use tls::DoorTls;

/// The policy with all rights.
pub const OWNER_POLICY: &str = crate::hub::policy::OWNER;

/// Of every door, by its name.
type Admissions = [(&'static str, Arc<Admission>); 4];
type Actors = Vec<Addr<ShardActor<DiskStorage, ShardFacts>>>;

/// The operating system's wall clock.
#[derive(Debug)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> UtcMillis {
        let since = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default();
        UtcMillis(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }
}

/// The operating system's random numbers.
#[derive(Debug)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        use ring::rand::SecureRandom as _;
        ring::rand::SystemRandom::new()
            .fill(bytes)
            .expect("the operating system gives random bytes");
    }
}

/// A running hub. Must be made, stopped and dropped on the thread of an actix system.
pub struct Server {
    pub registry: Registry,
    pub policies: Policies,
    pub groups: Groups,
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    pub quic_address: SocketAddr,
    pub https_address: SocketAddr,
    pub amqp_address: SocketAddr,
    /// Of AMQP without TLS, if that is served.
    pub amqp_plain_address: Option<SocketAddr>,
    pub mqtt_address: SocketAddr,
    pub ops_address: SocketAddr,
    has_console: bool,
    /// From the start until every partition was open.
    pub recovery: Duration,
    running: Running,
    door: Arc<Door>,
    amqp: Arc<crate::amqp::Door>,
    mqtt: Arc<crate::session::mqtt::Door>,
    endpoint: quinn::Endpoint,
    actors: Actors,
    arbiters: Vec<Arbiter>,
    router: Arc<Router<DiskStorage>>,
    https: http::serve::Handle,
    ops: actix_web::dev::ServerHandle,
    certificate: Arc<certificate::Keeper>,
    keeper: Keeper,
    throttles: Arc<Throttles>,
    outboxes: Outboxes,
    feedbacks: Feedbacks,
    events: Events,
    presence: presence::Keeping,
    syncer: Option<Syncer>,
    /// What is in force.
    config: Arc<Mutex<Config>>,
    admissions: Admissions,
    // Last: the directory stays taken until everything above is gone.
    _log: Log<DiskStorage>,
}

impl Server {
    /// Starts a hub. Blocks the calling thread while data is recovered. `plain_amqp`: where AMQP is served without TLS,
    /// on loopback only.
    ///
    /// # Errors
    /// Whatever keeps it from starting, with the file or key it concerns; nothing is left running.
    pub async fn start(config: &Config, tls: DoorTls, plain_amqp: Option<SocketAddr>) -> anyhow::Result<Self> {
        let started = Instant::now();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let entropy: Arc<dyn Entropy> = Arc::new(SystemEntropy);
        let settings = Settings::of(config);
        let data = &settings.data;
        std::fs::create_dir_all(data).with_context(|| format!("data folder {}", data.display()))?;

        let partition_count = config.identity.partition_count;
        // The log's lock guards the whole data directory: it comes first.
        let log_directory = data.join("log");
        let (log, appenders, recovered) = Log::open(
            DiskStorage::new(&log_directory),
            partition_count,
            settings.log.clone(),
            clock.now(),
        )
        .with_context(|| format!("log in {}", log_directory.display()))?;
        let state_file = data.join("state.redb");
        let state: Arc<dyn State> = Arc::new(
            RedbState::open(&state_file, &RedbConfig::default())
                .with_context(|| format!("store {}", state_file.display()))?,
        );
        let hub_config = HubConfig {
            host_names: config.identity.host_names.iter().map(|host| host.0.clone()).collect(),
            partition_count,
        };
        hub_config.check()?;
        let meta = HubMeta::open(&state, &hub_config, &*entropy, clock.now())?;
        let recorder = Recorder::new(&event_kinds(config), clock.clone());
        let registry = Registry::open(state.clone(), entropy.clone(), partition_count)?.recording(recorder.clone());
        let window = config.events.connection_window;
        let presence = Presence::open(state.clone(), registry.clone(), partition_count, window, clock.now())
            .context("presence of devices")?;
        let events = Events::new(
            state.clone(),
            event_settings(config),
            partition_count,
            &hub_config.host_names[0],
            meta.created.unwrap_or_default(),
        );
        let policies = Policies::open(state.clone(), entropy.clone())?;
        if let Some(key) = &config.identity.owner_key {
            set_owner_key(&policies, &key.0).context("identity.owner_key")?;
        }
        let authorities = Authorities::open(state.clone(), entropy.clone())?;
        let groups = Groups::new(state.clone());
        let queues = queue_settings(config);
        let outboxes = Outboxes::new(state.clone(), entropy.clone(), queues.clone(), partition_count);
        let feedbacks = Feedbacks::new(state.clone(), entropy.clone(), queues);
        let twins = Twins::new(state.clone(), registry.clone());
        let lines = Lines::default();
        let told = lines.clone();
        twins.observe(Box::new(move |changed| told.desired_changed(changed)));
        let told = lines.clone();
        outboxes.observe(Box::new(move |name| told.message_waits(name)));
        let authenticator = Authenticator::new(
            registry.clone(),
            policies.clone(),
            authorities.clone(),
            &hub_config.host_names,
        );

        for partition in &recovered {
            match &partition.damage {
                Some(damage) => tracing::error!(partition = %partition.partition, %damage, "the log is damaged"),
                None => tracing::debug!(
                    partition = %partition.partition,
                    segments = partition.segments,
                    bytes_cut = partition.bytes_cut,
                    "recovered"
                ),
            }
        }
        let persisted = PersistedFilter::new(state.clone());
        let owned = replay_filters(&persisted, appenders)?;
        let recovery = started.elapsed();

        let metrics = Arc::new(Metrics::new(
            settings.shards,
            partition_count,
            settings.durability.name(),
            SystemTime::now(),
        ));
        metrics.recovered(recovery);
        metrics.watch_volume(data.clone());
        let throttles = Arc::new(Throttles::open(
            throttles::settings(config),
            state.clone(),
            Instant::now(),
            Arc::new(ThrottleFacts(metrics.clone())),
        )?);
        let readiness = Arc::new(Readiness::default());
        let bytes = |bytes: crate::config::Bytes| u32::try_from(bytes.0).unwrap_or(u32::MAX);
        let (of_shard, of_partition) = (
            bytes(config.shard.inflight_bytes_max),
            bytes(config.shard.partition_inflight_bytes_max),
        );
        let budgets = || Budgets::new(of_shard, of_partition, partition_count);
        let inboxes: Vec<_> = (0..settings.shards).map(|_| Inbox::new(budgets())).collect();
        let partitions = owned.iter().map(|(_, partition, _)| partition.clone()).collect();
        let router = Arc::new(Router::new(inboxes, partitions));
        let arbiters: Vec<Arbiter> = (0..settings.shards).map(|_| Arbiter::new()).collect();
        for (thread, arbiter) in arbiters.iter().enumerate() {
            arbiter.spawn(beat(readiness.clone(), thread));
        }
        let bell = Arc::new(Bell::default());
        let actors = start_shards(
            &arbiters, &router, owned, &persisted, &presence, &settings, &metrics, &bell, &clock,
        );

        let disk = DiskFacts {
            metrics: metrics.clone(),
            readiness: readiness.clone(),
        };
        for partition in router.partitions() {
            if let Some(error) = partition.view.closed_by() {
                disk.closed(partition.view.partition(), &error);
            }
        }
        let keeper = Keeper::start(router.clone(), clock.clone(), disk.clone())?;
        let syncer = match settings.durability {
            Durability::Sync | Durability::Interval(_) => Some(Syncer::start(
                router.clone(),
                bell,
                settings.durability,
                config.process.sync_gap,
                disk,
            )?),
            Durability::Os => None,
        };

        let facts = QuicFacts {
            cell: metrics.shard(0),
            metrics: metrics.clone(),
        };
        let live = Live {
            presence: presence.clone(),
            outboxes: outboxes.clone(),
        };
        let parts = HubParts {
            live: live.clone(),
            events: events.clone(),
            authenticator: authenticator.clone(),
            policies: policies.clone(),
            authorities: authorities.clone(),
            registry: registry.clone(),
            groups: groups.clone(),
            outboxes: outboxes.clone(),
            throttles: throttles.clone(),
            feedbacks: feedbacks.clone(),
            twins: twins.clone(),
            lines: lines.clone(),
            host_name: hub_config.host_names[0].clone(),
        };
        let door = Door::new(
            settings.quic.clone(),
            router.clone(),
            parts.clone(),
            clock.clone(),
            settings.durability,
            Arc::new(facts),
        );
        let endpoint = open_door(&door, &arbiters, tls.quic, &reset_key(data)?)
            .await
            .with_context(|| format!("QUIC port {}", settings.quic.listen))?;
        let quic_address = endpoint.local_addr()?;

        let listener =
            http::serve::bind(&settings.https).with_context(|| format!("HTTPS port {}", settings.https.listen))?;
        let https_address = listener.local_addr()?;
        let sessions = metrics.clone();
        let devices = Devices {
            authenticator: authenticator.clone(),
            outboxes: outboxes.clone(),
            throttles: throttles.clone(),
            router: router.clone(),
            host_name: hub_config.host_names[0].clone(),
        };
        let amqp_bound = amqp::bind(&amqp::settings(config, plain_amqp))?;
        let (amqp_address, amqp_plain_address) = (amqp_bound.address, amqp_bound.plain_address);
        let facts = Arc::new(AmqpFacts {
            cell: metrics.shard(0),
            metrics: metrics.clone(),
        });
        let eventhubs = EventHubs::new(
            router.clone(),
            groups.clone(),
            door.readers.clone(),
            facts.clone(),
            eventhubs::Facts {
                entity: EVENTHUB_NAME.to_owned(),
                created: meta.created.unwrap_or_default(),
                host_name: hub_config.host_names[0].clone(),
                port: amqp_address.port(),
            },
        );
        let services = Services {
            outboxes: outboxes.clone(),
            feedbacks: feedbacks.clone(),
            throttles: throttles.clone(),
        };
        let amqp_devices = AmqpDevices {
            router: router.clone(),
            outboxes: outboxes.clone(),
            twins: twins.clone(),
            lines: lines.clone(),
            throttles: throttles.clone(),
            observer: facts.clone(),
        };
        let amqp_door = crate::amqp::Door::new(
            amqp::settings(config, plain_amqp),
            authenticator.clone(),
            hub_config.host_names[0].clone(),
            clock.clone(),
            facts,
            vec![eventhubs, Arc::new(services), Arc::new(amqp_devices)],
        );
        let handles: Vec<_> = arbiters.iter().map(Arbiter::handle).collect();
        amqp::serve(&amqp_door, amqp_bound, &tls.https, &handles);
        let (mqtt_listener, mqtt_address) = mqtt::bind(&mqtt::settings(config))?;
        let mqtt_parts = crate::session::mqtt::Parts {
            router: router.clone(),
            outboxes: outboxes.clone(),
            twins: twins.clone(),
            lines: lines.clone(),
            throttles: throttles.clone(),
            authenticator: authenticator.clone(),
            subscriptions: Subscriptions::new(state.clone(), registry.clone()),
            clock: clock.clone(),
            observer: Arc::new(MqttFacts {
                cell: metrics.shard(0),
                metrics: metrics.clone(),
            }),
        };
        let mqtt_door = crate::session::mqtt::Door::new(mqtt::settings(config), mqtt_parts);
        mqtt::serve(&mqtt_door, mqtt_listener, &tls.https, &handles);
        let (outboxes_told, lines_told) = (outboxes.clone(), lines.clone());
        let running_config = Arc::new(Mutex::new(config.clone()));
        let mut console_parts = crate::service::console::Parts {
            authenticator: authenticator.clone(),
            policies: policies.clone(),
            registry: registry.clone(),
            groups: groups.clone(),
            twins: twins.clone(),
            outboxes: outboxes.clone(),
            throttles: throttles.clone(),
            live: live.clone(),
            lines: lines.clone(),
            router: router.clone(),
            readers: door.readers.clone(),
            clock: clock.clone(),
            entropy: entropy.clone(),
            observer: Arc::new(ConsoleFacts(metrics.clone())),
            facts: Arc::new(console::HubFacts {
                about: console::about(config, settings.durability.name(), settings.shards, clock.now()),
                readiness: readiness.clone(),
                config: running_config.clone(),
            }),
            host_names: hub_config.host_names.clone(),
            port: 0,
        };
        let rest = Rest {
            live,
            authenticator,
            registry: registry.clone(),
            twins,
            outboxes: outboxes.clone(),
            feedbacks: feedbacks.clone(),
            throttles: throttles.clone(),
            lines,
            router: router.clone(),
            host_name: hub_config.host_names[0].clone(),
            connected_devices: Box::new(move || sessions.sessions(SessionKind::Device)),
        };
        actix_rt::spawn(throttles::keep_count(throttles.clone()));
        let swept = sweeper::Swept {
            outboxes,
            feedbacks,
            events: events.clone(),
        };
        actix_rt::spawn(sweeper::sweep(swept, clock.clone(), partition_count));
        let presence = presence::Keeping::start(presence, clock.clone(), partition_count);
        let facts = Arc::new(HttpFacts(metrics.clone()));
        let https_admission = Arc::new(Admission::new(config.https.handshakes_per_second));
        let site = http::Site::new(settings.https.clone(), facts, clock, &*entropy)
            .with(Arc::new(devices))
            .with(Arc::new(rest))
            .with_tunnel(Arc::new(AmqpTunnel(amqp_door.clone())))
            .with_tunnel(Arc::new(MqttTunnel(mqtt_door.clone())));
        let (https, https_handle) = http::serve::serve(listener, site, tls.https, https_admission.clone())?;
        actix_rt::spawn(https);

        let listener =
            TcpListener::bind(config.ops.listen).with_context(|| format!("operations port {}", config.ops.listen))?;
        let ops_address = listener.local_addr()?;
        console_parts.port = ops_address.port();
        let ops = metrics::serve(
            listener,
            OpsState {
                metrics: metrics.clone(),
                readiness: readiness.clone(),
                openapi: openapi::all_routes().to_string().into(),
            },
            console::serve(config, console_parts, metrics.clone(), door.clone()),
        )?;
        let ops_handle = ops.handle();
        actix_rt::spawn(ops);
        let admissions = [
            ("quic", door.admission.clone()),
            ("mqtt", mqtt_door.admission.clone()),
            ("amqp", amqp_door.admission.clone()),
            ("https", https_admission),
        ];
        let told = Told {
            recorder,
            events,
            outboxes: outboxes_told,
            lines: lines_told,
            admissions: admissions.clone(),
        };
        actix_rt::spawn(sample(metrics.clone(), router.clone(), door.clone(), told));
        let (running, was_unclean) = Running::begin(data).context("the mark of a hub that runs")?;
        let damaged = recovered.iter().filter(|partition| partition.damage.is_some());
        metrics.started(was_unclean, damaged.count() as u64);
        let certificate = certificate::Keeper::new(tls.certificate, tls.files, hub_config.host_names, metrics.clone());
        actix_rt::spawn(certificate.clone().run());
        readiness.set_phase(Phase::Ready);
        Ok(Self {
            running,
            registry,
            policies,
            groups,
            metrics,
            readiness,
            quic_address,
            https_address,
            amqp_address,
            amqp_plain_address,
            mqtt_address,
            ops_address,
            has_console: console::is_on(config),
            recovery,
            door,
            amqp: amqp_door,
            mqtt: mqtt_door,
            endpoint,
            actors,
            arbiters,
            router,
            https: https_handle,
            ops: ops_handle,
            certificate,
            keeper,
            throttles,
            outboxes: parts.outboxes,
            feedbacks: parts.feedbacks,
            events: parts.events,
            presence,
            syncer,
            config: running_config,
            admissions,
            _log: log,
        })
    }

    /// Connections of devices and services, handshakes included.
    pub fn sessions(&self) -> usize {
        self.door.sessions() + self.amqp.connections() + self.mqtt.connections()
    }

    /// Where a browser finds the console; `None` if it is off.
    pub fn console_address(&self) -> Option<String> {
        self.has_console
            .then(|| format!("http://{}/console/", self.ops_address))
    }

    /// Cursors that are being read now.
    pub fn consumers(&self) -> usize {
        self.door.readers.positions().len()
    }

    /// Drains: refuses newcomers, tells devices to go and then everybody else, acknowledges what was taken, stores filters,
    /// syncs. Whether all
    /// of it was done in the configured time; if not, what is missing is only unacknowledged work.
    pub async fn stop(mut self, reason: &str) -> bool {
        let drain = drain::Pace::of(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        let deadline = Instant::now() + drain.timeout;
        self.readiness.set_phase(Phase::Draining);
        for door in [&self.door.shutdown, &self.amqp.shutdown, &self.mqtt.shutdown] {
            door.refuse();
        }
        self.https.refuse().await;
        // The rest of the time is for who does not go, and for consumers.
        let devices_deadline = deadline - drain.timeout / 4;
        drain::dismiss(&self.actors, drain, &self.metrics, reason, devices_deadline).await;
        for door in [&self.door.shutdown, &self.amqp.shutdown, &self.mqtt.shutdown] {
            door.stop();
        }
        let https_stopped = actix_rt::spawn(self.https.stop(true));
        let mut is_clean = false;
        while Instant::now() < deadline {
            let mut is_idle = self.sessions() == 0;
            for actor in &self.actors {
                is_idle &= matches!(actor.send(Poll).await, Ok(drained) if drained.sessions == 0 && drained.is_idle);
            }
            if is_idle {
                is_clean = true;
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        is_clean &= tokio::time::timeout_at(deadline.into(), https_stopped).await.is_ok();
        self.endpoint.close(
            quinn::VarInt::from_u32(crate::wire::close::CloseCode::Draining as u32),
            reason.as_bytes(),
        );
        // Closes are sent by the endpoint's own tasks; a moment lets them out.
        let _ = tokio::time::timeout(Duration::from_millis(500), self.endpoint.wait_idle()).await;
        for actor in &self.actors {
            let _ = actor.send(End).await;
        }
        is_clean &= throttles::store_count(&self.throttles).await;
        is_clean &= self.presence.finish(deadline).await;
        // The syncer's last round follows the last append.
        drop(self.syncer.take());
        for partition in self.router.partitions() {
            if let Err(error) = partition.view.finish() {
                tracing::error!(partition = %partition.view.partition(), %error, "the end of the log was not synced");
            }
        }
        drop(self.keeper);
        for arbiter in self.arbiters.drain(..) {
            arbiter.stop();
            let _ = arbiter.join();
        }
        self.ops.stop(false).await;
        if is_clean {
            self.running.end();
        }
        is_clean
    }

    /// The log's sequence numbers now, for a status line.
    pub fn next_sequences(&self) -> Vec<u64> {
        self.router
            .partitions()
            .iter()
            .map(|partition| partition.view.durable().0)
            .collect()
    }
}

/// Puts a configured key in force, so that whoever deploys the hub decides what services connect with.
fn set_owner_key(policies: &Policies, key: &str) -> anyhow::Result<()> {
    let name = PolicyName::new(OWNER_POLICY)?;
    let mut owner = policies.get(&name).context("the policy iothubowner is missing")?;
    if owner.keys.primary_key.as_deref() != Some(key) {
        owner.keys.primary_key = Some(key.to_owned());
        policies.wait(|done| policies.put(owner, done))?;
    }
    Ok(())
}

/// Binds the endpoint on the first arbiter and accepts from there.
async fn open_door(
    door: &Arc<Door>,
    arbiters: &[Arbiter],
    tls: Arc<rustls::ServerConfig>,
    reset_key: &[u8; 64],
) -> anyhow::Result<quinn::Endpoint> {
    let crypto = quinn::crypto::rustls::QuicServerConfig::try_from(tls).context("TLS for QUIC")?;
    let server = quinn::ServerConfig::with_crypto(Arc::new(crypto));
    let handles = arbiters.iter().map(Arbiter::handle).collect();
    let (sender, receiver) = oneshot::channel();
    let (door, reset_key) = (door.clone(), *reset_key);
    arbiters[0].spawn_fn(move || {
        let bound = door::bind(&door.config, server, &reset_key);
        if let Ok(bound) = &bound {
            actix_rt::spawn(door::accept(door.clone(), bound.clone(), handles));
        }
        drop(sender.send(bound.map(|bound| bound.endpoint)));
    });
    Ok(receiver.await.context("the first arbiter ended")??)
}

/// The key of stateless resets: kept, so that a restarted hub can tell its clients at once that their connections are
/// gone.
fn reset_key(data: &std::path::Path) -> anyhow::Result<[u8; 64]> {
    let path = data.join("reset.key");
    let read = |path: &std::path::Path| {
        std::fs::read(path)
            .ok()
            .and_then(|bytes| <[u8; 64]>::try_from(bytes).ok())
    };
    if let Some(key) = read(&path) {
        return Ok(key);
    }
    let mut key = [0; 64];
    SystemEntropy.fill(&mut key);
    write_secret(&path, &key).with_context(|| format!("{}", path.display()))?;
    Ok(key)
}

fn write_secret(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(bytes)
}

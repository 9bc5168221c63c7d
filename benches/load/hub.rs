//! The hub that is measured: one that runs, found by its data folder, one that is started for the measurement, or one
//! elsewhere, whose CPU and memory nobody here can read.
//!
//! A started hub is a child process of the sibling program `forebay`, so that its CPU is told from the client's. Its folder
//! is removed when the measurement ends, however it ends.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, ToSocketAddrs as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use forebay::cli::endpoints::{Endpoints, FILE_NAME};
use forebay::client::ClientError;
use forebay::client::credential::{Credential, PolicyKey};
use forebay::client::device::DeviceOptions;
use forebay::client::endpoint::{ClientEndpoint, HubAddress, TransportOptions};
use forebay::client::service::{Service, ServiceOptions};
use forebay::client::tls::{ClientTls, client_config};
use forebay::hub::DeviceIdentity;
use forebay::hub::connection_string::ConnectionString;
use forebay::model::DeviceId;
use forebay::server::{EVENTHUB_NAME, OWNER_POLICY};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::task::JoinSet;

use crate::progress::Progress;

const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
/// Requests for new devices under way at a time.
const CREATES_MAX: usize = 64;

#[derive(Clone, Debug, Args)]
pub struct HubArgs {
    /// Measure the hub that runs with this data folder
    #[arg(long, value_name = "DIR", global = true, conflicts_with_all = ["start", "host"])]
    hub: Option<PathBuf>,
    /// Load a hub elsewhere, by the name it goes by, on the ports of a hub; its CPU and memory are not measured
    #[arg(long, value_name = "NAME", global = true, conflicts_with = "start", requires_all = ["owner_key_file", "ca"])]
    host: Option<String>,
    /// With --host: where that hub is reached, a name or an address [default: the name it goes by]
    #[arg(long, value_name = "NAME", global = true, requires = "host")]
    address: Option<String>,
    /// With --host: file that holds the Base64 key of the policy `iothubowner`
    #[arg(long, value_name = "FILE", global = true, requires = "host")]
    owner_key_file: Option<PathBuf>,
    /// With --host: PEM file of the CA that vouches for that hub
    #[arg(long, value_name = "FILE", global = true, requires = "host")]
    ca: Option<PathBuf>,
    /// Start a hub for each run (the program `forebay` beside this one) and remove its data afterwards
    #[arg(long, global = true)]
    start: bool,
    /// Durability level of the started hub: sync, interval=10ms or os [default: sync]
    #[arg(long, value_name = "LEVEL", global = true)]
    durability: Option<String>,
    /// Any configuration key of the started hub; repeatable
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", global = true)]
    set: Vec<String>,
    /// Where the started hub's folder is made: choose the disk to measure [default: the temporary folder]
    #[arg(long, value_name = "DIR", global = true)]
    dir: Option<PathBuf>,
    /// Measure another MQTT broker, at this port of this machine, which lets anybody in
    #[arg(long, value_name = "PORT", global = true, conflicts_with_all = ["start", "hub", "host"], requires = "broker_pid")]
    broker: Option<u16>,
    /// The other broker's process
    #[arg(long, value_name = "PID", global = true, requires = "broker")]
    broker_pid: Option<u32>,
    /// The other broker speaks TLS under the name localhost, by a certificate of this CA
    #[arg(long, value_name = "FILE", global = true, requires = "broker")]
    broker_ca: Option<PathBuf>,
}

impl HubArgs {
    /// Which hub, and nothing about it that only a started one can be told.
    ///
    /// # Errors
    /// Says what contradicts.
    pub fn check(&self) -> anyhow::Result<()> {
        ensure!(
            self.start || self.hub.is_some() || self.host.is_some() || self.broker.is_some(),
            "name a running hub by its data folder (--hub DIR) or its host (--host NAME), or --start one"
        );
        let is_told = self.durability.is_some() || !self.set.is_empty() || self.dir.is_some();
        ensure!(
            self.start || !is_told,
            "--durability, --set and --dir are for a hub that is started (--start)"
        );
        Ok(())
    }

    /// Whether it is another broker that is measured, which does no more than MQTT.
    pub fn is_other_broker(&self) -> bool {
        self.broker.is_some()
    }

    fn other_broker(&self) -> Option<Hub> {
        let endpoints = Endpoints {
            hub_host: "localhost".to_owned(),
            ca_file: self.broker_ca.clone().unwrap_or_default(),
            iothub_connection_string: String::new(),
            eventhub_connection_string: String::new(),
            consumer_group: String::new(),
            second_consumer_group: String::new(),
            mqtt_port: self.broker?,
            https_port: 0,
            amqps_port: 0,
            amqp_plain_port: 0,
            case_timeout: 0,
            quic_port: 0,
            ops_port: 0,
            devices: Vec::new(),
        };
        Some(Hub {
            started: None,
            is_other_broker: true,
            pid: Some(self.broker_pid?),
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            endpoints,
            durability: "as the broker is set".to_owned(),
            settings: Vec::new(),
        })
    }
}

/// Ports of a hub elsewhere: those that its clients know it by.
mod ports {
    pub const QUIC: u16 = 8883;
    pub const MQTT: u16 = 8883;
    pub const HTTPS: u16 = 443;
    pub const AMQPS: u16 = 5671;
}

/// What `endpoints.json` would say of a hub elsewhere.
fn elsewhere(host: &str, key_file: &Path, ca: &Path) -> anyhow::Result<Endpoints> {
    let key = fs::read_to_string(key_file).with_context(|| key_file.display().to_string())?;
    let policy = format!("SharedAccessKeyName={OWNER_POLICY};SharedAccessKey={}", key.trim_end());
    Ok(Endpoints {
        hub_host: host.to_owned(),
        ca_file: ca.to_owned(),
        iothub_connection_string: format!("HostName={host};{policy}"),
        eventhub_connection_string: format!("Endpoint=sb://{host}/;{policy};EntityPath={EVENTHUB_NAME}"),
        consumer_group: "$Default".to_owned(),
        second_consumer_group: "cg2".to_owned(),
        mqtt_port: ports::MQTT,
        https_port: ports::HTTPS,
        amqps_port: ports::AMQPS,
        amqp_plain_port: 0,
        case_timeout: 30,
        quic_port: ports::QUIC,
        ops_port: 0,
        devices: Vec::new(),
    })
}

/// The first address of a name, IPv4 before IPv6 as the hub's own clients prefer it.
fn resolve(name: &str) -> anyhow::Result<IpAddr> {
    let found = (name, 0)
        .to_socket_addrs()
        .with_context(|| format!("address of {name}"))?;
    let addresses: Vec<IpAddr> = found.map(|found| found.ip()).collect();
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    v4.or(addresses.first())
        .copied()
        .with_context(|| format!("{name} has no address"))
}

/// A device of the measurement.
#[derive(Clone, Debug)]
pub struct Member {
    pub id: DeviceId,
    /// Base64.
    pub key: String,
}

/// Where Event Hubs clients connect, and with what.
pub struct AmqpDoor {
    pub port: u16,
    pub policy: String,
    pub key: String,
}

/// A hub's child process and its folder; dropping it ends both.
struct Started {
    args: HubArgs,
    folder: PathBuf,
    child: Child,
}

impl Started {
    async fn start(args: &HubArgs) -> anyhow::Result<Self> {
        let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
        let nanos = std::time::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_nanos());
        let folder = parent.join(format!("forebay-bench-{}-{nanos}", std::process::id()));
        fs::create_dir(&folder).with_context(|| folder.display().to_string())?;
        let child = match spawn(args, &folder, None) {
            Ok(child) => child,
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                return Err(error);
            }
        };
        let mut started = Self {
            args: args.clone(),
            folder,
            child,
        };
        started.ready().await?;
        Ok(started)
    }

    /// Until the file with the ports is there, which the hub writes when they are open.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        let file = self.folder.join(FILE_NAME);
        while !file.exists() {
            if let Some(status) = self.child.try_wait()? {
                bail!("the hub ended while it started: {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "the hub did not start within {START_TIMEOUT:?}"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Already waited for after an orderly end; then these do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn spawn(args: &HubArgs, folder: &Path, quic_port: Option<u16>) -> anyhow::Result<Child> {
    let program = std::env::current_exe()
        .context("the path of this program")?
        .with_file_name("forebay");
    let mut command = Command::new(&program);
    command.args(["dev", "--any-ports", "--fleet", "0", "--quiet", "--data"]);
    command.arg(folder);
    command.args(["--durability", args.durability.as_deref().unwrap_or("sync")]);
    let set = args.set.iter().cloned();
    for pair in set.chain(quic_port.map(|port| format!("quic.listen=127.0.0.1:{port}"))) {
        command.args(["--set", &pair]);
    }
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("{} (build it too: cargo build --release --bins)", program.display()))
}

pub struct Hub {
    started: Option<Started>,
    /// No hub: it knows no devices, and nothing but MQTT.
    is_other_broker: bool,
    /// Of a hub on this machine.
    pid: Option<u32>,
    address: IpAddr,
    endpoints: Endpoints,
    durability: String,
    settings: Vec<String>,
}

impl Hub {
    /// # Errors
    /// The hub does not run, does not start or does not answer.
    pub async fn open(args: &HubArgs) -> anyhow::Result<Self> {
        args.check()?;
        if let Some(broker) = args.other_broker() {
            return Ok(broker);
        }
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (started, endpoints, pid, address) = if let Some(host) = &args.host {
            let key_file = args
                .owner_key_file
                .as_deref()
                .context("--host needs --owner-key-file")?;
            let ca = args.ca.as_deref().context("--host needs --ca")?;
            let address = resolve(args.address.as_ref().unwrap_or(host))?;
            (None, elsewhere(host, key_file, ca)?, None, address)
        } else if let Some(folder) = &args.hub {
            let pid = holder(&folder.join("log/lock"))?;
            (None, Endpoints::read(folder)?, Some(pid), local)
        } else {
            let started = Started::start(args).await?;
            let (endpoints, pid) = (Endpoints::read(&started.folder)?, started.child.id());
            (Some(started), endpoints, Some(pid), local)
        };
        let mut hub = Self {
            started,
            is_other_broker: false,
            pid,
            address,
            endpoints,
            durability: String::new(),
            settings: args.set.clone(),
        };
        let service = hub.service(&hub.endpoint(&TransportOptions::default())?).await?;
        // The level as it was asked for names the interval as well.
        hub.durability = args.durability.as_deref().unwrap_or(service.durability()).to_owned();
        ensure!(
            hub.durability.starts_with(service.durability()),
            "the hub runs at {}, not at {}",
            service.durability(),
            hub.durability
        );
        Ok(hub)
    }

    pub fn durability(&self) -> &str {
        &self.durability
    }

    /// What a started hub was set to beside its defaults.
    pub fn settings(&self) -> &[String] {
        &self.settings
    }

    /// # Errors
    /// The hub is elsewhere: what is read by its process id cannot be had.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.pid
            .context("this reads the hub's process: the hub must be on this machine (--hub or --start)")
    }

    /// Where its doors are.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The name that tokens are made for.
    pub fn host_name(&self) -> &str {
        &self.endpoints.hub_host
    }

    /// Where its metrics are told.
    ///
    /// # Errors
    /// There is no such port, or the hub is elsewhere.
    pub fn ops_address(&self) -> anyhow::Result<SocketAddr> {
        ensure!(
            self.endpoints.ops_port != 0,
            "the hub's metrics are not known to be anywhere"
        );
        Ok((self.address, self.endpoints.ops_port).into())
    }

    pub fn ca_file(&self) -> &Path {
        &self.endpoints.ca_file
    }

    pub fn https_port(&self) -> u16 {
        self.endpoints.https_port
    }

    /// # Errors
    /// There is no such port, or `endpoints.json` has no policy.
    pub fn amqp_door(&self, is_plain: bool) -> anyhow::Result<AmqpDoor> {
        let port = match is_plain {
            true => self.endpoints.amqp_plain_port,
            false => self.endpoints.amqps_port,
        };
        ensure!(port != 0, "the hub has no such AMQP port");
        let owner = ConnectionString::parse(&self.endpoints.eventhub_connection_string)?;
        Ok(AmqpDoor {
            port,
            policy: owner.shared_access_key_name.context("endpoints.json has no policy")?,
            key: owner.shared_access_key.context("endpoints.json has no key")?,
        })
    }

    /// # Errors
    /// There is no such port.
    pub fn mqtt_port(&self) -> anyhow::Result<u16> {
        ensure!(self.endpoints.mqtt_port != 0, "the hub has no MQTT port");
        Ok(self.endpoints.mqtt_port)
    }

    /// What the certificate of the MQTT port is checked by; `None`: it has none.
    pub fn mqtt_ca(&self) -> Option<&Path> {
        let is_plain = self.is_other_broker && self.endpoints.ca_file.as_os_str().is_empty();
        (!is_plain).then_some(&*self.endpoints.ca_file)
    }

    pub fn is_other_broker(&self) -> bool {
        self.is_other_broker
    }

    /// The name of the built-in endpoint.
    ///
    /// # Errors
    /// `endpoints.json` does not say.
    pub fn entity(&self) -> anyhow::Result<String> {
        let owner = ConnectionString::parse(&self.endpoints.eventhub_connection_string)?;
        owner.entity_path.context("endpoints.json names no event hub")
    }

    /// A socket for any number of connections.
    ///
    /// # Errors
    /// The hub's CA file or a socket cannot be had.
    pub fn endpoint(&self, options: &TransportOptions) -> anyhow::Result<ClientEndpoint> {
        Ok(ClientEndpoint::new(self.tls()?, options)?)
    }

    /// TLS with a memory of its own for resumption.
    ///
    /// # Errors
    /// The hub's CA file cannot be read.
    pub fn tls(&self) -> anyhow::Result<Arc<rustls::ClientConfig>> {
        Ok(client_config(ClientTls::from_ca_file(&self.endpoints.ca_file)?)?)
    }

    fn native(&self) -> HubAddress {
        HubAddress {
            address: (self.address, self.endpoints.quic_port).into(),
            host_name: self.endpoints.hub_host.clone(),
        }
    }

    /// # Errors
    /// The hub does not answer or refuses.
    pub async fn service(&self, endpoint: &ClientEndpoint) -> anyhow::Result<Service> {
        let owner = ConnectionString::parse(&self.endpoints.iothub_connection_string)?;
        let options = ServiceOptions {
            hub: self.native(),
            key: PolicyKey {
                policy: owner.shared_access_key_name.context("endpoints.json has no policy")?,
                key: owner.shared_access_key.context("endpoints.json has no key")?,
            },
        };
        tokio::time::timeout(Duration::from_secs(10), Service::connect(endpoint, &options))
            .await
            .context("the hub does not answer")?
            .context("the service connection")
    }

    pub fn device_options(&self, member: &Member) -> DeviceOptions {
        DeviceOptions::new(self.native(), member.id.clone(), Credential::Key(member.key.clone()))
    }

    /// Devices named `bench-0` and so on; those that are missing are created.
    ///
    /// # Errors
    /// The hub refuses.
    pub async fn members(&self, count: usize) -> anyhow::Result<Vec<Member>> {
        if self.is_other_broker {
            return (0..count).map(stranger).collect();
        }
        let endpoint = self.endpoint(&TransportOptions::default())?;
        let service = Arc::new(self.service(&endpoint).await?);
        let mut progress = Progress::new("devices", count as u64);
        let mut members = vec![None; count];
        let mut creating = JoinSet::new();
        let mut next = 0..count;
        loop {
            while creating.len() < CREATES_MAX
                && let Some(index) = next.next()
            {
                let service = service.clone();
                creating.spawn(async move { Ok::<_, anyhow::Error>((index, member(&service, index).await?)) });
            }
            let Some(created) = creating.join_next().await else {
                break;
            };
            let (index, member) = created??;
            members[index] = Some(member);
            progress.add(1);
        }
        service.close();
        endpoint.wait_idle().await;
        Ok(members.into_iter().flatten().collect())
    }

    /// Kills a started hub without a warning, starts it again on the same port and waits until it is ready.
    ///
    /// # Errors
    /// It was not started by this program, or does not come back.
    pub async fn kill_and_restart(&mut self) -> anyhow::Result<()> {
        let started = self.started.as_mut().context("--kill9 needs --start")?;
        started.child.kill()?;
        started.child.wait()?;
        fs::remove_file(started.folder.join(FILE_NAME))?;
        started.child = spawn(&started.args, &started.folder, Some(self.endpoints.quic_port))?;
        self.pid = Some(started.child.id());
        started.ready().await
    }

    /// Stops a started hub in order and removes its folder.
    ///
    /// # Errors
    /// It does not stop, or stops with an error.
    pub async fn close(mut self) -> anyhow::Result<()> {
        let Some(mut started) = self.started.take() else {
            return Ok(());
        };
        kill_process(Pid::from_child(&started.child), Signal::TERM)?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        loop {
            if let Some(status) = started.child.try_wait()? {
                ensure!(status.success(), "the hub ended with {status}");
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "the hub did not stop within {STOP_TIMEOUT:?}"
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// One that no broker knows.
fn stranger(index: usize) -> anyhow::Result<Member> {
    Ok(Member {
        id: DeviceId::new(&format!("bench-{index}"))?,
        key: String::new(),
    })
}

async fn member(service: &Service, index: usize) -> anyhow::Result<Member> {
    let id = DeviceId::new(&format!("bench-{index}"))?;
    let document = json!({ "deviceId": id.as_str() });
    let answer = match service.request("device.create", &document).await {
        // It exists, or the hub refuses the second request too and says why.
        Err(ClientError::Refused { .. }) => service.request("device.get", &document).await?,
        answer => answer?,
    };
    let identity: DeviceIdentity = serde_json::from_value(answer).context("the hub's answer is no identity")?;
    let key = identity.authentication.symmetric_key.primary_key;
    Ok(Member {
        id,
        key: key.context("the device has no key")?,
    })
}

/// The process that holds the lock of a data folder.
fn holder(lock: &Path) -> anyhow::Result<u32> {
    let inode = fs::metadata(lock)
        .with_context(|| format!("{}: no hub's data folder", lock.display()))?
        .ino();
    let locks = fs::read_to_string("/proc/locks").context("/proc/locks")?;
    lock_holder(&locks, inode).with_context(|| format!("{}: no hub runs with this folder", lock.display()))
}

/// Lines of `/proc/locks`: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF`.
fn lock_holder(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let found = fields.get(5)?.rsplit(':').next()?.parse() == Ok(inode) && fields.get(1) == Some(&"FLOCK");
        found.then(|| fields.get(4)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_found() {
        let locks = "1: POSIX  ADVISORY  READ 5 fe:00:131 0 EOF\n2: FLOCK  ADVISORY  WRITE 4711 fe:00:131 0 EOF\n";
        assert_eq!(lock_holder(locks, 131), Some(4711));
        assert_eq!(lock_holder(locks, 13), None);
    }
}

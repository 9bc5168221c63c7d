//! `forebay dev`: a hub to try things with, which makes everything it needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use clap::Args;

use super::endpoints::{DeviceEndpoint, Endpoints};
use super::running;
use crate::client::credential::Credential;
use crate::client::device::{Device, DeviceOptions};
use crate::client::endpoint::{ClientEndpoint, HubAddress, TransportOptions};
use crate::client::tls::{ClientTls, client_config};
use crate::config::{Config, Sources, load};
use crate::hub::connection_string::ConnectionString;
use crate::hub::{DeviceIdentity, GroupError, RegistryError};
use crate::metrics::CertificateName;
use crate::model::time::Clock as _;
use crate::model::{ConsumerGroup, DeviceId, PolicyName, limits};
use crate::server::certificate::Leaf;
use crate::server::demo::{self, DemoDevice, Readings};
use crate::server::logging::Logging;
use crate::server::{EVENTHUB_NAME, OWNER_POLICY as OWNER, Server, SystemClock, tls};

/// Makes what it needs on the first start (a CA, a server certificate, keys, demo devices), prints how to connect, and
/// sends this machine's own readings as telemetry. A second start finds its data again. Everything a client needs is
/// written to DATA/endpoints.json.
#[derive(Args, Clone, Debug)]
pub struct DevArgs {
    /// Folder of all data
    #[arg(long, value_name = "DIR", default_value = "forebay-data")]
    pub data: PathBuf,
    /// Name clients call this hub by; repeat for several. The certificate gets each, and localhost
    #[arg(long = "host", value_name = "NAME", default_value = "localhost")]
    pub hosts: Vec<String>,
    /// Demo devices that send this machine's readings; 0 for none
    #[arg(long, value_name = "N", default_value_t = 4)]
    pub fleet: u16,
    /// UDP port for devices over QUIC [default: 8883]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub quic_port: Option<u16>,
    /// TCP port for HTTPS [default: 443, or 8443 where that is not allowed]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub https_port: Option<u16>,
    /// TCP port for MQTT over TLS [default: 8883]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub mqtt_port: Option<u16>,
    /// TCP port for AMQP over TLS [default: 5671]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub amqp_port: Option<u16>,
    /// Loopback TCP port for AMQP without TLS, for clients that think they speak to an emulator [default: 5672, or a free one]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub amqp_plain_port: Option<u16>,
    /// TCP port for metrics and health [default: 9600]
    #[arg(long, value_name = "PORT", conflicts_with = "any_ports")]
    pub ops_port: Option<u16>,
    /// Take free ports, so that several hubs run side by side
    #[arg(long)]
    pub any_ports: bool,
    /// When a message is acknowledged: sync, interval=10ms or os [default: sync]
    #[arg(long, value_name = "LEVEL")]
    pub durability: Option<String>,
    /// Set any key of the configuration; see `forebay config default`
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub set: Vec<String>,
    /// No status line
    #[arg(long)]
    pub quiet: bool,
}

impl DevArgs {
    /// Runs the hub until it is told to stop.
    ///
    /// # Errors
    /// Whatever keeps it from starting, with the file, port or key it concerns.
    pub fn run(self) -> anyhow::Result<()> {
        let config = self.config()?;
        let logging = Logging::start(&config)?;
        running::raise_limits();
        let certificates = tls::ensure_dev_certificates(&self.data, &self.hosts, SystemTime::now())?;
        let tls = tls::DoorTls::load(certificates.server(), &config)?;
        actix_rt::System::new().block_on(async {
            let server = Server::start(&config, tls, Some(self.plain_amqp())).await?;
            let ca = Leaf::read("CA certificate", &certificates.ca_certificate)?;
            server.metrics.certificate_expires(CertificateName::Ca, ca.not_after);
            actix_rt::spawn(renew_certificate(self.data.clone(), self.hosts.clone()));
            let ca_file = std::fs::canonicalize(&certificates.ca_certificate)?;
            let devices = self.make_devices(&server)?;
            let endpoints = self.endpoints(&server, ca_file, &devices)?;
            endpoints.write(&self.data)?;
            if !self.quiet {
                self.announce(&endpoints, &server);
            }
            let fleet = start_fleet(&endpoints, &devices, &self.data, self.quiet)?;
            let stopped = running::until_signal(server, &logging, !self.quiet, || {
                tls::ensure_dev_certificates(&self.data, &self.hosts, SystemTime::now())?;
                self.config()
            })
            .await;
            fleet.abort();
            stopped
        })
    }

    fn config(&self) -> anyhow::Result<Config> {
        let mut set = vec![
            format!("process.data_dir={}", self.data.display()),
            format!("identity.host_names={}", self.hosts.join(",")),
            // A folder on a developer's machine: small files, made at once.
            "log.segment_bytes=16MiB".to_owned(),
            "ops.log=warn".to_owned(),
        ];
        // Other machines reach this one only when it was given a name for them.
        let address = if self.hosts.iter().all(|host| host == "localhost") {
            "127.0.0.1"
        } else {
            "0.0.0.0"
        };
        let port = |wanted: Option<u16>, default: u16| if self.any_ports { 0 } else { wanted.unwrap_or(default) };
        set.push(format!("quic.listen={address}:{}", port(self.quic_port, 8883)));
        let https_port = if self.any_ports {
            0
        } else {
            self.https_port.unwrap_or_else(|| https_port(address))
        };
        set.push(format!("https.listen={address}:{https_port}"));
        set.push(format!("mqtt.listen={address}:{}", port(self.mqtt_port, 8883)));
        set.push(format!("amqp.listen={address}:{}", port(self.amqp_port, 5671)));
        set.push(format!("ops.listen=127.0.0.1:{}", port(self.ops_port, 9600)));
        set.extend(
            self.durability
                .as_ref()
                .map(|level| format!("process.durability={level}")),
        );
        set.extend(self.set.iter().cloned());
        Ok(load(&Sources::of_process(None, set))?)
    }

    /// The emulators' port, if no broker of this machine has it: nobody needs it who does not ask for it.
    fn plain_amqp(&self) -> SocketAddr {
        let port = match self.amqp_plain_port {
            Some(port) => port,
            None if self.any_ports => 0,
            None => match std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 5672)) {
                Ok(_) => 5672,
                Err(_) => 0,
            },
        };
        SocketAddr::from((Ipv4Addr::LOCALHOST, port))
    }

    /// Makes the demo devices and the second consumer group, unless an earlier start did.
    fn make_devices(&self, server: &Server) -> anyhow::Result<Vec<(DemoDevice, DeviceIdentity)>> {
        let group = ConsumerGroup::new(SECOND_GROUP)?;
        match server.groups.wait(|done| server.groups.create(&group, done)) {
            Ok(()) | Err(GroupError::Exists) => {}
            Err(error) => return Err(error.into()),
        }
        let sample = demo::sample(&self.data, Instant::now());
        demo::fleet(usize::from(self.fleet), &sample)
            .into_iter()
            .map(|demo| {
                let id = DeviceId::new(&demo.id())?;
                let identity = match server
                    .registry
                    .create_device_blocking(DeviceIdentity::new(id.clone()), SystemClock.now())
                {
                    Ok(created) => created.identity,
                    Err(RegistryError::DeviceExists) => server.registry.device(&id)?,
                    Err(error) => return Err(error.into()),
                };
                Ok((demo, identity))
            })
            .collect()
    }

    fn endpoints(
        &self,
        server: &Server,
        ca_file: PathBuf,
        devices: &[(DemoDevice, DeviceIdentity)],
    ) -> anyhow::Result<Endpoints> {
        let host = &self.hosts[0];
        let owner = server
            .policies
            .get(&PolicyName::new(OWNER)?)
            .context("the policy iothubowner is missing")?;
        let owner_key = owner.keys.primary_key.context("the policy iothubowner has no key")?;
        let device = |(_, identity): &(DemoDevice, DeviceIdentity)| {
            let id = identity.device_id.as_str();
            let key = identity
                .authentication
                .symmetric_key
                .primary_key
                .as_deref()
                .unwrap_or_default();
            DeviceEndpoint {
                device_id: id.to_owned(),
                connection_string: ConnectionString::for_device(host, id, key).to_string(),
            }
        };
        Ok(Endpoints {
            hub_host: host.clone(),
            ca_file,
            iothub_connection_string: ConnectionString::for_policy(host, OWNER, &owner_key).to_string(),
            eventhub_connection_string: ConnectionString::for_eventhub(host, OWNER, &owner_key, EVENTHUB_NAME)
                .to_string(),
            consumer_group: limits::DEFAULT_CONSUMER_GROUP.to_owned(),
            second_consumer_group: SECOND_GROUP.to_owned(),
            mqtt_port: server.mqtt_address.port(),
            https_port: server.https_address.port(),
            amqps_port: server.amqp_address.port(),
            amqp_plain_port: server.amqp_plain_address.map_or(0, |address| address.port()),
            case_timeout: 30,
            quic_port: server.quic_address.port(),
            ops_port: server.ops_address.port(),
            devices: devices.iter().map(device).collect(),
        })
    }

    fn announce(&self, endpoints: &Endpoints, server: &Server) {
        let data = self.data.display();
        println!(
            "Forebay {} is ready (data in {data}, opened in {:.0?})\n",
            env!("CARGO_PKG_VERSION"),
            server.recovery
        );
        println!(
            "  devices (QUIC)     {}:{}/udp",
            endpoints.hub_host, endpoints.quic_port
        );
        println!(
            "  devices (MQTT)     mqtts://{}:{}",
            endpoints.hub_host, endpoints.mqtt_port
        );
        println!(
            "  HTTPS              https://{}:{}",
            endpoints.hub_host, endpoints.https_port
        );
        println!(
            "  AMQP, Event Hubs   amqps://{}:{}",
            endpoints.hub_host, endpoints.amqps_port
        );
        println!("  CA file            {}", endpoints.ca_file.display());
        println!("  metrics            http://{}/metrics", server.ops_address);
        if let Some(console) = server.console_address() {
            println!("  console            {console}  (sign in with the next line)");
        }
        println!("  service            {}", endpoints.iothub_connection_string);
        println!("  consumer           {}", endpoints.eventhub_connection_string);
        for device in endpoints.devices.iter().take(SHOWN_DEVICES) {
            println!("  device             {}", device.connection_string);
        }
        println!("  all of it          {data}/{}\n", super::endpoints::FILE_NAME);
        let hub = if self.data == Path::new("forebay-data") {
            String::new()
        } else {
            format!(" --hub {data}")
        };
        println!("Read what arrives:   forebay tail{hub} --from earliest");
        println!("Send a message:      forebay device create my-device{hub} && forebay send my-device hello{hub}\n");
    }
}

/// Makes the server's certificate anew before it expires, under the same CA. The hub sees it as it sees any new one.
async fn renew_certificate(data: PathBuf, hosts: Vec<String>) {
    loop {
        tokio::time::sleep(RENEW_EVERY).await;
        let (data, hosts) = (data.clone(), hosts.clone());
        let renew = move || tls::ensure_dev_certificates(&data, &hosts, SystemTime::now());
        match tokio::task::spawn_blocking(renew).await {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::error!(%error, "the certificate cannot be renewed"),
            Err(error) => tracing::error!(%error, "the certificate was not renewed"),
        }
    }
}

/// 443, which SDKs use, unless this user may not have it.
pub(super) fn https_port(address: &str) -> u16 {
    match std::net::TcpListener::bind((address, 443)) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => 8443,
        // Any other error comes again when the port is opened, and is reported there.
        Ok(_) | Err(_) => 443,
    }
}

/// Devices whose connection string is printed; the file has all.
const SHOWN_DEVICES: usize = 4;
const SECOND_GROUP: &str = "cg2";
const REPORT_EVERY: Duration = Duration::from_secs(1);
const RENEW_EVERY: Duration = Duration::from_secs(3600);

/// Sends this machine's readings once a second, each demo device over a connection of its own.
fn start_fleet(
    endpoints: &Endpoints,
    devices: &[(DemoDevice, DeviceIdentity)],
    data: &Path,
    quiet: bool,
) -> anyhow::Result<tokio::task::JoinHandle<()>> {
    let tls = client_config(ClientTls::from_ca_file(&endpoints.ca_file)?)?;
    let endpoint = ClientEndpoint::new(tls, &TransportOptions::default())?;
    let hub = HubAddress {
        address: SocketAddr::from((Ipv4Addr::LOCALHOST, endpoints.quic_port)),
        host_name: endpoints.hub_host.clone(),
    };
    let mut running = Vec::new();
    for (demo, identity) in devices {
        let key = identity
            .authentication
            .symmetric_key
            .primary_key
            .clone()
            .unwrap_or_default();
        let options = DeviceOptions::new(hub.clone(), identity.device_id.clone(), Credential::Key(key));
        running.push((demo.clone(), Device::start(endpoint.clone(), options)?));
    }
    let data = data.to_owned();
    Ok(actix_rt::spawn(async move {
        let mut earlier = demo::sample(&data, Instant::now());
        let mut is_first = true;
        loop {
            tokio::time::sleep(REPORT_EVERY).await;
            let later = demo::sample(&data, Instant::now());
            let readings = Readings::between(&earlier, &later);
            for (demo, device) in &running {
                let message = demo.message(&readings, SystemClock.now());
                if is_first && !quiet {
                    println!("  {} sends {}", demo.id(), String::from_utf8_lossy(&message.body));
                }
                // A full buffer means the hub is not taking messages; the next reading is as good.
                let _ = device.try_send(&message);
            }
            if is_first && !quiet && !running.is_empty() {
                println!();
            }
            is_first = false;
            earlier = later;
        }
    }))
}

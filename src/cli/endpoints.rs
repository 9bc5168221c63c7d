//! `DATA/endpoints.json`: how to reach a hub that runs on this machine.
//!
//! Written by `dev` once its ports are open, read by the client subcommands and by scripts. One JSON object:
//!
//! | key | meaning |
//! | --- | --- |
//! | `hub_host` | name the ports are reached by; the host of every connection string |
//! | `ca_file` | absolute path of the CA's PEM file |
//! | `iothub_connection_string` | policy with all rights: `HostName=..;SharedAccessKeyName=..;SharedAccessKey=..` |
//! | `eventhub_connection_string` | the same policy: `Endpoint=sb://..;SharedAccessKeyName=..;SharedAccessKey=..;EntityPath=..` |
//! | `consumer_group`, `second_consumer_group` | two groups that exist: `$Default` and `cg2` |
//! | `mqtt_port`, `https_port`, `amqps_port` | TCP ports of these doors |
//! | `amqp_plain_port` | TCP port for AMQP without TLS, on loopback; 0 for none |
//! | `case_timeout` | seconds a conformance case may take |
//! | `quic_port` | UDP port of the native protocol |
//! | `ops_port` | TCP port of `/metrics`, `/healthz`, `/readyz` |
//! | `devices` | demo devices: `[{ "device_id": .., "connection_string": .. }]` |
//!
//! The file holds keys, so only its owner can read it. A reader passes over members it does not know, so that later
//! versions may add some.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::hub::connection_string::{ConnectionString, ConnectionStringError};

pub const FILE_NAME: &str = "endpoints.json";

/// The content of `endpoints.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    pub hub_host: String,
    pub ca_file: PathBuf,
    pub iothub_connection_string: String,
    pub eventhub_connection_string: String,
    pub consumer_group: String,
    pub second_consumer_group: String,
    pub mqtt_port: u16,
    pub https_port: u16,
    pub amqps_port: u16,
    /// On loopback and without TLS; 0 for none.
    #[serde(default)]
    pub amqp_plain_port: u16,
    pub case_timeout: u32,
    pub quic_port: u16,
    pub ops_port: u16,
    pub devices: Vec<DeviceEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceEndpoint {
    pub device_id: String,
    pub connection_string: String,
}

/// Why a hub could not be found.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    #[error("{} cannot be read: {source}; is a hub running with this data folder? (--hub names another)", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} cannot be written: {source}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} is not an endpoints file: {source}", path.display())]
    Content {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("the connection string {0}")]
    ConnectionString(#[from] ConnectionStringError),
    #[error("a connection string needs the hub's CA beside it: --ca")]
    NoCa,
    #[error("{}: there is no device {device:?} (known: {known})", path.display())]
    NoDevice {
        path: PathBuf,
        device: String,
        known: String,
    },
}

impl Endpoints {
    /// Replaces `directory/endpoints.json`; a reader sees the old or the new one, never a part.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn write(&self, directory: &Path) -> Result<PathBuf, EndpointsError> {
        let path = directory.join(FILE_NAME);
        let new = directory.join(format!("{FILE_NAME}.new"));
        let written = (|| {
            let _ = fs::remove_file(&new);
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            serde_json::to_writer_pretty(&mut file, self)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&new, &path)
        })();
        match written {
            Ok(()) => Ok(path),
            Err(source) => Err(EndpointsError::Write { path, source }),
        }
    }

    /// # Errors
    /// The file is missing or is something else.
    pub fn read(directory: &Path) -> Result<Self, EndpointsError> {
        let path = directory.join(FILE_NAME);
        let text = fs::read(&path).map_err(|source| EndpointsError::Read {
            path: path.clone(),
            source,
        })?;
        serde_json::from_slice(&text).map_err(|source| EndpointsError::Content { path, source })
    }
}

/// Which hub a client subcommand talks to.
#[derive(Args, Clone, Debug)]
pub struct HubArgs {
    /// Data folder of a hub that runs on this machine
    #[arg(
        long,
        value_name = "DIR",
        default_value = "forebay-data",
        global = true,
        conflicts_with = "connection_string"
    )]
    pub hub: PathBuf,
    /// A hub anywhere, by connection string; needs --ca
    #[arg(long, value_name = "TEXT", global = true, requires = "ca")]
    pub connection_string: Option<String>,
    /// PEM file of the CA that vouches for that hub
    #[arg(long, value_name = "FILE", global = true, requires = "connection_string")]
    pub ca: Option<PathBuf>,
    /// UDP port of that hub [default: 8883]
    #[arg(long, value_name = "PORT", global = true, requires = "connection_string")]
    pub port: Option<u16>,
}

/// Where and how to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its host name is what the server's certificate must show.
    pub connection_string: ConnectionString,
    pub port: u16,
    pub ca_file: PathBuf,
    /// Found by its data folder, so it runs on this machine.
    pub is_local: bool,
}

impl HubArgs {
    const PORT: u16 = 8883;

    /// The hub as a service with all rights, or as the connection string says.
    ///
    /// # Errors
    /// No hub's data is there, or the connection string names no host.
    pub fn service(&self) -> Result<Target, EndpointsError> {
        self.resolve(|endpoints| Ok(endpoints.iothub_connection_string.clone()))
    }

    /// The hub as `device`, with its own key when the hub's file has it.
    ///
    /// # Errors
    /// As `service`; `NoDevice` when the file does not know the device, which then must be asked of the hub's registry.
    pub fn device(&self, device: &str) -> Result<Target, EndpointsError> {
        self.resolve(|endpoints| {
            let found = endpoints.devices.iter().find(|known| known.device_id == device);
            found
                .map(|known| known.connection_string.clone())
                .ok_or_else(|| EndpointsError::NoDevice {
                    path: self.hub.join(FILE_NAME),
                    device: device.to_owned(),
                    known: endpoints
                        .devices
                        .iter()
                        .map(|d| d.device_id.as_str())
                        .collect::<Vec<_>>()
                        .join(", "),
                })
        })
    }

    fn resolve(
        &self,
        connection_string: impl FnOnce(&Endpoints) -> Result<String, EndpointsError>,
    ) -> Result<Target, EndpointsError> {
        if let Some(text) = &self.connection_string {
            return Ok(Target {
                connection_string: ConnectionString::parse(text)?,
                port: self.port.unwrap_or(Self::PORT),
                ca_file: self.ca.clone().ok_or(EndpointsError::NoCa)?,
                is_local: false,
            });
        }
        let endpoints = Endpoints::read(&self.hub)?;
        Ok(Target {
            connection_string: ConnectionString::parse(&connection_string(&endpoints)?)?,
            port: endpoints.quic_port,
            ca_file: endpoints.ca_file,
            is_local: true,
        })
    }
}

impl Target {
    /// The address to connect to. A hub on this machine is reached by loopback, since its `--host` names may be meant for
    /// others.
    ///
    /// # Errors
    /// The resolver's, for hubs elsewhere.
    pub fn address(&self) -> io::Result<SocketAddr> {
        if self.is_local {
            return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, self.port)));
        }
        let host = self.connection_string.host_name.as_str();
        let addresses: Vec<_> = (host, self.port).to_socket_addrs()?.collect();
        // A hub listens on 0.0.0.0 unless it is told otherwise, and `localhost` is often ::1 first.
        let v4 = addresses.iter().find(|address| address.is_ipv4());
        v4.or(addresses.first())
            .copied()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// What the conformance kit reads, and the type it needs.
    const KIT_TEXTS: [&str; 6] = [
        "hub_host",
        "ca_file",
        "iothub_connection_string",
        "eventhub_connection_string",
        "consumer_group",
        "second_consumer_group",
    ];
    const KIT_NUMBERS: [&str; 4] = ["mqtt_port", "https_port", "amqps_port", "case_timeout"];

    fn example() -> Endpoints {
        Endpoints {
            hub_host: "localhost".into(),
            ca_file: "/data/ca.pem".into(),
            iothub_connection_string: "HostName=localhost;SharedAccessKeyName=iothubowner;SharedAccessKey=YQ==".into(),
            eventhub_connection_string:
                "Endpoint=sb://localhost/;SharedAccessKeyName=iothubowner;SharedAccessKey=YQ==;EntityPath=forebay"
                    .into(),
            consumer_group: "$Default".into(),
            second_consumer_group: "cg2".into(),
            mqtt_port: 8883,
            https_port: 443,
            amqps_port: 5671,
            amqp_plain_port: 5672,
            case_timeout: 30,
            quic_port: 18883,
            ops_port: 9600,
            devices: vec![DeviceEndpoint {
                device_id: "demo-cpu".into(),
                connection_string: "HostName=localhost;DeviceId=demo-cpu;SharedAccessKey=Yg==".into(),
            }],
        }
    }

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("forebay-endpoints-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn hub(path: &Path) -> HubArgs {
        HubArgs {
            hub: path.to_owned(),
            connection_string: None,
            ca: None,
            port: None,
        }
    }

    #[test]
    fn the_file_has_what_the_conformance_kit_reads() {
        let folder = folder("kit");
        let path = example().write(&folder).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        for key in KIT_TEXTS {
            assert!(
                json[key]
                    .as_str()
                    .is_some_and(|text| !text.is_empty() && !text.contains('<')),
                "{key}"
            );
        }
        for key in KIT_NUMBERS {
            assert!(json[key].is_u64(), "{key}");
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Endpoints::read(&folder).unwrap(), example());
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_second_write_replaces_the_first_and_newer_members_are_passed_over() {
        let folder = folder("replace");
        example().write(&folder).unwrap();
        let second = Endpoints {
            quic_port: 1,
            ..example()
        };
        let path = second.write(&folder).unwrap();
        let text = fs::read_to_string(&path)
            .unwrap()
            .replacen('{', "{\"from_the_future\": [1],", 1);
        fs::write(&path, text).unwrap();
        assert_eq!(Endpoints::read(&folder).unwrap().quic_port, 1);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1, "no temporary file stays");
        fs::write(&path, "{}").unwrap();
        assert!(
            Endpoints::read(&folder)
                .unwrap_err()
                .to_string()
                .contains("endpoints.json")
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_hub_is_found_by_its_folder_or_by_connection_string() {
        let folder = folder("resolve");
        let error = hub(&folder).service().unwrap_err().to_string();
        assert!(error.contains("is a hub running"), "{error}");
        example().write(&folder).unwrap();
        let service = hub(&folder).service().unwrap();
        assert_eq!((service.port, service.ca_file), (18883, "/data/ca.pem".into()));
        assert_eq!(
            service.connection_string.shared_access_key_name.as_deref(),
            Some("iothubowner")
        );
        let device = hub(&folder).device("demo-cpu").unwrap();
        assert_eq!(device.connection_string.shared_access_key.as_deref(), Some("Yg=="));
        assert_eq!(device.address().unwrap().to_string(), "127.0.0.1:18883");
        assert!(
            hub(&folder)
                .device("other")
                .unwrap_err()
                .to_string()
                .contains("demo-cpu")
        );
        let mut remote = hub(&folder);
        remote.connection_string = Some("HostName=h.example;DeviceId=d;SharedAccessKey=Yg==".into());
        remote.ca = Some("ca.pem".into());
        let target = remote.device("ignored").unwrap();
        assert_eq!(
            (target.connection_string.host_name.as_str(), target.port),
            ("h.example", 8883)
        );
        remote.connection_string = Some("DeviceId=d".into());
        assert!(matches!(
            remote.service(),
            Err(EndpointsError::ConnectionString(ConnectionStringError::NoHost))
        ));
        fs::remove_dir_all(folder).unwrap();
    }
}

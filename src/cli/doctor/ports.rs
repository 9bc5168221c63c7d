//! Whether the ports can be had, and whether the kernel gives UDP the buffers that the hub asks for.

use std::fs;
use std::io;
use std::net::SocketAddr;

use super::owner::{self, Transport};
use super::{Finding, Patient};

/// What the QUIC door asks for, in both directions.
const UDP_BUFFER_BYTES: u64 = 4 << 20;

struct Port {
    check: &'static str,
    key: &'static str,
    address: SocketAddr,
    transport: Transport,
}

pub(super) fn check(patient: &Patient) -> Vec<Finding> {
    let config = &patient.config;
    let tcp = |check, key, address| Port {
        check,
        key,
        address,
        transport: Transport::Tcp,
    };
    let ports = [
        Port {
            transport: Transport::Udp,
            ..tcp("port QUIC", "quic.listen", config.quic.listen)
        },
        tcp("port MQTT", "mqtt.listen", config.mqtt.listen),
        tcp("port HTTPS", "https.listen", config.https.listen),
        tcp("port AMQP", "amqp.listen", config.amqp.listen),
        tcp("port ops", "ops.listen", config.ops.listen),
    ];
    ports.iter().map(|port| port_finding(port, patient)).collect()
}

fn port_finding(port: &Port, patient: &Patient) -> Finding {
    let Port {
        check, key, address, ..
    } = port;
    let transport = match port.transport {
        Transport::Tcp => "tcp",
        Transport::Udp => "udp",
    };
    let place = format!("{address}/{transport}");
    let error = match bind(port) {
        Ok(()) => return Finding::ok(check, format!("{place} is free")),
        Err(error) => error,
    };
    match error.kind() {
        io::ErrorKind::AddrInUse => in_use(port, &place, patient),
        io::ErrorKind::PermissionDenied => Finding::fail(
            check,
            format!("{place} is not allowed to this user: ports below 1024 need a privilege"),
            format!(
                "give the program CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE; by hand: setcap \
                 cap_net_bind_service=+ep PROGRAM), or set sysctl net.ipv4.ip_unprivileged_port_start={}, or set {key} to a \
                 higher port and forward to it",
                address.port()
            ),
        ),
        io::ErrorKind::AddrNotAvailable => Finding::fail(
            check,
            format!("{place}: no interface of this machine has the address"),
            format!("set {key} to an address of this machine, or to 0.0.0.0"),
        ),
        _ => Finding::fail(
            check,
            format!("{place} cannot be bound: {error}"),
            format!("set {key} to another address"),
        ),
    }
}

fn in_use(port: &Port, place: &str, patient: &Patient) -> Finding {
    let Port { check, key, .. } = port;
    let holder = owner::of_port(port.transport, port.address.port());
    match (&patient.hub, holder) {
        (Some(hub), Some(holder)) if hub.pid == holder.pid => {
            Finding::ok(check, format!("{place} is served by this hub, {hub}"))
        }
        (Some(hub), None) => Finding::ok(
            check,
            format!("{place} is in use; this user may not see by whom, and this hub runs as {hub}"),
        ),
        (_, Some(holder)) => Finding::fail(
            check,
            format!("{place} is in use by {holder}"),
            format!("stop it, or set {key} to another port"),
        ),
        (None, None) => Finding::fail(
            check,
            format!("{place} is in use by a process that this user may not see"),
            format!("find it as root with `ss -lnp`, or set {key} to another port"),
        ),
    }
}

/// As the hub binds it, without listening.
fn bind(port: &Port) -> io::Result<()> {
    let kind = match port.transport {
        Transport::Tcp => socket2::Type::STREAM,
        Transport::Udp => socket2::Type::DGRAM,
    };
    let socket = socket2::Socket::new(socket2::Domain::for_address(port.address), kind, None)?;
    if port.address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    if port.transport == Transport::Tcp {
        socket.set_reuse_address(true)?;
    }
    socket.bind(&port.address.into())?;
    if port.transport == Transport::Tcp {
        // With the address to be reused, two may bind it, and one may listen.
        socket.listen(1)?;
    }
    Ok(())
}

pub(super) fn udp_buffers() -> Finding {
    let limits = ["rmem_max", "wmem_max"].map(|name| {
        let text = fs::read_to_string(format!("/proc/sys/net/core/{name}"));
        (name, text.ok().and_then(|text| text.trim().parse().ok()))
    });
    buffers_finding(&limits)
}

fn buffers_finding(limits: &[(&str, Option<u64>)]) -> Finding {
    const CHECK: &str = "UDP buffers";
    let known: Vec<(&str, u64)> = limits
        .iter()
        .filter_map(|(name, bytes)| Some((*name, (*bytes)?)))
        .collect();
    if known.is_empty() {
        return Finding::ok(
            CHECK,
            "the kernel does not tell their limits here (a container's network)",
        );
    }
    let text: Vec<String> = known
        .iter()
        .map(|(name, bytes)| format!("net.core.{name} = {bytes}"))
        .collect();
    let small: Vec<String> = known
        .iter()
        .filter(|(_, bytes)| *bytes < UDP_BUFFER_BYTES)
        .map(|(name, _)| format!("net.core.{name}={UDP_BUFFER_BYTES}"))
        .collect();
    if small.is_empty() {
        return Finding::ok(CHECK, text.join(", "));
    }
    Finding::warn(
        CHECK,
        format!(
            "{}; the QUIC door asks for {UDP_BUFFER_BYTES}: a fleet that comes back at once loses first packets",
            text.join(", ")
        ),
        format!("sysctl -w {}, and keep it in /etc/sysctl.d", small.join(" ")),
    )
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::super::Level;
    use super::*;

    fn patient(hub: Option<owner::Process>) -> Patient {
        Patient {
            config: crate::config::Config::default(),
            data: "unused".into(),
            certificate: Err(String::new()),
            is_dev: true,
            hub,
        }
    }

    fn port(address: SocketAddr, transport: Transport) -> Port {
        Port {
            check: "port X",
            key: "x.listen",
            address,
            transport,
        }
    }

    #[test]
    fn a_port_of_this_hub_is_fine_and_of_another_process_is_not() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let me = owner::of_port(Transport::Tcp, tcp.local_addr().unwrap().port()).unwrap();
        for port in [
            port(tcp.local_addr().unwrap(), Transport::Tcp),
            port(udp.local_addr().unwrap(), Transport::Udp),
        ] {
            let own = port_finding(&port, &patient(Some(me.clone())));
            assert!(
                own.level == Level::Ok && own.text.contains("served by this hub"),
                "{own:?}"
            );
            let elsewhere = owner::Process {
                pid: me.pid + 1,
                ..me.clone()
            };
            let beside = port_finding(&port, &patient(Some(elsewhere)));
            assert_eq!(
                beside.level,
                Level::Fail,
                "another process, of the same name: {beside:?}"
            );
            let foreign = port_finding(&port, &patient(None));
            let holder = format!("in use by {me}");
            assert!(
                foreign.level == Level::Fail && foreign.text.contains(&holder),
                "{foreign:?}"
            );
            assert!(foreign.advice.contains("x.listen"), "{foreign:?}");
        }
        let free = tcp.local_addr().unwrap();
        drop(tcp);
        let found = port_finding(&port(free, Transport::Tcp), &patient(None));
        assert!(found.text.ends_with("is free"), "{found:?}");
        // TEST-NET-1, which no machine has.
        let elsewhere = port_finding(&port("192.0.2.1:9".parse().unwrap(), Transport::Tcp), &patient(None));
        assert!(
            elsewhere.level == Level::Fail && elsewhere.text.contains("no interface"),
            "{elsewhere:?}"
        );
    }

    #[test]
    fn small_buffers_are_named_with_the_command_that_mends_them() {
        let fine = buffers_finding(&[("rmem_max", Some(8 << 20)), ("wmem_max", Some(4 << 20))]);
        assert_eq!(fine.level, Level::Ok);
        let small = buffers_finding(&[("rmem_max", Some(212_992)), ("wmem_max", Some(8 << 20))]);
        assert_eq!(small.level, Level::Warn);
        assert!(
            small.advice.starts_with("sysctl -w net.core.rmem_max=4194304,"),
            "{small:?}"
        );
        assert_eq!(buffers_finding(&[("rmem_max", None)]).level, Level::Ok);
    }
}

#!/usr/bin/env python3
"""What do other MQTT brokers need for what Forebay does? The same client, on the same machine, turn by turn.

    cargo build --release --bins
    apt-get install mosquitto; cargo install rumqttd@0.20.0        # one that is missing is left out
    python3 benches/load/mqtt_peers.py --rounds 3 --seconds 2 --sessions 2000

All speak TLS with the certificate of a `forebay dev`. Durability: Forebay `sync`; mosquitto and rumqttd keep messages in
memory at most, and have no reader. Prints, of each figure, median (least - most) over the rounds. Time: about a minute a
round. Forebay is measured without its limits on the rate of handshakes, the others have none.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
RELEASE = os.path.normpath(os.path.join(HERE, "..", "..", "target", "release"))
UNLIMITED = ["mqtt.handshakes_per_second=0", "throttles.connections_per_second=0"]

MOSQUITTO = """
{user}listener {port} 127.0.0.1
socket_domain ipv4
allow_anonymous true
certfile {data}/server.pem
keyfile {data}/server-key.pem
persistence false
max_queued_messages 0
max_inflight_messages 1000
max_connections -1
set_tcp_nodelay true
sys_interval 0
log_type error
"""
RUMQTTD = """
id = 0
[router]
id = 0
max_connections = 20010
max_outgoing_packet_count = 1000
max_segment_size = 104857600
max_segment_count = 10
[v4.1]
name = "v4-1"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 0
[v4.1.tls]
certpath = "{data}/server.pem"
keypath = "{data}/server-key.pem"
[v4.1.connections]
connection_timeout_ms = 60000
max_payload_size = 1048576
max_inflight_count = 1000
dynamic_filters = true
"""


class Broker:
    """One of the others, for one measurement."""

    def __init__(self, name, program, template, certificates):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        user = "user root\n" if os.geteuid() == 0 else ""
        self.config = tempfile.NamedTemporaryFile("w", suffix=f"-{name}")
        self.config.write(template.format(port=self.port, data=certificates, user=user))
        self.config.flush()
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([program, "-c", self.config.name], **quiet)
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        sys.exit(f"{name} does not listen")

    def stop(self):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def bench(programs, arguments):
    """The figures of one run by name."""
    command = [os.path.join(programs, "forebay-bench"), *arguments, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        print(f"  {' '.join(arguments)}: {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return {}
    figures = json.loads(done.stdout)["figures"]
    return {name: figure["median"] for name, figure in figures.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--sessions", type=int, default=2000, help="of the idle ones, and of the storm")
    parser.add_argument("--programs", default=RELEASE, help="where forebay and forebay-bench are")
    parser.add_argument("--only", help="parts of workloads' names, separated by commas")
    options = parser.parse_args()
    path = os.environ.get("PATH", "") + ":/usr/sbin:" + os.path.expanduser("~/.cargo/bin")
    others = {}
    for name, template in (("mosquitto", MOSQUITTO), ("rumqttd", RUMQTTD)):
        program = shutil.which(name, path=path)
        if program:
            others[name] = (program, template)
        else:
            print(f"{name} is not installed: left out", file=sys.stderr)
    seconds = ["--seconds", str(options.seconds)]
    sessions = ["--sessions", str(options.sessions)]
    cost = [("server_cpu_s_per_million", "s of CPU per million"), ("messages_per_s", "messages/s"), ("latency_p99", "us, p99")]
    workloads = [
        ("128 B, 64 devices, pipelined", ["ingest", *seconds], cost),
        ("1 KiB, 64 devices, pipelined", ["ingest", "--size", "1024", *seconds], cost),
        ("1,000 devices, 128 messages/s each", ["ingest", "--devices", "1000", "--rate", "128", *seconds], cost),
        (f"an idle session of {options.sessions}", ["idle", *sessions], [("server_kib_per_session", "KiB")]),
        (
            f"{options.sessions} sessions come back",
            ["storm", *sessions],
            [("full_handshakes_per_s", "1/s, full"), ("resumed_handshakes_per_s", "1/s, resumed")],
        ),
    ]
    wanted = (options.only or "").split(",")
    with tempfile.TemporaryDirectory() as certificates:
        program = os.path.join(options.programs, "forebay")
        arguments = ["dev", "--any-ports", "--fleet", "0", "--quiet", "--data", certificates]
        made = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
        while not os.path.exists(os.path.join(certificates, "endpoints.json")) and made.poll() is None:
            time.sleep(0.05)
        made.terminate()
        made.wait()
        for title, arguments, figures in workloads:
            if not any(part in title for part in wanted):
                continue
            found = {name: [] for name in ["forebay", *others]}
            for _ in range(options.rounds):
                for name in found:
                    common = [*arguments, "--protocol", "mqtt"]
                    if name == "forebay":
                        settings = [part for setting in UNLIMITED for part in ("--set", setting)]
                        found[name].append(bench(options.programs, [*common, "--start", *settings]))
                        continue
                    program, template = others[name]
                    broker = Broker(name, program, template, certificates)
                    try:
                        pid, port = str(broker.process.pid), str(broker.port)
                        ca = os.path.join(certificates, "ca.pem")
                        peer = ["--broker", port, "--broker-pid", pid, "--broker-ca", ca]
                        found[name].append(bench(options.programs, [*common, *peer]))
                    finally:
                        broker.stop()
            print(title)
            for name, runs in found.items():
                parts = []
                for figure, unit in figures:
                    values = sorted(run[figure] for run in runs if figure in run)
                    if values:
                        median, least, most = statistics.median(values), values[0], values[-1]
                        parts.append(f"{median:,.2f} ({least:,.2f} - {most:,.2f}) {unit}")
                print(f"  {name:10} {'; '.join(parts) or 'failed'}", flush=True)


if __name__ == "__main__":
    main()

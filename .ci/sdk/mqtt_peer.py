"""A hub as its command line and HTTPS show it, and paho-mqtt as a device that can also misbehave."""
import base64, collections, hashlib, hmac, json, os, queue, ssl, struct, subprocess, tempfile, threading, time
import urllib.error, urllib.parse, urllib.request
import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

API = "2021-04-12"


class Wrong(Exception):
    pass


def equal(got, wanted, what):
    if got != wanted:
        raise Wrong(f"{what}: {str(got)[:300]} is not {str(wanted)[:300]}")


def wait(condition, what, seconds=10):
    until = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise Wrong(f"waited {seconds} s in vain for {what}")
        time.sleep(0.02)


def token(resource, key, seconds=3600, policy=None):
    resource, expiry = urllib.parse.quote(resource, safe=""), int(time.time() + seconds)
    digest = hmac.new(base64.b64decode(key), f"{resource}\n{expiry}".encode(), hashlib.sha256).digest()
    signature = urllib.parse.quote(base64.b64encode(digest).decode(), safe="")
    text = f"SharedAccessSignature sr={resource}&sig={signature}&se={expiry}"
    return text + (f"&skn={policy}" if policy else "")


class Device:
    def __init__(self, host, name, key):
        self.host, self.name, self.key = host, name, key

    def token(self, seconds=3600, key=None):
        return token(f"{self.host}/devices/{self.name}", key or self.key, seconds)

    @property
    def events(self):
        return f"devices/{self.name}/messages/events/"

    @property
    def commands(self):
        return f"devices/{self.name}/messages/devicebound/#"


class Lines:
    """What a command that goes on prints: one JSON object a line."""

    def __init__(self, args, key):
        self.known, self.lock = collections.defaultdict(list), threading.Lock()
        self.process = subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        threading.Thread(target=self.read, args=(key,), daemon=True).start()

    def read(self, key):
        for line in self.process.stdout:
            record = json.loads(line)
            with self.lock:
                self.known[record.get(key)].append(record)

    def of(self, name):
        with self.lock:
            return list(self.known.get(name, []))


class Hub:
    def __init__(self, endpoints, program):
        self.program, self.data = program, os.path.dirname(endpoints)
        self.read(endpoints)
        self.telemetry = self.feedback = None

    def read(self, endpoints):
        self.said = json.load(open(endpoints))
        self.host = self.said["hub_host"]
        parts = self.said["iothub_connection_string"].split(";")
        self.owner = dict(part.split("=", 1) for part in parts)

    def follow(self):
        self.telemetry = Lines(self.command("tail", "--json", "--from", "earliest"), "deviceId")
        self.feedback = Lines(self.command("feedback", "tail", "--json"), "originalMessageId")

    def unfollow(self):
        for lines in (self.telemetry, self.feedback):
            lines.process.kill()
            lines.process.wait()

    def command(self, *args):
        return [self.program, *args, "--hub", self.data]

    def cli(self, *args):
        done = subprocess.run(self.command(*args), capture_output=True, text=True, timeout=30)
        if done.returncode != 0:
            raise Wrong(f"forebay {' '.join(args[:3])}: {done.stderr.strip()}")
        return done.stdout

    def device(self, name):
        said = json.loads(self.cli("device", "create", name, "--json"))
        return Device(self.host, name, said["authentication"]["symmetricKey"]["primaryKey"])

    def rest(self, method, path, body):
        """The status and the JSON of an answer."""
        url = f"https://{self.host}:{self.said['https_port']}{path}?api-version={API}"
        signed = token(self.host, self.owner["SharedAccessKey"], policy=self.owner["SharedAccessKeyName"])
        headers = {"Authorization": signed, "Content-Type": "application/json"}
        request = urllib.request.Request(url, json.dumps(body).encode(), headers, method=method)
        context = ssl.create_default_context(cafile=self.said["ca_file"])
        try:
            with urllib.request.urlopen(request, timeout=30, context=context) as answer:
                return answer.status, json.loads(answer.read() or "null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or "null")

    def call(self, device, name, payload=None):
        body = {"methodName": name, "payload": payload, "responseTimeoutInSeconds": 10}
        return self.rest("POST", f"/twins/{device.name}/methods", body)

    def send(self, device, body, message_id, *properties):
        args = [arg for one in properties for arg in ("-p", one)]
        self.cli("c2d", "send", device.name, body, "--message-id", message_id, "--ack", "full", *args)

    def stored(self, device, count, settle=0.3):
        """The messages of a device: so many, and no more."""
        def all_there():
            return len(self.telemetry.of(device.name)) >= count
        wait(all_there, f"{count} messages of {device.name}")
        time.sleep(settle)
        messages = self.telemetry.of(device.name)
        equal(len(messages), count, f"messages of {device.name}")
        return messages

    def outcome(self, message_id):
        # The hub tells every 15 seconds.
        return wait(lambda: self.feedback.of(message_id), f"feedback on {message_id}", 40)[0]["statusCode"]


class OwnHub(Hub):
    """A hub that may be killed."""

    def __init__(self, program):
        self.folder = tempfile.mkdtemp()
        self.program = program
        self.start()
        super().__init__(self.endpoints, program)

    @property
    def endpoints(self):
        return os.path.join(self.folder, "endpoints.json")

    def start(self):
        if os.path.exists(self.endpoints):
            os.remove(self.endpoints)
        args = [self.program, "dev", "--fleet", "0", "--quiet", "--any-ports", "--data", self.folder]
        self.process = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait(lambda: os.path.exists(self.endpoints) and os.path.getsize(self.endpoints), "a hub", 30)

    def kill(self):
        self.process.kill()
        self.process.wait()

    def restart(self):
        self.kill()
        self.start()
        self.read(self.endpoints)


def properties(kind, **values):
    made = Properties(kind)
    for name, value in values.items():
        setattr(made, name, value)
    return made


def publish_properties(**values):
    return properties(PacketTypes.PUBLISH, **values)


class Peer(mqtt.Client):
    """paho-mqtt that tells all it saw, does not connect again by itself, and misbehaves when told to."""

    def __init__(self, hub, device, v5=False, ws=False, protocol=None, clean=True, expiry=None, keepalive=60,
                 client_id=None, user_name=None, password=None, will=None):
        protocol = protocol or (mqtt.MQTTv5 if v5 else mqtt.MQTTv311)
        super().__init__(client_id if client_id is not None else device.name, clean_session=None if v5 else clean,
                         protocol=protocol, transport="websockets" if ws else "tcp", reconnect_on_failure=False)
        self.hub, self.device, self.v5, self.ws, self.clean, self.expiry = hub, device, v5, ws, clean, expiry
        self.keepalive = keepalive
        self.tls_set(hub.said["ca_file"])
        if ws:
            self.ws_set_options(path="/$iothub/websocket")
        self.username_pw_set(user_name if user_name is not None else f"{hub.host}/{device.name}/?api-version={API}",
                             password if password is not None else device.token())
        if will:
            self.will_set(**will)
        self.max_inflight_messages_set(0)
        self.inbox, self.code, self.session_present, self.told = queue.Queue(), None, None, None
        self.acknowledged, self.granted, self.gone = {}, {}, {}
        self.is_mute = self.holds = self.rejects = self.stops = False
        self.closed = threading.Event()

    def open(self):
        """Connects: the code of the CONNACK."""
        port = self.hub.said["https_port" if self.ws else "mqtt_port"]
        more = {}
        if self.v5:
            more["clean_start"] = self.clean
            if self.expiry is not None:
                more["properties"] = properties(PacketTypes.CONNECT, SessionExpiryInterval=self.expiry)
        self.connect(self.hub.host, port, self.keepalive, **more)
        # paho then leaves it to this thread to write.
        self._thread = threading.Thread(target=self.turn, daemon=True)
        self._thread.start()
        wait(lambda: self.code is not None or self.closed.is_set(), "a CONNACK")
        if self.code is None:
            raise Wrong("closed without a CONNACK")
        return self.code

    def opened(self):
        equal(self.open(), 0, "code of the CONNACK")
        return self

    def turn(self):
        try:
            while not self.stops and self.loop(0.05) == mqtt.MQTT_ERR_SUCCESS and self._sock is not None:
                pass
        except OSError:
            pass  # The hub closed while paho wrote: TLS has errors of its own for that, which it lets through.
        self.closed.set()

    def on_connect(self, _client, _data, flags, code, *_more):
        self.session_present, self.code = flags["session present"], getattr(code, "value", code)

    def on_message(self, _client, _data, message):
        self.inbox.put(message)

    def on_subscribe(self, _client, _data, mid, codes, *_more):
        self.granted[mid] = [getattr(code, "value", code) for code in codes]

    def on_unsubscribe(self, _client, _data, mid, *_more):
        self.gone[mid] = True

    # paho 1.6.1 drops the reasons of these two packets, or shows them to nobody.
    def _handle_pubackcomp(self, cmd):
        packet = self._in_packet["packet"]
        (mid,) = struct.unpack("!H", packet[:2])
        self.acknowledged[mid] = packet[2] if len(packet) > 2 else 0
        return super()._handle_pubackcomp(cmd)

    def _handle_disconnect(self):
        packet = self._in_packet["packet"]
        self.told = packet[0] if packet else 0
        return mqtt.MQTT_ERR_CONN_LOST

    def _sock_close(self):
        # paho closes at once, and without an end of TLS: then the HTTPS port may drop what came just before.
        if self.ws and self._sock and self._state == mqtt.mqtt_cs_disconnecting:
            time.sleep(0.3)
        super()._sock_close()

    def _check_keepalive(self):
        if not self.is_mute:
            super()._check_keepalive()

    def _send_puback(self, mid):
        if self.holds:
            return mqtt.MQTT_ERR_SUCCESS
        if self.rejects:
            packet = bytearray([mqtt.PUBACK]) + struct.pack("!BHB", 3, mid, 0x80)
            return self._packet_queue(mqtt.PUBACK, packet, mid, 1)
        return super()._send_puback(mid)

    def tell(self, payload, topic=None, qos=1, retain=False, props=None):
        """Publishes: the packet's id."""
        return self.publish(topic or self.device.events, payload, qos, retain, props).mid

    def tell_again(self, mid, payload):
        self._send_publish(mid, self.device.events.encode(), payload, 1, dup=True)

    def ack(self, mid):
        """The reason of a PUBACK."""
        wait(lambda: mid in self.acknowledged or self.closed.is_set(), "a PUBACK")
        if mid not in self.acknowledged:
            raise Wrong(f"closed instead of a PUBACK, told {self.told}")
        return self.acknowledged[mid]

    def stored(self, *args, **more):
        equal(self.ack(self.tell(*args, **more)), 0, "reason of the PUBACK")

    def subscribed(self, *filters, qos=1):
        """The codes of a SUBACK."""
        _, mid = self.subscribe([(one, self.asked(qos)) for one in filters])
        return wait(lambda: self.granted.get(mid), "a SUBACK")

    def asked(self, qos):
        return mqtt.SubscribeOptions(qos=qos) if self.v5 else qos

    def unsubscribed(self, one):
        _, mid = self.unsubscribe(one)
        wait(lambda: self.gone.get(mid), "an UNSUBACK")

    def next(self, seconds=10):
        try:
            return self.inbox.get(timeout=seconds)
        except queue.Empty:
            raise Wrong("no message came") from None

    def nothing(self, seconds=0.7):
        try:
            message = self.inbox.get(timeout=seconds)
        except queue.Empty:
            return
        raise Wrong(f"a message came: {message.topic} {message.payload[:100]}")

    def is_open(self):
        """Whether the hub answers."""
        self.stored(b"still here")

    def ends(self, reason, seconds=10):
        """The hub closes; in MQTT 5 it says why."""
        if not self.closed.wait(seconds):
            raise Wrong("the connection is not closed")
        equal(self.told, reason if self.v5 else None, "reason of the DISCONNECT")

    def vanish(self):
        """Goes without a word."""
        self.stops = True
        self.closed.wait(5)
        self._sock_close()

    def leave(self, reason=None):
        if reason is None:
            self.disconnect()
        else:
            self.disconnect(mqtt.ReasonCodes(PacketTypes.DISCONNECT, identifier=reason))
        self.closed.wait(5)
        self._sock_close()

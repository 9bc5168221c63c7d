"""paho-mqtt against a hub: edge cases of MQTT 3.1.1 and 5, over TLS and WebSockets.

  mqtt_paho.py ENDPOINTS_JSON FOREBAY_PROGRAM [PART_OF_A_NAME]
"""
import base64, calendar, json, os, re, shutil, sys, threading, time, traceback
from concurrent.futures import ThreadPoolExecutor
import paho.mqtt.client as mqtt
from mqtt_peer import Hub, OwnHub, Peer, Wrong, equal, publish_properties, properties, wait
from paho.mqtt.packettypes import PacketTypes

CHECKS = []
KIB_256 = 256 * 1024
# A token is taken for so long after it has run out.
SKEW = 300


class Run:
    """One check in one flavour."""

    def __init__(self, hub, name, v5, ws):
        self.hub, self.name, self.v5, self.ws, self.peers, self.count = hub, name, v5, ws, [], 0

    def device(self):
        self.count += 1
        return self.hub.device(f"paho-{re.sub('[^a-z0-9]+', '-', self.name)}-{self.count}")

    def peer(self, device, hub=None, **more):
        peer = Peer(hub or self.hub, device, v5=self.v5, ws=self.ws, **more)
        self.peers.append(peer)
        return peer

    def kept(self, device, hub=None, **more):
        """A session that outlives its connection."""
        return self.peer(device, hub, clean=False, expiry=600 if self.v5 else None, **more)

    def code(self, v3, v5):
        return v5 if self.v5 else v3


def check(*flavours):
    """`3`, `5`: over TLS; `3ws`, `5ws`: through WebSockets."""
    def add(function):
        for flavour in flavours:
            CHECKS.append((function.__name__.replace("_", " "), flavour, function))
        return function
    return add


ALL, BOTH = ("3", "3ws", "5", "5ws"), ("3", "5")

# CONNECT


@check(*ALL)
def wrong_client_id(run):
    device = run.device()
    peer = run.peer(device, client_id=device.name + "x")
    equal(peer.open(), run.code(2, 0x85), "code of the CONNACK")
    wait(peer.closed.is_set, "the end")


@check(*BOTH)
def malformed_user_name(run):
    device = run.device()
    for user_name in (device.name, "", f"{device.host}/{device.name}", f"{device.host}//?api-version=2021-04-12"):
        peer = run.peer(device, user_name=user_name)
        equal(peer.open(), run.code(4, 0x86), f"code of the CONNACK for {user_name!r}")


@check(*BOTH)
def malformed_password(run):
    equal(run.peer(run.device(), password="open sesame").open(), run.code(4, 0x86), "code of the CONNACK")


@check(*ALL)
def not_authorized(run):
    device, other = run.device(), run.device()
    wrong = base64.b64encode(b"x" * 32).decode()
    passwords = {"a wrong key": device.token(key=wrong), "an expired token": device.token(-SKEW - 5),
                 "another device's token": other.token(), "nothing": ""}
    for what, password in passwords.items():
        equal(run.peer(device, password=password).open(), run.code(5, 0x87), f"code of the CONNACK for {what}")
    run.peer(device).opened().is_open()


@check(*BOTH)
def unknown_device(run):
    device = run.device()
    token = device.token()
    device.name += "-unknown"
    equal(run.peer(device, password=token).open(), run.code(5, 0x87), "code of the CONNACK")


@check(*BOTH)
def disabled_device(run):
    device = run.device()
    run.hub.cli("device", "disable", device.name)
    equal(run.peer(device).open(), run.code(5, 0x87), "code of the CONNACK")
    run.hub.cli("device", "enable", device.name)
    run.peer(device).opened()


@check("3", "3ws")
def protocol_of_another_level(run):
    peer = run.peer(run.device(), protocol=mqtt.MQTTv31)
    equal(peer.open(), 1, "code of the CONNACK")
    wait(peer.closed.is_set, "the end")


@check("5")
def client_id_given_by_the_hub(run):
    device = run.device()
    run.peer(device, client_id="").opened().is_open()
    run.hub.stored(device, 1)


# Telemetry


@check(*ALL)
def qos_2_closes(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.stored(b"before")
    peer.tell(b"twice is too much", qos=2)
    peer.ends(0x9B)
    run.hub.stored(device, 1)


@check(*ALL)
def qos_0_is_stored(run):
    device = run.device()
    peer = run.peer(device).opened()
    for n in range(10):
        peer.tell(f"{n}", qos=0)
    peer.stored(b"10")
    equal([message["body"] for message in run.hub.stored(device, 11)], [str(n) for n in range(11)], "bodies")


@check(*BOTH)
def retain_is_a_property(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.stored(b"kept?", topic=device.events + "mqtt-retain=no&a=b", retain=True)
    peer.stored(b"not", topic=device.events + "a=b")
    kept, plain = run.hub.stored(device, 2)
    equal(kept["properties"], {"a": "b", "mqtt-retain": "true"}, "properties with RETAIN")
    equal(plain["properties"], {"a": "b"}, "properties without")


@check(*ALL)
def property_bag(run):
    device = run.device()
    bag = ("%24.mid=m%2F1&$.cid=c%201&$.ct=application%2Fjson%3Bcharset%3Dutf-8&$.ce=utf-8&$.uid=me&$.unknown=x"
           "&null&empty=&%C3%BCber%20%E6%B0%B4=%F0%9F%8C%8A&plus=a%2Bb&pair=a%26b%3Dc&raw=\u00e9")
    peer = run.peer(device).opened()
    for beginning, end in (("", ""), ("?", ""), ("", "/")):
        peer.stored(b"{}", topic=device.events + beginning + bag + end)
    for message in run.hub.stored(device, 3):
        system = message["systemProperties"]
        equal({name: system.get(name) for name in ("message-id", "correlation-id", "content-type", "content-encoding", "user-id")},
              {"message-id": "m/1", "correlation-id": "c 1", "content-type": "application/json;charset=utf-8",
               "content-encoding": "utf-8", "user-id": "me"}, "system properties")
        equal(message["properties"], {"null": "", "empty": "", "\u00fcber \u6c34": "\U0001f30a", "plus": "a+b", "pair": "a&b=c",
                                      "raw": "\u00e9"}, "properties")


@check("5", "5ws")
def properties_of_mqtt_5(run):
    device = run.device()
    peer = run.peer(device).opened()
    said = publish_properties(ContentType="text/plain", CorrelationData=b"c-5", MessageExpiryInterval=60, PayloadFormatIndicator=1,
                              UserProperty=[("level", "high"), ("\u00fc", "\u6c34 &="), ("$.mid", "m-5"), ("bag", "no")])
    before = time.time()
    peer.stored("text".encode(), topic=device.events + "bag=yes", props=said)
    (message,) = run.hub.stored(device, 1)
    equal(message["properties"], {"bag": "yes", "level": "high", "\u00fc": "\u6c34 &="}, "properties")
    system = message["systemProperties"]
    equal([system.get(name) for name in ("content-type", "correlation-id", "message-id")], ["text/plain", "c-5", "m-5"], "system")
    expiry = time.strptime(system["absolute-expiry-time"].split(".")[0].rstrip("Z"), "%Y-%m-%dT%H:%M:%S")
    if not before + 58 <= calendar.timegm(expiry) <= time.time() + 61:
        raise Wrong(f"expiry: {system['absolute-expiry-time']}")
    said = publish_properties(PayloadFormatIndicator=1)
    equal(peer.ack(peer.tell(b"\xff", props=said)), 0x99, "reason for a text that is none")


@check(*ALL)
def unknown_topic(run):
    device = run.device()
    for topic in ("devices", "a/b", f"devices/{device.name}/messages/eventsx", "$iothub/twin/DELETE/?$rid=1", device.commands[:-1]):
        peer = run.peer(device).opened()
        mid = peer.tell(b"to nowhere", topic=topic)
        if run.v5:
            equal(peer.ack(mid), 0x90, f"reason of the PUBACK for {topic}")
            peer.is_open()
        else:
            peer.ends(None)


@check(*BOTH)
def topic_of_another_device(run):
    device, other = run.device(), run.device()
    peer = run.peer(device).opened()
    mid = peer.tell(b"not mine", topic=other.events)
    if run.v5:
        equal(peer.ack(mid), 0x87, "reason of the PUBACK")
        peer.is_open()
    else:
        peer.ends(None)
    run.peer(other).opened().stored(b"mine")
    equal([message["body"] for message in run.hub.stored(other, 1)], ["mine"], "messages")


@check(*ALL)
def longest_message(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.stored(b"x" * KIB_256)
    mid = peer.tell(b"y" * (KIB_256 + 1))
    if run.v5:
        equal(peer.ack(mid), 0x97, "reason of the PUBACK")
        peer.is_open()
    else:
        peer.ends(None)
    messages = run.hub.stored(device, 2 if run.v5 else 1)
    equal(len(messages[0]["body"]), KIB_256, "bytes")


@check("3", "5", "3ws")
def far_too_long_packet_closes(run):
    peer = run.peer(run.device()).opened()
    peer.tell(b"z" * (3 * KIB_256))
    # What is said may be lost with what is still on its way.
    if not peer.closed.wait(10):
        raise Wrong("the connection is not closed")
    if peer.told not in (None, 0x95):
        raise Wrong(f"told {peer.told}")


@check(*BOTH)
def empty_payload(run):
    device = run.device()
    run.peer(device).opened().stored(b"", topic=device.events + "a=b")
    (message,) = run.hub.stored(device, 1)
    equal([message["body"], message["properties"]], ["", {"a": "b"}], "message")


@check(*ALL)
def pipelined_messages_keep_their_order(run):
    device = run.device()
    peer = run.peer(device).opened()
    mids = [peer.tell(f"{n}", topic=device.events + f"n={n}") for n in range(100)]
    equal([peer.ack(mid) for mid in mids], [0] * 100, "reasons")
    equal(list(peer.acknowledged), mids, "order of the PUBACKs")
    equal([message["body"] for message in run.hub.stored(device, 100)], [str(n) for n in range(100)], "order")


@check(*ALL)
def duplicate_after_reconnect_is_not_stored_twice(run):
    device = run.device()
    first = run.kept(device).opened()
    mids = [first.tell(f"{n}") for n in range(5)]
    equal([first.ack(mid) for mid in mids], [0] * 5, "reasons")
    first.vanish()
    again = run.kept(device).opened()
    for n, mid in enumerate(mids):
        again.tell_again(mid, f"{n}".encode())
    equal([again.ack(mid) for mid in mids], [0] * 5, "reasons of the duplicates")
    # Another message under a known id is one, whatever its mark says.
    again.tell_again(mids[0], b"other")
    again.stored(b"last")
    equal([message["body"] for message in run.hub.stored(device, 7)], ["0", "1", "2", "3", "4", "other", "last"], "messages")


# Wills


def will(device, bag="", **more):
    return dict(topic=device.events + bag, payload="gone", qos=1, **more)


@check(*ALL)
def will_of_a_lost_connection(run):
    device = run.device()
    run.peer(device, will=will(device, "a=b&$.ct=text%2Fplain", retain=True)).opened().vanish()
    (message,) = run.hub.stored(device, 1)
    equal(message["body"], "gone", "body")
    equal(message["properties"], {"a": "b", "mqtt-retain": "true", "iothub-MessageType": "Will"}, "properties")
    equal(message["systemProperties"].get("content-type"), "text/plain", "content type")


@check(*ALL)
def no_will_after_disconnect(run):
    device = run.device()
    peer = run.peer(device, will=will(device)).opened()
    peer.stored(b"bye")
    peer.leave()
    equal([message["body"] for message in run.hub.stored(device, 1, settle=1.5)], ["bye"], "messages")


@check(*BOTH)
def will_after_a_protocol_error(run):
    device = run.device()
    peer = run.peer(device, will=will(device)).opened()
    peer.tell(b"", qos=2)
    peer.ends(0x9B)
    equal([message["body"] for message in run.hub.stored(device, 1)], ["gone"], "messages")


@check(*BOTH)
def will_that_may_not_be(run):
    device, other = run.device(), run.device()
    wills = {"another device's topic": (will(other), 0x90), "no topic of telemetry": (dict(will(device), topic="a/b"), 0x90),
             "QoS 2": (dict(will(device), qos=2), 0x9B)}
    for what, (one, reason) in wills.items():
        equal(run.peer(device, will=one).open(), run.code(2, reason), f"code of the CONNACK for a will with {what}")


@check("5", "5ws")
def will_delay_is_taken_back_by_a_reconnect(run):
    device = run.device()
    late = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=2)
    run.kept(device, will=will(device, properties=late)).opened().vanish()
    time.sleep(0.5)
    back = run.kept(device).opened()
    time.sleep(3)
    back.stored(b"back")
    back.leave()
    equal([message["body"] for message in run.hub.stored(device, 1)], ["back"], "messages")


@check("5")
def will_delay_runs_out(run):
    device = run.device()
    late = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=2)
    run.kept(device, will=will(device, properties=late)).opened().vanish()
    time.sleep(1)
    equal(len(run.hub.telemetry.of(device.name)), 0, "messages before the delay is over")
    equal([message["body"] for message in run.hub.stored(device, 1)], ["gone"], "messages")


@check("5", "5ws")
def disconnect_with_will(run):
    device = run.device()
    run.peer(device, will=will(device)).opened().leave(0x04)
    equal([message["body"] for message in run.hub.stored(device, 1)], ["gone"], "messages")


# Subscriptions and sessions

TWIN, DESIRED, METHODS = "$iothub/twin/res/#", "$iothub/twin/PATCH/properties/desired/#", "$iothub/methods/POST/#"


@check(*ALL)
def codes_of_the_suback(run):
    device, other = run.device(), run.device()
    peer = run.peer(device).opened()
    equal(peer.subscribed(device.commands, TWIN, other.commands, "a/#", METHODS), run.code([1, 1, 0x80, 0x80, 1], [1, 1, 0x87, 0x8F, 1]), "codes")
    equal(peer.subscribed(DESIRED, qos=0), [0], "code of QoS 0")
    equal(peer.subscribed("#"), run.code([0x80], [0x8F]), "code of everything")
    equal(peer.subscribed("$iothub/methods/POST/a/#"), [1], "code of the fifth")
    equal(peer.subscribed("$iothub/methods/POST/b/#"), run.code([0x80], [0x97]), "code of the sixth")
    equal(peer.subscribed(TWIN, qos=2), [1], "code of QoS 2, of a known one")
    peer.unsubscribed("$iothub/methods/POST/a/#")
    equal(peer.subscribed("$iothub/methods/POST/b/#", qos=2), [1], "code of QoS 2, where there is room again")


@check(*ALL)
def kept_session(run):
    device = run.device()
    first = run.kept(device).opened()
    equal(first.session_present, 0, "session present at first")
    first.subscribed(device.commands, TWIN, METHODS)
    first.vanish()
    run.hub.send(device, "while away", f"{device.name}-away")
    second = run.kept(device).opened()
    equal(second.session_present, 1, "session present")
    equal(second.next().payload, b"while away", "message")
    second.tell(b"", topic="$iothub/twin/GET/?$rid=1")
    equal(second.next().topic, "$iothub/twin/res/200/?$rid=1", "answer")
    second.leave()
    # A clean one drops it, and what it subscribes to is not kept.
    third = run.peer(device).opened()
    equal(third.session_present, 0, "session present of a clean session")
    third.subscribed(device.commands)
    third.leave()
    fourth = run.kept(device).opened()
    equal(fourth.session_present, 0, "session present after a clean session")
    run.hub.send(device, "not asked for", f"{device.name}-unasked")
    fourth.nothing()


@check("5")
def session_expiry(run):
    device = run.device()
    first = run.peer(device, clean=False, expiry=1).opened()
    first.subscribed(device.commands)
    first.vanish()
    time.sleep(2.5)
    equal(run.kept(device).opened().session_present, 0, "session present after its expiry")


@check(*BOTH)
def kept_session_of_a_killed_hub(run):
    hub = OwnHub(run.hub.program)
    try:
        device = hub.device("phoenix")
        first = run.kept(device, hub).opened()
        first.subscribed(device.commands, TWIN)
        mids = [first.tell(f"{n}") for n in range(20)]
        equal([first.ack(mid) for mid in mids], [0] * 20, "reasons")
        first.holds = True
        hub.send(device, "stored", "m")
        equal(first.next().payload, b"stored", "message")
        hub.restart()
        wait(first.closed.is_set, "the end")
        second = run.kept(device, hub).opened()
        equal(second.session_present, 1, "session present")
        equal(second.next(70).payload, b"stored", "message that was not acknowledged")
        second.stored(b"20")
        lines = hub.cli("tail", "--json", "--from", "earliest", "--count", "21").splitlines()
        equal([json.loads(line)["body"] for line in lines], [str(n) for n in range(21)], "messages in the log")
        second.leave()
        # A clean one of before is as if it never was.
        third = run.peer(device, hub).opened()
        third.subscribed(device.commands)
        hub.restart()
        equal(run.kept(device, hub).opened().session_present, 0, "session present after a clean session")
    finally:
        hub.kill()
        shutil.rmtree(hub.folder)


# Messages to the device


@check(*ALL)
def message_to_the_device(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(device.commands)
    run.hub.send(device, "b\u00f6dy", f"{device.name}-1", "a b=c/d&e", "\u00fc=\u6c34")
    message = peer.next()
    equal([message.payload.decode(), message.qos, message.dup, message.retain], ["b\u00f6dy", 1, 0, 0], "message")
    topic = f"devices/{device.name}/messages/devicebound/%24.mid={device.name}-1&%24.to=%2Fdevices%2F{device.name}%2Fmessages%2FdeviceBound&%24.exp="
    if not message.topic.startswith(topic):
        raise Wrong(f"topic: {message.topic}")
    rest = message.topic[len(topic):]
    if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d%3A\d\d%3A\d\d\.\d{7}Z&iothub-ack=full&a%20b=c%2Fd%26e&%C3%BC=%E6%B0%B4", rest):
        raise Wrong(f"topic: {message.topic}")
    if run.v5:
        equal(message.properties.UserProperty, [("a b", "c/d&e"), ("\u00fc", "\u6c34")], "user properties")
        if not 0 < message.properties.MessageExpiryInterval <= 3600:
            raise Wrong(f"expiry {message.properties.MessageExpiryInterval}")
    equal(run.hub.outcome(f"{device.name}-1"), "Success", "feedback")
    peer.nothing(0.3)


@check(*ALL)
def message_without_acknowledgement_comes_again(run):
    device = run.device()
    peer = run.kept(device).opened()
    peer.subscribed(device.commands)
    peer.holds = True
    for n in (1, 2, 3):
        run.hub.send(device, f"{n}", f"{device.name}-{n}")
    equal([peer.next().payload for _ in range(3)], [b"1", b"2", b"3"], "messages")
    peer.vanish()
    again = run.kept(device).opened()
    equal([again.next().payload for _ in range(3)], [b"1", b"2", b"3"], "messages after the reconnect")
    for n in (1, 2, 3):
        equal(run.hub.outcome(f"{device.name}-{n}"), "Success", "feedback")
    again.nothing(0.3)


@check(*BOTH)
def qos_0_completes_by_sending(run):
    device = run.device()
    peer = run.peer(device).opened()
    equal(peer.subscribed(device.commands, qos=0), [0], "code")
    run.hub.send(device, "at most once", f"{device.name}-0")
    equal(peer.next().qos, 0, "QoS")
    equal(run.hub.outcome(f"{device.name}-0"), "Success", "feedback")


@check("5", "5ws")
def reason_of_the_puback_rejects(run):
    device = run.device()
    peer = run.kept(device).opened()
    peer.subscribed(device.commands)
    peer.rejects = True
    run.hub.send(device, "unwanted", f"{device.name}-no")
    peer.next()
    equal(run.hub.outcome(f"{device.name}-no"), "Rejected", "feedback")
    peer.vanish()
    run.kept(device).opened().nothing()


@check(*BOTH)
def unsubscribe_stops_messages(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(device.commands)
    run.hub.send(device, "1", f"{device.name}-1")
    equal(peer.next().payload, b"1", "message")
    peer.unsubscribed(device.commands)
    run.hub.send(device, "2", f"{device.name}-2")
    peer.nothing()
    peer.subscribed(device.commands)
    equal(peer.next().payload, b"2", "message")


# Twins and methods


def asked(peer, topic, payload=b"", **more):
    """The answer to a request: status, parameters and body."""
    peer.tell(payload, topic=topic, **more)
    message = peer.next()
    status, query = re.fullmatch(r"\$iothub/twin/res/(\d+)/\?(.*)", message.topic).groups()
    return int(status), query, json.loads(message.payload or b"null"), message


@check(*ALL)
def twin(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(TWIN)
    status, query, body, _ = asked(peer, "$iothub/twin/GET/?$rid=a-%C3%BC")
    equal([status, query, body], [200, "$rid=a-%C3%BC", {"desired": {"$version": 1}, "reported": {"$version": 1}}], "twin")
    report = "$iothub/twin/PATCH/properties/reported/?$rid="
    equal(asked(peer, report + "1", b'{"a": 1, "b": {"c": 2}}')[:3], (204, "$rid=1&$version=2", None), "patch")
    equal(asked(peer, report + "2&$version=1", b'{"a": 2}')[:2], (412, "$rid=2"), "patch of a stale version")
    equal(asked(peer, report + "3&$version=2", b'{"a": 3}')[:2], (204, "$rid=3&$version=3"), "patch of the version")
    for n, bad in enumerate((b"{", b"[1]", b"\xff", b"", b'{"a.b": 1}', b'{"$x": 1}', b'{"a": "' + b"x" * 5000 + b'"}')):
        equal(asked(peer, f"{report}bad{n}", bad)[:2], (400, f"$rid=bad{n}"), f"patch {bad[:20]}")
    equal(asked(peer, report + "4", b'{"a": null, "b": {"c": null, "d": 4}, "none": null}')[:2], (204, "$rid=4&$version=4"), "patch with nulls")
    equal(asked(peer, "$iothub/twin/GET/?$rid=5")[2]["reported"], {"b": {"d": 4}, "$version": 4}, "reported")


@check("5")
def twin_answer_has_the_correlation_data(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(TWIN)
    said = publish_properties(CorrelationData=b"\x00\xffc")
    message = asked(peer, "$iothub/twin/GET/?$rid=1", props=said)[3]
    equal(message.properties.CorrelationData, b"\x00\xffc", "correlation data")


@check(*ALL)
def desired_properties_are_told(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(DESIRED)
    for version, patch in ((2, {"on": True, "deep": {"x": [1]}}), (3, {"on": None})):
        status, _ = run.hub.rest("PATCH", f"/twins/{device.name}", {"properties": {"desired": patch}})
        equal(status, 200, "status of the PATCH")
        message = peer.next()
        equal(message.topic, f"$iothub/twin/PATCH/properties/desired/?$version={version}", "topic")
        equal(json.loads(message.payload), {**patch, "$version": version}, "patch")
    peer.unsubscribed(DESIRED)
    run.hub.rest("PATCH", f"/twins/{device.name}", {"properties": {"desired": {"on": 1}}})
    peer.nothing()


def answers(run, peer, device, name, payload, answer):
    """Calls a method; `answer` says what the device does with the request."""
    with ThreadPoolExecutor(1) as pool:
        calling = pool.submit(run.hub.call, device, name, payload)
        answer(peer.next())
        return calling.result()


@check(*ALL)
def direct_method(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(METHODS)

    def answer(message):
        rid = re.fullmatch(r"\$iothub/methods/POST/blink-1\.x/\?\$rid=([0-9a-f]+)", message.topic)
        if not rid:
            raise Wrong(f"topic: {message.topic}")
        equal([message.qos, json.loads(message.payload)], [0, {"times": 3}], "request")
        peer.tell(b'{"done": true}', topic=f"$iothub/methods/res/201/?$rid={rid[1]}", qos=0)
    equal(answers(run, peer, device, "blink-1.x", {"times": 3}, answer), (200, {"status": 201, "payload": {"done": True}}), "answer")
    # One that comes late, or to nothing, is nobody's.
    peer.tell(b"{}", topic="$iothub/methods/res/200/?$rid=ffff")
    peer.is_open()


@check("5", "5ws")
def direct_method_by_response_topic(run):
    device = run.device()
    peer = run.peer(device).opened()
    peer.subscribed(METHODS)

    def answer(message):
        said = publish_properties(CorrelationData=message.properties.CorrelationData, UserProperty=("status", "207"))
        peer.tell(b'"x"', topic=message.properties.ResponseTopic, props=said)
    equal(answers(run, peer, device, "five", None, answer), (200, {"status": 207, "payload": "x"}), "answer")


@check(*BOTH)
def filter_of_one_method(run):
    device = run.device()
    peer = run.peer(device).opened()

    def refused(name):
        status, body = run.hub.call(device, name)
        equal(status, 404, f"status of {name}")
        if "404103" not in json.dumps(body):
            raise Wrong(f"answer: {body}")
    refused("blink")
    equal(peer.subscribed("$iothub/methods/POST/blink/#"), [1], "code")

    def answer(message):
        peer.tell(b"{}", topic="$iothub/methods/res/200/" + message.topic.rsplit("/", 1)[1])
    equal(answers(run, peer, device, "blink", None, answer)[0], 200, "status")
    refused("other")
    peer.nothing(0.3)
    peer.unsubscribed("$iothub/methods/POST/blink/#")
    refused("blink")


# Ends


@check(*ALL)
def taken_over(run):
    device = run.device()
    first = run.peer(device).opened()
    first.stored(b"1")
    second = run.peer(device).opened()
    first.ends(0x8E)
    second.stored(b"2")
    run.hub.stored(device, 2)


@check(*ALL)
def keep_alive(run):
    device = run.device()
    pinging, silent = run.peer(run.device(), keepalive=2).opened(), run.peer(device, keepalive=2).opened()
    silent.is_mute, begun = True, time.monotonic()
    silent.ends(0x8D, 6)
    lasted = time.monotonic() - begun
    if not 2.5 <= lasted <= 4:
        raise Wrong(f"closed after {lasted:.1f} s")
    time.sleep(1.5)
    pinging.is_open()


@check(*ALL)
def token_expires(run):
    device = run.device()
    peer = run.peer(device, password=device.token(3 - SKEW)).opened()
    peer.is_open()
    peer.ends(0xA0, 6)
    equal(run.peer(device, password=device.token(-SKEW - 1)).open(), run.code(5, 0x87), "code of the CONNACK")


@check(*ALL)
def disabled_while_connected(run):
    device = run.device()
    peer = run.peer(device).opened()
    run.hub.cli("device", "disable", device.name)
    peer.ends(0x98)


@check(*BOTH)
def deleted_while_connected(run):
    device = run.device()
    peer = run.peer(device).opened()
    run.hub.cli("device", "delete", device.name)
    peer.ends(0x98)
    equal(run.peer(device).open(), run.code(5, 0x87), "code of the CONNACK")


NAMES = {"3": "3.1.1", "5": "5", "3ws": "3.1.1 ws", "5ws": "5 ws"}


def main():
    hub, wanted = Hub(sys.argv[1], os.path.realpath(sys.argv[2])), sys.argv[3] if len(sys.argv) > 3 else ""
    hub.follow()
    failed, lock = [], threading.Lock()

    def one(entry):
        text, flavour, function = entry
        name = f"{NAMES[flavour]} {text}"
        if wanted not in name:
            return
        run, problem = Run(hub, name, flavour[0] == "5", flavour.endswith("ws")), None
        try:
            function(run)
        except Wrong as wrong:
            problem = str(wrong)
        except Exception as error:
            line = traceback.extract_tb(error.__traceback__)[-1]
            problem = f"{type(error).__name__}: {error} ({os.path.basename(line.filename)}:{line.lineno})"
        for peer in run.peers:
            peer.vanish()
        with lock:
            print(f"PASS mqtt {name}" if problem is None else f"FAIL mqtt {name}: {problem}", flush=True)
            if problem is not None:
                failed.append(name)

    # They wait most of the time.
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, CHECKS))
    hub.unfollow()
    sys.exit(1 if failed else 0)


main()

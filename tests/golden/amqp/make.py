"""Makes the *.pyamqp.hex and *.uamqp.hex vectors beside this file, with encoders that know nothing of this project:
`_pyamqp` of azure-eventhub (pure Python) and uamqp (azure-uamqp-c, in C).
Run it with a Python that has azure-eventhub 5.15.1 and uamqp 1.6.11.
"""

import decimal
import pathlib
import struct
import uuid
from importlib.metadata import version

import uamqp.message
import uamqp.types
from azure.eventhub._pyamqp import _encode, endpoints, error, message, outcomes, performatives
from azure.eventhub._pyamqp.types import TYPE, VALUE, AMQPTypes
from azure.eventhub._transport._pyamqp_transport import PyamqpTransport
from azure.eventhub._utils import event_position_selector

MADE_BY = {"pyamqp": "azure-eventhub " + version("azure-eventhub"), "uamqp": "uamqp " + version("uamqp")}
UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")


def write(name, what, parts, by="pyamqp"):
    """`parts`: comments and their bytes."""
    lines = [f"# {what}. Made by the encoder of {MADE_BY[by]} (make.py)."]
    for comment, data in parts:
        data = bytes(data)
        rows = [data[at : at + 32].hex(" ") for at in range(0, len(data), 32)]
        rows[0] += f"  # {comment}" if comment else ""
        lines += rows
    text = "\n".join(lines) + "\n"
    pathlib.Path(__file__).with_name(f"{name}.{by}.hex").write_text(text, encoding="ascii")


def encode(encoder, value, **options):
    output = bytearray()
    encoder(output, value, **options)
    return output


def typed(kind, value):
    return {TYPE: kind, VALUE: value}


# Values.

E = _encode
FULL = {"use_smallest": False}
SCALARS = [
    ("null", encode(E.encode_null, None)),
    ("true", encode(E.encode_boolean, True, with_constructor=False)),
    ("false", encode(E.encode_boolean, False, with_constructor=False)),
    ("boolean true", encode(E.encode_boolean, True)),
    ("boolean false", encode(E.encode_boolean, False)),
]
for name, values in [
    ("ubyte", [0, 255]),
    ("byte", [-128, 127]),
    ("ushort", [0, 65535]),
    ("short", [-32768, 32767]),
    ("uint", [0, 1, 255, 256, 2**32 - 1]),
    ("ulong", [0, 1, 255, 256, 2**64 - 1]),
    ("int", [0, -128, 127, -129, 128, -(2**31), 2**31 - 1]),
    ("long", [0, -128, 127, -129, 128, -(2**63), 2**63 - 1]),
]:
    SCALARS += [(f"{name} {value}", encode(getattr(E, f"encode_{name}"), value)) for value in values]
for name, value in [("uint", 1), ("ulong", 1), ("int", -1), ("long", -1)]:
    SCALARS.append((f"{name} {value}, at full width", encode(getattr(E, f"encode_{name}"), value, **FULL)))
for name, values in [
    ("float", [1.5, -0.0, float("inf")]),
    ("double", [0.1, -1e300, float("-inf")]),
    ("timestamp", [0, -1, 1766000000123]),
    ("uuid", [UUID]),
]:
    SCALARS += [(f"{name} {value}", encode(getattr(E, f"encode_{name}"), value)) for value in values]
write("scalars", "Values of fixed width, at their edges", SCALARS)
# 1234567890 * 10^-3
write("decimal128", "A decimal128", [("1234567.890", encode(E.encode_decimal128, decimal.Decimal("1234567.890")))])

TEXTS = []
for name, one, unit in [("binary", b"\x00\xff", b"\x07"), ("string", "tür €", "a"), ("symbol", "a:b", "s")]:
    encoder = getattr(E, f"encode_{name}")
    TEXTS += [
        (f"{name}, empty", encode(encoder, unit * 0)),
        (f"{name}", encode(encoder, one)),
        (f"{name} of 255", encode(encoder, unit * 255)),
        (f"{name} of 256", encode(encoder, unit * 256)),
        (f"{name}, empty, with a length of four bytes", encode(encoder, unit * 0, **FULL)),
        (f"{name}, with a length of four bytes", encode(encoder, one, **FULL)),
    ]
write("texts", "Values of variable width, at their edges", TEXTS)

ITEMS = [typed(AMQPTypes.uint, 1), typed(AMQPTypes.string, "two"), typed(AMQPTypes.list, [typed(AMQPTypes.boolean, True)])]
PAIRS = [
    (typed(AMQPTypes.symbol, "a"), typed(AMQPTypes.uint, 7)),
    (typed(AMQPTypes.string, "b"), typed(AMQPTypes.array, [typed(AMQPTypes.symbol, "x"), typed(AMQPTypes.symbol, "yz")])),
]
SYMBOLS = [typed(AMQPTypes.symbol, "x"), typed(AMQPTypes.symbol, "yz")]
UINTS = [typed(AMQPTypes.uint, 1), typed(AMQPTypes.uint, 2**32 - 1)]
SELECTOR = "apache.org:selector-filter:string"
write(
    "compounds",
    "Lists, maps, arrays and described values",
    [
        ("list0", encode(E.encode_list, [])),
        ("list8", encode(E.encode_list, ITEMS)),
        ("list32", encode(E.encode_list, ITEMS, **FULL)),
        ("list32, empty", encode(E.encode_list, [], **FULL)),
        ("map8", encode(E.encode_map, PAIRS)),
        ("map32", encode(E.encode_map, PAIRS, **FULL)),
        ("map8, empty", encode(E.encode_map, [])),
        ("array8 of symbols", encode(E.encode_array, SYMBOLS)),
        ("array32 of symbols", encode(E.encode_array, SYMBOLS, **FULL)),
        ("array8 of uint", encode(E.encode_array, UINTS)),
        ("described by a small number", encode(E.encode_described, (typed(AMQPTypes.ulong, 0x24), typed(AMQPTypes.list, [])))),
        ("by a large number", encode(E.encode_described, (typed(AMQPTypes.ulong, 0x468C00000004), typed(AMQPTypes.string, "s")))),
        ("by a symbol", encode(E.encode_described, (typed(AMQPTypes.symbol, SELECTOR), typed(AMQPTypes.string, "s")))),
    ],
)


# Frames.


def frame(name, what, performative, channel=0, kind=b"\x00"):
    header, body = _encode.encode_frame(performative, kind)
    parts = [("header", header + struct.pack(">H", channel)), ("", body)]
    write(name, what, parts)


def full(kind, **fields):
    """The fields that are not named are null."""
    unknown = set(fields) - set(kind._fields)
    assert not unknown, unknown
    return kind(**{name: fields.get(name) for name in kind._fields})


def link_error(condition, description, info=None):
    return error.AMQPError(condition=condition, description=description, info=info)


P = performatives
frame(
    "open",
    "Open: every field",
    P.OpenFrame(
        container_id="reader-1",
        hostname="hub.example",
        max_frame_size=65536,
        channel_max=255,
        idle_timeout=240000,
        outgoing_locales=["en-US"],
        incoming_locales=["en-US", "de-DE"],
        offered_capabilities=["a"],
        desired_capabilities=["b", "c"],
        properties={"product": "golden", "version": typed(AMQPTypes.string, "1")},
    ),
)
frame("open-least", "Open: only the container id", full(P.OpenFrame, container_id="reader-1"))
begin = {"next_outgoing_id": 1, "incoming_window": 5000, "outgoing_window": 2**32 - 1}
frame(
    "begin",
    "Begin on channel 3: every field",
    P.BeginFrame(
        remote_channel=7, handle_max=255, offered_capabilities=["a"], desired_capabilities=["b"], properties={"p": "q"}, **begin
    ),
    channel=3,
)
frame("begin-least", "Begin on channel 65535: what must be there", full(P.BeginFrame, **begin), channel=65535)
frame(
    "attach-receiver",
    "Attach as the Event Hubs SDK makes it: from the latest event on, as the only reader of its epoch",
    full(
        P.AttachFrame,
        name="receiver-0",
        handle=1,
        role=True,
        send_settle_mode=0,
        rcv_settle_mode=0,
        source=PyamqpTransport.create_source(
            "amqps://hub.example:5671/forebay/ConsumerGroups/$Default/Partitions/0", "@latest", event_position_selector("@latest")
        ),
        target=endpoints.Target(address="client"),
        max_message_size=1048576,
        desired_capabilities=[b"com.microsoft:enable-receiver-runtime-metric"],
        properties=PyamqpTransport.create_link_properties({b"com.microsoft:epoch": 3, b"com.microsoft:timeout": 60000}),
    ),
    channel=1,
)
frame(
    "attach-sender",
    "Attach of a sender: every field",
    P.AttachFrame(
        name="sender-0",
        handle=2**32 - 1,
        role=False,
        send_settle_mode=1,
        rcv_settle_mode=1,
        source=endpoints.Source(
            address="client",
            durable=0,
            timeout=30,
            dynamic=False,
            distribution_mode="move",
            default_outcome=outcomes.Modified(True, False, None),
            outcomes=["amqp:accepted:list", "amqp:rejected:list"],
            capabilities=["queue"],
        ),
        target=endpoints.Target(address="/devices/thermostat-7/messages/events", capabilities=["queue", "topic"]),
        unsettled={b"tag": None},
        incomplete_unsettled=True,
        initial_delivery_count=4,
        max_message_size=2**64 - 1,
        offered_capabilities=["a"],
        desired_capabilities=["b", "c"],
        properties={"com.microsoft:client-version": "golden/1"},
    ),
)
flow = {"incoming_window": 5000, "next_outgoing_id": 9, "outgoing_window": 2048}
frame("flow-session", "Flow of a session, to be answered", full(P.FlowFrame, next_incoming_id=5, echo=True, **flow))
frame(
    "flow-link",
    "Flow of a link: every field",
    P.FlowFrame(
        next_incoming_id=5, handle=1, delivery_count=12, link_credit=300, available=2, drain=True, echo=False, properties={"p": "q"}, **flow
    ),
)
frame(
    "transfer-first",
    "Transfer with more to come: every field; then its payload",
    P.TransferFrame(
        handle=2,
        delivery_id=7,
        delivery_tag=b"\x00\x00\x00\x07",
        message_format=0x80013700,
        settled=False,
        more=True,
        rcv_settle_mode=1,
        state=outcomes.Received(1, 300),
        resume=False,
        aborted=False,
        batchable=True,
        payload=b"first part, ",
    ),
)
frame("transfer-last", "Transfer that ends a delivery; then its payload", full(P.TransferFrame, handle=2, payload=b"last part"))
frame(
    "transfer-aborted",
    "Transfer that gives a delivery up",
    full(P.TransferFrame, handle=2, delivery_id=8, settled=True, aborted=True, payload=b""),
)
for name, state in [
    ("accepted", outcomes.Accepted()),
    ("rejected", outcomes.Rejected(link_error("amqp:not-found", "no such device", {"status": typed(AMQPTypes.int, 404)}))),
    ("released", outcomes.Released()),
    ("modified", outcomes.Modified(True, True, {"x-opt-why": "tired"})),
    ("received", outcomes.Received(2, 70000)),
]:
    performative = P.DispositionFrame(role=True, first=3, last=300, settled=True, state=state, batchable=True)
    frame(f"disposition-{name}", f"Disposition of deliveries 3 to 300: {name}", performative)
frame("disposition-least", "Disposition of one delivery, without a state", full(P.DispositionFrame, role=False, first=3))
stolen = link_error("amqp:link:stolen", "a reader with a higher epoch", {"com.microsoft:tracking": "t-1"})
frame("detach-error", "Detach that closes a link, with an error", P.DetachFrame(handle=1, closed=True, error=stolen))
frame("detach-least", "Detach of a link", full(P.DetachFrame, handle=1))
frame("end", "End", full(P.EndFrame))
frame("end-error", "End with an error", P.EndFrame(link_error("amqp:session:window-violation", "too many")))
frame("close", "Close", full(P.CloseFrame))
# Not one of those the hub gives.
frame("close-error", "Close with an error of the peer's own", P.CloseFrame(link_error("com.example:tired", None)))
sasl = b"\x01"
frame("sasl-mechanisms", "SASL mechanisms", P.SASLMechanism(["MSSBCBS", "PLAIN", "EXTERNAL"]), kind=sasl)
plain = b"\x00thermostat-7@sas.hub\x00SharedAccessSignature sr=hub"
frame("sasl-init-plain", "SASL init: PLAIN", P.SASLInit("PLAIN", plain, "hub.example"), kind=sasl)
frame("sasl-init-mssbcbs", "SASL init: MSSBCBS, no response", full(P.SASLInit, mechanism="MSSBCBS"), kind=sasl)
frame("sasl-outcome-ok", "SASL outcome: ok", full(P.SASLOutcome, code=0), kind=sasl)
frame("sasl-outcome-auth", "SASL outcome: refused", P.SASLOutcome(1, b"why"), kind=sasl)
write("heartbeat", "A frame without a body", [("header", _encode.encode_frame(None)[0] + b"\x00\x00")])


# Messages.


def messages():
    header = message.Header(durable=True, priority=9, ttl=60000, first_acquirer=True, delivery_count=2)
    texts = {
        "user_id": b"service",
        "to": "/devices/thermostat-7/messages/devicebound",
        "subject": "subject",
        "reply_to": "answers",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "absolute_expiry_time": 1766000600123,
        "creation_time": 1766000000123,
        "group_id": "group",
        "group_sequence": 5,
        "reply_to_group_id": "answers of the group",
    }
    sections = {
        "header": header,
        "delivery_annotations": {"last_enqueued_sequence_number": typed(AMQPTypes.long, 40)},
        "message_annotations": {
            "x-opt-sequence-number": typed(AMQPTypes.long, 41),
            "x-opt-offset": "4096",
            "x-opt-enqueued-time": typed(AMQPTypes.timestamp, 1766000000456),
        },
        "application_properties": {"alert": "true", "room": "küche", "level": typed(AMQPTypes.uint, 300)},
        "footer": {"x-opt-sum": typed(AMQPTypes.ulong, 17)},
    }
    data = message.Properties(message_id="m-1", correlation_id=2**64 - 1, **texts)
    yield "message-data", "two data sections", message.Message(properties=data, data=[b"one", b""], **sections)
    value = message.Properties(message_id=UUID, correlation_id=b"c-\xff", **{name: None for name in texts})
    yield "message-value", "a value", message.Message(properties=value, value={"a": [typed(AMQPTypes.uint, 1), "two"]})
    yield "message-sequence", "a sequence", message.Message(sequence=[[typed(AMQPTypes.uint, 1), "two"]])


for name, what, sections in messages():
    write(name, f"A message with {what}", [("", _encode.encode_payload(bytearray(), sections))])

properties = uamqp.message.MessageProperties(
    message_id="m-1", to="/devices/thermostat-7/messages/devicebound", correlation_id=uamqp.types.AMQPuLong(2**64 - 1), user_id=b"service"
)
sent = uamqp.message.Message(
    body=[b"one", b""],
    properties=properties,
    application_properties={b"alert": b"true", b"level": uamqp.types.AMQPuInt(300)},
    annotations={uamqp.types.AMQPSymbol("x-opt-sequence-number"): uamqp.types.AMQPLong(41)},
)
write("message-data", "A message with two data sections", [("", sent.encode_message())], by="uamqp")

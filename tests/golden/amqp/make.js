// Makes the *.rhea.hex and *.rhea-full.hex vectors beside this file with rhea, an AMQP library that knows nothing of this
// project. The full ones have every field that the hub writes, so that what it writes can be compared byte for byte.
// Run it where Node finds rhea 3.0.5 (`NODE_PATH`).
'use strict';

const fs = require('fs');
const path = require('path');
const types = require('rhea/lib/types');
const frames = require('rhea/lib/frames');
const terminus = require('rhea/lib/terminus');
const message = require('rhea/lib/message');
const filter = require('rhea/lib/filter');

const MADE_BY = `rhea ${require('rhea/package.json').version}`;
const UUID = Buffer.from('00112233445566778899aabbccddeeff', 'hex');

// `parts`: comments and their bytes.
function write(name, what, parts) {
    const lines = [`# ${what}. Made by the encoder of ${MADE_BY} (make.js).`];
    for (const [comment, data] of parts) {
        const rows = data.toString('hex').match(/.{1,64}/g).map((row) => row.match(/../g).join(' '));
        if (comment) rows[0] += `  # ${comment}`;
        lines.push(...rows);
    }
    fs.writeFileSync(path.join(__dirname, `${name}.hex`), lines.join('\n') + '\n');
}

function encode(...values) {
    const writer = new types.Writer();
    values.forEach((value) => writer.write(value));
    return Buffer.from(writer.toBuffer());
}

function values(name, what, list) {
    write(name, what, list.map(([comment, value]) => [comment, encode(value)]));
}

const hex = (text) => Buffer.from(text, 'hex');

// Values.

const LOWEST = hex('8000000000000000');
const HIGHEST = hex('7fffffffffffffff');
values('scalars.rhea', 'Values of fixed width, at their edges', [
    ['null', types.Null()],
    ['true', types.True()],
    ['false', types.False()],
    ['boolean true', types.Boolean(1)],
    ['boolean false', types.Boolean(0)],
    ...[0, 255].map((n) => [`ubyte ${n}`, types.wrap_ubyte(n)]),
    ...[-128, 127].map((n) => [`byte ${n}`, types.wrap_byte(n)]),
    ...[0, 65535].map((n) => [`ushort ${n}`, types.wrap_ushort(n)]),
    ...[-32768, 32767].map((n) => [`short ${n}`, types.wrap_short(n)]),
    ...[0, 1, 255, 256, 2 ** 32 - 1].map((n) => [`uint ${n}`, types.wrap_uint(n)]),
    ...[0, 1, 255, 256].map((n) => [`ulong ${n}`, types.wrap_ulong(n)]),
    ['ulong 2^64 - 1', types.wrap_ulong(hex('ffffffffffffffff'))],
    ...[0, -128, 127, -129, 128, -(2 ** 31), 2 ** 31 - 1].map((n) => [`int ${n}`, types.wrap_int(n)]),
    ...[0, -128, 127, -129, 128].map((n) => [`long ${n}`, types.wrap_long(n)]),
    ['long -2^63', types.wrap_long(LOWEST)],
    ['long 2^63 - 1', types.wrap_long(HIGHEST)],
    ['uint 1, at full width', types.Uint(1)],
    ['ulong 1, at full width', types.Ulong(1)],
    ['int -1, at full width', types.Int(-1)],
    ['long -1, at full width', types.Long(-1)],
    ...[1.5, -0.0, Infinity].map((n) => [`float ${n}`, types.wrap_float(n)]),
    ...[0.1, -1e300, -Infinity].map((n) => [`double ${n}`, types.wrap_double(n)]),
    ...[0, -1, 1766000000123].map((n) => [`timestamp ${n}`, types.wrap_timestamp(n)]),
    ['uuid', types.wrap_uuid(UUID)],
]);
values('char.rhea', 'Characters', [...'a\u{1f600}'].map((text) => [text.codePointAt(0).toString(16), types.wrap_char(text.codePointAt(0))]));
values('decimals.rhea', 'Decimals, their bytes given', [
    ['decimal32', types.Decimal32(hex('01020304'))],
    ['decimal64', types.Decimal64(hex('0102030405060708'))],
    ['decimal128', types.Decimal128(UUID)],
]);

const texts = (name, small, large, one, unit) => [
    [`${name}, empty`, small(unit(0))],
    [name, small(one)],
    [`${name} of 255`, small(unit(255))],
    [`${name} of 256`, large(unit(256))],
    [`${name}, empty, with a length of four bytes`, large(unit(0))],
    [`${name}, with a length of four bytes`, large(one)],
];
// The wrappers choose the small form where it suffices.
values('texts.rhea', 'Values of variable width, at their edges', [
    ...texts('binary', types.wrap_binary, types.Vbin32, hex('00ff'), (n) => Buffer.alloc(n, 7)),
    ...texts('string', types.wrap_string, types.Str32, 'tür €', (n) => 'a'.repeat(n)),
    ...texts('symbol', types.wrap_symbol, types.Sym32, 'a:b', (n) => 's'.repeat(n)),
]);

const symbols = (kind) => kind(['x', 'yz'], types.Sym32.typecode);
const items = (kind, inner) => kind([types.wrap_uint(1), types.wrap_string('two'), inner([types.Boolean(1)])]);
const pairs = (kind) => kind([types.wrap_symbol('a'), types.wrap_uint(7), types.wrap_string('b'), symbols(types.Array8)]);
values('compounds.rhea', 'Lists, maps, arrays and described values', [
    ['list0', types.List0()],
    ['list8', items(types.List8, types.List8)],
    ['list32', items(types.List32, types.List8)],
    ['list32, empty', types.List32([])],
    ['map8', pairs(types.Map8)],
    ['map32', pairs(types.Map32)],
    ['map8, empty', types.Map8([])],
    ['array8 of symbols', symbols(types.Array8)],
    ['array32 of symbols', symbols(types.Array32)],
    ['array8 of uint', types.Array8([1, 2 ** 32 - 1], types.Uint.typecode)],
    ['described by a small number', types.wrap_described([], 0x24)],
    ['by a large number', types.wrap_described('s', 0x468c00000004)],
    ['by a symbol', types.wrap_described('s', 'apache.org:selector-filter:string')],
]);

// Frames.

function frame(name, what, performative, { channel = 0, payload } = {}) {
    const data = frames.write_frame(frames.amqp_frame(channel, performative, payload && Buffer.from(payload)));
    write(name, what, [['header', data.subarray(0, 8)], ...(data.length > 8 ? [['', data.subarray(8)]] : [])]);
}

function sasl(name, what, performative) {
    const data = frames.write_frame(frames.sasl_frame(performative));
    write(name, what, [['header', data.subarray(0, 8)], ['', data.subarray(8)]]);
}

// By hand, what the library has no wrapper for or writes in another form.
function set(composite, index, value) {
    composite.value[index] = value;
    return composite;
}

// Up to the last field; those that are not set are null.
function full(composite, last) {
    composite[last] = null;
    return composite;
}

const described = (composite) => composite.described();
const selector = () => ({
    'apache.org:selector-filter:string': filter.selector("amqp.annotation.x-opt-offset > '@latest'")['jms-selector'],
});
const epoch = () => ({ 'com.microsoft:epoch': types.Long(3), 'com.microsoft:timeout': types.Long(60000) });
const PARTITION = 'amqps://hub.example:5671/forebay/ConsumerGroups/$Default/Partitions/0';
const EVENTS = '/devices/thermostat-7/messages/events';

const open = { container_id: 'reader-1', hostname: 'hub.example', max_frame_size: 65536, channel_max: 255, idle_time_out: 240000 };
frame('open.rhea', 'Open: every field', frames.open({
    ...open,
    outgoing_locales: 'en-US',
    incoming_locales: ['en-US', 'de-DE'],
    offered_capabilities: 'a',
    desired_capabilities: ['b', 'c'],
    properties: { product: 'golden', version: '1' },
}));
frame('open.rhea-full', 'Open', full(frames.open(open), 'properties'));
frame('open-least.rhea', 'Open: only the container id', frames.open({ container_id: 'reader-1' }));

const begin = { next_outgoing_id: 1, incoming_window: 5000, outgoing_window: 2 ** 32 - 1 };
frame('begin.rhea', 'Begin on channel 3: every field', frames.begin({
    remote_channel: 7, handle_max: 255, offered_capabilities: ['a'], desired_capabilities: ['b'], properties: { p: 'q' }, ...begin,
}), { channel: 3 });
frame('begin.rhea-full', 'Begin on channel 3', full(frames.begin({ remote_channel: 7, handle_max: 255, ...begin }), 'properties'), { channel: 3 });
frame('begin-least.rhea', 'Begin on channel 65535: what must be there', frames.begin(begin), { channel: 65535 });

const receiver = { name: 'receiver-0', handle: 1, role: true, snd_settle_mode: 0, rcv_settle_mode: 0 };
const ends = { durable: 0, expiry_policy: 'session-end', timeout: 0, dynamic: false };
frame('attach-receiver.rhea', 'Attach of an Event Hubs receiver: from the latest event on, as the only reader of its epoch', frames.attach({
    ...receiver,
    source: described(terminus.source({ address: PARTITION, filter: selector() })),
    target: described(terminus.target({ address: 'client' })),
    max_message_size: 1048576,
    desired_capabilities: 'com.microsoft:enable-receiver-runtime-metric',
    properties: epoch(),
}), { channel: 1 });
frame('attach-receiver.rhea-full', 'Attach of the same receiver', set(frames.attach({
    ...receiver,
    source: described(full(terminus.source({ address: PARTITION, filter: selector(), ...ends }), 'capabilities')),
    target: described(full(terminus.target({ address: 'client', ...ends }), 'capabilities')),
    incomplete_unsettled: false,
    max_message_size: 1048576,
    properties: epoch(),
}), 12, types.Array32(['com.microsoft:enable-receiver-runtime-metric'], types.Sym32.typecode)), { channel: 1 });
const sender = { name: 'sender-0', handle: 2 ** 32 - 1, role: false, snd_settle_mode: 1, rcv_settle_mode: 1, initial_delivery_count: 4 };
frame('attach-sender.rhea', 'Attach of a sender: every field', frames.attach({
    ...sender,
    source: described(terminus.source({
        address: 'client',
        durable: 0,
        expiry_policy: 'session-end',
        timeout: 30,
        dynamic: false,
        dynamic_node_properties: { 'lifetime-policy': types.wrap_described([], 0x2b) },
        distribution_mode: 'move',
        filter: {},
        default_outcome: described(message.modified({ delivery_failed: true, undeliverable_here: false })),
        outcomes: ['amqp:accepted:list', 'amqp:rejected:list'],
        capabilities: ['queue'],
    })),
    target: described(terminus.target({ address: EVENTS, ...ends, dynamic_node_properties: {}, capabilities: ['queue', 'topic'] })),
    unsettled: { tag: described(message.accepted({})) },
    incomplete_unsettled: true,
    max_message_size: hex('ffffffffffffffff'),
    offered_capabilities: ['a'],
    desired_capabilities: ['b', 'c'],
    properties: { 'com.microsoft:client-version': 'golden/1' },
}));

const flow = { incoming_window: 5000, next_outgoing_id: 9, outgoing_window: 2048, next_incoming_id: 5 };
const link = { handle: 1, delivery_count: 12, link_credit: 300, available: 2, drain: true, echo: false };
frame('flow-session.rhea', 'Flow of a session, to be answered', frames.flow({ ...flow, echo: true }));
frame('flow-session.rhea-full', 'Flow of a session, to be answered', full(frames.flow({ ...flow, drain: false, echo: true }), 'properties'));
frame('flow-link.rhea', 'Flow of a link: every field', frames.flow({ ...flow, ...link, properties: { p: 'q' } }));
frame('flow-link.rhea-full', 'Flow of a link', full(frames.flow({ ...flow, ...link }), 'properties'));

const first = { handle: 2, delivery_id: 7, delivery_tag: hex('00000007'), message_format: 0x80013700, settled: false, more: true };
const received = described(message.received({ section_number: 1, section_offset: 300 }));
const transfer = set(frames.transfer({ ...first, rcv_settle_mode: 1, resume: false, aborted: false, batchable: true }), 7, received);
frame('transfer-first.rhea', 'Transfer with more to come: every field; then its payload', transfer, { payload: 'first part, ' });
frame('transfer-first.rhea-full', 'Transfer with more to come; then its payload',
    frames.transfer({ ...first, resume: false, aborted: false, batchable: false }), { payload: 'first part, ' });
frame('transfer-last.rhea', 'Transfer that ends a delivery; then its payload', frames.transfer({ handle: 2 }), { payload: 'last part' });
frame('transfer-last.rhea-full', 'Transfer that ends a delivery; then its payload',
    frames.transfer({ handle: 2, more: false, resume: false, aborted: false, batchable: false }), { payload: 'last part' });
const aborted = { handle: 2, delivery_id: 8, settled: true, aborted: true };
frame('transfer-aborted.rhea', 'Transfer that gives a delivery up', frames.transfer(aborted));
frame('transfer-aborted.rhea-full', 'Transfer that gives a delivery up',
    frames.transfer({ ...aborted, more: false, resume: false, batchable: false }));

// The library's own wrapper writes the keys of an error's info as strings, not as symbols.
const failure = (condition, description, info) => {
    const fields = [types.wrap_symbol(condition), types.wrap_string(description), info ? types.wrap_symbolic_map(info) : types.Null()];
    return types.described(types.wrap_ulong(0x1d), types.List32(fields));
};
const notFound = () => failure('amqp:not-found', 'no such device', { status: types.Int(404) });
const range = { role: true, first: 3, last: 300, settled: true };
const states = {
    accepted: () => described(message.accepted({})),
    rejected: () => described(message.rejected({ error: { condition: 'amqp:not-found', description: 'no such device', info: { status: types.Int(404) } } })),
    released: () => described(message.released({})),
    modified: () => described(message.modified({ delivery_failed: true, undeliverable_here: true, message_annotations: { 'x-opt-why': 'tired' } })),
    received: () => described(message.received({ section_number: 2, section_offset: 70000 })),
};
const fullStates = {
    accepted: states.accepted,
    rejected: () => described(set(message.rejected({}), 0, notFound())),
    released: states.released,
    modified: () => described(full(message.modified({ delivery_failed: true, undeliverable_here: true }), 'message_annotations')),
};
for (const [name, state] of Object.entries(states)) {
    frame(`disposition-${name}.rhea`, `Disposition of deliveries 3 to 300: ${name}`, frames.disposition({ ...range, state: state(), batchable: true }));
}
for (const [name, state] of Object.entries(fullStates)) {
    frame(`disposition-${name}.rhea-full`, `Disposition of deliveries 3 to 300: ${name}`, frames.disposition({ ...range, state: state(), batchable: false }));
}
frame('disposition-least.rhea', 'Disposition of one delivery, without a state', frames.disposition({ role: false, first: 3 }));

const stolen = (info) => ({ condition: 'amqp:link:stolen', description: 'a reader with a higher epoch', info });
frame('detach-error.rhea', 'Detach that closes a link, with an error', frames.detach({ handle: 1, closed: true, error: stolen({ 'com.microsoft:tracking': 't-1' }) }));
frame('detach-error.rhea-full', 'Detach that closes a link, with an error',
    set(frames.detach({ handle: 1, closed: true }), 2, failure('amqp:link:stolen', 'a reader with a higher epoch', { 'com.microsoft:tracking': 't-1' })));
frame('detach-least.rhea', 'Detach of a link', frames.detach({ handle: 1 }));
frame('detach-least.rhea-full', 'Detach of a link', full(frames.detach({ handle: 1, closed: false }), 'error'));
const violation = { condition: 'amqp:session:window-violation', description: 'too many' };
frame('end.rhea', 'End', frames.end({}));
frame('end.rhea-full', 'End', full(frames.end({}), 'error'));
frame('end-error.rhea', 'End with an error', frames.end({ error: violation }));
frame('end-error.rhea-full', 'End with an error', set(frames.end({}), 0, failure(violation.condition, violation.description)));
frame('close.rhea', 'Close', frames.close({}));
frame('close.rhea-full', 'Close', full(frames.close({}), 'error'));
// Not one of those the hub gives.
frame('close-error.rhea', "Close with an error of the peer's own", frames.close({ error: { condition: 'com.example:tired' } }));
frame('heartbeat.rhea', 'A frame without a body', undefined);

sasl('sasl-mechanisms.rhea', 'SASL mechanisms', frames.sasl_mechanisms({ sasl_server_mechanisms: ['MSSBCBS', 'PLAIN', 'EXTERNAL'] }));
sasl('sasl-mechanisms.rhea-full', 'SASL mechanisms', set(frames.sasl_mechanisms({ sasl_server_mechanisms: '' }), 0,
    types.Array32(['MSSBCBS', 'PLAIN', 'EXTERNAL'], types.Sym32.typecode)));
sasl('sasl-mechanisms-one.rhea', 'SASL mechanisms: one, not in an array', frames.sasl_mechanisms({ sasl_server_mechanisms: 'PLAIN' }));
const plain = { mechanism: 'PLAIN', initial_response: Buffer.from('\0thermostat-7@sas.hub\0SharedAccessSignature sr=hub') };
sasl('sasl-init-plain.rhea', 'SASL init: PLAIN', frames.sasl_init({ ...plain, hostname: 'hub.example' }));
sasl('sasl-init-plain.rhea-full', 'SASL init: PLAIN', full(frames.sasl_init(plain), 'hostname'));
sasl('sasl-init-mssbcbs.rhea', 'SASL init: MSSBCBS, no response', frames.sasl_init({ mechanism: 'MSSBCBS' }));
sasl('sasl-init-mssbcbs.rhea-full', 'SASL init: MSSBCBS, no response', full(frames.sasl_init({ mechanism: 'MSSBCBS' }), 'hostname'));
sasl('sasl-outcome-ok.rhea', 'SASL outcome: ok', frames.sasl_outcome({ code: 0 }));
sasl('sasl-outcome-ok.rhea-full', 'SASL outcome: ok', full(frames.sasl_outcome({ code: 0 }), 'additional_data'));
sasl('sasl-outcome-auth.rhea', 'SASL outcome: refused', frames.sasl_outcome({ code: 1, additional_data: Buffer.from('why') }));
sasl('sasl-outcome-auth.rhea-full', 'SASL outcome: refused', full(frames.sasl_outcome({ code: 1 }), 'additional_data'));

// Messages.

const properties = {
    message_id: 'm-1',
    user_id: Buffer.from('service'),
    to: '/devices/thermostat-7/messages/devicebound',
    subject: 'subject',
    reply_to: 'answers',
    correlation_id: types.wrap_ulong(hex('ffffffffffffffff')),
    content_type: 'application/json',
    content_encoding: 'utf-8',
    absolute_expiry_time: 1766000600123,
    creation_time: 1766000000123,
};
const sections = {
    delivery_annotations: { last_enqueued_sequence_number: types.Long(40) },
    message_annotations: {
        'x-opt-sequence-number': types.Long(41),
        'x-opt-offset': '4096',
        'x-opt-enqueued-time': types.wrap_timestamp(1766000000456),
    },
    application_properties: { alert: 'true', room: 'küche', level: 300 },
    body: message.data_sections([Buffer.from('one'), Buffer.alloc(0)]),
};
const whole = (name, what, content) => write(name, what, [['', message.encode(content)]]);
whole('message-data.rhea', 'A message with two data sections', {
    durable: true,
    priority: 9,
    ttl: 60000,
    first_acquirer: true,
    delivery_count: 2,
    ...properties,
    group_id: 'group',
    group_sequence: 5,
    reply_to_group_id: 'answers of the group',
    ...sections,
    footer: { 'x-opt-sum': types.wrap_ulong(17) },
});
whole('message-data.rhea-full', 'A message with two data sections, behind an empty header', { ...properties, reply_to_group_id: null, ...sections });
whole('message-value.rhea', 'A message with a value', {
    message_id: UUID, correlation_id: types.wrap_binary(hex('632dff')), body: { a: [1, 'two'] },
});
whole('message-sequence.rhea', 'A message with a sequence', { body: message.sequence_section([1, 'two']) });

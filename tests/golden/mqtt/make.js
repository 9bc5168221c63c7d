// Makes the *.hex vectors beside this file with mqtt-packet, a codec that knows nothing of this project. Run it where Node
// finds mqtt-packet 9.0.2 (`NODE_PATH`).
'use strict';

const fs = require('fs');
const path = require('path');
const packets = require('mqtt-packet');

const MADE_BY = `mqtt-packet ${require('mqtt-packet/package.json').version}`;
const text = (string) => Buffer.from(string);
const TELEMETRY = 'devices/lamp/messages/events/%24.mid=m-1&level=high';
const users = { userProperties: { room: 'hall', 'ü': 'x y' } };

// `of5`: the properties that MQTT 5 has beside.
function write(name, what, packet, of5) {
    for (const version of [4, 5]) {
        if (version === 4 && packet.cmd === 'auth') continue;
        const properties = version === 5 ? of5 || {} : undefined;
        const whole = { ...packet, ...(properties && Object.keys(properties).length ? { properties } : {}) };
        if (whole.cmd === 'connect') {
            whole.protocolVersion = version;
            if (whole.will && version === 4) whole.will = { ...whole.will, properties: undefined };
        }
        const bytes = packets.generate(whole, { protocolVersion: version });
        const rows = bytes.toString('hex').match(/.{1,64}/g).map((row) => row.match(/../g).join(' '));
        const head = `# ${what}, MQTT ${version === 4 ? '3.1.1' : '5'}. Made by the encoder of ${MADE_BY} (make.js).`;
        fs.writeFileSync(path.join(__dirname, `${name}.v${version === 4 ? 3 : 5}.hex`), [head, ...rows].join('\n') + '\n');
    }
}

write('connect', 'CONNECT as SDKs send it', {
    cmd: 'connect', protocolId: 'MQTT', clean: false, clientId: 'lamp', keepalive: 60,
    username: 'hub.example/lamp/?api-version=2021-04-12', password: text('SharedAccessSignature sr=x'),
}, { sessionExpiryInterval: 600, receiveMaximum: 20, maximumPacketSize: 100000, requestProblemInformation: true, ...users });
write('connect-will', 'CONNECT with a will', {
    cmd: 'connect', protocolId: 'MQTT', clean: true, clientId: 'lamp', keepalive: 0,
    will: {
        topic: 'devices/lamp/messages/events/', payload: text('gone'), qos: 1, retain: true,
        properties: { willDelayInterval: 30, contentType: 'text/plain' },
    },
}, {});
write('connack', 'CONNACK', { cmd: 'connack', sessionPresent: true, returnCode: 0, reasonCode: 0 },
    { receiveMaximum: 1024, maximumQoS: 1, retainAvailable: false, serverKeepAlive: 1177, assignedClientIdentifier: 'lamp' });
write('connack-refused', 'CONNACK that refuses', { cmd: 'connack', sessionPresent: false, returnCode: 5, reasonCode: 0x87 },
    { reasonString: 'not authorized' });
write('publish-0', 'PUBLISH of QoS 0', { cmd: 'publish', topic: TELEMETRY, payload: text('{}'), qos: 0, retain: true, dup: false }, {});
write('publish-1', 'PUBLISH of QoS 1 that comes again', {
    cmd: 'publish', topic: TELEMETRY, payload: text('{"on":true}'), qos: 1, retain: false, dup: true, messageId: 0x1234,
}, { payloadFormatIndicator: true, messageExpiryInterval: 60, contentType: 'text/plain', correlationData: text('c'), responseTopic: 'a/b', ...users });
write('publish-2', 'PUBLISH of QoS 2, without a payload', {
    cmd: 'publish', topic: 'a', payload: Buffer.alloc(0), qos: 2, retain: false, dup: false, messageId: 65535,
}, {});
write('publish-long', 'PUBLISH with a length of two bytes', {
    cmd: 'publish', topic: 'a', payload: Buffer.alloc(200, 0xff), qos: 1, retain: false, dup: false, messageId: 1,
}, {});
for (const cmd of ['puback', 'pubrec', 'pubrel', 'pubcomp']) {
    write(cmd, cmd.toUpperCase(), { cmd, messageId: 7, reasonCode: 0 }, {});
    const reasonCode = cmd === 'puback' || cmd === 'pubrec' ? 0x97 : 0x92;
    write(`${cmd}-reason`, `${cmd.toUpperCase()} with a reason`, { cmd, messageId: 7, reasonCode }, { reasonString: 'why', ...users });
    fs.rmSync(path.join(__dirname, `${cmd}-reason.v3.hex`));
}
write('subscribe', 'SUBSCRIBE', {
    cmd: 'subscribe', messageId: 9,
    subscriptions: [
        { topic: 'devices/lamp/messages/devicebound/#', qos: 1, nl: false, rap: false, rh: 0 },
        { topic: '$iothub/methods/POST/#', qos: 0, nl: true, rap: true, rh: 2 },
    ],
}, { subscriptionIdentifier: 300, ...users });
write('suback', 'SUBACK', { cmd: 'suback', messageId: 9, granted: [1, 0, 0x80] }, { reasonString: 'why' });
write('unsubscribe', 'UNSUBSCRIBE', { cmd: 'unsubscribe', messageId: 10, unsubscriptions: ['$iothub/twin/res/#', 'a'] }, users);
write('unsuback', 'UNSUBACK', { cmd: 'unsuback', messageId: 10, granted: [0, 0x11] }, {});
write('pingreq', 'PINGREQ', { cmd: 'pingreq' }, {});
write('pingresp', 'PINGRESP', { cmd: 'pingresp' }, {});
write('disconnect', 'DISCONNECT', { cmd: 'disconnect', reasonCode: 0x8e }, { reasonString: 'elsewhere', serverReference: 'b' });
write('auth', 'AUTH', { cmd: 'auth', reasonCode: 0x18 }, { authenticationMethod: 'm', authenticationData: text('d') });

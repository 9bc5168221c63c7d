// Unmodified Node SDKs: devices over AMQP and MQTT, a service, an Event Hubs consumer.
//   node node.js ENDPOINTS_JSON
'use strict';
const fs = require('fs');
const { Client, Message } = require('azure-iot-device');
const { Amqp, AmqpWs } = require('azure-iot-device-amqp');
const { Mqtt, MqttWs } = require('azure-iot-device-mqtt');
const { Registry, Client: ServiceClient } = require('azure-iothub');
const { Message: ServiceMessage } = require('azure-iot-common');
const { EventHubConsumerClient } = require('@azure/event-hubs');
const hub = JSON.parse(fs.readFileSync(process.argv[2]));
const registry = Registry.fromConnectionString(hub.iothub_connection_string);
let failed = 0;
const timeout = (p, ms, what) => Promise.race([p, new Promise((_, r) => setTimeout(() => r(new Error('timeout: ' + what)), ms))]);
async function check(name, f) {
  try { await timeout(f(), 30000, name); console.log('PASS ' + name); }
  catch (e) { failed++; console.log('FAIL ' + name + ': ' + (e && e.message || e)); }
}
const assert = (ok, what) => { if (!ok) throw new Error(what); };
const eq = (a, b, what) => assert(JSON.stringify(a) === JSON.stringify(b), `${what}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`);
const sleep = ms => new Promise(r => setTimeout(r, ms));
async function messagesAmqp(kind, id, client, service) {
  await check(kind + ' c2d complete, abandon, reject', async () => {
    const seen = []; let wake;
    client.on('message', m => { seen.push(m); wake && wake(); });
    await service.open();
    for (const text of ['one', 'two', 'three']) {
      const m = new ServiceMessage(text); m.messageId = text; m.ack = 'full'; m.properties.add('p', 'v');
      await service.send(id, m);
    }
    const next = async n => { while (seen.length < n) await new Promise(r => { wake = r; setTimeout(r, 200); }); };
    await next(3);
    eq(seen.map(m => m.getData().toString()), ['one', 'two', 'three'], 'bodies');
    eq(seen[0].messageId, 'one', 'id'); eq(seen[0].properties.getValue('p'), 'v', 'property');
    await client.complete(seen[0]);
    await sleep(300);
    await client.abandon(seen[1]);
    await next(4); eq(seen[3].getData().toString(), 'two', 'redelivered');
    await client.complete(seen[3]);
    await sleep(300);
    await client.reject(seen[2]);
    // Outcomes are answered by nobody in this SDK: let the last one out before the link goes.
    await sleep(500);
    await service.close();
  });
}
// MQTT completes a message by acknowledging it, and knows nothing else.
async function messagesMqtt(kind, id, client, service) {
  await check(kind + ' c2d in order', async () => {
    await service.open();
    const names = ['one', 'two', 'three'].map(n => kind + '-' + n);
    for (const text of names) {
      const m = new ServiceMessage(text); m.messageId = text; m.correlationId = 'c/d'; m.contentType = 'text/plain';
      m.ack = 'full'; m.properties.add('p q', 'v&w=é');
      await service.send(id, m);
    }
    // What waits comes as soon as the device listens.
    const seen = []; let wake;
    client.on('message', m => { seen.push(m); wake && wake(); });
    while (seen.length < 3) await new Promise(r => { wake = r; setTimeout(r, 200); });
    eq(seen.map(m => m.getData().toString()), names, 'bodies');
    eq(seen.map(m => m.messageId), names, 'ids');
    eq([seen[0].correlationId, seen[0].contentType], ['c/d', 'text/plain'], 'correlation id, content type');
    eq(seen[0].properties.getValue('p q'), 'v&w=é', 'property');
    for (const m of seen) await client.complete(m);
    const receiver = await new Promise((r, b) => service.getFeedbackReceiver((e, x) => e ? b(e) : r(x)));
    const records = [];
    await new Promise((r, b) => { receiver.on('errorReceived', b); receiver.on('message', m => {
      for (const x of JSON.parse(m.data)) if (names.includes(x.originalMessageId)) records.push(x);
      receiver.complete(m);
      if (records.length >= 3) r(); }); });
    eq(records.map(x => x.originalMessageId + ' ' + x.statusCode).sort(), names.map(n => n + ' Success').sort(), 'feedback');
    await service.close();
    await sleep(300);
    eq(seen.length, 3, 'messages');
  });
}
async function run(kind, transport) {
  const id = 'node-' + kind + '-' + Date.now();
  const created = (await registry.create({ deviceId: id })).responseBody;
  const key = created.authentication.symmetricKey.primaryKey;
  const cs = `HostName=${hub.hub_host};DeviceId=${id};SharedAccessKey=${key}`;
  const client = Client.fromConnectionString(cs, transport);
  const service = ServiceClient.fromConnectionString(hub.iothub_connection_string);
  await check(kind + ' open', () => client.open());
  await check(kind + ' telemetry', async () => {
    for (let n = 0; n < 20; n++) {
      const m = new Message(JSON.stringify({ n }));
      m.messageId = 'm-' + n; m.correlationId = 'c'; m.contentType = 'application/json'; m.contentEncoding = 'utf-8';
      m.properties.add('level', 'high');
      await client.sendEvent(m);
    }
  });
  await check(kind + ' read back', async () => {
    const consumer = new EventHubConsumerClient('$Default', hub.eventhub_connection_string);
    const got = [];
    await new Promise((done, bad) => {
      const sub = consumer.subscribe({
        processEvents: async (events) => { for (const e of events) if (e.systemProperties['iothub-connection-device-id'] === id) got.push(e);
          if (got.length >= 20) { sub.close().then(done); } },
        processError: async (e) => bad(e),
      }, { startPosition: { offset: '-1' } });
    });
    await consumer.close();
    eq(got.length, 20, 'events');
    eq(got.slice(0, 20).map(e => e.body.n), [...Array(20).keys()], 'order');
    eq(got[3].messageId, 'm-3', 'message id'); eq(got[3].contentType, 'application/json', 'content type');
    eq(got[3].properties.level, 'high', 'property');
  });
  if (transport === Mqtt || transport === MqttWs) await messagesMqtt(kind, id, client, service);
  else await messagesAmqp(kind, id, client, service);
  await check(kind + ' twin', async () => {
    const twin = await client.getTwin();
    const desired = new Promise(r => twin.on('properties.desired', d => { if (d.on !== undefined) r(d); }));
    await new Promise((r, b) => twin.properties.reported.update({ fw: 7 }, e => e ? b(e) : r()));
    const seen = (await registry.getTwin(id)).responseBody;
    eq(seen.properties.reported.fw, 7, 'reported');
    await sleep(300);
    await seen.update({ properties: { desired: { on: true } } });
    eq((await desired).on, true, 'desired');
  });
  await check(kind + ' method', async () => {
    client.onDeviceMethod('blink', (req, res) => res.send(201, { times: req.payload.times }));
    await sleep(1000);
    const res = await service.invokeDeviceMethod(id, { methodName: 'blink', payload: { times: 3 }, responseTimeoutInSeconds: 10 });
    eq([res.result.status, res.result.payload], [201, { times: 3 }], 'answer');
  });
  await check(kind + ' close', () => client.close());
  await check(kind + ' wrong key', async () => {
    const bad = Client.fromConnectionString(cs.replace(key, Buffer.from('wrong'.repeat(6)).toString('base64')), transport);
    try { await bad.open(); } catch (e) { eq(e.constructor.name, 'UnauthorizedError', 'error'); return; }
    throw new Error('opened');
  });
}
async function services(kind) {
  const service = ServiceClient.fromConnectionString(hub.iothub_connection_string);
  await check(kind + ' unknown device', async () => {
    await service.open();
    try { await service.send('nobody', new ServiceMessage('x')); } catch (e) { eq(e.constructor.name, 'DeviceNotFoundError', 'error'); return; }
    throw new Error('sent');
  });
  await check(kind + ' feedback', async () => {
    const receiver = await new Promise((r, b) => service.getFeedbackReceiver((e, x) => e ? b(e) : r(x)));
    const records = [];
    await new Promise((r, b) => { receiver.on('errorReceived', b); receiver.on('message', m => { records.push(...JSON.parse(m.data.toString ? m.data.toString() : m.data)); if (records.length >= 3) r(); }); });
    eq(records.map(x => x.originalMessageId + ' ' + x.statusCode).sort(), ['one Success', 'three Rejected', 'two Success'], 'records');
  });
  await check(kind + ' file notifications', async () => { await service.getFileNotificationReceiver(); await sleep(300); });
  await check(kind + ' close', () => service.close());
}
(async () => {
  await run('amqp', Amqp);
  await services('service');
  await run('amqp-ws', AmqpWs);
  await run('mqtt', Mqtt);
  await run('mqtt-ws', MqttWs);
  process.exit(failed ? 1 : 0);
})();

// What the hub does now and did in the last minutes, ten at most.

import { get } from "./api.js";
import { h, replace, failure } from "./dom.js";
import { chart } from "./chart.js";
import { amount, byteRate, bytes, milliseconds, percent, rate } from "./units.js";

const EVERY = 2000;
const KEPT = 300;

const total = (sample) => sample.sessions.reduce((sum, one) => sum + one.count, 0);
const open = (protocol) => (sample) => sample.sessions.find((one) => one.protocol === protocol)?.count ?? 0;
const held = (sample) => Math.max(sample.heldByShards, sample.heldByDisk);

const TILES = [
  ["Messages in", (s) => rate(s.messagesIn), (s) => byteRate(s.bytesIn)],
  ["Messages out", (s) => rate(s.messagesOut), (s) => byteRate(s.bytesOut)],
  ["Ack latency, p99", (s) => milliseconds(s.ackP99), (s) => `median ${milliseconds(s.ackP50)}`],
  ["Consumer lag", (s) => amount(s.lag), () => "messages unread", (s) => s.lag > 100_000 && "warn"],
  ["Back-pressure", (s) => percent(held(s)), (s) => (held(s) > 0 ? "sessions are read more slowly" : "nobody waits"), (s) => (s.heldByDisk > 0 ? "bad" : held(s) > 0.05 && "warn")],
  ["Connections", (s) => amount(total(s)), (s) => `${amount(s.openFiles)} open files`],
  ["Refused", (s) => rate(s.refused), (s) => `${rate(s.throttled)} throttled`, (s) => s.refused > 0 && "warn"],
  ["Memory", (s) => bytes(s.residentBytes), (s) => `${s.cpu.toFixed(s.cpu < 9.95 ? 1 : 0)} cores busy`],
  ["Log", (s) => bytes(s.logBytes), (s) => `${bytes(s.inflightBytes)} in flight`],
];

function charts() {
  return [
    chart({
      title: "Messages per second",
      series: [{ name: "in", value: (s) => s.messagesIn }, { name: "out", value: (s) => s.messagesOut }],
      format: amount,
      floor: 10,
    }),
    chart({
      title: "Ack latency",
      series: [{ name: "p50", value: (s) => s.ackP50 }, { name: "p99", value: (s) => s.ackP99 }],
      format: milliseconds,
    }),
    chart({
      title: "Bytes per second",
      series: [{ name: "in", value: (s) => s.bytesIn }, { name: "out", value: (s) => s.bytesOut }],
      format: byteRate,
      floor: 1024,
      isBinary: true,
    }),
    chart({ title: "Consumer lag, messages", series: [{ name: "all groups", value: (s) => s.lag }], format: amount, floor: 10 }),
    chart({
      title: "Back-pressure, part of the time",
      series: [{ name: "budgets", value: (s) => s.heldByShards }, { name: "disk full", value: (s) => s.heldByDisk }],
      format: percent,
      max: 1,
    }),
    chart({
      title: "Connections",
      series: ["QUIC", "MQTT", "MQTT, WebSocket", "AMQP", "AMQP, WebSocket"].map((name) => ({ name, value: open(name) })),
      format: amount,
      floor: 10,
    }),
    chart({
      title: "Refused and throttled per second",
      series: [{ name: "refused", value: (s) => s.refused }, { name: "throttled", value: (s) => s.throttled }],
      format: amount,
      floor: 10,
    }),
    chart({
      title: "Memory",
      series: [{ name: "resident", value: (s) => s.residentBytes }, { name: "in flight", value: (s) => s.inflightBytes }],
      format: bytes,
      floor: 64 * 1024 * 1024,
      isBinary: true,
    }),
  ];
}

export async function overview({ body, every, signal, health }) {
  const drawn = charts();
  const tiles = TILES.map(([name, value, note, kind]) => {
    const node = h("div", { class: "tile" }, h("span", { class: "name" }, name), h("b"), h("span", { class: "hint" }));
    return { node, value, note, kind };
  });
  const trouble = h("div");
  const content = h("div", null, trouble, h("div", { class: "tiles" }, tiles.map((tile) => tile.node)), h("div", { class: "charts" }, drawn.map((one) => one.node)));
  let samples = [];
  let isShown = false;

  await every(EVERY, async () => {
    let answer;
    try {
      answer = await get(["overview"], { since: samples.at(-1)?.number ?? 0 }, signal);
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      if (!isShown) replace(body, content);
      isShown = true;
      replace(trouble, failure({ message: error.message, status: error.status, code: error.code, title: "No new figures." }));
      return;
    }
    health(answer.health);
    // A hub that was started anew counts from 1 again.
    const isNew = answer.samples.length > 0 && samples.length > 0 && answer.samples[0].number <= samples.at(-1).number;
    samples = (isNew ? answer.samples : samples.concat(answer.samples)).slice(-KEPT);
    if (answer.samples.length === 0 && samples.length > 0 && answer.now - samples.at(-1).time > 10_000) samples = [];
    const reasons = Object.entries(answer.health.reasons);
    replace(
      trouble,
      reasons.length > 0 && h("div", { class: "failure", role: "alert" }, h("p", null, h("strong", null, "The hub is not ready.")), h("ul", null, reasons.map(([part, reason]) => h("li", null, `${part}: ${reason}`)))),
      samples.length === 0 && h("p", { class: "note" }, "The first figures come within two seconds."),
    );
    const last = samples.at(-1);
    for (const tile of tiles) {
      const [, value, hint] = tile.node.children;
      replace(value, last ? tile.value(last) : "–");
      replace(hint, last ? tile.note(last) : "");
      tile.node.className = "tile " + ((last && tile.kind?.(last)) || "");
    }
    for (const one of drawn) one.update(samples);
    if (!isShown) replace(body, content);
    isShown = true;
  });
}

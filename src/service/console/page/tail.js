// What arrives, as it arrives. The place of reading is kept here, so that the hub holds nothing between two requests.

import { get } from "./api.js";
import { empty, failure, field, h, replace, select, state, visible } from "./dom.js";
import { bytes, clock, count, date, indented } from "./units.js";
import { address } from "./devices.js";

// Rows kept on the page; older ones go.
const ROWS_MAX = 500;
// Reading the past stops when it has filled the page; somebody has to look first.
const PAST_ROWS_MAX = 500;
const PAUSE_MS = 400;

export async function tail({ body, session, signal }) {
  if (!session.rights.serviceConnect) {
    replace(body, empty("Reading messages needs a policy with the right ServiceConnect."));
    return;
  }
  const from = select([["latest", "now on"], ["900", "the last 15 minutes"], ["3600", "the last hour"], ["earliest", "the oldest kept"]], "latest");
  const device = h("input", { type: "search", placeholder: "any", spellcheck: "false", autocapitalize: "off", maxlength: "128" });
  const text = h("input", { type: "search", placeholder: "any", spellcheck: "false", maxlength: "200" });
  const partition = h("input", { type: "number", min: "0", max: "65535", placeholder: "all", inputmode: "numeric" });
  const toggle = h("button", { type: "submit", class: "primary" }, "Start");
  const status = h("p", { class: "status", role: "status" }, "Not reading.");
  const trouble = h("div");
  const rows = h("ol", { class: "messages", "aria-label": "Messages, newest first", tabindex: "0" });
  const nothing = empty("No message yet.");
  let reading = null;
  let at = null;
  let seen = 0;
  let looked = 0;
  let missed = 0;

  const form = h(
    "form",
    { class: "bar" },
    field("From", from),
    field("Device id has", device),
    field("Body or property has", text),
    field("Partition", partition),
    h("span", { class: "actions" }, toggle, h("button", { type: "button", onclick: clear }, "Clear")),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (reading) stop("Paused.");
    else run();
  });
  // Another start is another reading; another filter goes on from here.
  from.addEventListener("change", () => {
    at = null;
    clear();
    if (reading) restart();
  });
  for (const control of [device, text]) control.addEventListener("change", () => reading && restart());
  partition.addEventListener("change", () => {
    at = null;
    if (reading) restart();
  });

  function clear() {
    replace(rows);
    seen = looked = missed = 0;
    nothing.hidden = false;
    tell();
  }

  function restart() {
    reading.abort();
    run();
  }

  function stop(why) {
    reading?.abort();
    reading = null;
    toggle.textContent = at ? "Go on" : "Start";
    tell(why);
  }

  function tell(why) {
    const figures = `${count(seen)} shown, ${count(looked)} looked at` + (missed > 0 ? `, ${count(missed)} skipped to keep up` : "");
    const mark = why ? state("idle", why) : reading ? state("good", "Reading.") : state("idle", "Not reading.");
    replace(status, mark, " ", h("span", { class: "hint" }, figures));
  }

  async function run() {
    const controller = new AbortController();
    reading = controller;
    toggle.textContent = "Pause";
    replace(trouble);
    tell();
    const isLive = from.value === "latest";
    const begun = seen;
    while (!controller.signal.aborted) {
      const start = /^\d+$/.test(from.value) ? `time:${Date.now() - Number(from.value) * 1000}` : from.value;
      const query = { device: device.value.trim(), text: text.value, partition: partition.value, live: isLive ? "1" : "" };
      if (at) query.at = at;
      else query.from = start;
      let answer;
      try {
        answer = await get(["tail"], query, controller.signal);
      } catch (error) {
        if (error.name === "AbortError" || controller.signal.aborted) return;
        stop("Stopped.");
        replace(trouble, failure(error, run));
        return;
      }
      if (controller.signal.aborted) return;
      at = answer.at;
      seen += answer.messages.length;
      looked += answer.scanned;
      missed += answer.skipped;
      show(answer.messages);
      tell();
      if (!isLive && seen - begun >= PAST_ROWS_MAX && answer.more) {
        stop(`Paused: the page is full. Go on reads the next ${count(PAST_ROWS_MAX)}.`);
        return;
      }
      await new Promise((resolve) => setTimeout(resolve, PAUSE_MS));
    }
  }

  function show(messages) {
    if (messages.length === 0) return;
    nothing.hidden = true;
    rows.prepend(...messages.map(row).reverse());
    while (rows.children.length > ROWS_MAX) rows.lastChild.remove();
  }

  signal.addEventListener("abort", () => reading?.abort());
  replace(body, form, status, trouble, nothing, rows);
  run();
}

function row(message) {
  const sender = message.moduleId ? `${message.deviceId}/${message.moduleId}` : message.deviceId;
  const short = (message.isBase64 ? "base64:" : "") + message.body.slice(0, 300);
  const details = h(
    "details",
    null,
    h(
      "summary",
      null,
      h("time", { title: date(message.time) }, clock(message.time, true)),
      h("span", { class: "id sender", title: sender }, visible(sender)),
      h("code", { class: "line" }, visible(short.replaceAll("\n", " "))),
    ),
  );
  // Most rows are never opened.
  details.addEventListener("toggle", () => details.open && details.childElementCount === 1 && details.append(whole(message)), { once: true });
  return h("li", null, details);
}

function whole(message) {
  const pairs = (list) => list.map(([name, value]) => h("tr", null, h("th", { scope: "row" }, visible(name)), h("td", null, visible(value))));
  const hidden = message.isBase64 ? "base64 of the first bytes" : "the first part";
  return h(
    "div",
    { class: "whole" },
    h(
      "p",
      { class: "hint" },
      h("a", { href: address(message.deviceId) }, visible(message.deviceId)),
      ` · partition ${message.partition} · sequence number ${message.sequence} · ${date(message.time)} · ${bytes(message.bodyBytes)}`,
      message.bodyBytes > 4096 ? `, ${hidden} is shown` : "",
    ),
    h("pre", null, visible(indented(message.body))),
    message.properties.length + message.system.length > 0 && h("table", null, h("tbody", null, pairs(message.properties), pairs(message.system))),
  );
}

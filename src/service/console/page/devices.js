// The registry: search, pages, a new device, and queries.

import { get, send } from "./api.js";
import { actionButton, empty, failure, field, h, loading, notice, replace, select, state, visible } from "./dom.js";
import { ago, count, date } from "./units.js";

const LIMIT = 50;

export const address = (id) => "#/devices/" + encodeURIComponent(id);

export function connection(one) {
  return one.connectionState === "Connected" ? state("good", "Connected") : state("idle", "Disconnected");
}

export async function devices({ body, session, signal }) {
  const { registryRead, registryWrite, serviceConnect } = session.rights;
  const parts = [];
  if (registryRead) parts.push(list(session, signal));
  else parts.push(h("p", { class: "note" }, "The list of devices needs the right RegistryRead. A device whose id you know can be opened."), opener());
  if (registryWrite) parts.push(creator());
  if (serviceConnect) parts.push(query());
  replace(body, parts);
}

function opener() {
  const id = h("input", { required: true, maxlength: "128", spellcheck: "false", autocapitalize: "off" });
  const form = h("form", { class: "bar" }, field("Device id", id), h("button", { type: "submit" }, "Open"));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    location.hash = address(id.value.trim());
  });
  return form;
}

function list(session, signal) {
  const contains = h("input", { type: "search", placeholder: "part of an id", spellcheck: "false", autocapitalize: "off", maxlength: "128" });
  const status = select([["", "any"], ["enabled", "enabled"], ["disabled", "disabled"]], "");
  const connected = select([["", "any"], ["connected", "connected"], ["disconnected", "disconnected"]], "");
  const result = h("div", { class: "result", "aria-live": "polite" }, loading());
  // Where each page began, so that there is a way back.
  let starts = [""];
  let under = null;

  async function load() {
    under?.abort();
    const controller = new AbortController();
    under = controller;
    result.setAttribute("aria-busy", "true");
    try {
      const page = await get(
        ["devices"],
        { contains: contains.value.trim(), status: status.value, connection: connected.value, after: starts.at(-1), limit: LIMIT },
        controller.signal,
      );
      show(page);
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(result, failure(error, load));
    } finally {
      if (under === controller) result.removeAttribute("aria-busy");
    }
  }

  function show(page) {
    const isFiltered = contains.value.trim() || status.value || connected.value;
    const begun = (starts.length - 1) * LIMIT;
    const found = page.devices.length;
    const places = isFiltered
      ? `${count(found)} found on this page, ${count(page.visited)} of ${count(page.total)} devices looked at`
      : `${count(found === 0 ? 0 : begun + 1)} to ${count(begun + found)} of ${count(page.total)} devices`;
    const back = h("button", { type: "button", disabled: starts.length === 1, onclick: () => (starts.pop(), load()) }, "Previous");
    const next = h(
      "button",
      { type: "button", disabled: !page.next, onclick: () => (starts.push(page.next), load()) },
      isFiltered && found < LIMIT && page.next ? "Look further" : "Next",
    );
    const text = page.total === 0 ? "There are no devices yet. Make one below, or with forebay device create." : page.next ? "None so far. Look further." : "No device is like that.";
    replace(
      result,
      found === 0 ? empty(text) : table(page.devices),
      h("div", { class: "pager" }, h("span", { class: "hint" }, places), h("span", { class: "actions" }, back, next)),
    );
  }

  const again = () => {
    starts = [""];
    load();
  };
  let timer = null;
  contains.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(again, 250);
  });
  status.addEventListener("change", again);
  connected.addEventListener("change", again);
  signal.addEventListener("abort", () => (clearTimeout(timer), under?.abort()));
  const bar = h(
    "form",
    { class: "bar", role: "search", onsubmit: (event) => (event.preventDefault(), again()) },
    field("Search", contains),
    field("Status", status),
    field("Connection", connected),
    h("button", { type: "button", onclick: load }, "Reload"),
  );
  load();
  return h("section", { "aria-label": "Devices" }, bar, result);
}

function table(found) {
  const head = ["Device", "Connection", "Status", "Waiting", "Last activity", "Credential", "Partition"];
  const rows = found.map((one) =>
    h(
      "tr",
      null,
      h("th", { scope: "row" }, h("a", { class: "id", href: address(one.deviceId), title: one.deviceId }, visible(one.deviceId))),
      h("td", null, connection(one)),
      h("td", null, one.status === "enabled" ? "enabled" : state("warn", "disabled")),
      h("td", { class: "number", "data-label": "waiting" }, count(one.cloudToDeviceMessageCount)),
      h("td", { title: date(one.lastActivityTime), "data-label": "active" }, ago(one.lastActivityTime)),
      h("td", { class: "wide" }, one.authenticationType),
      h("td", { class: "number wide" }, one.partition),
    ),
  );
  const wide = new Set(["Credential", "Partition"]);
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      { class: "devices" },
      h("caption", { class: "unseen" }, "Devices"),
      h("thead", null, h("tr", null, head.map((text) => h("th", { scope: "col", class: wide.has(text) ? "wide" : null }, text)))),
      h("tbody", null, rows),
    ),
  );
}

function creator() {
  const id = h("input", { required: true, maxlength: "128", spellcheck: "false", autocapitalize: "off" });
  const kind = select([["sas", "keys, made by the hub"], ["certificateAuthority", "certificate of a registered CA"]], "sas");
  const trouble = h("div");
  const button = h("button", { type: "submit" }, "Create");
  const form = h("form", { class: "bar" }, field("Device id", id), field("Proves itself by", kind), button);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    replace(trouble);
    try {
      const made = await send("POST", ["devices"], { deviceId: id.value.trim(), authenticationType: kind.value });
      notice(`${made.deviceId} was created`);
      location.hash = address(made.deviceId);
    } catch (error) {
      replace(trouble, failure(error));
    } finally {
      button.disabled = false;
    }
  });
  return h("details", { class: "card" }, h("summary", null, "New device"), form, trouble);
}

function query() {
  const text = h("textarea", { rows: "3", spellcheck: "false", class: "code" });
  text.value = "SELECT deviceId, connectionState, lastActivityTime FROM devices WHERE status = 'enabled'";
  const result = h("div", { "aria-live": "polite" });

  async function run(continuation) {
    try {
      const page = await send("POST", ["query"], { query: text.value, continuation });
      replace(
        result,
        page.items.length === 0 ? empty("No result.") : h("p", { class: "hint" }, `${count(page.items.length)} ${page.items.length === 1 ? "result" : "results"} on this page (${page.itemType})`),
        page.items.map((item) => row(item)),
        page.continuation && actionButton("Next page", () => run(page.continuation)),
      );
    } catch (error) {
      replace(result, failure(error));
    }
  }

  function row(item) {
    const id = typeof item.deviceId === "string" && !item.moduleId ? item.deviceId : null;
    const json = JSON.stringify(item);
    return h(
      "details",
      { class: "item" },
      h("summary", null, id && h("a", { href: address(id) }, visible(id)), " ", h("code", { class: "line" }, visible(json))),
      h("pre", null, visible(JSON.stringify(item, null, 2))),
    );
  }

  return h(
    "details",
    { class: "card" },
    h("summary", null, "Query"),
    field("IoT Hub query", text, "The language of twin queries: SELECT … FROM devices or devices.modules WHERE … GROUP BY …"),
    h("div", { class: "actions" }, actionButton("Run", () => run())),
    result,
  );
}

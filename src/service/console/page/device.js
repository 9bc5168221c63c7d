// One device: identity, twin, messages that wait for it, methods, modules.

import { get, send } from "./api.js";
import { actionButton, confirm, empty, facts, failure, field, h, loading, notice, replace, select, state, visible } from "./dom.js";
import { connection } from "./devices.js";
import { ago, count, date, indented, milliseconds } from "./units.js";

export async function device({ body, session, id, signal }) {
  const { registryRead, registryWrite, serviceConnect } = session.rights;
  const cards = h("div", { class: "cards" });
  const back = h("p", { class: "crumbs" }, h("a", { href: "#/devices" }, "All devices"));
  // Below this device: "" is the device itself.
  const target = { module: "" };
  const changes = new EventTarget();
  replace(body, back, cards);
  const identity = registryRead ? await get(["devices", id], null, signal) : null;
  const modules = identity?.modules ?? [];
  const left = [];
  const right = [];
  let twin = null;
  if (identity) left.push(identityCard(identity, registryWrite, signal));
  if (modules.length > 0) left.push(moduleCard(modules));
  if (serviceConnect) {
    if (modules.length > 0) right.push(targetCard(modules, target, changes));
    left.push(methodCard(id, target));
    right.push(queueCard(id, target, changes, signal));
    twin = twinCard(id, target, changes, signal);
  } else {
    right.push(card("Twin, messages and methods", empty("They need a policy with the right ServiceConnect.")));
  }
  replace(cards, h("div", { class: "stack" }, left), h("div", { class: "stack" }, right), twin);
}

function card(title, ...content) {
  return h("section", { class: "card" }, h("h2", null, title), content);
}

const targeted = (target) => ({ query: { module: target.module } });

function identityCard(first, canWrite, signal) {
  const content = h("div");

  function show(identity) {
    const buttons = h("div", { class: "actions" });
    const secrets = h("div");
    const trouble = h("div");
    const attempt = (work) => async () => {
      replace(trouble);
      try {
        await work();
      } catch (error) {
        replace(trouble, failure(error, error.status === 412 ? reload : null));
      }
    };
    if (canWrite) {
      const isEnabled = identity.status === "enabled";
      buttons.append(
        actionButton(
          isEnabled ? "Disable" : "Enable",
          attempt(async () => {
            if (isEnabled && !(await confirm("Disable the device?", "Its sessions end at once, and it cannot connect until it is enabled.", "Disable"))) return;
            const status = isEnabled ? "disabled" : "enabled";
            show(await send("PATCH", ["devices", identity.deviceId], { status }, { etag: identity.etag }));
            notice(`${identity.deviceId} is ${status}`);
          }),
        ),
      );
    }
    if (identity.authenticationType === "sas") {
      buttons.append(
        actionButton(
          "Show keys",
          attempt(async () => {
            if (secrets.hasChildNodes()) return replace(secrets);
            const keys = await get(["devices", identity.deviceId, "keys"], null, signal);
            replace(secrets, facts([["Connection string", secret(keys.primaryConnectionString)], ["Primary key", secret(keys.primaryKey)], ["Secondary key", secret(keys.secondaryKey)]]));
          }),
        ),
      );
    }
    if (canWrite) {
      buttons.append(
        actionButton(
          "Delete",
          attempt(async () => {
            const text = "Identity, modules, twin and waiting messages are deleted. Telemetry that is stored stays.";
            if (!(await confirm(`Delete ${identity.deviceId}?`, text, "Delete"))) return;
            await send("DELETE", ["devices", identity.deviceId], undefined, { etag: "*" });
            notice(`${identity.deviceId} was deleted`);
            location.hash = "#/devices";
          }),
          { class: "danger" },
        ),
      );
    }
    replace(
      content,
      facts([
        ["Connection", [connection(identity), " ", h("span", { class: "hint" }, identity.connectionStateUpdatedTime ? `since ${date(identity.connectionStateUpdatedTime)}` : "")]],
        ["Last activity", h("span", { title: date(identity.lastActivityTime) }, ago(identity.lastActivityTime))],
        ["Status", [identity.status === "enabled" ? "enabled" : state("warn", "disabled"), identity.statusReason && ` (${visible(identity.statusReason)})`]],
        ["Messages waiting", count(identity.cloudToDeviceMessageCount)],
        ["Credential", identity.authenticationType],
        identity.thumbprints.length > 0 && ["Thumbprints", identity.thumbprints.map((text) => h("code", { class: "long" }, text))],
        ["Partition", identity.partition],
        ["Generation", h("code", null, identity.generationId)],
        identity.iotEdge && ["Edge", "yes"],
      ]),
      buttons,
      secrets,
      trouble,
    );
  }

  async function reload() {
    try {
      show(await get(["devices", first.deviceId], null, signal));
    } catch (error) {
      replace(content, failure(error, reload));
    }
  }

  show(first);
  return h("section", { class: "card" }, h("h2", null, "Identity", actionButton("Reload", reload, { class: "quiet" })), content);
}

function secret(text) {
  if (!text) return "none";
  const node = h("code", { class: "long" }, text);
  const copy = h("button", { type: "button", class: "quiet" }, "Copy");
  copy.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      notice("Copied");
    } catch {
      // Without a secure context there is no clipboard; the text can be selected.
      getSelection().selectAllChildren(node);
    }
  });
  return [node, copy];
}

function targetCard(modules, target, changes) {
  const choice = select([["", "the device itself"], ...modules.map(({ moduleId }) => [moduleId, `module ${moduleId}`])], "");
  choice.addEventListener("change", () => {
    target.module = choice.value;
    changes.dispatchEvent(new Event("target"));
  });
  return h("section", { class: "card" }, field("Messages, methods and twin are those of", choice));
}

function twinCard(id, target, changes, signal) {
  const content = h("div", null, loading());

  async function load() {
    try {
      show(await get(["devices", id, "twin"], { module: target.module }, signal));
    } catch (error) {
      if (error.name !== "AbortError") replace(content, failure(error, load));
    }
  }

  function show(twin) {
    const tags = editor(twin.tags.text);
    const desired = editor(twin.properties.desired.text);
    const trouble = h("div", { "aria-live": "polite" });
    const save = actionButton(
      "Save tags and desired properties",
      async () => {
        replace(trouble);
        try {
          // Checked here so that the message says which; sent as it was typed, for its numbers' sake.
          check("Tags", tags.value);
          check("Desired properties", desired.value);
          const text = `{"tags":${tags.value},"properties":{"desired":${desired.value}}}`;
          show(await send("PUT", ["devices", id, "twin"], text, { etag: twin.etag, ...targeted(target) }));
          notice("The twin was saved");
        } catch (error) {
          const message = error.status === 412 ? "The twin was changed by somebody else since it was read. Reload it, then make the change again." : error.message;
          replace(trouble, failure({ message, status: error.status, code: error.code, title: "Not saved." }, error.status === 412 ? load : null));
        }
      },
      { class: "primary" },
    );
    const { desired: wanted, reported } = twin.properties;
    const written = (section) => `version ${section.version}` + (section.updated && !section.updated.startsWith("0001") ? `, ${date(Date.parse(section.updated))}` : "");
    replace(
      content,
      h("div", { class: "columns" }, field("Tags", tags), field(`Desired properties`, desired, written(wanted)), reportedBox(reported.text, written(reported))),
      h("div", { class: "actions" }, save, h("span", { class: "hint" }, `Twin version ${twin.version}. What is left out is removed.`)),
      trouble,
    );
  }

  changes.addEventListener("target", load);
  load();
  return h("section", { class: "card full" }, h("h2", null, "Twin", actionButton("Reload", load, { class: "quiet" })), content);
}

function reportedBox(text, hint) {
  const box = h("textarea", { class: "code", rows: "10", readonly: true, spellcheck: "false" });
  box.value = text;
  return field("Reported properties, read only", box, hint);
}

function editor(text) {
  const area = h("textarea", { class: "code", rows: "10", spellcheck: "false", autocapitalize: "off" });
  area.value = text;
  return area;
}

function check(name, text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`${name}: ${error.message}`);
  }
  if (value === null || typeof value !== "object" || Array.isArray(value)) throw new Error(`${name}: must be a JSON object`);
}

function queueCard(id, target, changes, signal) {
  const waiting = h("p", { "aria-live": "polite" }, "…");
  const trouble = h("div", { "aria-live": "polite" });
  const text = h("textarea", { rows: "3", class: "code", spellcheck: "false" });
  const properties = h("textarea", { rows: "2", class: "code", spellcheck: "false", placeholder: "name=value" });
  const messageId = h("input", { maxlength: "128", spellcheck: "false" });
  const contentType = h("input", { maxlength: "128", spellcheck: "false", placeholder: "application/json" });
  const ack = select([["none", "none"], ["positive", "when it was taken"], ["negative", "when it was not"], ["full", "either way"]], "none");
  const ttl = h("input", { type: "number", min: "1", max: "172800", inputmode: "numeric", placeholder: "3600" });
  const binary = h("input", { type: "checkbox", id: "body-base64" });

  async function load() {
    try {
      const twin = await get(["devices", id, "twin"], { module: target.module }, signal);
      replace(waiting, told(twin.cloudToDeviceMessageCount));
    } catch (error) {
      if (error.name !== "AbortError") replace(waiting, "The queue cannot be read.");
    }
  }

  const told = (messages) => [h("b", null, count(messages)), messages === 1 ? " message waits for the device." : " messages wait for the device."];

  function pairs() {
    const found = {};
    for (const line of properties.value.split("\n").filter((line) => line.trim())) {
      const at = line.indexOf("=");
      if (at < 1) throw new Error(`Properties: "${line}" is not name=value`);
      found[line.slice(0, at).trim()] = line.slice(at + 1);
    }
    return found;
  }

  const send_ = actionButton(
    "Send",
    async () => {
      replace(trouble);
      try {
        const message = {
          body: text.value,
          isBase64: binary.checked,
          properties: pairs(),
          messageId: messageId.value || undefined,
          contentType: contentType.value || undefined,
          ack: ack.value,
          ttlSeconds: ttl.value ? Number(ttl.value) : undefined,
        };
        const queued = await send("POST", ["devices", id, "messages"], message, targeted(target));
        replace(waiting, told(queued.waiting));
        notice(`Queued as number ${queued.sequenceNumber}, until ${date(queued.expires)}`);
      } catch (error) {
        replace(trouble, failure({ message: error.message, status: error.status, code: error.code, title: "Not sent." }));
      }
    },
    { class: "primary" },
  );
  const purge = actionButton(
    "Purge the queue",
    async () => {
      replace(trouble);
      if (!(await confirm("Purge the queue?", "All messages that wait for the device are removed, also those it has taken and not settled.", "Purge"))) return;
      try {
        const { purged } = await send("DELETE", ["devices", id, "queue"], undefined, targeted(target));
        notice(`${count(purged)} messages were removed`);
        await load();
      } catch (error) {
        replace(trouble, failure(error));
      }
    },
    { class: "danger" },
  );
  changes.addEventListener("target", load);
  load();
  return h(
    "section",
    { class: "card" },
    h("h2", null, "Messages to the device", actionButton("Reload", load, { class: "quiet" })),
    waiting,
    field("Body", text),
    h("div", { class: "check" }, binary, h("label", { for: "body-base64" }, "The body is base64")),
    field("Properties, one a line", properties),
    h("div", { class: "grid" }, field("Message id", messageId), field("Content type", contentType), field("Feedback", ack), field("Expires after, seconds", ttl)),
    h("div", { class: "actions" }, send_, purge),
    trouble,
  );
}

function methodCard(id, target) {
  const name = h("input", { required: true, maxlength: "100", spellcheck: "false", autocapitalize: "off" });
  const payload = h("textarea", { rows: "3", class: "code", spellcheck: "false", placeholder: "null" });
  const response = h("input", { type: "number", min: "5", max: "300", value: "30", inputmode: "numeric" });
  const connect = h("input", { type: "number", min: "0", max: "300", value: "0", inputmode: "numeric" });
  const result = h("div", { "aria-live": "polite" });
  const button = h("button", { type: "submit", class: "primary" }, "Invoke");
  const form = h(
    "form",
    null,
    field("Method", name),
    field("Payload, JSON", payload),
    h("div", { class: "grid" }, field("Wait for the answer, seconds", response), field("Wait for the device, seconds", connect)),
    h("div", { class: "actions" }, button),
    result,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    replace(result, loading("Waiting for the device…"));
    try {
      const text = payload.value.trim() || "null";
      try {
        JSON.parse(text);
      } catch (error) {
        throw new Error(`Payload: ${error.message}`);
      }
      const times = { methodName: name.value.trim(), responseTimeoutInSeconds: Number(response.value), connectTimeoutInSeconds: Number(connect.value) };
      const call = `${JSON.stringify(times).slice(0, -1)},"payload":${text}}`;
      const answer = await send("POST", ["devices", id, "methods"], call, targeted(target));
      const isGood = answer.status >= 200 && answer.status < 300;
      replace(
        result,
        h("p", null, state(isGood ? "good" : "warn", `Status ${answer.status}`), " ", h("span", { class: "hint" }, `after ${milliseconds(answer.elapsedMs)}`)),
        h("pre", null, answer.payload === null ? "(no payload)" : visible(indented(answer.payload))),
      );
    } catch (error) {
      replace(result, failure({ message: error.message, status: error.status, code: error.code, title: "No answer." }));
    } finally {
      button.disabled = false;
    }
  });
  return h("section", { class: "card" }, h("h2", null, "Direct method"), form);
}

function moduleCard(modules) {
  return card(
    "Modules",
    h(
      "ul",
      { class: "plain" },
      modules.map((module) => h("li", null, h("span", { class: "id" }, visible(module.moduleId)), " ", connection(module), " ", h("span", { class: "hint" }, `${count(module.cloudToDeviceMessageCount)} waiting, active ${ago(module.lastActivityTime)}`))),
    ),
  );
}

// How the hub is, what it is, and how it is configured.

import { get } from "./api.js";
import { empty, facts, failure, field, h, loading, replace, state, visible } from "./dom.js";
import { count, date, seconds } from "./units.js";

const EVERY = 5000;

export async function hub({ body, session, every, signal, health: told }) {
  const health = h("div", null, loading());
  const about = h("div");
  const configuration = h("div", null, loading());
  replace(
    body,
    h(
      "div",
      { class: "cards" },
      h("section", { class: "card" }, h("h2", null, "Health"), health),
      h("section", { class: "card" }, h("h2", null, "About"), about),
      h("section", { class: "card full" }, h("h2", null, "Configuration"), configuration),
    ),
  );
  if (session.rights.serviceConnect) loadConfiguration();
  else replace(configuration, empty("The configuration needs a policy with the right ServiceConnect."));

  async function loadConfiguration() {
    try {
      showConfiguration(configuration, await get(["configuration"], null, signal));
    } catch (error) {
      if (error.name !== "AbortError") replace(configuration, failure(error, loadConfiguration));
    }
  }

  await every(EVERY, async () => {
    let answer;
    try {
      answer = await get(["hub"], null, signal);
    } catch (error) {
      if (error.name !== "AbortError" && error.status !== 401) replace(health, failure(error));
      return;
    }
    told(answer.health);
    const reasons = Object.entries(answer.health.reasons);
    replace(
      health,
      h("p", null, state(answer.health.isReady ? "good" : "bad", answer.health.isReady ? "Ready: the hub serves." : `Not ready (${answer.health.state}).`)),
      reasons.length > 0 ? h("ul", null, reasons.map(([part, reason]) => h("li", null, h("b", null, visible(part)), ": ", visible(reason)))) : h("p", { class: "hint" }, "Every partition takes messages, and no part of the hub has a complaint."),
      h(
        "p",
        { class: "hint" },
        "The same in text: ",
        h("a", { href: "/readyz" }, "/readyz"),
        ", ",
        h("a", { href: "/metrics" }, "/metrics"),
        ", ",
        h("a", { href: "/openapi.json" }, "/openapi.json"),
      ),
    );
    const one = answer.about;
    replace(
      about,
      facts([
        ["Version", one.version],
        ["Names", one.hostNames.map((name) => h("span", { class: "id" }, visible(name)))],
        ["Running for", [seconds((answer.now - one.started) / 1000), " ", h("span", { class: "hint" }, `since ${date(one.started)}`)]],
        ["Acknowledges", { sync: "when the disk has it (sync)", interval: "at an interval", os: "when the system has it (os)" }[one.durability] ?? one.durability],
        ["Partitions", count(one.partitions)],
        ["Shards", count(one.shards)],
        ["Data directory", h("code", { class: "long" }, visible(one.dataDirectory))],
        ["Signed in here", `${count(answer.sessions)} of at most 64 sessions; this one as ${session.policy}`],
      ]),
    );
  });
}

function showConfiguration(node, sections) {
  const search = h("input", { type: "search", placeholder: "part of a key or its description", spellcheck: "false", autocapitalize: "off" });
  const changed = h("input", { type: "checkbox", id: "only-changed" });
  const list = h("div", { "aria-live": "polite" });

  function show() {
    const wanted = search.value.trim().toLowerCase();
    const boxes = sections
      .map((section) => ({
        ...section,
        keys: section.keys.filter(
          (key) => (!changed.checked || key.value !== key.default) && (!wanted || `${section.name}.${key.name} ${key.doc}`.toLowerCase().includes(wanted)),
        ),
      }))
      .filter((section) => section.keys.length > 0)
      .map((section) =>
        h(
          "details",
          { class: "item", open: Boolean(wanted) || changed.checked },
          h("summary", null, h("b", { class: "id" }, section.name), " ", h("span", { class: "hint" }, `${section.keys.length} ${section.keys.length === 1 ? "key" : "keys"}. ${section.doc.replaceAll("`", "")}`)),
          h("dl", { class: "keys" }, section.keys.map((key) => row(section.name, key))),
        ),
      );
    replace(list, boxes.length > 0 ? boxes : empty("No key is like that."));
  }

  function row(section, key) {
    const isChanged = key.value !== key.default;
    return h(
      "div",
      { class: isChanged ? "changed" : null },
      h("dt", null, h("code", null, `${section}.${key.name}`)),
      h("dd", null, h("code", { class: "long" }, visible(key.value)), isChanged && h("span", { class: "hint" }, ` default ${key.default}`), h("p", { class: "hint" }, key.doc)),
    );
  }

  search.addEventListener("input", show);
  changed.addEventListener("change", show);
  replace(node, h("div", { class: "bar" }, field("Search", search), h("div", { class: "check" }, changed, h("label", { for: "only-changed" }, "Only what differs from the defaults"))), list);
  show();
}

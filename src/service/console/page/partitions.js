// The log's partitions, and where consumer groups stand in them.

import { get, send } from "./api.js";
import { actionButton, confirm, failure, field, h, notice, replace, state, visible } from "./dom.js";
import { ago, bytes, count, date } from "./units.js";

const EVERY = 3000;

export async function partitions({ body, every, signal }) {
  const trouble = h("div");
  const log = h("div");
  const groups = h("div");
  // Which groups are open, so that a refresh does not close them.
  const unfolded = new Set();
  let isShown = false;

  const name = h("input", { required: true, maxlength: "50", spellcheck: "false", autocapitalize: "off", pattern: "[A-Za-z0-9._$\\-]+" });
  const made = h("div");
  const form = h("form", { class: "bar" }, field("Name", name), h("button", { type: "submit" }, "Create"));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    replace(made);
    try {
      await send("POST", ["groups"], { name: name.value.trim() });
      notice(`The consumer group ${name.value.trim()} was created`);
      name.value = "";
      await refresh();
    } catch (error) {
      replace(made, failure(error));
    }
  });
  const content = [
    trouble,
    h("section", { class: "card" }, h("h2", null, "Log"), log),
    h("section", { class: "card" }, h("h2", null, "Consumer groups"), groups, h("details", null, h("summary", null, "New consumer group"), form, made)),
  ];

  async function refresh() {
    try {
      const answer = await get(["partitions"], null, signal);
      replace(trouble);
      replace(log, logTable(answer.partitions));
      replace(groups, answer.groups.map((group) => groupBox(group, answer.partitions)));
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      replace(trouble, failure(error, refresh));
    }
    if (!isShown) replace(body, content);
    isShown = true;
  }

  function groupBox(group, parts) {
    const places = group.partitions.map((place) => {
      const part = parts.find((one) => one.id === place.partition);
      // A reader's place is ahead of the checkpoint it stores now and then.
      const next = place.reading ?? place.checkpoint;
      return { ...place, end: part.next, first: part.first, next, lag: next === null ? null : Math.max(0, part.next - Math.max(next, part.first)) };
    });
    const reading = places.filter((place) => place.reading !== null).length;
    const known = places.filter((place) => place.lag !== null);
    const lag = known.reduce((sum, place) => sum + place.lag, 0);
    const isDefault = group.name.toLowerCase() === "$default";
    const box = h(
      "details",
      { class: "item", open: unfolded.has(group.name) },
      h(
        "summary",
        null,
        h("b", { class: "id" }, visible(group.name)),
        " ",
        reading > 0 ? state("good", `${reading} of ${places.length} partitions are read`) : state("idle", "nobody reads"),
        " ",
        h("span", { class: "hint" }, known.length > 0 ? `lag ${count(lag)} messages` : "no place is known"),
      ),
      h(
        "div",
        { class: "scroll" },
        h(
          "table",
          null,
          h("caption", { class: "unseen" }, `Places of the consumer group ${group.name}`),
          h("thead", null, h("tr", null, ["Partition", "Reads at", "Checkpoint", "Lag", "Owner"].map((text) => h("th", { scope: "col" }, text)))),
          h(
            "tbody",
            null,
            places.map((place) =>
              h(
                "tr",
                null,
                h("th", { scope: "row" }, place.partition),
                h("td", { class: "number" }, place.reading === null ? "–" : count(place.reading)),
                h("td", { class: "number" }, place.checkpoint === null ? "–" : count(place.checkpoint)),
                h("td", { class: "number" }, place.lag === null ? "–" : count(place.lag), lagBar(place)),
                h("td", null, place.owner ? h("span", { class: "id" }, visible(place.owner)) : "–"),
              ),
            ),
          ),
        ),
      ),
      !isDefault &&
        h(
          "div",
          { class: "actions" },
          actionButton(
            "Delete",
            async () => {
              if (!(await confirm(`Delete the consumer group ${group.name}?`, "Its checkpoints go with it.", "Delete"))) return;
              try {
                await send("DELETE", ["groups", group.name]);
                notice(`${group.name} was deleted`);
                await refresh();
              } catch (error) {
                replace(trouble, failure(error));
              }
            },
            { class: "danger" },
          ),
        ),
    );
    box.addEventListener("toggle", () => (box.open ? unfolded.add(group.name) : unfolded.delete(group.name)));
    return box;
  }

  await every(EVERY, async () => {
    // What somebody is reading or about to press must not be taken away under their hands.
    if (groups.contains(document.activeElement) && document.activeElement.tagName === "BUTTON") return;
    const focused = [...groups.querySelectorAll("summary")].indexOf(document.activeElement);
    await refresh();
    if (focused >= 0) groups.querySelectorAll("summary")[focused]?.focus({ preventScroll: true });
  });
}

function lagBar(place) {
  const kept = place.end - place.first;
  if (kept <= 0) return null;
  const meter = h("meter", { min: "0", max: String(kept), title: "part of what the partition keeps that is not read yet" });
  meter.value = place.lag ?? 0;
  return place.lag === null ? null : meter;
}

function logTable(parts) {
  const head = ["Partition", "State", "Messages kept", "First", "Next", "Size", "Segments", "Newest", "Shard"];
  return h(
    "div",
    { class: "scroll" },
    h(
      "table",
      null,
      h("caption", { class: "unseen" }, "Partitions of the log"),
      h("thead", null, h("tr", null, head.map((text) => h("th", { scope: "col" }, text)))),
      h(
        "tbody",
        null,
        parts.map((part) =>
          h(
            "tr",
            null,
            h("th", { scope: "row" }, part.id),
            h("td", null, part.closedBy ? h("span", { title: part.closedBy }, state("bad", "closed")) : state("good", "open")),
            h("td", { class: "number" }, count(part.next - part.first)),
            h("td", { class: "number" }, count(part.first)),
            h("td", { class: "number" }, count(part.next)),
            h("td", { class: "number" }, bytes(part.bytes)),
            h("td", { class: "number" }, count(part.segments)),
            h("td", { title: date(part.lastTime) }, part.next === part.first ? "–" : ago(part.lastTime)),
            h("td", { class: "number" }, part.shard),
          ),
        ),
      ),
    ),
    parts.filter((part) => part.closedBy).map((part) => h("p", { class: "failure" }, `Partition ${part.id} is closed: ${visible(part.closedBy)}`)),
  );
}

// The frame: who is signed in, which view is shown, and how the hub is.

import { get, send, signedOut } from "./api.js";
import { h, replace, failure, field, loading, notice, state, visible } from "./dom.js";
import { overview } from "./overview.js";
import { devices } from "./devices.js";
import { device } from "./device.js";
import { partitions } from "./partitions.js";
import { tail } from "./tail.js";
import { hub } from "./hub.js";

const app = document.getElementById("app");
const VIEWS = [
  ["overview", "Overview", overview],
  ["devices", "Devices", devices],
  ["partitions", "Partitions", partitions],
  ["tail", "Live tail", tail],
  ["hub", "Hub", hub],
];

let session = null;
// Ends what a view does in the background: timers, requests under way.
let leave = null;
let frame = null;

function route() {
  const parts = location.hash.replace(/^#\/?/, "").split("/");
  try {
    return parts.map(decodeURIComponent);
  } catch {
    return ["overview"];
  }
}

function show(wantsFocus) {
  leave?.abort();
  leave = null;
  if (!session) return;
  const [name, id] = route();
  const found = VIEWS.find(([known]) => known === name) ?? VIEWS[0];
  const view = name === "devices" && id ? device : found[2];
  const controller = new AbortController();
  leave = controller;
  const title = h("h1", { tabindex: "-1" }, name === "devices" && id ? visible(id) : found[1]);
  document.title = `${found[1]} · ${session.hub ?? "Forebay"}`;
  for (const link of frame.nav.children) {
    if (link.getAttribute("href") === "#/" + found[0]) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const body = h("div", { class: "view" }, loading());
  replace(frame.main, title, body);
  if (wantsFocus) title.focus({ preventScroll: true });
  scrollTo(0, 0);
  const context = {
    session,
    id,
    body,
    title,
    signal: controller.signal,
    health: frame.health,
    // Calls `work` now and every so often while the view is shown and somebody looks.
    every(milliseconds, work) {
      let timer = null;
      const run = async () => {
        clearTimeout(timer);
        if (!document.hidden) await work();
        if (!controller.signal.aborted) timer = setTimeout(run, milliseconds);
      };
      controller.signal.addEventListener("abort", () => clearTimeout(timer));
      document.addEventListener("visibilitychange", () => !document.hidden && run(), { signal: controller.signal });
      return run();
    },
  };
  Promise.resolve(view(context)).catch((error) => {
    if (error.name === "AbortError" || controller.signal.aborted) return;
    replace(body, failure(error, () => show(false)));
  });
}

function makeFrame() {
  const nav = h("nav", { "aria-label": "Views" }, VIEWS.map(([name, text]) => h("a", { href: "#/" + name }, text)));
  const pill = h("a", { href: "#/hub", class: "health" }, state("idle", "…"));
  const main = h("main", { id: "main", tabindex: "-1" });
  const header = h(
    "header",
    null,
    h("a", { class: "brand", href: "#/overview" }, h("img", { src: "/console/icon.svg", alt: "", width: "22", height: "22" }), "Forebay"),
    h("span", { class: "hub", title: session.hub ?? "" }, visible(session.hub ?? "")),
    pill,
    h("span", { class: "who", title: `Signed in by the policy ${session.policy}` }, visible(session.policy)),
    h("button", { type: "button", class: "quiet", onclick: signOut }, "Sign out"),
  );
  replace(app, header, nav, main);
  return {
    nav,
    main,
    health(health) {
      const text = health.state === "ready" && !health.isReady ? "impaired" : health.state;
      const kind = health.isReady ? "good" : health.state === "ready" ? "bad" : "warn";
      replace(pill, state(kind, text));
    },
  };
}

async function watchHealth() {
  if (!session || document.hidden || !frame) return;
  try {
    frame.health((await get(["hub"])).health);
  } catch (error) {
    if (session && error.status === 0) frame.health({ state: "unreachable", isReady: false });
  }
}

async function signOut() {
  try {
    await send("DELETE", ["session"]);
  } catch (error) {
    // A session that is over already is signed out all the same.
    if (error.status !== 401) notice(error.message, "bad");
  }
  start(null);
}

// A connection string holds both: people have it at hand.
function credential(policy, key) {
  if (!key.includes("SharedAccessKey=")) return { policy: policy.trim(), key: key.trim() };
  const pairs = new Map(key.split(";").map((pair) => [pair.slice(0, pair.indexOf("=")).trim(), pair.slice(pair.indexOf("=") + 1).trim()]));
  return { policy: pairs.get("SharedAccessKeyName") ?? policy.trim(), key: pairs.get("SharedAccessKey") ?? "" };
}

function signIn(message) {
  leave?.abort();
  document.title = "Sign in · Forebay";
  const policy = h("input", { name: "policy", autocomplete: "username", value: "iothubowner", spellcheck: "false", maxlength: "64" });
  const key = h("input", { name: "key", type: "password", autocomplete: "current-password", required: true, maxlength: "1000" });
  const trouble = h("div");
  const button = h("button", { type: "submit", class: "primary" }, "Sign in");
  const form = h(
    "form",
    { class: "card sign-in" },
    h("div", { class: "brand" }, h("img", { src: "/console/icon.svg", alt: "", width: "28", height: "28" }), "Forebay"),
    h("h1", null, "Sign in"),
    message && h("p", { class: "note" }, message),
    field("Policy", policy),
    field("Key, or a connection string of the policy", key, "forebay dev prints one at its start, and keeps it in endpoints.json."),
    trouble,
    button,
    h("p", { class: "hint" }, "What you may see and do is what the policy grants: RegistryRead shows identities, RegistryWrite changes them, ServiceConnect is for twins, messages, methods and the log."),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    replace(trouble);
    try {
      start(await send("POST", ["session"], credential(policy.value, key.value)));
    } catch (error) {
      replace(trouble, failure({ title: "Not signed in.", message: error.message, code: error.code, status: error.status }));
      key.focus();
      key.select();
    } finally {
      button.disabled = false;
    }
  });
  replace(app, h("main", { id: "main", class: "narrow", tabindex: "-1" }, form));
  (policy.value ? key : policy).focus();
}

function start(next, message) {
  session = next;
  if (!session) {
    frame = null;
    return signIn(message);
  }
  frame = makeFrame();
  show(false);
  watchHealth();
}

signedOut.addEventListener("change", () => session && start(null, "The session has ended. Sign in again."));
addEventListener("hashchange", () => location.hash !== "#main" && show(true));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  document.getElementById("main")?.focus();
});
setInterval(watchHealth, 10_000);

async function begin() {
  replace(app, h("main", { id: "main", class: "narrow" }, loading()));
  try {
    start(await get(["session"]));
  } catch (error) {
    if (error.status === 401) start(null);
    else replace(app, h("main", { id: "main", class: "narrow" }, failure(error, begin)));
  }
}

begin();

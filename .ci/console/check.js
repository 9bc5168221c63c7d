// Drives the console as a person does, by labels and roles, and watches what the page does behind its back.
//   check.js PROGRAM DATA [FOLDER OF PICTURES]

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { chromium } from "playwright-core";

const [program, data, pictures] = process.argv.slice(2);
const endpoints = JSON.parse(readFileSync(join(data, "endpoints.json"), "utf8"));
const origin = `http://127.0.0.1:${endpoints.ops_port}`;
const forebay = (...args) => execFileSync(program, [...args, "--hub", data], { encoding: "utf8" });
const PHONE = { width: 360, height: 740 };
const DESK = { width: 1280, height: 860 };
// Runs as script if anything of it is ever read as markup.
const EVIL = `<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>`;
// All characters that an id may have beside letters and digits.
const ODD = "odd-.+%_#*?!(),=@$':;id";
const LONG = "long-".repeat(25) + "end";

// What is forbidden whatever is clicked: errors of scripts, violations of the policy, requests to anybody else.
const wrong = [];

async function open(browser, options = {}) {
  const context = await browser.newContext({ viewport: DESK, ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(15_000);
  page.on("pageerror", (error) => wrong.push(`script error: ${error.message}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(origin)) wrong.push(`request to ${request.url()}`);
  });
  page.on("console", (message) => {
    // Refusals are part of what is tried; Chromium writes each of them down.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) wrong.push(`console: ${message.text()}`);
  });
  await page.addInitScript(() => {
    document.addEventListener("securitypolicyviolation", (event) => console.error(`policy violated: ${event.violatedDirective} ${event.blockedURI}`));
  });
  return page;
}

async function signIn(page, policy, key) {
  await page.goto(origin + "/console/");
  await page.getByLabel("Policy", { exact: true }).fill(policy);
  await page.getByLabel(/^Key/).fill(key);
  await page.getByRole("button", { name: "Sign in" }).click();
}

const go = (page, view) => page.getByRole("link", { name: view, exact: true }).click();
const at = (id) => origin + "/console/#/devices/" + encodeURIComponent(id);

async function heading(page, text) {
  await page.getByRole("heading", { level: 1, name: text }).waitFor();
}

async function picture(page, name) {
  if (pictures) await page.screenshot({ path: join(pictures, name + ".png"), fullPage: true });
}

// Nothing runs off the side: what is wider than the screen scrolls in a box of its own.
async function fits(page, what) {
  const [width, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(width <= screen, `${what} is ${width} wide on a screen of ${screen}`);
}

const steps = [];
const step = (name, work) => steps.push([name, work]);

let page;
let browser;

step("a wrong key is refused, and said so", async () => {
  await signIn(page, "iothubowner", "bm90IHRoZSBrZXk=");
  await page.getByRole("alert").getByText("There is no such policy, or this is not its key.").waitFor();
  await picture(page, "sign-in-refused");
});

step("a connection string signs in; scripts cannot read the session", async () => {
  await signIn(page, "", endpoints.iothub_connection_string);
  await heading(page, "Overview");
  assert.equal(await page.evaluate(() => document.cookie), "");
  const [cookie] = await page.context().cookies();
  assert.ok(cookie.httpOnly && cookie.sameSite === "Strict" && cookie.path === "/console", JSON.stringify(cookie));
  assert.equal(await page.evaluate(() => Object.keys(localStorage).length + Object.keys(sessionStorage).length), 0);
});

step("the overview shows telemetry within seconds", async () => {
  const tile = (name) => page.locator(".tile").filter({ hasText: name }).locator("b");
  await page.waitForFunction(() => /[1-9]/.test(document.querySelector(".tile b")?.textContent ?? ""));
  assert.match(await tile("Messages in").textContent(), /^[\d. ]+[kM]?\/s$/);
  assert.match(await tile("Ack latency").textContent(), /^[\d.]+ (µs|ms|s)$/);
  const chart = page.getByRole("img", { name: /^Messages per second: in \d/ });
  await chart.focus();
  await page.keyboard.press("ArrowLeft");
  await page.locator(".when").filter({ hasText: /\d\d:\d\d:\d\d/ }).first().waitFor();
  assert.equal(await page.locator(".chart").count(), 8);
  await page.keyboard.press("Escape");
  await page.getByText("ready", { exact: true }).waitFor();
});

step("ten thousand devices: pages, search, filters", async () => {
  await go(page, "Devices");
  await heading(page, "Devices");
  await page.getByText(/^1 to 50 of 10,0\d\d devices$/).waitFor();
  await page.getByRole("button", { name: "Next" }).click();
  await page.getByText(/^51 to 100 of 10,0\d\d devices$/).waitFor();
  await page.getByRole("button", { name: "Previous" }).click();
  await page.getByText(/^1 to 50 of/).waitFor();
  await page.getByLabel("Search").fill("E-0999");
  await page.getByRole("link", { name: "device-09998" }).waitFor();
  await page.getByText(/^10 found on this page/).waitFor();
  await page.getByLabel("Search").fill("");
  await page.getByLabel("Connection").selectOption("connected");
  await page.getByRole("link", { name: "lamp", exact: true }).waitFor();
  await page.getByText(/^5 found on this page/).waitFor();
  await page.getByLabel("Search").fill("nobody-is-called-so");
  await page.getByText("No device is like that.").waitFor();
});

step("a query finds and opens devices", async () => {
  await page.getByText("Query", { exact: true }).click();
  await page.getByLabel("IoT Hub query").fill("SELECT deviceId FROM devices WHERE deviceId IN ['lamp']");
  await page.getByRole("button", { name: "Run" }).click();
  await page.getByText("1 result on this page").waitFor();
  await page.getByLabel("IoT Hub query").fill("SELECT nonsense FROM");
  await page.getByRole("button", { name: "Run" }).click();
  await page.getByRole("alert").getByText(/at position/).waitFor();
});

for (const [kind, id] of [["an odd", ODD], ["the longest", LONG]]) {
  step(`a device with ${kind} id is made and opened`, async () => {
    await page.goto(origin + "/console/#/devices");
    await heading(page, "Devices");
    await page.getByText("New device").click();
    await page.getByLabel("Device id").fill(id);
    await page.getByRole("button", { name: "Create" }).click();
    await heading(page, id);
    await page.getByRole("heading", { name: "Identity" }).waitFor();
    await page.getByRole("button", { name: "Show keys" }).click();
    await page.getByText("Connection string").waitFor();
    assert.ok((await page.locator("main").textContent()).includes(`DeviceId=${id};SharedAccessKey=`));
    await page.reload();
    await heading(page, id);
  });
}

step("markup in twins, messages and properties is shown as text", async () => {
  forebay("twin", "patch", "lamp", JSON.stringify({ tags: { note: EVIL }, properties: { desired: { text: EVIL } } }));
  forebay("send", "device-00001", EVIL, "--property", `evil=${EVIL}`);
  await page.goto(at("lamp"));
  await heading(page, "lamp");
  await page.waitForFunction(() => [...document.querySelectorAll("textarea")].some((area) => area.value.includes("onerror")));
});

step("a twin is edited, and numbers stay as they are written", async () => {
  const desired = page.getByLabel("Desired properties", { exact: true });
  await desired.fill('{"on":');
  await page.getByRole("button", { name: "Save tags" }).click();
  await page.getByRole("alert").getByText(/^Not saved\. *Desired properties:/).waitFor();
  await desired.fill('{"on": true, "exact": 21.0, "big": 4503599627370495}');
  await page.getByRole("button", { name: "Save tags" }).click();
  await page.getByText("The twin was saved").waitFor();
  const twin = forebay("twin", "show", "lamp");
  assert.match(twin, /"big": ?4503599627370495[^]*"exact": ?21\.0/);
  await picture(page, "device");
});

step("what somebody else changed meanwhile is not overwritten", async () => {
  forebay("twin", "patch", "lamp", '{"properties":{"desired":{"other":1}}}');
  await page.getByLabel("Desired properties", { exact: true }).fill('{"on": false}');
  await page.getByRole("button", { name: "Save tags" }).click();
  const alert = page.getByRole("alert").filter({ hasText: "changed by somebody else" });
  await alert.waitFor();
  await alert.getByRole("button", { name: "Try again" }).click();
  await page.waitForFunction(() => [...document.querySelectorAll("textarea")].some((area) => area.value.includes('"other": 1')));
});

step("a message reaches the device; its queue is counted and purged", async () => {
  const messages = page.locator("section").filter({ has: page.getByRole("heading", { name: "Messages to the device" }) });
  await messages.getByLabel("Body", { exact: true }).fill("switch on <b>");
  await messages.getByLabel("Properties, one a line").fill("room=hall");
  await messages.getByRole("button", { name: "Send" }).click();
  await page.getByText(/^Queued as number 1, until/).waitFor();
  await page.goto(at("device-00002"));
  await heading(page, "device-00002");
  for (const number of [1, 2]) {
    await messages.getByLabel("Body", { exact: true }).fill("wait");
    await messages.getByRole("button", { name: "Send" }).click();
    await messages.getByText(number === 1 ? "1 message waits for the device." : "2 messages wait for the device.").waitFor();
    // What the other device was told may still be shown.
    await page.getByText(`Queued as number ${number}, until`).last().waitFor();
  }
  await messages.getByRole("button", { name: "Purge the queue" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Purge" }).click();
  await page.getByText("2 messages were removed").waitFor();
  await messages.getByText("0 messages wait for the device.").waitFor();
});

step("a method is answered by a device, and not by one that is away", async () => {
  const method = page.locator("section").filter({ has: page.getByRole("heading", { name: "Direct method" }) });
  await method.getByLabel("Method").fill("blink");
  await method.getByRole("button", { name: "Invoke" }).click();
  await method.getByRole("alert").getByText("404 DeviceNotOnline").waitFor();
  await page.goto(at("lamp"));
  await heading(page, "lamp");
  await method.getByLabel("Method").fill("blink");
  await method.getByLabel("Payload, JSON").fill(`{"times":3,"text":${JSON.stringify(EVIL)}}`);
  await method.getByRole("button", { name: "Invoke" }).click();
  await method.getByText("Status 200").waitFor();
  assert.ok((await method.locator("pre").textContent()).includes("onerror"));
});

step("a device is disabled and deleted", async () => {
  await page.goto(at("device-00003"));
  await page.getByRole("button", { name: "Disable" }).click();
  await page.keyboard.press("Escape");
  await page.getByRole("button", { name: "Disable" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Disable" }).click();
  await page.getByText("device-00003 is disabled").waitFor();
  assert.match(forebay("device", "show", "device-00003", "--json"), /"status": ?"disabled"/);
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByText("device-00003 was deleted").waitFor();
  await page.goto(at("device-00003"));
  await page.getByRole("alert").getByText("404 DeviceNotFound").waitFor();
  await picture(page, "device-unknown");
});

step("partitions, and a consumer group that comes and goes", async () => {
  await go(page, "Partitions");
  await heading(page, "Partitions");
  await page.getByText("open", { exact: true }).nth(3).waitFor();
  await page.getByText("New consumer group").click();
  await page.getByLabel("Name", { exact: true }).fill("second line");
  await page.getByRole("button", { name: "Create" }).click();
  await page.getByLabel("Name", { exact: true }).fill("by-console");
  await page.getByRole("button", { name: "Create" }).click();
  await page.locator("summary").filter({ hasText: "by-console" }).click();
  await picture(page, "partitions");
  await page.getByRole("button", { name: "Delete" }).click();
  await page.getByRole("dialog").getByRole("button", { name: "Delete" }).click();
  await page.getByText("by-console was deleted").waitFor();
  await page.locator("summary").filter({ hasText: "by-console" }).waitFor({ state: "detached" });
});

step("the live tail shows what arrives, filtered, as text", async () => {
  await go(page, "Live tail");
  await heading(page, "Live tail");
  await page.locator(".messages li").filter({ hasText: "demo-" }).first().waitFor();
  await page.getByLabel("Device id has").fill("DEVICE-00001");
  await page.getByLabel("From").selectOption("earliest");
  const row = page.locator(".messages li").filter({ hasText: "device-00001" });
  await row.first().waitFor();
  await row.first().locator("summary").click();
  await page.getByText("partition", { exact: false }).first().waitFor();
  assert.ok((await row.first().locator("pre").textContent()).includes("<script>"));
  await page.getByLabel("From").selectOption("latest");
  await page.getByLabel("Body or property has").fill("needle");
  await page.getByLabel("Body or property has").press("Tab");
  await page.waitForTimeout(300);
  forebay("send", "device-00001", "hay");
  forebay("send", "device-00001", "a needle in it");
  await page.locator(".messages li").filter({ hasText: "a needle in it" }).waitFor();
  assert.equal(await page.locator(".messages li").count(), 1);
  await picture(page, "tail");
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByText("Paused.").waitFor();
});

step("health and configuration, without secrets", async () => {
  await go(page, "Hub");
  await page.getByText("Ready: the hub serves.").waitFor();
  await page.getByLabel("Search").fill("owner_key");
  await page.getByText("identity.owner_key", { exact: true }).waitFor();
  await page.getByLabel("Search").fill("");
  await page.getByLabel("Only what differs from the defaults").check();
  await page.getByText("ops.listen", { exact: true }).waitFor();
  const key = /SharedAccessKey=([^;]+)/.exec(endpoints.iothub_connection_string)[1];
  assert.ok(!(await page.content()).includes(key));
  await picture(page, "hub");
});

step("a policy that may only read identities cannot change anything", async () => {
  const { primaryKey: key } = JSON.parse(forebay("policy", "show", "registryRead", "--json"));
  const reader = await open(browser);
  await signIn(reader, "registryRead", key);
  await heading(reader, "Overview");
  await go(reader, "Devices");
  await reader.getByText(/^1 to 50 of/).waitFor();
  assert.equal(await reader.getByText("New device").count() + await reader.getByText("Query", { exact: true }).count(), 0);
  await reader.goto(at("lamp"));
  await reader.getByText("They need a policy with the right ServiceConnect.").waitFor();
  assert.equal(await reader.getByRole("button", { name: /^(Disable|Delete|Send|Invoke)/ }).count(), 0);
  // Also not by hand.
  const status = await reader.evaluate(async () => (await fetch("/console/api/devices/lamp", { method: "DELETE", headers: { "If-Match": "*", "X-Forebay-Console": "1" } })).status);
  assert.equal(status, 403);
  for (const view of ["Partitions", "Live tail", "Hub"]) await go(reader, view);
  await reader.getByText("The configuration needs a policy").waitFor();
  await reader.context().close();
});

step("no mouse: the skip link, the views, a form and a dialog by keyboard", async () => {
  await page.goto(origin + "/console/#/overview");
  await heading(page, "Overview");
  await page.reload();
  await heading(page, "Overview");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.className), "skip");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  await page.getByRole("link", { name: "Devices", exact: true }).focus();
  await page.keyboard.press("Enter");
  await heading(page, "Devices");
  assert.equal(await page.evaluate(() => document.activeElement.tagName), "H1");
  // Everything that can be reached says what it is.
  for (const view of ["overview", "devices", "devices/lamp", "partitions", "tail", "hub"]) {
    await page.goto(origin + "/console/#/" + view);
    await page.waitForTimeout(400);
    const nameless = await page.evaluate(() =>
      [...document.querySelectorAll("a, button, input, select, textarea, summary, [tabindex='0']")]
        .filter((node) => node.offsetParent !== null)
        .filter((node) => !(node.labels?.length > 0 || node.textContent.trim() || node.getAttribute("aria-label")))
        .map((node) => node.outerHTML),
    );
    assert.deepEqual(nameless, [], view);
  }
});

for (const scheme of ["light", "dark"]) {
  for (const [device, viewport] of [["desk", DESK], ["phone", PHONE]]) {
    step(`every view fits a ${device} in ${scheme}`, async () => {
      const context = { viewport, colorScheme: scheme, hasTouch: device === "phone", storageState: await page.context().storageState() };
      const other = await open(browser, context);
      for (const view of ["overview", "devices", "devices/lamp", "devices/" + LONG, "partitions", "tail", "hub"]) {
        await other.goto(origin + "/console/#/" + view);
        await other.reload();
        await other.getByRole("heading", { level: 1 }).waitFor();
        if (view === "tail") await other.locator(".messages li").first().waitFor();
        await other.waitForFunction(() => !document.querySelector("[aria-busy]"));
        await other.waitForTimeout(200);
        const name = view.replace("devices/" + LONG, "device-long").replace("devices/", "device-");
        await picture(other, `${name}-${device}-${scheme}`);
        await fits(other, `${name} on a ${device}`);
        const ratio = await other.evaluate(contrast);
        assert.deepEqual(ratio, [], `text of too little contrast in ${name}, ${scheme}`);
      }
      await other.context().close();
    });
  }
}

// WCAG 2.2 s1.4.3: texts stand out from what is behind them by 4.5 to 1, large ones by 3 to 1.
function contrast() {
  const pixel = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const channels = (color) => {
    pixel.clearRect(0, 0, 1, 1);
    pixel.fillStyle = color;
    pixel.fillRect(0, 0, 1, 1);
    return [...pixel.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let one = node; one; one = one.parentElement) {
      const color = channels(getComputedStyle(one).backgroundColor);
      if (color[3] === 255) return color;
    }
    return channels(getComputedStyle(document.body).backgroundColor);
  };
  const low = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const style = getComputedStyle(node);
    if (!hasText || node.offsetParent === null || node.disabled || node.closest(".skip, .unseen")) continue;
    const [a, b] = [luminance(channels(style.color)), luminance(behind(node))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const wanted = size >= 24 || (size >= 18.6 && Number(style.fontWeight) >= 600) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < wanted) low.add(`${ratio.toFixed(2)} ${node.tagName}.${node.className}: ${node.textContent.slice(0, 30)}`);
  }
  return [...low].slice(0, 5);
}

step("signing out ends the session, here and in the hub", async () => {
  const stolen = await page.context().storageState();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("heading", { name: "Sign in" }).waitFor();
  const thief = await open(browser, { storageState: stolen });
  await thief.goto(origin + "/console/");
  await thief.getByRole("heading", { name: "Sign in" }).waitFor();
});

if (pictures) mkdirSync(pictures, { recursive: true });
let failed = false;
try {
  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    headless: true,
    args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
  });
  page = await open(browser);
  for (const [name, work] of steps) {
    try {
      await work();
      assert.equal(await page.evaluate(() => window.pwned), undefined, "markup was run");
      assert.deepEqual(wrong.splice(0), []);
      console.log(`ok   ${name}`);
    } catch (error) {
      failed = true;
      console.log(`FAIL ${name}: ${error.message}`);
      await picture(page, "failed");
      break;
    }
  }
} finally {
  await browser?.close();
}
process.exit(failed ? 1 : 0);

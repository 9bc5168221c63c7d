// Elements made in code. Whatever comes from the hub goes in as text: nothing here reads markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "value" || name === "checked" || name === "disabled") node[name] = value;
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
}

export function h(tag, properties, ...children) {
  return fill(document.createElement(tag), properties, children);
}

export function svg(tag, properties, ...children) {
  return fill(document.createElementNS(SVG, tag), properties, children);
}

export function replace(node, ...children) {
  node.replaceChildren();
  append(node, children);
  return node;
}

// Characters that would turn around or hide what is read are shown as what they are.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g;

export function visible(text) {
  return String(text).replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
}

let fields = 0;

// A labelled control; `control` is the element itself.
export function field(label, control, hint) {
  const id = control.id || "f" + ++fields;
  control.id = id;
  const described = hint && h("span", { class: "hint", id: id + "h" }, hint);
  if (hint) control.setAttribute("aria-describedby", id + "h");
  return h("div", { class: "field" }, h("label", { for: id }, label), control, described);
}

export function select(options, value, properties) {
  const made = options.map(([key, text]) => h("option", { value: key }, text));
  const node = h("select", properties, made);
  node.value = value;
  return node;
}

// Facts as pairs of name and value.
export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value))));
}

export function loading(text = "Loading…") {
  return h("p", { class: "note", "aria-busy": "true" }, text);
}

export function empty(text) {
  return h("p", { class: "note" }, text);
}

// The hub's reasons are parts of log lines.
function sentence(text) {
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

// What went wrong, and a way to try again where there is one.
export function failure(error, retry) {
  return h(
    "div",
    { class: "failure", role: "alert" },
    h("p", null, h("strong", null, error.title ?? "That did not work. "), " ", visible(sentence(String(error.message ?? error)))),
    error.code && h("p", { class: "hint" }, `${error.status} ${error.code}`),
    retry && h("button", { type: "button", onclick: retry }, "Try again"),
  );
}

export function notice(text, kind = "good") {
  const node = h("p", { class: "notice " + kind }, visible(text));
  const notices = document.getElementById("notices");
  notices.append(node);
  while (notices.children.length > 3) notices.firstChild.remove();
  setTimeout(() => node.remove(), 6000);
}

// Asks before something that cannot be taken back.
export function confirm(title, text, action) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { "aria-labelledby": "dialog-title" },
      h("h2", { id: "dialog-title" }, title),
      h("p", null, text),
      h(
        "div",
        { class: "actions" },
        h("button", { type: "button", onclick: () => dialog.close("no") }, "Cancel"),
        h("button", { type: "button", class: "danger", onclick: () => dialog.close("yes") }, action),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A button that is out of reach while its work is under way.
export function actionButton(text, work, properties) {
  const button = h("button", { type: "button", ...properties }, text);
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await work();
    } finally {
      button.disabled = false;
    }
  });
  return button;
}

export function state(kind, text) {
  return h("span", { class: "state " + kind }, text);
}

// Numbers with their units, short enough for a table and exact enough to compare.

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export function count(value) {
  return whole.format(value);
}

export function amount(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  if (size === 0) return "0";
  if (size < 0.95) return value.toFixed(2);
  if (size < 9.95) return value.toFixed(1).replace(/\.0$/, "");
  if (size < 9_999.5) return whole.format(value);
  if (size < 999_500) return (value / 1e3).toFixed(size < 99_950 ? 1 : 0) + " k";
  if (size < 999_500_000) return (value / 1e6).toFixed(size < 99_950_000 ? 2 : 0) + " M";
  return (value / 1e9).toFixed(2) + " G";
}

export function rate(value) {
  return amount(value) + "/s";
}

export function bytes(value) {
  if (value === null || value === undefined) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (value >= 1024 && unit + 1 < units.length) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return value.toFixed(digits) + " " + units[unit];
}

export function byteRate(value) {
  return bytes(value) + "/s";
}

export function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (value === 0) return "0 ms";
  if (value < 0.995) return (value * 1000).toFixed(0) + " µs";
  if (value < 99.5) return value.toFixed(1) + " ms";
  if (value < 9_995) return value.toFixed(0) + " ms";
  return (value / 1000).toFixed(1) + " s";
}

export function percent(value) {
  const hundredths = value * 100;
  return (hundredths > 0 && hundredths < 9.95 ? hundredths.toFixed(1) : hundredths.toFixed(0)) + " %";
}

export function seconds(value) {
  if (value < 90) return Math.round(value) + " s";
  if (value < 90 * 60) return Math.round(value / 60) + " min";
  if (value < 36 * 3600) return Math.round(value / 3600) + " h";
  return Math.round(value / 86400) + " days";
}

export function ago(time, now = Date.now()) {
  if (!time) return "never";
  const past = (now - time) / 1000;
  return past < 2 ? "now" : seconds(past) + " ago";
}

const two = (value) => String(value).padStart(2, "0");

export function clock(time, withMillis) {
  const at = new Date(time);
  const text = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  return withMillis ? text + "." + String(at.getMilliseconds()).padStart(3, "0") : text;
}

export function date(time) {
  if (!time) return "never";
  const at = new Date(time);
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${clock(time)}`;
}

// JSON with line breaks and indentation, character for character what it was: numbers longer than a browser's stay whole.
// What is no JSON stays as it is.
export function indented(text) {
  try {
    JSON.parse(text);
  } catch {
    return text;
  }
  let out = "";
  let depth = 0;
  let isText = false;
  const line = () => "\n" + "  ".repeat(depth);
  for (let at = 0; at < text.length; at++) {
    const c = text[at];
    if (isText) {
      out += c;
      if (c === "\\") out += text[++at];
      else if (c === '"') isText = false;
    } else if (c === '"') {
      out += c;
      isText = true;
    } else if (c === "{" || c === "[") {
      const close = text.slice(at + 1).match(/^\s*([}\]])/);
      if (close) {
        out += c + close[1];
        at += close[0].length;
      } else {
        depth += 1;
        out += c + line();
      }
    } else if (c === "}" || c === "]") {
      depth -= 1;
      out += line() + c;
    } else if (c === ",") out += c + line();
    else if (c === ":") out += ": ";
    else if (!/\s/.test(c)) out += c;
  }
  return out;
}

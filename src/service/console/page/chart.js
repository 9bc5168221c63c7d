// Small line charts of the last minutes, drawn by hand. The latest values stand beside the names; the pointer, or
// the arrow keys, show those of another time.

import { h, svg, replace } from "./dom.js";
import { clock } from "./units.js";

const HEIGHT = 132;
const LEFT = 58;
const RIGHT = 8;
const TOP = 8;
const BOTTOM = 18;
// The time a chart shows: what there is, from two to ten minutes.
const SPAN_MS_MIN = 2 * 60 * 1000;
const SPAN_MS_MAX = 10 * 60 * 1000;

// The next round number, so that the grid has lines a person can read.
function ceiling(value, floor) {
  const least = Math.max(value, floor);
  const power = 10 ** Math.floor(Math.log10(least));
  const step = [1, 2, 2.5, 5, 10].find((step) => step * power >= least * 0.999);
  return step * power;
}

// Sizes are round where they are whole powers of two.
function binaryCeiling(value, floor) {
  let round = floor;
  while (round < value) round *= 2;
  return round;
}

/// `series`: [{ name, value: (sample) => number | null }]; `format` writes a value; `floor` is the least upper end.
export function chart({ title, series, format, floor = 1, max, isBinary = false }) {
  const legend = h("div", { class: "legend" });
  const drawing = svg("svg", { class: "plot", role: "img", tabindex: "0", height: HEIGHT });
  const node = h("figure", { class: "chart" }, h("figcaption", null, h("span", { class: "name" }, title), legend), drawing);
  let samples = [];
  let width = 0;
  let span = SPAN_MS_MIN;
  let chosen = null;

  const values = series.map((one, index) => {
    const value = h("b");
    legend.append(h("span", { class: `key c${index + 1}` }, h("i"), one.name + " ", value));
    return value;
  });
  const when = h("span", { class: "when" });
  legend.append(when);

  function tell() {
    const sample = chosen === null ? samples.at(-1) : samples[chosen];
    series.forEach((one, index) => replace(values[index], sample ? format(one.value(sample)) : "–"));
    replace(when, chosen === null || !sample ? "" : clock(sample.time));
    const texts = sample ? series.map((one) => `${one.name} ${format(one.value(sample))}`) : ["no data yet"];
    drawing.setAttribute("aria-label", `${title}: ${texts.join(", ")}`);
  }

  function draw() {
    tell();
    if (width === 0) return;
    const last = samples.at(-1)?.time ?? Date.now();
    span = Math.min(SPAN_MS_MAX, Math.max(SPAN_MS_MIN, last - (samples[0]?.time ?? last)));
    const first = last - span;
    const highest = Math.max(0, ...samples.flatMap((sample) => series.map((one) => one.value(sample) ?? 0)));
    const top = max ?? (isBinary ? binaryCeiling(highest, floor) : ceiling(highest, floor));
    const x = (time) => LEFT + ((time - first) / span) * (width - LEFT - RIGHT);
    const y = (value) => TOP + (1 - Math.min(value, top) / top) * (HEIGHT - TOP - BOTTOM);
    const parts = [];
    for (const part of [0, 0.5, 1]) {
      const at = y(top * part);
      parts.push(svg("line", { class: "grid", x1: LEFT, x2: width - RIGHT, y1: at, y2: at }));
      parts.push(svg("text", { class: "tick", x: LEFT - 6, y: at + 3, "text-anchor": "end" }, format(top * part)));
    }
    const minutes = Math.floor(span / 60_000);
    for (const back of minutes > 5 ? [minutes, 5, 0] : [minutes, minutes / 2, 0]) {
      const anchor = back === 0 ? "end" : back === minutes ? "start" : "middle";
      const text = back === 0 ? "now" : `−${back} min`;
      // The outermost one stands at the edge, where it has room.
      const place = back === minutes ? LEFT : x(last - back * 60_000);
      parts.push(svg("text", { class: "tick", x: place, y: HEIGHT - 4, "text-anchor": anchor }, text));
    }
    series.forEach((one, index) => {
      let path = "";
      let isDown = false;
      let before = null;
      for (const sample of samples) {
        const value = one.value(sample);
        // A gap in time is a gap in the line: nothing is known of it.
        if (value === null || value === undefined || (before !== null && sample.time - before > 10_000)) isDown = false;
        before = sample.time;
        if (value === null || value === undefined || sample.time < first) continue;
        path += `${isDown ? "L" : "M"}${x(sample.time).toFixed(1)} ${y(value).toFixed(1)}`;
        // A value alone is a dot.
        if (!isDown) path += "h0.1";
        isDown = true;
      }
      parts.push(svg("path", { class: `line c${index + 1}`, d: path || "M0 0" }));
    });
    const sample = chosen === null ? null : samples[chosen];
    if (sample) {
      parts.push(svg("line", { class: "cross", x1: x(sample.time), x2: x(sample.time), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    replace(drawing, parts);
  }

  function choose(index) {
    chosen = index === null ? null : Math.max(0, Math.min(samples.length - 1, index));
    draw();
  }

  drawing.addEventListener("pointermove", (event) => {
    if (samples.length === 0) return;
    const last = samples.at(-1).time;
    const part = (event.clientX - drawing.getBoundingClientRect().left - LEFT) / (width - LEFT - RIGHT);
    const time = last - span + part * span;
    let best = 0;
    samples.forEach((sample, index) => {
      if (Math.abs(sample.time - time) < Math.abs(samples[best].time - time)) best = index;
    });
    choose(best);
  });
  drawing.addEventListener("pointerleave", () => choose(null));
  drawing.addEventListener("blur", () => choose(null));
  drawing.addEventListener("keydown", (event) => {
    const at = chosen ?? samples.length - 1;
    const step = { ArrowLeft: -1, ArrowRight: 1, PageUp: -30, PageDown: 30 }[event.key];
    if (step === undefined && event.key !== "Escape") return;
    event.preventDefault();
    choose(step === undefined ? null : at + step);
  });
  new ResizeObserver(([entry]) => {
    width = Math.floor(entry.contentRect.width);
    draw();
  }).observe(drawing);

  return {
    node,
    update(next) {
      // The chosen time stays chosen while samples move on.
      const time = chosen === null ? null : samples[chosen]?.time;
      samples = next;
      chosen = time === null ? null : samples.findIndex((sample) => sample.time === time);
      if (chosen === -1) chosen = null;
      draw();
    },
  };
}

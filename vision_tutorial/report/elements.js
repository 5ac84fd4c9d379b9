// Elements, words and numbers. Text only ever becomes a text node or an attribute's value: nothing
// in the name of a run is markup.

const page = JSON.parse(document.getElementById("data").textContent);
const words = page.words;
const byId = (id) => document.getElementById(id);

/** An element `tag` ("svg:path": of SVG). Attributes that begin with "on" are listeners. */
function make(tag, attributes = {}, ...children) {
  const [, svg, name] = tag.match(/^(svg:)?(.*)$/);
  const made = svg
    ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== false && value != null) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== false));
  return made;
}

/** A value as people read it: four digits of a number, a dash for none. */
function text(value) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  const size = Math.abs(value);
  if (Number.isInteger(value) && size < 1e9) return value.toLocaleString(page.lang);
  return size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

/** A sentence with {0}, {1}, … filled in. */
const say = (sentence, ...values) => sentence.replace(/\{(\d)\}/g, (_, place) => text(values[place]));

/** How the lines of a run look: six colours, then the same ones dashed. */
const DASHES = ["", "8 4", "2 3", "10 3 2 3"];
const look = (run) => ({
  stroke: `var(--line-${run % 6})`,
  "stroke-dasharray": DASHES[Math.floor(run / 6) % DASHES.length],
});

/** A small sample of a run's line. */
function swatch(run) {
  const line = make("svg:line", { x1: 0, y1: 6, x2: 32, y2: 6, "stroke-width": 3, ...look(run) });
  return make("svg:svg", { class: "swatch", viewBox: "0 0 32 12", "aria-hidden": "true" }, line);
}

/** Fill a <select> with runs (value: the place of each), or with other [value, label] pairs. */
function offer(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => make("option", { value }, label)));
}

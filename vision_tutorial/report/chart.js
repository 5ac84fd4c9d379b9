// Lines over epochs in SVG, with a cursor for mouse, finger and keyboard, and the numbers as a table.

const HEIGHT = 260;
const EDGE = { left: 58, right: 12, top: 10, bottom: 24 };
const MOST_READ = 12; // lines that the cursor tells of

/**
 * A chart of `series()`: [{run, name, thin, points: [[epoch, value or null], …]}, …].
 * Returns its element and draw(), to be called when other runs are shown.
 */
function chart(heading, series, { log = false } = {}) {
  const plot = make("div", { class: "plot", tabindex: 0, role: "slider" });
  const logarithmic = make("input", { type: "checkbox", onchange: () => draw() });
  const numbers = make("details", { ontoggle: () => numbers.open && list() },
    make("summary", {}, words.as_table));
  const box = make("div", { class: "chart" },
    make("div", { class: "choices" }, heading,
      log && make("label", { class: "quiet" }, logarithmic, words.logarithmic)),
    plot, numbers);
  let lines = [], scale = null, epochs = [], at = null;

  function draw() {
    lines = series();
    const logs = logarithmic.checked;
    const drawable = (value) => value !== null && (!logs || value > 0);
    const points = lines.flatMap((line) => line.points).filter((point) => drawable(point[1]));
    epochs = [...new Set(points.map((point) => point[0]))].sort((a, b) => a - b);
    plot.replaceChildren();
    if (numbers.open) list();
    at = null;
    if (!points.length) {
      plot.append(make("p", { class: "quiet" }, words.nothing_to_draw));
      return;
    }
    scale = scales(points, plot.clientWidth || 480, logs);
    const svg = make("svg:svg", { viewBox: `0 0 ${scale.width} ${HEIGHT}`, "aria-hidden": "true" });
    svg.append(...axes(scale), ...lines.flatMap((line) => curve(line, scale, drawable)));
    plot.append(svg);
    plot.setAttribute("aria-label", heading.value ?? heading.textContent);
    plot.setAttribute("aria-valuemin", epochs[0]);
    plot.setAttribute("aria-valuemax", epochs.at(-1));
    plot.setAttribute("aria-valuenow", epochs.at(-1));
    plot.setAttribute("aria-valuetext", valuesAt(epochs.at(-1)).map(([, words]) => words).join(", "));
  }

  /** What there is at an epoch: [line, words, value], the largest first. */
  function valuesAt(epoch) {
    return lines
      .map((line) => [line, line.points.find((point) => point[0] === epoch)])
      .filter(([, point]) => point)
      .map(([line, [, value]]) => [line, `${line.title}: ${text(value)}`, value])
      .sort((a, b) => (b[2] ?? -Infinity) - (a[2] ?? -Infinity));
  }

  function read(epoch) {
    plot.querySelectorAll(".cursor, .readout").forEach((old) => old.remove());
    at = epoch;
    if (epoch === null) return;
    const x = scale.x(epoch);
    const found = valuesAt(epoch);
    const rows = found.slice(0, MOST_READ).map(([line, , value]) =>
      make("div", {}, swatch(line.run), line.title, make("span", {}, text(value))));
    const more = found.length > MOST_READ ? make("div", {}, say(words.more, found.length - MOST_READ)) : null;
    const side = x < scale.width / 2 ? "right: 0.75rem" : `left: ${EDGE.left + 8}px`;
    plot.firstChild.append(make("svg:line", {
      class: "cursor", x1: x, x2: x, y1: EDGE.top, y2: HEIGHT - EDGE.bottom,
    }));
    plot.append(make("div", { class: "readout", style: side },
      make("strong", {}, say(words.at_epoch, epoch)), rows, more));
    plot.setAttribute("aria-valuenow", epoch);
    plot.setAttribute("aria-valuetext",
      `${say(words.at_epoch, epoch)}: ${found.map(([, words]) => words).join(", ")}`);
  }

  function list() {
    const rows = epochs.map((epoch) =>
      [epoch, ...lines.map((line) => line.points.find((point) => point[0] === epoch)?.[1] ?? null)]);
    const columns = [words.epoch, ...lines.map((line) => line.title)];
    numbers.replaceChildren(numbers.firstChild,
      table(columns.map((title) => ({ title, number: true })), rows, { label: words.as_table }));
  }

  plot.addEventListener("pointermove", (event) => {
    if (!epochs.length) return;
    const x = ((event.clientX - plot.getBoundingClientRect().left) * scale.width) / plot.clientWidth;
    const near = (a, b) => (Math.abs(scale.x(b) - x) < Math.abs(scale.x(a) - x) ? b : a);
    read(epochs.reduce(near));
  });
  plot.addEventListener("pointerleave", () => epochs.length && read(null));
  plot.addEventListener("keydown", (event) => {
    const now = at === null ? epochs.length - 1 : epochs.indexOf(at);
    const to = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: epochs.length - 1 }[event.key];
    if (event.key === "Escape" && epochs.length) read(null);
    if (to === undefined || !epochs.length) return;
    event.preventDefault();
    read(epochs[Math.max(0, Math.min(epochs.length - 1, to))]);
  });
  return { box, draw };
}

/** From epochs and values to places in the plot, and where the axes are labelled. */
function scales(points, width, logs) {
  const span = (place) => points.reduce(
    ([low, high], point) => [Math.min(low, point[place]), Math.max(high, point[place])],
    [Infinity, -Infinity]);
  const [first, last] = span(0);
  let [low, high] = span(1);
  if (low === high) [low, high] = logs ? [low / 2, high * 2] : [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
  const bend = logs ? Math.log10 : (value) => value;
  const [bottom, top] = [bend(low), bend(high)];
  const x = (epoch) => EDGE.left + ((width - EDGE.left - EDGE.right) * (epoch - first)) / (last - first || 1);
  const y = (value) =>
    HEIGHT - EDGE.bottom - ((HEIGHT - EDGE.top - EDGE.bottom) * (bend(value) - bottom)) / (top - bottom);
  const levels = logs ? decades(low, high) : ticks(low, high, 5);
  const times = ticks(first, last, Math.min(8, width / 70)).filter(Number.isInteger);
  return { width, x, y, levels: levels.length > 1 ? levels : [low, high], times };
}

/** Round numbers between two, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, place) => Number(((first + place) * step).toPrecision(12)));
}

/** 1, 2 and 5 times powers of ten; of many, the powers alone. */
function decades(low, high) {
  const powers = ticks(Math.floor(Math.log10(low)), Math.ceil(Math.log10(high)), 8);
  const factors = powers.length > 3 ? [1] : [1, 2, 5];
  const all = powers.flatMap((power) => factors.map((factor) => Number((factor * 10 ** power).toPrecision(3))));
  return all.filter((value) => value >= low * 0.999 && value <= high * 1.001);
}

function axes({ width, x, y, levels, times }) {
  const below = HEIGHT - EDGE.bottom;
  const level = (value) => [
    make("svg:line", { class: "grid", x1: EDGE.left, x2: width - EDGE.right, y1: y(value), y2: y(value) }),
    make("svg:text", { x: EDGE.left - 6, y: y(value) + 4, "text-anchor": "end" }, text(value)),
  ];
  const time = (epoch) =>
    make("svg:text", { x: x(epoch), y: below + 16, "text-anchor": "middle" }, text(epoch));
  return [
    ...levels.flatMap(level), ...times.map(time),
    make("svg:text", { x: EDGE.left - 14, y: below + 16, "text-anchor": "end" }, words.epoch),
  ];
}

/** A line with gaps where its value was not finite; a dot where it has one point alone. */
function curve(line, { x, y }, drawable) {
  const pieces = [[]];
  for (const [epoch, value] of line.points) {
    if (drawable(value)) pieces.at(-1).push([x(epoch), y(value)]);
    else if (pieces.at(-1).length) pieces.push([]);
  }
  const kind = { class: `curve${line.thin ? " thin" : ""}`, "data-run": line.run, ...look(line.run) };
  const path = (piece) => "M" + piece.map(([a, b]) => `${a.toFixed(1)} ${b.toFixed(1)}`).join("L");
  const long = pieces.filter((piece) => piece.length > 1);
  const dots = pieces.filter((piece) => piece.length === 1).map(([[cx, cy]]) =>
    make("svg:circle", { class: "dot", "data-run": line.run, cx, cy, r: 3, fill: look(line.run).stroke }));
  return long.length ? [make("svg:path", { d: long.map(path).join(""), ...kind }), ...dots] : dots;
}

// The parts of the page over all runs: comparison, curves, recipes side by side, environment.

const MOST_AT_FIRST = 8; // runs whose curves are shown before anybody chose
const shown = new Set([...page.runs.keys()].slice(0, MOST_AT_FIRST));
const charts = [];

function showComplaints() {
  if (!page.complaints.length) return;
  byId("complaints").append(
    make("details", { open: page.complaints.length <= 3 },
      make("summary", {}, say(words.left_out, page.complaints.length)),
      make("ul", { class: "quiet" }, page.complaints.map((line) => make("li", {}, line)))));
}

function showComparison() {
  const { columns, rows, notes } = page.comparison;
  // The first column names the runs of a row: one, or those that differ in their seed alone.
  const named = (cell, runs) => ({
    ...cell,
    node: () => make("span", { class: "named" }, swatch(runs[0]),
      make("button", { type: "button", class: "link", onclick: () => goTo(runs[0]) }, cell.text)),
  });
  const filled = rows.map(({ runs, cells: [first, ...others] }) => [named(first, runs), ...others]);
  let left = rows;
  const draw = make("button", { type: "button", onclick: () => choose(left.flatMap((row) => row.runs)) },
    words.show_curves);
  byId("comparison").append(
    table(columns, filled, {
      filter: true, label: words.runs, beside: draw,
      onfilter: (kept) => { left = kept.map((index) => rows[index]); },
    }),
    ...notes.map((note) => make("p", { class: "quiet" }, note)));
}

function goTo(run) {
  focusOn(run);
  byId("focus").value = run;
  byId("one").scrollIntoView();
  byId("focus").focus({ preventScroll: true });
}

// -- curves ---------------------------------------------------------------------------------------

function showCurves() {
  const dim = (run) => document.querySelectorAll("[data-run]").forEach((line) =>
    line.classList.toggle("dim", run !== null && Number(line.dataset.run) !== run));
  byId("legend").append(
    ...page.runs.map((run, index) => make("button", {
      type: "button", "data-toggles": index,
      onclick: () => choose(shown.has(index) ? [...shown].filter((other) => other !== index) : [...shown, index]),
      onpointerenter: () => dim(index), onpointerleave: () => dim(null),
    }, swatch(index), run.label)),
    make("button", { type: "button", onclick: () => choose([...page.runs.keys()]) }, words.all),
    make("button", { type: "button", onclick: () => choose([]) }, words.none));
  const title = (name) => make("h3", {}, name);
  const losses = ["train/loss", "val/loss"];
  add(title(words.loss), () => losses, true);
  for (const name of new Set(page.runs.map((run) => run.headline).filter(Boolean))) add(title(name), () => [name]);
  add(title("lr"), () => ["lr"], true);
  const others = [...new Set(page.runs.flatMap((run) => Object.keys(run.series)))].sort();
  if (others.length) {
    const select = make("select", { "aria-label": words.any_metric, onchange: () => charts.at(-1).draw() });
    offer(select, others.map((name) => [name, name]));
    add(select, () => [select.value], true);
  }
  choose([...shown]);
}

/** A chart of some names of every run that is shown; of two names, the first one's line is thin. */
function add(heading, names, log = false) {
  const series = () => [...shown].sort((a, b) => a - b).flatMap((run) => names().flatMap((name, place) => {
    const found = page.runs[run].series[name];
    const thin = names().length > 1 && place === 0;
    const title = page.runs[run].label + (names().length > 1 ? ` ${name}` : "");
    return found ? [{ run, title, thin, points: found.x.map((x, i) => [x, found.y[i]]) }] : [];
  }));
  const made = chart(heading, series, { log });
  if (names().length > 1) made.box.append(make("p", { class: "quiet" }, words.thin_is_train));
  charts.push(made);
  byId("charts").append(made.box);
}

/** Show the curves of these runs and no others. */
function choose(runs) {
  shown.clear();
  runs.forEach((run) => shown.add(run));
  document.querySelectorAll("[data-toggles]").forEach((button) =>
    button.setAttribute("aria-pressed", shown.has(Number(button.dataset.toggles))));
  charts.forEach((made) => made.draw());
}

// -- recipes and environment ----------------------------------------------------------------------

const BASE = "base"; // instead of a run: what the recipe of the first one extends

function showRecipes() {
  const [one, other, all] = ["one-recipe", "other-recipe", "all-keys"].map(byId);
  const labels = page.runs.map((run, index) => [index, run.label]);
  offer(one, labels);
  const draw = () => {
    const run = page.runs[one.value];
    const chosen = other.value;
    offer(other, [...(run.base ? [[BASE, say(words.its_base, run.base.name)]] : []), ...labels]);
    if ([...other.options].some((option) => option.value === chosen)) other.value = chosen;
    byId("difference").replaceChildren(difference(run, other.value, all.checked));
  };
  [one, other, all].forEach((control) => control.addEventListener("change", draw));
  draw();
  if (!page.runs[0].base && page.runs.length > 1) {
    other.value = 1;
    draw();
  }
}

function difference(run, other, all) {
  const against = other === BASE ? { ...run.recipe, ...run.base.recipe } : page.runs[other].recipe;
  const keys = [...new Set([...Object.keys(run.recipe), ...Object.keys(against)])];
  const rows = keys.filter((key) => all || (run.recipe[key] ?? null) !== (against[key] ?? null))
    .map((key) => [key, run.recipe[key] ?? null, against[key] ?? null]);
  if (!rows.length) return make("p", { class: "quiet" }, words.no_difference);
  const title = other === BASE ? say(words.its_base, run.base.name) : page.runs[other].label;
  return table([{ title: words.key }, { title: run.label }, { title }], rows, { label: words.recipes });
}

function showEnvironment() {
  const facts = [...new Set(page.runs.flatMap((run) => Object.keys(run.environment)))];
  const rows = facts.flatMap((fact) => {
    const labels = new Map(); // by value
    for (const run of page.runs) {
      const value = run.environment[fact] ?? "–";
      labels.set(value, [...(labels.get(value) ?? []), run.label]);
    }
    return [...labels].map(([value, found]) =>
      [fact, value, labels.size === 1 ? words.all_runs : found.join(", ")]);
  });
  const columns = [words.fact, words.value, words.runs].map((title) => ({ title }));
  byId("facts-of-machines").append(table(columns, rows, { filter: true, label: words.environment }));
}

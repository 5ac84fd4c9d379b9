// The parts of the page about one run, and what starts it all.

let focused = 0;
let matrix = null; // the confusion matrix that is drawn

function focusOn(run) {
  focused = Number(run);
  const chosen = page.runs[focused];
  showFacts(chosen);
  showClasses(chosen);
  showConfusion(chosen);
  showImages(chosen.gallery);
  showPreview(chosen.gallery);
}

/** Fill a part of the page; without content, empty it, title and all. */
function fill(id, title, ...content) {
  const some = content.filter(Boolean);
  byId(id).replaceChildren(...(some.length ? [make("h3", {}, title), ...some] : []));
}

function showFacts(run) {
  const link = run.link && make("a", { href: run.link, rel: "noopener noreferrer" }, "wandb");
  const facts = run.facts.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  const notes = run.notes.flatMap(([time, note]) => [make("dt", {}, time), make("dd", {}, note)]);
  byId("facts").replaceChildren(
    make("dl", {}, facts), link || "",
    notes.length ? make("div", {}, make("h3", {}, words.notes), make("dl", {}, notes)) : "");
}

// -- classes --------------------------------------------------------------------------------------

function showClasses(run) {
  if (!run.classes) return fill("classes");
  const others = page.runs.map((other, index) => [index, other.label])
    .filter(([index]) => page.runs[index].classes && page.runs[index] !== run);
  const select = make("select", { onchange: () => draw() });
  offer(select, [["", "–"], ...others]);
  const holder = make("div");
  const draw = () => holder.replaceChildren(classTable(run.classes, select.value && page.runs[select.value]));
  const choice = make("p", { class: "choices" }, make("label", {}, words.compared_with, select));
  draw();
  fill("classes", words.classes, others.length ? choice : null, holder);
}

/** One row a class; beside another run: that one's headline column and the difference. */
function classTable({ columns, rows, headline }, other) {
  const titles = columns.map((column, place) => (place ? { ...column, number: true } : column));
  if (!other) return table(titles, rows, { filter: true, label: words.classes });
  const theirs = new Map(other.classes.rows.map((row) => [row[0], row[other.classes.headline] ?? null]));
  const more = [{ title: other.label, number: true, most: 100, digits: 2 }, { title: "Δ", number: true }];
  const compared = rows.map((row) => {
    const [mine, value] = [row[headline], theirs.get(row[0]) ?? null];
    return [...row, value, mine === null || value === null ? null : signed(mine - value)];
  });
  return table([...titles, ...more], compared, { filter: true, label: words.classes });
}

const signed = (value) => ({ value, text: (value > 0 ? "+" : "") + value.toFixed(2) });

function showConfusion(run) {
  matrix = run.confusion && confusion(run.confusion.names, run.confusion.matrix, run.confusion.unit);
  if (!matrix) return fill("confusion");
  fill("confusion", words.confusion, make("div", { class: "beside" }, matrix.box, matrix.worst));
  matrix.draw();
}

// -- images ---------------------------------------------------------------------------------------

const imageTag = (image, alt) => {
  const made = make("img", { src: page.images[image.name], alt, width: image.width, height: image.height });
  if (image.width <= 96) made.className = "small"; // pixels are to be seen as such
  return made;
};

function showImages(gallery) {
  if (!gallery) {
    return fill("images", words.examples, make("p", { class: "quiet" }, words.no_gallery));
  }
  const part = (title, tiles, kind) => tiles.length
    ? [make("h4", {}, title), make("div", { class: `tiles${kind}` }, tiles)] : [];
  fill("images", words.examples, make("p", { class: "quiet" }, gallery.about),
    ...part(words.wrong, gallery.wrong.map(answer), ""),
    ...part(words.right, gallery.right.map(answer), ""),
    gallery.palette.length ? palette(gallery.palette) : null,
    ...part(words.worst, gallery.worst.map(triple), " wide"),
    ...part(words.masks, gallery.masks.map(triple), " wide"));
}

function answer({ image, key, truth, said, grad_cam: map }) {
  const right = said[0][0] === truth;
  const bars = said.map(([name, share]) => make("div", { class: "said", style: `--part: ${100 * share}%` },
    make("span", {}, name), make("span", {}, `${(100 * share).toFixed(1)} %`)));
  const tags = [imageTag(image, say(words.image_of, truth, key))];
  if (map) tags.push(imageTag(map, `Grad-CAM, ${said[0][0]}, ${key}`));
  return make("figure", {}, tags,
    make("figcaption", {},
      make("strong", { class: right ? "good" : "bad" }, `${right ? "✓" : "✗"} ${words.truth}: ${truth}`),
      make("div", { class: "quiet" }, words.prediction), bars));
}

function triple({ images, key, iou }) {
  const names = [words.image, words.truth, words.prediction];
  const shots = images.map((image, place) => make("div", {},
    imageTag(image, `${names[place]}, ${key}`), make("span", { class: "quiet" }, names[place])));
  return make("figure", {}, make("div", { class: "triple" }, shots),
    make("figcaption", {}, `${key}: IoU ${iou === null ? "–" : iou.toFixed(1)} %`));
}

const palette = (colours) => make("div", { class: "palette" }, colours.map(([name, colour]) =>
  make("span", {}, make("i", { style: `background: ${colour}` }), name)));

function showPreview(gallery) {
  const groups = gallery ? gallery.microscope : [];
  const tiles = (group) => group.tiles.map(({ image, label }) =>
    make("figure", {}, imageTag(image, label), make("figcaption", {}, label)));
  fill("preview", words.preview, ...(groups.length ? [make("p", { class: "quiet" }, words.preview_help)] : []),
    ...groups.flatMap((group) => [make("h4", {}, group.title), make("div", { class: "tiles" }, tiles(group))]));
}

// -- start ----------------------------------------------------------------------------------------

function start() {
  const made = page.runs.length === 1 ? words.made_one : words.made;
  byId("made").textContent = say(made, page.runs.length, page.made, page.version);
  showComplaints();
  if (!page.runs.length) return;
  showComparison();
  showCurves();
  offer(byId("focus"), page.runs.map((run, index) => [index, run.label]));
  byId("focus").addEventListener("change", (event) => focusOn(event.target.value));
  focusOn(0);
  showRecipes();
  showEnvironment();
}

function redraw() {
  charts.forEach((made) => made.draw());
  if (matrix) matrix.draw();
}

/** The button names the theme that a click brings. */
const system = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (document.documentElement.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
const nameTheme = () => { byId("theme").textContent = isDark() ? words.light : words.dark; };

byId("theme").addEventListener("click", () => {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  nameTheme();
  redraw();
});
system.addEventListener("change", () => { nameTheme(); redraw(); });
let width = window.innerWidth;
window.addEventListener("resize", () => {
  if (window.innerWidth !== width) redraw(); // a phone's address bar changes the height alone
  width = window.innerWidth;
});
nameTheme();
start();

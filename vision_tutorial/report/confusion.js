// The confusion matrix: darker where more of a true class (a row) were given a class (a column).

const MOST_NAMED = 30; // classes whose names are written beside the matrix
const ROOMY = 21; // pixels of a cell in which the share is written
const SCALE = [0, 0.05, 0.25, 0.5, 1]; // shares that the colour bar shows
const shade = (share) => 0.04 + 0.96 * Math.sqrt(share);

/** matrix: counts, rows are true classes. Returns an element; the worst pairs are a table beside. */
function confusion(names, matrix, unit) {
  const sums = matrix.map((row) => row.reduce((sum, value) => sum + value, 0));
  const share = (row, column) => (sums[row] ? matrix[row][column] / sums[row] : 0);
  const canvas = make("canvas", { role: "img", "aria-label": say(words.matrix_of, names.length) });
  const said = make("p", { class: "quiet" }, words.matrix_help);
  const bar = make("p", { class: "scale quiet" }, SCALE.map((part) =>
    make("span", {}, make("i", { style: `opacity: ${shade(part)}` }), text(100 * part))), words.of_row);
  const holder = make("div", {}, canvas, bar, said);
  let size = 1, gutter = 0;

  function draw() {
    const room = Math.min(holder.clientWidth || 480, 720);
    const named = names.length <= MOST_NAMED;
    const draws = canvas.getContext("2d");
    const font = `${Math.max(9, Math.min(13, room / names.length - 8))}px system-ui, sans-serif`;
    draws.font = font;
    const longest = Math.max(...names.map((name) => draws.measureText(name).width));
    gutter = named ? Math.ceil(Math.min(130, room * 0.27, longest + 8)) : 0;
    size = Math.max(2, Math.min(46, Math.floor((room - gutter) / names.length)));
    const side = gutter + size * names.length;
    const dense = window.devicePixelRatio || 1;
    Object.assign(canvas, { width: side * dense, height: side * dense }); // this clears it
    canvas.style.width = `${side}px`;
    Object.assign(draws, { font, textBaseline: "middle" });
    draws.scale(dense, dense);
    const ink = getComputedStyle(document.body).color;
    matrix.forEach((row, i) => row.forEach((value, j) => {
      draws.globalAlpha = shade(share(i, j));
      draws.fillStyle = getComputedStyle(canvas).color;
      draws.fillRect(gutter + j * size, gutter + i * size, size - (size > 4), size - (size > 4));
    }));
    draws.globalAlpha = 1;
    if (size >= ROOMY) write(draws, ink);
    draws.fillStyle = ink;
    if (named) names.forEach((name, i) => label(draws, name, i));
  }

  /** Each share in per cent, where it is not nothing. */
  function write(draws, ink) {
    const paper = getComputedStyle(document.body).backgroundColor;
    const dense = isDark() ? 0.25 : 0.6; // the share from which on the letters are of the paper's colour
    draws.textAlign = "center";
    matrix.forEach((row, i) => row.forEach((value, j) => {
      draws.fillStyle = share(i, j) > dense ? paper : ink;
      const written = 100 * share(i, j);
      if (value) draws.fillText(written < 0.5 ? "·" : written.toFixed(0), gutter + (j + 0.5) * size, gutter + (i + 0.5) * size);
    }));
  }

  function label(draws, name, i) {
    const middle = gutter + (i + 0.5) * size;
    const fitted = fit(draws, name, gutter - 6);
    draws.textAlign = "right";
    draws.fillText(fitted, gutter - 5, middle);
    draws.save();
    draws.translate(middle, gutter - 5);
    draws.rotate(-Math.PI / 2);
    draws.textAlign = "left";
    draws.fillText(fitted, 0, 0);
    draws.restore();
  }

  canvas.addEventListener("pointermove", (event) => {
    const corner = canvas.getBoundingClientRect();
    const [j, i] = [event.clientX - corner.left, event.clientY - corner.top].map(
      (place) => Math.floor((place - gutter) / size));
    const inside = i >= 0 && j >= 0 && i < names.length && j < names.length;
    said.textContent = inside
      ? say(words.cell, names[i], names[j], matrix[i][j], 100 * share(i, j))
      : words.matrix_help;
  });
  return { box: holder, draw, worst: worst(names, matrix, sums, unit) };
}

/** The longest beginning of `name` that is at most `width` wide. */
function fit(draws, name, width) {
  for (let length = name.length; length > 0; length--) {
    const shown = length < name.length ? `${name.slice(0, length)}…` : name;
    if (draws.measureText(shown).width <= width) return shown;
  }
  return "";
}

/** The pairs (true, given) that are wrong most often, as a table. */
function worst(names, matrix, sums, unit) {
  const pairs = matrix.flatMap((row, i) => row.map((value, j) => [i, j, value]));
  const wrong = pairs.filter(([i, j, value]) => i !== j && value > 0)
    .sort((a, b) => b[2] - a[2]).slice(0, 20)
    .map(([i, j, value]) => [names[i], names[j], value, (100 * value) / sums[i]]);
  const columns = [
    { title: words.truth }, { title: words.given }, { title: unit, number: true },
    { title: words.share_of_class, number: true, most: 100, digits: 1 },
  ];
  return make("div", {}, make("h4", {}, words.worst_pairs),
    table(columns, wrong, { label: words.worst_pairs }));
}

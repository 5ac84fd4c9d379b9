// Tables that sort by a click on a title and can be filtered by words.

/**
 * columns: [{title, number, most, digits}]; most: what fills a whole bar behind the number; digits:
 * after the dot.
 * rows: arrays of cells: a text, a number, null, or {text, value, node} (value: what is sorted by).
 * options: label, for those who cannot see it; filter (a search box), what stands beside that, and
 * onfilter(places of the rows that are left).
 */
function table(columns, rows, options = {}) {
  const kept = rows.map((row) => row.map((cell, place) => whole(cell, columns[place])));
  let left = kept.map((_, index) => index);
  let order = null; // [column, direction]

  const body = make("tbody");
  const count = make("span", { class: "quiet", role: "status" });
  const titles = columns.map((column, place) =>
    make("th", { scope: "col", class: column.number && "number" },
      make("button", { type: "button", onclick: () => sort(place) }, column.title)));

  function show() {
    const shown = [...left];
    if (order) shown.sort((a, b) => compared(kept[a][order[0]], kept[b][order[0]], order[1]));
    body.replaceChildren(...shown.map((index) =>
      make("tr", {}, kept[index].map((cell, place) => drawn(cell, columns[place])))));
    titles.forEach((title, place) => {
      const way = order && order[0] === place ? order[1] : 0;
      title.setAttribute("aria-sort", way ? (way > 0 ? "ascending" : "descending") : "none");
    });
  }

  function sort(place) {
    const first = columns[place].number ? -1 : 1; // numbers: the largest on top
    order = [place, order && order[0] === place ? -order[1] : first];
    show();
  }

  function filter(wanted) {
    const parts = wanted.toLowerCase().split(/\s+/).filter(Boolean);
    const holds = (row) => parts.every((part) => row.some((cell) => cell.lower.includes(part)));
    left = kept.map((_, index) => index).filter((index) => holds(kept[index]));
    count.textContent = parts.length ? say(words.shown_of, left.length, kept.length) : "";
    show();
    if (options.onfilter) options.onfilter(left);
  }

  show();
  const search = options.filter && make("p", { class: "choices" },
    make("label", {}, words.filter,
      make("input", { type: "search", oninput: (event) => filter(event.target.value) })),
    count, options.beside);
  const grid = make("table", {}, make("thead", {}, make("tr", {}, titles)), body);
  const scroll = { class: "scroll", tabindex: 0, role: "region", "aria-label": options.label };
  return make("div", {}, search, make("div", scroll, grid));
}

function whole(cell, { digits }) {
  const made = cell && typeof cell === "object" ? { ...cell } : { value: cell };
  const fixed = digits !== undefined && typeof made.value === "number";
  made.text = made.text ?? (fixed ? made.value.toFixed(digits) : text(made.value));
  if (made.value === undefined) made.value = made.text;
  made.lower = made.text.toLowerCase();
  return made;
}

function drawn(cell, column) {
  const part = column.most && typeof cell.value === "number" ? (100 * cell.value) / column.most : null;
  const kind = [column.number && "number", part !== null && "bar"].filter(Boolean).join(" ");
  const style = part === null ? null : `--part: ${Math.max(0, Math.min(100, part)).toFixed(1)}%`;
  return make("td", { class: kind || null, style }, cell.node ? cell.node() : cell.text);
}

/** Numbers by size, texts as people sort (r2 before r10), nothing at the end either way. */
function compared(one, other, way) {
  if (one.value == null || other.value == null) return (one.value == null) - (other.value == null);
  if (typeof one.value === "number" && typeof other.value === "number") {
    return way * (one.value - other.value);
  }
  return way * String(one.value).localeCompare(String(other.value), page.lang, { numeric: true });
}

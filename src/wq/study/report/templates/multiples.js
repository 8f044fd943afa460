// Small multiples, each only where the points have what it shows.

const KEYS = ["format", "granularity", "group", "activation", "kv_cache", "smoothquant", "roles"];
const keyOf = (row, ...without) => JSON.stringify(KEYS.filter((key) => !without.includes(key)).map((key) => plain(row[key])));

const weightsOf = (row) => plain(row.weights) || [plain(row.format), plain(row.group) && `g${plain(row.group)}`].filter(Boolean).join("-");

function multiples(rows, look, onOpen) {
  const known = rows.filter((row) => isNumber(row.wer));
  return [
    groupPanels(known, look, onOpen),
    matrix("Activation precision by weight precision", "Lowest WER, %, of the points of each pair.", known, weightsOf, (row) => plain(row.activation) || "none", onOpen),
    matrix("SmoothQuant", "WER, %, of points that differ in nothing else.", paired(known, "smoothquant"), without("smoothquant"), (row) => plain(row.smoothquant) || "none", onOpen),
    matrix("KV cache", "WER, %, of points that differ in nothing else.", paired(known, "kv_cache"), without("kv_cache"), (row) => plain(row.kv_cache) || "none", onOpen),
  ].filter(Boolean);
}

// The rows for which there is another that differs in this column alone.
function paired(rows, column) {
  const values = new Map();
  for (const row of rows) {
    const key = keyOf(row, column);
    values.set(key, (values.get(key) || new Set()).add(plain(row[column]) || "none"));
  }
  return rows.filter((row) => values.get(keyOf(row, column)).size > 1);
}

// A name for what rows share that differ in a column: their other settings.
const OTHERS = { activation: "activations ", kv_cache: "KV cache ", smoothquant: "SmoothQuant ", roles: "" };
const without = (column) => (row) => {
  const others = Object.entries(OTHERS).filter(([key]) => key !== column && !["", "none", "encoder+decoder"].includes(plain(row[key])));
  return [weightsOf(row), ...others.map(([key, title]) => title + plain(row[key]))].join(", ");
};

// How many of the other settings a point leaves alone.
const unquantized = (row) => ["activation", "kv_cache", "smoothquant"].filter((key) => ["", "none"].includes(plain(row[key]))).length;

const PANEL = { width: 210, height: 150, left: 34, right: 10, top: 22, bottom: 30 };

function groupPanels(rows, look, onOpen) {
  const grouped = rows.filter((row) => row.granularity === "group" && isNumber(row.group));
  const kinds = distinct(grouped.map((row) => keyOf(row, "format", "group")));
  const usual = kinds.map((kind) => grouped.filter((row) => keyOf(row, "format", "group") === kind)).sort((a, b) => b.length - a.length || unquantized(b[0]) - unquantized(a[0]))[0] || [];
  const formats = distinct(usual.map((row) => row.format)).filter((format) => distinct(usual.filter((row) => row.format === format).map((row) => row.group)).length > 1);
  if (!formats.length) return null;
  const drawnRows = usual.filter((row) => formats.includes(row.format));
  const reference = rows.find((row) => row.is_reference);
  const groups = distinct(drawnRows.map((row) => row.group)).sort((a, b) => a - b);
  const rates = [...drawnRows, ...(reference ? [reference] : [])].map((row) => 100 * row.wer);
  const y = rateAxis(rates);
  const up = (value) => PANEL.top + (PANEL.height - PANEL.top - PANEL.bottom) * (1 - y.place(value));
  const across = (group) => PANEL.left + 12 + ((PANEL.width - PANEL.left - PANEL.right - 24) * groups.indexOf(group)) / Math.max(1, groups.length - 1);
  const ticks = y.ticks.filter((_, n) => n % Math.ceil(y.ticks.length / 4) === 0);
  const panels = formats.sort().map((format) => {
    const points = drawnRows.filter((row) => row.format === format).sort((a, b) => a.group - b.group);
    const { colour } = look(points[0]);
    return drawn("svg", { viewBox: `0 0 ${PANEL.width} ${PANEL.height}`, class: "panel", role: "img", "aria-label": `${format}: WER by group size` },
      drawn("g", { class: "axes" },
        drawn("text", { x: PANEL.left, y: 13, class: "name" }, shortened(plain(format), 24)),
        ...ticks.flatMap((tick) => [
          drawn("line", { x1: PANEL.left, x2: PANEL.width - PANEL.right, y1: up(tick), y2: up(tick) }),
          drawn("text", { x: PANEL.left - 5, y: up(tick) + 4, "text-anchor": "end" }, tickText(tick))]),
        ...groups.map((group) => drawn("text", { x: across(group), y: PANEL.height - 12, "text-anchor": "middle" }, String(group)))),
      drawn("g", { class: "references" }, ...(reference ? [drawn("line", { x1: PANEL.left, x2: PANEL.width - PANEL.right, y1: up(100 * reference.wer), y2: up(100 * reference.wer) })] : [])),
      drawn("path", { class: "trend", style: `color:${colour}`, d: points.map((row, n) => `${n ? "L" : "M"}${across(row.group)},${up(100 * row.wer)}`).join("") }),
      ...points.map((row) => drawn("circle", { cx: across(row.group), cy: up(100 * row.wer), r: 4.5, class: "dot", style: `color:${colour}`, onclick: () => onOpen(row) },
        drawn("title", {}, summary(row)))));
  });
  return element("figure", { class: "multiple wide" }, element("h3", {}, "Group size"),
    element("p", { class: "note" }, "WER, %, by how many weights share a scale; dashes: the reference. One scale for all panels."), element("div", { class: "panels" }, ...panels));
}

const MOST = 40; // lines of a matrix

// Values of WER by two settings; the tint is darker where it is higher.
function matrix(title, note, rows, down, across, onOpen) {
  const quantized = rows.filter((row) => !row.is_reference);
  const columns = distinct(quantized.map(across)).sort((a, b) => (b === "none") - (a === "none") || a.localeCompare(b, "en", { numeric: true }));
  if (columns.length < 2) return null;
  const best = new Map();
  for (const row of quantized) {
    const key = JSON.stringify([down(row), across(row)]);
    if (!best.has(key) || row.wer < best.get(key).wer) best.set(key, row);
  }
  const cell = (line, column) => best.get(JSON.stringify([line, column]));
  const lowest = (line) => Math.min(...columns.map((column) => cell(line, column)?.wer ?? Infinity));
  const lines = distinct(quantized.map(down)).sort((a, b) => lowest(a) - lowest(b));
  const rates = [...best.values()].map((row) => Math.log1p(100 * row.wer));
  const [low, high] = [Math.min(...rates), Math.max(...rates)];
  const tint = (row) => `--tint:${Math.round(4 + (46 * (Math.log1p(100 * row.wer) - low)) / (high - low || 1))}%`;
  const body = lines.slice(0, MOST).map((line) => element("tr", {}, element("th", { scope: "row" }, abridged(line || "all", 48)),
    ...columns.map((column) => {
      const row = cell(line, column);
      return row ? element("td", { style: tint(row), title: summary(row) }, element("button", { type: "button", onclick: () => onOpen(row) }, percent(row.wer))) : element("td", { class: "none" }, "");
    })));
  const more = lines.length > MOST ? ` The best ${MOST} of ${lines.length} lines.` : "";
  return element("figure", { class: "multiple" }, element("h3", {}, title), element("p", { class: "note" }, note + more),
    element("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": title }, element("table", { class: "matrix" },
      element("thead", {}, element("tr", {}, element("td"), ...columns.map((column) => element("th", { scope: "col" }, shortened(column, 32))))),
      element("tbody", {}, ...body))));
}

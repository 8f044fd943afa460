// Puts a chart, a table and the small multiples into every scene, and a chart of several models above them.

const report = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");

for (const scene of report.scenes)
  scene.rows = scene.rows.map((values, n) => {
    const row = { ...scene.shared };
    scene.columns.forEach((column, m) => { row[column] = values[m]; });
    row.standings = {};
    for (const [column, standings] of Object.entries(scene.standings)) row.standings[column] = standings[n];
    row.worst = scene.worst[n];
    row.front = row.standings[scene.size_column];
    return row;
  });

// One colour for every format and one shape for every activation scheme, the same on the whole page.
const everyRow = report.scenes.flatMap((scene) => scene.rows);
const isCast = (row) => row.granularity === "none";
const formats = distinct(everyRow.filter((row) => !isCast(row)).map((row) => plain(row.format))).sort();
const activations = distinct(everyRow.map((row) => plain(row.activation) || "none")).sort((a, b) => (b === "none") - (a === "none") || a.localeCompare(b));
const COLOURS = 10; // of the style sheet
const look = (row) => ({
  colour: isCast(row) ? "var(--cast)" : `var(--colour-${formats.indexOf(plain(row.format)) % COLOURS})`,
  shape: activations.indexOf(plain(row.activation) || "none"),
});

function showTip(row, [x, y]) {
  tip.textContent = summary(row);
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 14 + tip.offsetHeight > innerHeight ? Math.max(4, y - tip.offsetHeight - 10) : y + 14}px`;
}

function select(title, options, change) {
  const choices = options.map((option, n) => element("option", { value: n }, option.title));
  return element("label", {}, `${title} `, element("select", { onchange: (event) => change(options[event.target.value]) }, ...choices));
}

const swatch = (shape, colour) => drawn("svg", { viewBox: "-8 -8 16 16", class: "swatch", "aria-hidden": "true" }, drawn("path", { d: SHAPES[shape % SHAPES.length], style: `color:${colour}` }));

// A switch for each format and each activation scheme among the rows.
function legend(rows, hidden, change) {
  const items = [
    ...distinct(rows.map((row) => plain(row.format))).sort().map((format) => ["format", format, 0, look(rows.find((row) => plain(row.format) === format)).colour]),
    ...activations.filter((activation) => rows.some((row) => (plain(row.activation) || "none") === activation)).map((activation) => ["activation", activation, activations.indexOf(activation), "var(--muted)"]),
  ];
  const several = (kind) => items.filter(([other]) => other === kind).length > 1;
  const entries = items.filter(([kind]) => several(kind)).map(([kind, value, shape, colour]) => {
    const button = element("button", { type: "button", "aria-pressed": "true", onclick: () => {
      const key = `${kind} ${value}`;
      hidden.has(key) ? hidden.delete(key) : hidden.add(key);
      button.setAttribute("aria-pressed", String(!hidden.has(key)));
      change();
    } }, swatch(shape, colour), kind === "activation" ? `activations ${shortened(value, 30)}` : shortened(value || "unknown", 30));
    return element("li", {}, button);
  });
  return element("ul", { class: "legend", "aria-label": "Formats and activation schemes: press to hide or show" }, ...entries);
}

// What the marks mean, those that there are: [standing or kind, words, how it is drawn].
const KEY = [
  ["on", "on the front"], ["equivalent", "not inferior either, with more bytes"], ["undecided", "undecided: more speech would tell"],
  ["off", "off: one of no more bytes is better, or the reference"], ["broken", "broken: hardly a word right"],
];
function key(rows, isAlone) {
  const marks = KEY.filter(([standing]) => rows.some((row) => row.front === standing))
    .map(([standing, words]) => [drawn("g", { class: "marks" }, drawn("path", { d: SHAPES[0], class: standing })), words]);
  if (rows.some((row) => row.is_recommended)) marks.push([drawn("circle", { class: "ring", r: 6 }), "recommended"]);
  if (isAlone && rows.some((row) => row.is_reference)) marks.push([drawn("path", { class: "dashes", d: "M-9,0H9" }), "the reference"]);
  marks.push([drawn("path", { class: "steps", d: "M-9,-5H0V4H9" }), "front of the estimates"]);
  return element("ul", { class: "key", "aria-label": "What the marks mean" },
    ...marks.map(([mark, words]) => element("li", {}, drawn("svg", { viewBox: "-10 -8 20 16", "aria-hidden": "true" }, mark), words)));
}

// Chart, legend and axis switches in a section; gives the chart and what says which rows are shown.
function chartIn(section, groups, first, onPoint, changed) {
  const rows = groups.flatMap((group) => group.rows);
  const hidden = new Set();
  let matches = () => true;
  const sizes = sizesWith(rows).sort((a, b) => (b.column === first) - (a.column === first));
  const rates = ratesWith(rows);
  const isShown = (row) => !hidden.has(`format ${plain(row.format)}`) && !hidden.has(`activation ${plain(row.activation) || "none"}`) && matches(row);
  const view = { size: sizes[0] || SIZES[0], rate: rates[0] || RATES[0], isShown, look };
  const figure = section.querySelector("figure");
  const chart = new Chart(figure, groups, view, open, onPoint);
  const update = () => { chart.render(); changed(); };
  section.querySelector(".controls").append(
    select("Size", sizes, (size) => { view.size = size; chart.draw(); }),
    select("Error", rates, (rate) => { view.rate = rate; chart.draw(); }));
  figure.before(legend(rows, hidden, update));
  figure.after(key(rows, groups.length === 1));
  return { chart, isShown, match: (test) => { matches = test; update(); } };
}

function open(row) {
  tip.hidden = true;
  showDetails(row);
}

function scene(section, { rows, size_column: first }) {
  let table = null;
  const onPoint = (row, chart) => {
    table?.light(row);
    if (row) showTip(row, chart.spot);
    else tip.hidden = true;
  };
  const count = element("output", {});
  const changed = () => {
    table?.filter(drawing.isShown);
    const shown = rows.filter(drawing.isShown).length;
    count.textContent = shown === rows.length ? `${rows.length} points` : `${shown} of ${rows.length} points`;
  };
  const drawing = chartIn(section, [{ name: "", rows }], first, onPoint, changed);
  table = new Table(section.querySelector(".scroll"), rows, open, (row) => drawing.chart.highlight(row));
  const typed = element("input", { type: "search", placeholder: "int4 group=32 wer<0.05", "aria-label": "Filter the points: words, or comparisons such as wer<0.05", oninput: () => drawing.match(matcher(typed.value)) });
  const all = element("input", { type: "checkbox", onchange: () => table.few(!all.checked) });
  section.querySelector(".filter").append(element("label", {}, "Filter ", typed), element("label", {}, all, " all columns"), count);
  changed();
  section.querySelector(".multiples").append(...multiples(rows, look, open));
}

for (const section of document.querySelectorAll(".together")) {
  const groups = report.together[Number(section.dataset.together)].map((n) => ({ name: plain(report.scenes[n].name), rows: report.scenes[n].rows }));
  chartIn(section, groups, "model_bytes", (row, chart) => (row ? showTip(row, chart.spot) : (tip.hidden = true)), () => {});
}
for (const section of document.querySelectorAll(".scene")) scene(section, report.scenes[Number(section.dataset.scene)]);

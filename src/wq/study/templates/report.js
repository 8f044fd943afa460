"use strict";

const scenes = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const details = document.getElementById("details");

const percent = (value) => (typeof value === "number" ? (100 * value).toFixed(2) : "-");
const signed = (value) => (value > 0 ? "+" : "") + percent(value);
const interval = (row, column, write) => `[${write(row[column + "_ci_low"])}, ${write(row[column + "_ci_high"])}]`;
const nameOf = (row) => row.point || row.fingerprint || "unnamed";

// What hovering over a point says; all text goes in as text, never as HTML.
function summary(row) {
  const lines = [nameOf(row), `WER ${percent(row.wer)} % ${interval(row, "wer", percent)}`];
  if (typeof row.wer_delta === "number")
    lines.push(`change ${signed(row.wer_delta)} ${interval(row, "wer_delta", signed)}`);
  if (typeof row.linear_bytes === "number") lines.push(`linear layers ${(row.linear_bytes / 1e6).toFixed(2)} MB`);
  if (typeof row.model_bytes === "number") lines.push(`whole model ${(row.model_bytes / 1e6).toFixed(2)} MB`);
  if (typeof row.bits_per_weight === "number") lines.push(`${row.bits_per_weight.toFixed(2)} bits per weight`);
  return lines.join("\n");
}

function showTip(row, x, y) {
  tip.textContent = summary(row);
  tip.hidden = false;
  tip.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 14 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 14}px`;
}

function showDetails(row) {
  document.getElementById("details-name").textContent = nameOf(row);
  document.getElementById("details-command").textContent = row.command || "not recorded";
  document.getElementById("details-values").replaceChildren(
    ...Object.entries(row).filter(([, value]) => value !== null).flatMap(([column, value]) => {
      const term = document.createElement("dt"), text = document.createElement("dd");
      term.textContent = column;
      text.textContent = typeof value === "object" ? JSON.stringify(value) : String(value);
      return [term, text];
    }),
  );
  tip.hidden = true;
  details.showModal();
}

// Numbers by value and before text, whatever is missing last in either direction.
function compare(a, b) {
  const x = Number(a), y = Number(b);
  if (!Number.isNaN(x) && !Number.isNaN(y)) return x - y;
  return a.localeCompare(b, undefined, { numeric: true });
}

function sortBy(table, header) {
  const column = header.cellIndex;
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of header.parentNode.cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const keyed = [...table.tBodies[0].rows].map((row) => [row.cells[column].dataset.key, row]);
  keyed.sort(([a], [b]) => (a === "") - (b === "") || (descending ? -1 : 1) * compare(a, b));
  table.tBodies[0].append(...keyed.map(([, row]) => row));
}

for (const section of document.querySelectorAll(".scene")) {
  const { rows, drawn } = scenes[Number(section.dataset.scene)];
  const table = section.querySelector("table");
  const lines = [...table.tBodies[0].rows]; // as written, so by the number of their row
  const points = [...section.querySelectorAll(".points_marks path")];

  const light = (n, on) => {
    lines[n].classList.toggle("lit", on);
    points[drawn.indexOf(n)]?.classList.toggle("lit", on);
  };

  points.forEach((point, m) => {
    const n = drawn[m];
    point.setAttribute("tabindex", "0");
    point.setAttribute("role", "button");
    point.addEventListener("mousemove", (event) => showTip(rows[n], event.clientX, event.clientY));
    point.addEventListener("focus", () => {
      const box = point.getBoundingClientRect();
      showTip(rows[n], box.right, box.bottom);
    });
    for (const type of ["mouseenter", "focus"]) point.addEventListener(type, () => light(n, true));
    for (const type of ["mouseleave", "blur"])
      point.addEventListener(type, () => { light(n, false); tip.hidden = true; });
    point.addEventListener("click", () => showDetails(rows[n]));
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") { event.preventDefault(); showDetails(rows[n]); }
    });
  });
  lines.forEach((line, n) => {
    line.addEventListener("mouseenter", () => light(n, true));
    line.addEventListener("mouseleave", () => light(n, false));
    line.querySelector("button").addEventListener("click", () => showDetails(rows[n]));
  });
  for (const header of table.tHead.rows[0].cells)
    header.querySelector("button").addEventListener("click", () => sortBy(table, header));
}

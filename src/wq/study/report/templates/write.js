"use strict";

// How numbers are written, and how elements are made. All text goes in as text, never as HTML.

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const decimal = (value, digits) =>
  isNumber(value)
    ? (Number(value.toFixed(digits)) + 0).toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
    : "-";
const percent = (value, digits = 2) => decimal(100 * value, digits);
const signed = (value) => (isNumber(value) && Number((100 * value).toFixed(2)) > 0 ? "+" : "") + percent(value);
// Three significant digits of a thousand times as much: divergences span orders of magnitude.
const thousandths = (value) => (value ? decimal(1000 * value, Math.max(0, 2 - Math.floor(Math.log10(1000 * Math.abs(value))))) : decimal(value, 0));
const megabytes = (value) => decimal(value / 1e6, 2);
const interval = (row, column, write) =>
  isNumber(row[`${column}_ci_low`]) && isNumber(row[`${column}_ci_high`])
    ? `[${write(row[`${column}_ci_low`])}, ${write(row[`${column}_ci_high`])}]`
    : "";
const plain = (value) => (value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value));
const nameOf = (row) => String(row.point || row.fingerprint || "unnamed").split(/\s+/).join(" ");
const shortened = (text, width) => (text.length <= width ? text : `${text.slice(0, width - 1)}…`);
// Its beginning and its end: names of points differ in either.
const abridged = (text, width) =>
  text.length <= width ? text : `${text.slice(0, Math.ceil((width - 1) / 2))}…${text.slice(text.length - Math.floor((width - 1) / 2))}`;
const distinct = (values) => [...new Set(values)];

// element("a", { class: "b", onclick }, "text", another)
function element(tag, attributes = {}, ...children) {
  return furnished(document.createElement(tag), attributes, children);
}

function drawn(tag, attributes = {}, ...children) {
  return furnished(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function furnished(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// The settings that tell points apart, in the words of people.
const SETTINGS = {
  model: "Model", format: "Format", granularity: "Scale per", group: "Group", algorithm: "Algorithm", activation: "Activations", kv_cache: "KV cache",
  smoothquant: "SmoothQuant", roles: "Layers",
};
const STANDINGS = {
  on: "on the front", equivalent: "not inferior, with more bytes than needed", undecided: "undecided", off: "off the front",
  broken: "broken: hardly a word right", unknown: "unknown",
};

// Where a point stands, with what the test set leaves open.
function standing(row) {
  const loops = isNumber(row.repetition_loops) && isNumber(row.utterances) ? `, ${row.repetition_loops} of ${row.utterances} transcripts end in a loop` : "";
  if (row.front === "broken") return STANDINGS.broken + loops;
  const open = row.front === "undecided" && isNumber(row.wer_delta_at_most);
  return STANDINGS[row.front] + (open ? `: at most ${percent(row.wer_delta_at_most)} points worse than the reference` : "");
}

// What hovering over a point says.
function summary(row) {
  const lines = [nameOf(row), `WER ${percent(row.wer)} % ${interval(row, "wer", percent)}`];
  if (isNumber(row.wer_delta)) {
    const p = isNumber(row.wer_delta_p_holm) ? `, p ${decimal(row.wer_delta_p_holm, 4)} (Holm)` : "";
    lines.push(`change ${signed(row.wer_delta)} ${interval(row, "wer_delta", signed)}${p}`);
  }
  if (isNumber(row.kl)) lines.push(`kl ${thousandths(row.kl)} thousandths of a nat per token`);
  if (isNumber(row.cer)) lines.push(`CER ${percent(row.cer)} %`);
  for (const { column, title, unit } of SIZES)
    if (isNumber(row[column])) lines.push(`${title}: ${unit === 1 ? decimal(row[column], 3) : megabytes(row[column])}`);
  const settings = Object.entries(SETTINGS).filter(([column]) => !["", "none"].includes(plain(row[column])));
  lines.push(...settings.map(([column, title]) => `${title}: ${shortened(plain(row[column]), 60)}`));
  lines.push(row.is_recommended ? "recommended" : standing(row));
  return lines.join("\n");
}

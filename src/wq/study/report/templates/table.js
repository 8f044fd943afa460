// All points of a scene: sorted by a click on a column's head, filtered by what is typed above.

const COLUMNS = [
  { title: "Point", column: "point", meaning: "its name; ● on the front, ◐ not inferior, ○ undecided, × broken; the recommended one says so", read: nameOf, text: nameOf },
  rate("wer", "WER %", "word error rate, pooled over the test set"),
  { ...ends("wer", "bootstrap over utterances", percent), minor: true },
  { title: "Change", column: "wer_delta", meaning: "WER minus the reference's, in percentage points", read: (row) => row.wer_delta ?? null,
    text: (row) => (row.is_reference ? "reference" : signed(row.wer_delta)) },
  ends("wer_delta", "of the change: paired bootstrap over utterances", signed),
  { ...number("kl", "kl", "divergence from the reference, in thousandths of a nat per token of its transcripts", 3), text: (row) => thousandths(row.kl) },
  { ...ends("kl", "of kl: bootstrap over utterances", thousandths), minor: true },
  number("wer_delta_mapsswe_p", "p MAPSSWE", "the matched-pairs test of NIST over segments; not corrected", 4, true),
  size("linear_bytes", "Linear MB", "linear layers with their scales, 10^6 bytes"),
  { title: "Front", column: "front", meaning: "on: the smallest that is not inferior to the reference, or better than every other of no more bytes by the measure that the page names; equivalent: not inferior either, with more bytes; off: worse than one of no more bytes, or than the reference; broken: hardly a word right", read: (row) => row.front, text: (row) => row.front, setting: true },
  ...Object.entries(SETTINGS).map(([column, title]) => ({ title, column, setting: true, read: (row) => row[column] ?? null, text: (row) => plain(row[column]) })),
  number("bits_per_weight", "Bits/weight", "of the linear layers, scales included", 3),
  { ...rate("wer_delta_at_most", "At most", "how much worse than the reference it is at most, in percentage points: holds for all points together, and is what the margin is compared with", true), text: (row) => signed(row.wer_delta_at_most) },
  number("wer_delta_p", "p", "two-sided, that nothing changed; not corrected for the number of points", 4, true),
  number("wer_delta_p_holm", "p Holm", "the same, corrected for the number of points", 4, true),
  size("model_bytes", "Model MB", "the whole checkpoint, 10^6 bytes"),
  number("compression_ratio", "Ratio", "the whole checkpoint at fp16 over this one", 2),
  size("memory_bytes", "Memory MB", "by formula: weights, KV cache and activations"),
  size("kv_cache_bytes", "KV MB", "of self- and cross-attention", true),
  size("moved_bytes", "Moved MB", "estimated bytes that an utterance moves", true),
  { ...number("bit_operations", "Tbitops", "multiply-adds of an utterance times the bits of both operands, 10^12", 2, true), text: (row) => decimal(row.bit_operations / 1e12, 2) },
  rate("wer_capped", "Capped %", "WER with at most as many errors of an utterance as it has words, so that a loop counts as one lost utterance", true),
  rate("top1_agreement", "Top 1 %", "tokens of the reference's transcripts that are the likeliest here too", true),
  number("nll", "nll", "cross entropy of the words that were said, nats per token", 4, true),
  number("nll_delta", "nll change", "nll minus the reference's", 4, true),
  rate("cer", "CER %", "character error rate", true),
  rate("substitution_rate", "Sub %", "substituted words per reference word", true),
  rate("deletion_rate", "Del %", "deleted words per reference word", true),
  rate("insertion_rate", "Ins %", "inserted words per reference word", true),
  number("hallucinated_words", "Halluc.", "words inserted in runs", 0, true),
  rate("unchanged", "Same %", "transcripts identical to the reference's", true, 1),
  rate("no_worse", "No worse %", "utterances with no more errors than the reference makes", true, 1),
  number("repetition_loops", "Loops", "transcripts that end in one phrase over and over", 0, true),
  number("empty_hypotheses", "Empty", "transcripts without a word", 0, true),
  size("peak_memory_bytes", "Peak MB", "measured at full precision: quantization is simulated", true),
  number("rtfx", "RTFx", "audio seconds per second, not those of a quantized kernel", 1, true),
];

function number(column, title, meaning, digits, minor = false) {
  return { title, column, meaning, minor, read: (row) => (isNumber(row[column]) ? row[column] : null), text: (row) => decimal(row[column], digits) };
}
function rate(column, title, meaning, minor = false, digits = 2) {
  return { ...number(column, title, meaning, digits, minor), text: (row) => percent(row[column], digits) };
}
function size(column, title, meaning, minor = false) {
  return { ...number(column, title, meaning, 2, minor), text: (row) => megabytes(row[column]) };
}
function ends(column, meaning, write) {
  return { ...number(`${column}_ci_low`, "95 % interval", meaning, 2), text: (row) => interval(row, column, write) };
}

// Numbers by value and before text; whatever is missing last in either direction.
function compare(a, b, direction) {
  const missing = (value) => value === null || value === "";
  if (missing(a) || missing(b)) return missing(a) - missing(b);
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  if (typeof a !== typeof b && (typeof a === "number" || typeof b === "number")) return direction * (typeof a === "number" ? -1 : 1);
  return direction * String(a).localeCompare(String(b), "en", { numeric: true });
}

// Shown are columns in which the points say anything; of settings, those in which they differ.
function columnsFor(rows) {
  const quantized = rows.filter((row) => !row.is_reference);
  return COLUMNS.filter((column) => {
    if (column.column === "point") return true;
    if (column.setting) return distinct(quantized.map(column.text)).length > 1 || ["format", "group"].includes(column.column);
    return rows.some((row) => column.read(row) !== null);
  });
}

class Table {
  constructor(place, rows, onOpen, onPoint) {
    Object.assign(this, { rows, columns: columnsFor(rows), order: null });
    const heads = this.columns.map((column) =>
      element("th", { scope: "col", class: classes(column), title: column.meaning },
        element("button", { type: "button", onclick: () => this.sort(column) }, column.title)));
    this.heads = new Map(this.columns.map((column, n) => [column, heads[n]]));
    this.lines = new Map(rows.map((row) => [row, this.line(row, onOpen, onPoint)]));
    this.body = element("tbody", {}, ...this.lines.values());
    place.append(this.table = element("table", { class: "few" }, element("thead", {}, element("tr", {}, ...heads)), this.body));
  }

  line(row, onOpen, onPoint) {
    const mark = { on: "●", equivalent: "◐", undecided: "○", broken: "×" }[row.front] || "";
    const name = element("th", { scope: "row" }, element("button", { type: "button", onclick: () => onOpen(row) }, element("bdi", {}, nameOf(row))));
    if (mark) name.append(" ", element("i", { title: STANDINGS[row.front] }, mark));
    if (row.is_recommended) name.append(" ", element("b", {}, "recommended"));
    const cells = this.columns.slice(1).map((column) => element("td", { class: classes(column) }, column.text(row)));
    return element("tr", { class: mark === "●" ? "front" : null, onclick: (event) => event.target.closest("button") || String(getSelection()) || onOpen(row), onpointerenter: () => onPoint(row), onpointerleave: () => onPoint(null) }, name, ...cells);
  }

  // Without the columns that few read.
  few(isSo) { this.table.classList.toggle("few", isSo); }

  sort(column) {
    const head = this.heads.get(column);
    const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    for (const other of this.heads.values()) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
    const keyed = this.rows.map((row) => [column.read(row), row]);
    keyed.sort(([a], [b]) => compare(a, b, direction));
    this.body.append(...keyed.map(([, row]) => this.lines.get(row)));
  }

  filter(isShown) {
    for (const [row, line] of this.lines) line.hidden = !isShown(row);
  }

  light(row) {
    this.lit?.classList.remove("lit");
    this.lit = row && this.lines.get(row);
    this.lit?.classList.add("lit");
  }
}

const classes = (column) => [column.minor && "minor", column.setting && "setting"].filter(Boolean).join(" ") || null;

// What is typed: words that a point's name or settings have, and comparisons such as wer<0.05 or group=32.
function matcher(typed) {
  const tests = typed.trim().split(/\s+/).filter(Boolean).map((word) => {
    const [, column, sign, value] = word.match(/^(\w+)(<=|>=|<|>|=)(.+)$/) || [];
    if (!column) return (row) => haystack(row).includes(word.toLowerCase());
    const than = Number(value);
    const holds = {
      "<": (left) => isNumber(left) && left < than, "<=": (left) => isNumber(left) && left <= than,
      ">": (left) => isNumber(left) && left > than, ">=": (left) => isNumber(left) && left >= than,
      "=": (left) => plain(left) === value,
    }[sign];
    return (row) => holds(row[column]);
  });
  return (row) => tests.every((test) => test(row));
}

const haystack = (row) => [nameOf(row), row.front, ...Object.keys(SETTINGS).map((column) => plain(row[column]))].join(" ").toLowerCase();

// One point: its settings, the command that makes it again, its bytes by role, its worst utterances.

const details = document.getElementById("details");

function showDetails(row, scene) {
  document.getElementById("details-name").textContent = nameOf(row);
  document.getElementById("details-body").replaceChildren(
    element("p", { class: "note" }, "The command that makes this point again:"),
    element("pre", { id: "details-command" }, plain(row.command) || "not recorded"),
    ...exporting(row),
    element("div", { class: "halves" }, facts("Configuration", settingsOf(row)), facts("Results", resultsOf(row))),
    ...roles(row), ...utterances(row, scene), everything(row),
  );
  details.showModal();
  details.scrollTop = 0;
}

// The command that writes its packed checkpoint, where it rounds weights.
function exporting(row) {
  const settings = plain(row.command).match(/^python -m wq\.main (.+)$/)?.[1];
  if (!settings || row.is_reference || plain(row.format) === "fp32") return [];
  return [element("p", { class: "note" }, "And the one that writes its packed checkpoint:"), element("pre", { id: "details-export" }, `wq export ${settings} out=DIR`)];
}

function facts(title, pairs) {
  return element("section", {}, element("h3", {}, title),
    element("dl", { class: "values" }, ...pairs.flatMap(([term, text]) => [element("dt", {}, term), element("dd", {}, element("bdi", {}, text))])));
}

function settingsOf(row) {
  const more = { dataset: "Test set", split: "Split", limit: "Utterances at most" };
  return Object.entries({ ...SETTINGS, ...more }).filter(([column]) => plain(row[column]) !== "").map(([column, title]) => [title, plain(row[column])]);
}

function resultsOf(row) {
  const shown = COLUMNS.filter((column) => !column.setting && column.column !== "point" && !column.column.endsWith("_ci_low") && column.read(row) !== null);
  const pairs = shown.map((column) => {
    const around = ["wer", "wer_delta"].includes(column.column) ? interval(row, column.column, column.column === "wer" ? percent : signed) : "";
    return [column.title, `${column.text(row)} ${around}`.trim()];
  });
  return [["Pareto front", row.is_recommended ? "recommended" : standing(row)], ...pairs];
}

function roles(row) {
  const entries = Object.entries(row.role_bytes || {}).filter(([, bytes]) => isNumber(bytes));
  if (!entries.length) return [];
  const most = Math.max(...entries.map(([, bytes]) => bytes));
  const lines = entries.map(([role, bytes]) =>
    element("tr", {}, element("th", { scope: "row" }, role), element("td", {}, megabytes(bytes)),
      element("td", { class: "bar" }, element("span", { style: `width:${(100 * bytes) / most}%` }))));
  return [element("section", {}, element("h3", {}, "Megabytes by role"), element("table", { class: "roles" }, element("tbody", {}, ...lines)))];
}

function utterances(row, scene) {
  const worst = row.worst || [];
  if (!worst.length) return [];
  const legend = element("p", { class: "note" }, "In turn: the reference text, what the full-precision model wrote, what this point wrote, all normalised. ",
    word("another", "s"), " is substituted, ", word("added", "i"), " inserted, ", word("∅", "d"), " deleted.");
  return [element("section", {}, element("h3", {}, "Its worst utterances"), legend, ...worst.map((entry) => utterance(entry, row)))];
}

function utterance([which, errors, own, reference], row) {
  const [id, words, count] = report.utterances[which];
  const before = reference && !row.is_reference ? `, ${reference[0]} at full precision` : "";
  const names = ["reference", reference && !row.is_reference ? "full precision" : null, abridged(nameOf(row), 32)].filter(Boolean);
  const heard = [reference && !row.is_reference ? report.hypotheses[reference[1]] : null, report.hypotheses[own]].filter(Boolean);
  const labels = element("span", { class: "column labels" }, ...names.map((name) => element("span", {}, name)));
  return element("figure", { class: "utterance" },
    element("figcaption", {}, element("bdi", {}, shortened(plain(id), 80)), `: ${errors} errors in ${count} words${before}`),
    element("div", { class: "aligned" }, labels, ...aligned(words, heard).map((column) => element("span", { class: "column" }, ...column))));
}

// Columns of one word from the reference and from each transcript; insertions have columns of their own.
function aligned(words, heard) {
  const walks = heard.map(walk);
  const columns = [];
  const last = Math.max(...walks.map((slots) => slots.length));
  for (let n = 0; n < last; n++) {
    const inserted = Math.max(...walks.map((slots) => slots[n]?.inserted.length || 0));
    for (let k = 0; k < inserted; k++) {
      const added = walks.map((slots) => slots[n]?.inserted[k]);
      columns.push([word("", ""), ...added.map((text) => (text === undefined ? word("", "") : word(text, "i")))]);
    }
    if (walks.every((slots) => slots[n]?.operation === undefined)) continue;
    columns.push([word(words[n], ""), ...walks.map((slots) => {
      const { operation, text } = slots[n] || {};
      return operation === "s" ? word(text, "s") : operation === "d" ? word("∅", "d") : word(words[n], "");
    })]);
  }
  return heard.some(([operations]) => operations.endsWith("…")) ? [...columns, [word("…", "")]] : columns;
}

// For each word of the reference, what was inserted before it and what became of it.
function walk([operations, words]) {
  const slots = [{ inserted: [] }];
  let next = 0;
  for (const operation of operations.replace("…", "")) {
    const slot = slots[slots.length - 1];
    if (operation === "i") slot.inserted.push(words[next++]);
    else {
      slot.operation = operation;
      if (operation === "s") slot.text = words[next++];
      slots.push({ inserted: [] });
    }
  }
  return slots;
}

function word(text, operation) {
  const tags = { s: "mark", i: "ins", d: "del" };
  return element(tags[operation] || "span", { dir: "auto" }, text || "\u00a0");
}

function everything(row) {
  const hidden = new Set(["standings", "worst", "role_bytes", "command"]);
  const pairs = Object.entries(row).filter(([column, value]) => value !== null && !hidden.has(column)).map(([column, value]) => [column, plain(value)]);
  const all = facts("As recorded", pairs);
  return element("details", {}, element("summary", {}, "Everything that is recorded of it"), all);
}

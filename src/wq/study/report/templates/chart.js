// Size against error: points, their intervals, the front of the estimates, the reference.

const SIZES = [
  { column: "linear_bytes", title: "Linear layers, MB", unit: 1e-6 },
  { column: "model_bytes", title: "Whole model, MB", unit: 1e-6 },
  { column: "bits_per_weight", title: "Bits per weight", unit: 1 },
  { column: "memory_bytes", title: "Memory footprint, MB", unit: 1e-6 },
  { column: "moved_bytes", title: "Moved per utterance, MB (estimate)", unit: 1e-6 },
  { column: "bit_operations", title: "Bit operations of an utterance, 10^12", unit: 1e-12 },
];
const RATES = [
  { column: "wer", title: "Word error rate, %", unit: 100, read: (row) => row.wer },
  { column: "wer_delta", title: "Difference from the reference, percentage points", unit: 100, read: (row) => (row.is_reference ? 0 : row.wer_delta) },
  { column: "wer_capped", title: "Word error rate, a loop counted as one lost utterance, %", unit: 100, read: (row) => row.wer_capped },
  { column: "kl", title: "Divergence from the reference, thousandths of a nat per token", unit: 1000, isLog: true, read: (row) => (row.is_reference ? null : row.kl) },
  { column: "nll", title: "Cross entropy of the words that were said, nats per token", unit: 1, read: (row) => row.nll },
  { column: "cer", title: "Character error rate, %", unit: 100, read: (row) => row.cer },
];
const SHAPES = [
  "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0z", // circle
  "M-4.5,-4.5h9v9h-9z", // square
  "M0,-6L5.6,4.4H-5.6z", // triangle
  "M0,-6.2L6.2,0L0,6.2L-6.2,0z", // diamond
  "M0,6L5.6,-4.4H-5.6z", // triangle, down
  "M-2,-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z", // cross
  "M-5,-5L5.5,0L-5,5L-2,0z", // arrow
];
const MARGIN = { left: 58, right: 22, top: 16, bottom: 48 };
const MANY = 20; // points: beyond, intervals are drawn for the front alone, and for what is pointed at
const BREAK = 74; // pixels beyond the axis for a reference that would take most of it
const FAR = 1.5; // times the largest other point
const REACH = 22; // pixels

const ratesWith = (rows) => RATES.filter(({ read }) => rows.some((row) => isNumber(read(row))));
const sizesWith = (rows) => SIZES.filter(({ column }) => rows.some((row) => row[column] > 0));

// The least error that each size affords.
function frontOf(points) {
  const front = [];
  for (const point of points.filter(({ standing }) => standing !== "broken").sort((a, b) => a.size - b.size || a.rate - b.rate))
    if (!front.length || point.rate < front[front.length - 1].rate) front.push(point);
  return front;
}

// What is drawn last is seen best.
const rank = ({ standing }) => ["broken", "off", "unknown", "undecided", "equivalent", "on"].indexOf(standing);

// A chart in `figure` of `groups` of rows, each with a front of its own. `view` says what is drawn:
// { size, rate, isShown, look } where look(row) gives { colour, shape }.
class Chart {
  constructor(figure, groups, view, onOpen, onPoint) {
    Object.assign(this, { figure, groups, view, onOpen, onPoint, points: [], current: null });
    this.svg = drawn("svg", {
      tabindex: 0, role: "application", "aria-roledescription": "chart of points",
      "aria-label": "Size against error. Arrow keys go from point to point, Enter opens one.",
      onpointermove: (event) => this.pointAt(event), onpointerleave: () => this.leave(), onblur: () => this.leave(),
      onclick: () => this.current && this.onOpen(this.current.row), onkeydown: (event) => this.onKey(event),
    });
    figure.prepend(this.svg);
    new ResizeObserver(() => this.width !== this.room && this.draw()).observe(figure);
    this.draw();
  }

  get room() { return Math.max(340, Math.min(1160, Math.floor(this.figure.clientWidth) || 900)); }

  draw() {
    const { size, rate } = this.view;
    this.width = this.room;
    this.height = this.width < 600 ? 340 : 460;
    const at = (row, suffix) => row[`${rate.column}_ci_${suffix}`];
    this.fronts = [];
    this.points = this.groups.flatMap(({ name, rows }) => {
      const points = rows
        .filter((row) => row[size.column] > 0 && isNumber(rate.read(row)))
        .map((row) => ({
          row, size: size.unit * row[size.column], rate: rate.unit * rate.read(row), ...this.view.look(row),
          low: isNumber(at(row, "low")) ? rate.unit * at(row, "low") : null, high: isNumber(at(row, "high")) ? rate.unit * at(row, "high") : null,
          standing: rate.column === "cer" && row.front !== "broken" ? "unknown" : row.standings[size.column] || "unknown",
        }));
      this.fronts.push({ name, points: frontOf(points) });
      return points;
    });
    for (const { points } of this.fronts) for (const point of points) point.onFront = true;
    this.current = this.last = null;
    if (this.points.length) this.place();
    this.render();
  }

  place() {
    const reference = this.points.find(({ row }) => row.is_reference);
    const others = this.points.filter((point) => point !== reference);
    const isFar = this.groups.length === 1 && reference && others.length && reference.size > FAR * Math.max(...others.map(({ size }) => size));
    this.beyond = isFar ? reference : null;
    this.x = sizeAxis((isFar ? others : this.points).map((point) => point.size));
    const hasBar = (point) => this.points.length <= MANY || point.onFront;
    this.y = (this.view.rate.isLog ? logAxis : rateAxis)(this.points.flatMap((point) => [point.rate, ...(hasBar(point) ? [point.low, point.high] : [])]).filter((end) => end !== null));
    this.right = this.width - MARGIN.right - (isFar ? BREAK : 0);
    const [width, height] = [this.right - MARGIN.left, this.height - MARGIN.top - MARGIN.bottom];
    this.across = (value) => (isFar && value === reference.size ? this.right + BREAK / 2 : MARGIN.left + width * this.x.place(value));
    this.up = (value) => MARGIN.top + height * (1 - Math.max(0, Math.min(1, this.y.place(value))));
    for (const point of this.points) Object.assign(point, { left: this.across(point.size), top: this.up(point.rate) });
  }

  render() {
    const { svg, width, height } = this;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    if (!this.points.length) {
      svg.replaceChildren(drawn("text", { x: MARGIN.left, y: 40, class: "label" }, "No point has both a size and an error rate: nothing to draw."));
      return;
    }
    const shown = this.points.filter(({ row }) => this.view.isShown(row));
    const reference = this.points.find(({ row }) => row.is_reference);
    this.shown = shown;
    this.halo = drawn("g");
    svg.replaceChildren(
      this.grid(),
      drawn("g", { class: "references" }, ...(reference && this.groups.length === 1
        ? [drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: reference.top, y2: reference.top })] : [])),
      drawn("g", { class: "fronts" }, ...this.fronts.map(({ points }) => this.steps(points))),
      drawn("g", { class: "intervals" }, ...shown.filter((point) => shown.length <= MANY || point.onFront).map((point) => this.bar(point))),
      drawn("g", { class: "recommended" }, ...shown.filter(({ row }) => row.is_recommended).map(({ left, top }) => drawn("circle", { cx: left, cy: top, r: 9 }))),
      drawn("g", { class: "points" }, ...[...shown].sort((a, b) => rank(a) - rank(b)).map((point) => this.mark(point))),
      drawn("g", { class: "labels" }, ...this.labels(shown)),
      this.halo,
    );
  }

  grid() {
    const { x, y, width, height } = this;
    const bottom = height - MARGIN.bottom;
    const group = drawn("g", { class: "axes" });
    let right = -Infinity;
    for (const tick of x.ticks) {
      const at = this.across(tick);
      group.append(drawn("line", { x1: at, x2: at, y1: MARGIN.top, y2: bottom }));
      if (at - right < 34) continue; // two numbers need room
      group.append(drawn("text", { x: at, y: bottom + 18, "text-anchor": "middle" }, tickText(tick)));
      right = at;
    }
    let top = Infinity;
    for (const tick of y.ticks) {
      const at = this.up(tick);
      group.append(drawn("line", { x1: MARGIN.left, x2: width - MARGIN.right, y1: at, y2: at, class: tick === 0 && "zero" }));
      if (top - at < 14) continue;
      group.append(drawn("text", { x: MARGIN.left - 8, y: at + 4, "text-anchor": "end" }, tickText(tick)));
      top = at;
    }
    if (this.beyond) {
      for (const at of [this.right + 8, this.right + 13]) group.append(drawn("line", { x1: at - 3, x2: at + 3, y1: bottom + 6, y2: bottom - 6, class: "break" }));
      group.append(drawn("text", { x: this.beyond.left, y: bottom + 18, "text-anchor": "middle" }, tickText(this.beyond.size)));
    }
    group.append(
      drawn("text", { x: (MARGIN.left + width - MARGIN.right) / 2, y: height - 8, "text-anchor": "middle", class: "title" }, this.view.size.title),
      drawn("text", { transform: `translate(14 ${(MARGIN.top + bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "title" }, this.view.rate.title),
    );
    return group;
  }

  steps(points) {
    const path = points.map(({ left, top }, n) => (n ? `H${left}V${top}` : `M${left},${top}`)).join("");
    return drawn("path", { d: `${path}H${this.width - MARGIN.right}` });
  }

  bar({ left, low, high, colour, rate }) {
    if (low === null || high === null) return drawn("g");
    const [top, bottom] = [this.up(high), this.up(low)];
    return drawn("line", { x1: left, x2: left, y1: top, y2: bottom, style: `color:${colour}` });
  }

  mark(point) {
    return drawn("path", {
      d: SHAPES[point.shape % SHAPES.length], transform: `translate(${point.left} ${point.top})`,
      class: point.standing, style: `color:${point.colour}`,
    });
  }

  // The names of the front, of the reference and of what is recommended, where there is room for them.
  labels(shown) {
    const taken = shown.slice(0, 400).map(({ left, top }) => [left - 6, top - 6, left + 6, top + 6]);
    const several = this.fronts.length > 1;
    const named = several
      ? this.fronts.filter(({ points }) => points.length).map(({ name, points }) => ({ text: name, ...points[0] }))
      : shown.filter(({ onFront, row }) => onFront || row.is_reference || row.is_recommended).map((point) => ({ text: nameOf(point.row), ...point }));
    return named.slice(0, 40).flatMap(({ text, left, top }) => {
      const label = abridged(text, 32);
      const wide = 6.4 * label.length;
      for (const [dx, dy] of [[9, -9], [9, 14], [-9 - wide, -9], [-9 - wide, 14], [-wide / 2, -14], [-wide / 2, 22], [9, -22], [9, 26]]) {
        const box = [left + dx, top + dy - 10, left + dx + wide, top + dy + 3];
        const inside = box[0] >= MARGIN.left && box[2] <= this.width && box[1] >= 0 && box[3] <= this.height - MARGIN.bottom;
        if (!inside || taken.some((other) => box[0] < other[2] && other[0] < box[2] && box[1] < other[3] && other[1] < box[3])) continue;
        taken.push(box);
        return [drawn("text", { x: box[0], y: top + dy }, label)];
      }
      return [];
    });
  }

  pointAt(event) {
    const box = this.svg.getBoundingClientRect();
    const [x, y] = [((event.clientX - box.left) * this.width) / box.width, ((event.clientY - box.top) * this.height) / box.height];
    let [nearest, least] = [null, REACH ** 2];
    for (const point of this.shown || []) {
      const distance = (point.left - x) ** 2 + (point.top - y) ** 2;
      if (distance < least) [nearest, least] = [point, distance];
    }
    this.choose(nearest);
  }

  choose(point) {
    if (point === this.current) return;
    this.current = point;
    this.last = point || this.last; // where the arrow keys go on after a dialog
    this.halo.replaceChildren(...(point ? [this.bar(point), drawn("circle", { cx: point.left, cy: point.top, r: 10, class: "halo" })] : []));
    this.svg.classList.toggle("pointing", point !== null);
    this.onPoint(point && point.row, this);
  }

  // The middle of the chosen point on the screen.
  get spot() {
    const box = this.svg.getBoundingClientRect();
    return [box.left + (this.current.left * box.width) / this.width, box.top + (this.current.top * box.height) / this.height];
  }

  highlight(row) {
    const point = row && this.points.find((other) => other.row === row);
    this.halo?.replaceChildren(...(point ? [this.bar(point), drawn("circle", { cx: point.left, cy: point.top, r: 10, class: "halo" })] : []));
  }

  leave() { if (this.halo) this.choose(null); }

  onKey(event) {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const order = [...(this.shown || [])].sort((a, b) => a.size - b.size || a.rate - b.rate);
    if (event.key in steps && order.length) {
      const from = order.indexOf(this.current || this.last);
      const here = from >= 0 ? from : steps[event.key] > 0 ? -1 : order.length;
      this.choose(order[Math.max(0, Math.min(order.length - 1, here + steps[event.key]))]);
    } else if ((event.key === "Enter" || event.key === " ") && this.current) this.onOpen(this.current.row);
    else if (event.key === "Escape") this.leave();
    else return;
    event.preventDefault();
  }
}

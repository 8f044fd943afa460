// Axes: where a value lies between 0 and 1, and which ticks to write.

const SPACINGS = {
  linear: (value) => value,
  log: (value) => Math.log(value),
  symlog: (value) => Math.sign(value) * Math.log1p(Math.abs(value)), // linear near 0, logarithmic beyond 1
};

// Round numbers in a decade, from few to many
const STEPS = [[1], [1, 3], [1, 2, 5], [1, 1.5, 2, 3, 4, 5, 7], [1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9]];

function logTicks(low, high) {
  let ticks = [];
  for (const steps of STEPS) {
    ticks = [];
    for (let decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++)
      ticks.push(...steps.map((step) => step * 10 ** decade).filter((tick) => low <= tick && tick <= high));
    if (ticks.length >= 5) break;
  }
  return ticks;
}

function linearTicks(low, high) {
  const steps = [];
  for (let decade = -6; decade < 9; decade++) steps.push(...[1, 2, 5].map((step) => step * 10 ** decade));
  const fit = (step) => Math.abs((high - low) / step - 7);
  const step = steps.reduce((best, next) => (fit(next) < fit(best) ? next : best));
  const ticks = [];
  for (let n = Math.ceil(low / step); n * step <= high + 1e-12; n++) ticks.push(n * step);
  return ticks;
}

function axis(kind, low, high, ticks) {
  const spacing = SPACINGS[kind];
  const [from, to] = [spacing(low), spacing(high)];
  return { low, high, ticks, place: (value) => (spacing(value) - from) / (to - from) };
}

const extent = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);

// Sizes are spread over orders of magnitude, and so are divergences, of which one that is zero has no place.
function logAxis(values) {
  return sizeAxis(values.filter((value) => value > 0));
}

function sizeAxis(values) {
  const [smallest, largest] = extent(values);
  let [low, high] = [smallest / 1.12, largest * 1.12];
  if (high / low < 2) [low, high] = [Math.sqrt((low * high) / 2), Math.sqrt(low * high * 2)];
  return axis("log", low, high, logTicks(low, high));
}

// Rates in %: linear while they lie close together, else logarithmic beyond 1, so that good points stay apart.
function rateAxis(values) {
  let [low, high] = extent(values);
  const least = values.reduce((smallest, value) => Math.min(smallest, Math.abs(value)), Infinity);
  if (high - low > 5 * Math.max(least, 1)) {
    [low, high] = [low > 1 ? 0.8 * low : Math.min(0, 1.15 * low), 1.15 * high];
    const above = high > 1 ? logTicks(Math.max(low, 1), high) : [];
    const below = low < -1 ? logTicks(1, -low).map((tick) => -tick) : [];
    return axis("symlog", low, high, [...below, ...(low <= 0 ? [0] : []), ...above]);
  }
  const margin = 0.06 * (high - low) || Math.max(0.1 * Math.abs(high), 0.5);
  [low, high] = [low >= 0 ? Math.max(0, low - margin) : low - margin, high + margin];
  return axis("linear", low, high, linearTicks(low, high));
}

const tickText = (value) => String(Number(value.toPrecision(3)));

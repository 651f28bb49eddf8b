// The mathematics of charts, without any drawing: from the points of a metric to what a chart of a given width shows.
//
// Invariant: thinning keeps the smallest and the largest value of every pixel column, so that a single outlier among 100,000 points stays
// visible.

/** A measured point. `time` is in milliseconds since the Unix epoch. */
export interface Point {
  step: number;
  time?: number;
  y: number | null;
}
export interface Series {
  name: string;
  points: Point[];
  /** By default the next colour of the palette. Charts that show the same runs give each its own. */
  colour?: string;
}

/** What the x axis shows: the step, the time of day, or seconds since the first point of the series. */
export type XAxis = "step" | "time" | "relative";

export interface ChartSettings {
  /** Weight of the past in the moving average, 0 (off) to 0.99. */
  smoothing: number;
  log: boolean;
  x: XAxis;
}
export const defaultSettings: ChartSettings = { smoothing: 0, log: false, x: "step" };

/** A series in the order of x. `values` is smoothed; it is the same list as `raw` without smoothing. */
export interface Curve {
  name: string;
  xs: number[];
  raw: (number | null)[];
  values: (number | null)[];
}

/** A range of x values, both ends included. */
export type Range = readonly [from: number, to: number];

/** Exponential moving average with bias correction; `weight` 0 keeps the values, 0.99 smooths strongly. */
export function smooth(values: (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return values;
  let sum = 0;
  let norm = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    norm = norm * weight + (1 - weight);
    return sum / norm;
  });
}

/** The position of a point on the x axis; times are in seconds. `origin` is where relative time starts, in milliseconds. */
function positionOf(p: Point, x: XAxis, origin: number): number {
  return x === "step" ? p.step : ((p.time ?? 0) - (x === "relative" ? origin : 0)) / 1000;
}

/** A series for display. `origin` is where relative time starts: that of the complete series, if `series` is a part of it. */
export function curve(series: Series, settings: ChartSettings, origin = startTime(series)): Curve {
  const points = series.points.map((p) => ({ x: positionOf(p, settings.x, origin), y: settings.log && p.y !== null && p.y <= 0 ? null : p.y }));
  if (points.some((p, i) => i > 0 && p.x < points[i - 1]!.x)) points.sort((a, b) => a.x - b.x);
  const raw = points.map((p) => p.y);
  return { name: series.name, xs: points.map((p) => p.x), raw, values: smooth(raw, settings.smoothing) };
}

/** The earliest time of a series in milliseconds; 0 for one without times. */
export function startTime(series: Series): number {
  const first = series.points.reduce((least, p) => Math.min(least, p.time ?? Infinity), Infinity);
  return Number.isFinite(first) ? first : 0;
}

/** Index of the first x that is at least `value`. */
function lowerBound(xs: number[], value: number): number {
  let [low, high] = [0, xs.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (xs[middle]! < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** The smallest range that contains all points; undefined without points. */
export function extent(curves: Curve[]): Range | undefined {
  let [from, to] = [Infinity, -Infinity];
  for (const { xs } of curves) {
    if (xs.length === 0) continue;
    from = Math.min(from, xs[0]!);
    to = Math.max(to, xs.at(-1)!);
  }
  return from <= to ? [from, to] : undefined;
}

/**
 * Indices of the points to draw: at most four per pixel column (first, smallest, largest, last), and one point on each side of the range,
 * so that lines continue to the edges.
 */
export function thin(xs: number[], ys: (number | null)[], range: Range, pixels: number): number[] {
  const from = Math.max(0, lowerBound(xs, range[0]) - 1);
  let end = lowerBound(xs, range[1]);
  while (end < xs.length && xs[end]! <= range[1]) end++;
  end = Math.min(xs.length, end + 1);
  const indices: number[] = [];
  if (end - from <= pixels * 2) {
    for (let i = from; i < end; i++) indices.push(i);
    return indices;
  }
  const width = (range[1] - range[0]) / pixels || 1;
  for (let i = from; i < end; ) {
    const column = Math.floor((xs[i]! - range[0]) / width);
    const first = i;
    let [least, most] = [-1, -1];
    for (; i < end && Math.floor((xs[i]! - range[0]) / width) === column; i++) {
      const y = ys[i];
      if (y === null || y === undefined) continue;
      if (least < 0 || y < ys[least]!) least = i;
      if (most < 0 || y > ys[most]!) most = i;
    }
    for (const index of [...new Set([first, least, most, i - 1])].sort((a, b) => a - b)) if (index >= 0) indices.push(index);
  }
  return indices;
}

/** Lists of (x, y) on one common list of x, as the drawing library requires; null where a list has no point. */
export function align(lists: { xs: number[]; ys: (number | null)[] }[]): [number[], ...(number | null)[][]] {
  const xs = [...new Set(lists.flatMap((l) => l.xs))].sort((a, b) => a - b);
  const indexOf = new Map(xs.map((x, i) => [x, i]));
  const rows = lists.map((list) => {
    const values = new Array<number | null>(xs.length).fill(null);
    // Several points may share an x, such as a spike within one second; the last measured one counts.
    list.xs.forEach((x, i) => (values[indexOf.get(x)!] = list.ys[i] ?? values[indexOf.get(x)!]!));
    return values;
  });
  return [xs, ...rows];
}

/** Smallest, largest and last value of a curve within a range; undefined if it has none. */
export function span(c: Curve, range: Range): { count: number; least: number; most: number; last: number } | undefined {
  let [count, least, most, last] = [0, Infinity, -Infinity, 0];
  for (let i = lowerBound(c.xs, range[0]); i < c.xs.length && c.xs[i]! <= range[1]; i++) {
    const y = c.raw[i];
    if (y === null || y === undefined) continue;
    count++;
    least = Math.min(least, y);
    most = Math.max(most, y);
    last = y;
  }
  return count ? { count, least, most, last } : undefined;
}

/** The steps of the points within a range of x, with a neighbour on each side: what to load to see the range in detail. */
export function stepsWithin(list: Series[], x: XAxis, range: Range): Range | undefined {
  let [from, to] = [Infinity, -Infinity];
  for (const series of list) {
    const origin = startTime(series);
    const points = series.points.map((p) => ({ step: p.step, x: positionOf(p, x, origin) })).sort((a, b) => a.x - b.x);
    const xs = points.map((p) => p.x);
    const first = Math.max(0, lowerBound(xs, range[0]) - 1);
    for (let i = first; i < points.length; i++) {
      from = Math.min(from, points[i]!.step);
      to = Math.max(to, points[i]!.step);
      if (points[i]!.x > range[1]) break;
    }
  }
  return from <= to ? [from, to] : undefined;
}

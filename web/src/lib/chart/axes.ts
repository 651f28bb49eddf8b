// Labels of axes in the reader's locale.

import { number } from "../format";
import type { XAxis } from "./curve";

const day = new Intl.DateTimeFormat(undefined, { month: "short", day: "numeric" });
const minute = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit" });
const second = new Intl.DateTimeFormat(undefined, { hour: "numeric", minute: "2-digit", second: "2-digit" });
const full = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Seconds as a clock: `45 s`, `3:20`, `2:03:20`. */
export function clock(s: number): string {
  if (Math.abs(s) < 60) return `${number(s)} s`;
  const [hours, minutes, rest] = [Math.floor(s / 3600), Math.floor(s / 60) % 60, Math.floor(s % 60)];
  const two = (n: number) => String(n).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** Distances of ticks in seconds that are round on a clock. */
export const CLOCK_DISTANCES = [0.001, 0.01, 0.1, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 2592000];

/** Distances of ticks for steps, which are whole numbers. */
export const STEP_DISTANCES = Array.from({ length: 16 }, (_, power) => [1, 2, 5].map((n) => n * 10 ** power)).flat();

/** Labels of ticks that are `distance` apart. */
export function ticks(x: XAxis, values: number[], distance: number): string[] {
  if (x === "relative") return values.map(clock);
  if (x === "step") return values.map((v) => number(v));
  const format = distance >= 86400 ? day : distance >= 60 ? minute : second;
  return values.map((v) => format.format(v * 1000));
}

/** A single position on the x axis. */
export function position(x: XAxis, value: number): string {
  return x === "time" ? full.format(value * 1000) : x === "relative" ? clock(value) : number(value);
}

const decimals = Array.from({ length: 11 }, (_, digits) => new Intl.NumberFormat(undefined, { maximumFractionDigits: digits }));

/** Labels of measured values that are `distance` apart: as many decimals as tell neighbours apart. */
export function measures(values: (number | null)[], distance: number): string[] {
  const isExact = (digits: number) => Math.abs(distance * 10 ** digits - Math.round(distance * 10 ** digits)) < 1e-6;
  const digits = decimals.findIndex((_, digits) => distance * 10 ** digits >= 1 - 1e-6 && isExact(digits));
  return values.map((v) => {
    if (v === null || v === undefined) return "";
    const size = Math.abs(v);
    return digits < 0 || (size !== 0 && (size < 1e-4 || size >= 1e6)) ? number(v) : decimals[digits]!.format(v);
  });
}

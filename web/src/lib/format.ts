// Formats numbers, sizes and times in the reader's locale. Formatters are made once, because making one is slow.

const integers = new Intl.NumberFormat(undefined, { maximumFractionDigits: 0 });
const decimals = new Intl.NumberFormat(undefined, { maximumFractionDigits: 4 });
const oneDigit = new Intl.NumberFormat(undefined, { minimumFractionDigits: 1, maximumFractionDigits: 1 });
const scientific = new Intl.NumberFormat(undefined, { notation: "scientific", maximumFractionDigits: 3 });
const currency = new Intl.NumberFormat(undefined, { style: "currency", currency: "USD", currencyDisplay: "narrowSymbol", minimumFractionDigits: 2, maximumFractionDigits: 4 });
const dates = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });
const moments = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A number of things, with separators between thousands. */
export const count = (n: number) => integers.format(n);

/** A measured value: at most four decimals, and scientific notation for very small and very large ones. */
export function number(value: number | string | null | undefined): string {
  const n = Number(value);
  if (value === undefined || value === null || value === "") return "–";
  if (!Number.isFinite(n)) return String(value);
  const size = Math.abs(n);
  if (Number.isInteger(n) && size < 1e7) return integers.format(n);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? scientific.format(n) : decimals.format(n);
}

/** A share, 0 to 100. */
export const percent = (n: number | null | undefined) => (n === undefined || n === null ? "–" : `${integers.format(n)} %`);

/** US dollars; small amounts with up to four decimals. */
export const dollars = (n: number) => currency.format(n);

/** A duration in microseconds, such as a latency. */
export function micros(us: number): string {
  if (!us) return "–";
  if (us < 1000) return `${integers.format(us)} µs`;
  if (us < 1e6) return `${oneDigit.format(us / 1e3)} ms`;
  return `${oneDigit.format(us / 1e6)} s`;
}

export function bytes(n: number | undefined): string {
  if (n === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return `${unit ? oneDigit.format(n) : integers.format(n)} ${units[unit]}`;
}

/** One decimal, as for kilojoules. */
export const tenths = (n: number) => oneDigit.format(n);

/** Date and time of day, from milliseconds since the Unix epoch. */
export const moment = (ms: number) => moments.format(ms);

export function ago(ms: number | undefined): string {
  if (!ms) return "–";
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return dates.format(ms);
}

/** A span of seconds in its two largest units, such as `3 min 20 s`. */
export function seconds(s: number): string {
  if (s < 60) return `${oneDigit.format(s)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${integers.format(Math.floor(s / 86400))} d ${Math.floor((s % 86400) / 3600)} h`;
}

export function duration(from: number, to: number | undefined): string {
  return !to || !from ? "–" : seconds((to - from) / 1000);
}

export const palette = ["#0b84b5", "#d9534f", "#3c9d4e", "#a35fc7", "#d68a00", "#00877a", "#c2478b", "#6d7f1f", "#5a6acf", "#8a5a44"];

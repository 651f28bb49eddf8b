// Formats numbers, sizes and times for display.

export function number(value: number | string | undefined): string {
  const n = Number(value);
  if (value === undefined || value === "") return "–";
  if (!Number.isFinite(n)) return String(value);
  if (Number.isInteger(n) && Math.abs(n) < 1e7) return String(n);
  const size = Math.abs(n);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? n.toExponential(3) : n.toFixed(4).replace(/0+$/, "").replace(/\.$/, "");
}

export function micros(us: number): string {
  if (!us) return "–";
  if (us < 1000) return `${us.toFixed(0)} µs`;
  if (us < 1e6) return `${(us / 1e3).toFixed(1)} ms`;
  return `${(us / 1e6).toFixed(1)} s`;
}

export function bytes(n: number | undefined): string {
  if (n === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (n >= 1024 && unit < units.length - 1) {
    n /= 1024;
    unit++;
  }
  return `${unit ? n.toFixed(1) : n} ${units[unit]}`;
}

export function ago(ms: number | undefined): string {
  if (!ms) return "–";
  const s = Math.max(0, (Date.now() - ms) / 1000);
  if (s < 60) return `${Math.floor(s)} s ago`;
  if (s < 3600) return `${Math.floor(s / 60)} min ago`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ago`;
  return new Date(ms).toLocaleDateString();
}

export function duration(from: number, to: number | undefined): string {
  if (!to || !from) return "–";
  const s = (to - from) / 1000;
  return s < 60 ? `${s.toFixed(1)} s` : `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
}

/** Exponential moving average with bias correction; `weight` 0 keeps the values, 0.99 smooths strongly. */
export function smooth(values: (number | null)[], weight: number): (number | null)[] {
  if (weight <= 0) return values;
  let sum = 0;
  let count = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = sum * weight + value * (1 - weight);
    count = count * weight + (1 - weight);
    return sum / count;
  });
}

export const palette = ["#0b84b5", "#d9534f", "#3c9d4e", "#a35fc7", "#d68a00", "#00877a", "#c2478b", "#6d7f1f", "#5a6acf", "#8a5a44"];

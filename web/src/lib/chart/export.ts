// Charts as files: a picture, and the points as CSV.

import type { Series } from "./curve";

/** A cell of CSV. A spreadsheet would execute a name that starts like a formula, so such a name gets an apostrophe. */
function cell(text: string): string {
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

/** One line per point. Numbers and times are written for programs, not in the reader's locale. */
export function csv(title: string, series: Series[]): string {
  const lines = series.flatMap((s) => s.points.map((p) => [cell(s.name), p.step, p.time === undefined ? "" : new Date(p.time).toISOString(), p.y ?? ""].join(",")));
  return [`series,step,time,${cell(title)}`, ...lines, ""].join("\r\n");
}

/** The drawn chart with its title and legend on the background of the page. `scale` is the number of pixels per CSS pixel. */
export function picture(canvas: HTMLCanvasElement, title: string, legend: { name: string; colour: string }[], colours: { text: string; background: string }, scale: number): Promise<Blob> {
  const [padding, line] = [12 * scale, 20 * scale];
  const result = document.createElement("canvas");
  result.width = canvas.width + 2 * padding;
  result.height = canvas.height + 2 * padding + line * (1 + legend.length);
  const context = result.getContext("2d");
  if (!context) return Promise.reject(new Error("this browser cannot draw pictures"));
  context.fillStyle = colours.background;
  context.fillRect(0, 0, result.width, result.height);
  context.drawImage(canvas, padding, padding + line);
  context.textBaseline = "middle";
  context.fillStyle = colours.text;
  context.font = `600 ${13 * scale}px system-ui, sans-serif`;
  context.fillText(title, padding, padding + line / 2);
  context.font = `${12 * scale}px system-ui, sans-serif`;
  legend.forEach((entry, i) => {
    const y = padding + canvas.height + line * (i + 1.5);
    context.fillStyle = entry.colour;
    context.fillRect(padding, y - 1.5 * scale, 16 * scale, 3 * scale);
    context.fillStyle = colours.text;
    context.fillText(entry.name, padding + 24 * scale, y);
  });
  return new Promise((resolve, reject) => result.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("the picture is too large"))), "image/png"));
}

/** Saves a file through the browser. */
export function save(name: string, content: Blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(content);
  link.download = name.replace(/[^\p{L}\p{N}._ -]+/gu, "_");
  link.click();
  // The browser has started the download by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

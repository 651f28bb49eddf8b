// Files of comma-separated or tab-separated values as tables.

import type { Column } from "./table";

/** Lines that a preview shows at most. */
const MAX_LINES = 200;

/** The cells of the first 200 lines. Cells may be quoted. */
export function cells(body: string, separator: string): string[][] {
  const rows: string[][] = [[]];
  let cell = "";
  let quoted = false;
  for (let i = 0; i < body.length && rows.length <= MAX_LINES; i++) {
    const c = body[i]!;
    if (quoted && c === '"' && body[i + 1] === '"') {
      cell += c;
      i++;
    } else if (c === '"') quoted = !quoted;
    else if (!quoted && (c === separator || c === "\n")) {
      rows.at(-1)!.push(cell.replace(/\r$/, ""));
      cell = "";
      if (c === "\n") rows.push([]);
    } else cell += c;
  }
  if (cell) rows.at(-1)!.push(cell);
  return rows.filter((r) => r.length > 0);
}

export interface Line {
  line: number;
  cells: string[];
}

const isNumber = (text: string | undefined) => !!text && Number.isFinite(Number(text));

/** The columns of lines with these titles. A column of numbers is compared as such. */
export function columnsOf(titles: readonly string[], lines: readonly string[][]): Column<Line>[] {
  return titles.map((title, i): Column<Line> => {
    const number = lines.length > 0 && lines.every((l) => !l[i] || isNumber(l[i]));
    return { key: String(i), title: title || "–", number, value: (r) => (number && r.cells[i] ? Number(r.cells[i]) : r.cells[i]), text: (r) => r.cells[i] ?? "" };
  });
}

/** A table whose first line names the columns; a file of numbers only has no such line. */
export function tableOf(all: string[][]): { rows: Line[]; columns: Column<Line>[] } {
  const hasTitles = !all[0]?.every((cell) => isNumber(cell));
  const titles = hasTitles ? (all[0] ?? []) : (all[0] ?? []).map((_, i) => String(i + 1));
  const lines = hasTitles ? all.slice(1) : all;
  return { rows: lines.map((cells, line) => ({ line, cells })), columns: columnsOf(titles, lines) };
}

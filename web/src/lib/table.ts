// What a table shows: its columns, and the order and selection of its rows. Pure functions; `DataTable.svelte` draws the result.

export type Value = string | number | null | undefined;

export interface Column<Row> {
  /** Identifies the column in the saved state. */
  key: string;
  title: string;
  /** Compared for sorting, searched by the filter. */
  value: (row: Row) => Value;
  /** The text of the cell; by default the value itself. The filter searches it too. */
  text?: (row: Row) => string;
  /** Aligned to the right. */
  number?: boolean;
  /** The first click sorts downwards; by default it does so for numbers. */
  largestFirst?: boolean;
  /** Shown in a secondary colour. */
  dim?: boolean;
  /** Long texts continue on the next line instead of widening the table. */
  wrap?: boolean;
  /** False for columns of controls, which have no order; their title is for screen readers only. */
  sortable?: boolean;
  /** Not shown until it is chosen. */
  hidden?: boolean;
  /** The full name, shown on hover. */
  hint?: string;
  /** Where the title leads to, shown beside it. */
  href?: string;
}

export interface Sort {
  key: string;
  descending: boolean;
}

/** What a table remembers of its reader; everything that is missing is as designed. */
export interface TableState {
  sort?: Sort;
  filter?: string;
  /** Columns that were shown or hidden by hand. */
  columns?: Record<string, boolean>;
}

export function isTableState(value: unknown): value is TableState {
  if (typeof value !== "object" || value === null) return false;
  const { sort, filter, columns } = value as Record<string, unknown>;
  const isSort = (s: unknown) => typeof s === "object" && s !== null && "key" in s && "descending" in s;
  return (sort === undefined || isSort(sort)) && ["undefined", "string"].includes(typeof filter) && ["undefined", "object"].includes(typeof columns) && columns !== null;
}

const isMissing = (value: Value) => value === undefined || value === null || value === "" || Number.isNaN(value);
const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

/** Numbers before texts; texts as the reader's language orders them, with numbers inside by their size. */
function compare(a: Value, b: Value): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
  return collator.compare(String(a), String(b));
}

/** The rows in order. Rows without a value come last in both directions; equal rows keep their order. */
export function sorted<Row>(rows: readonly Row[], column: Column<Row> | undefined, descending: boolean): readonly Row[] {
  if (!column) return rows;
  const keyed = rows.map((row) => ({ row, value: column.value(row) }));
  const direction = descending ? -1 : 1;
  keyed.sort((a, b) => {
    const missing = Number(isMissing(a.value)) - Number(isMissing(b.value));
    return missing || (isMissing(a.value) ? 0 : direction * compare(a.value, b.value));
  });
  return keyed.map((k) => k.row);
}

export const textOf = <Row>(row: Row, column: Column<Row>) => column.text?.(row) ?? String(column.value(row) ?? "–");

/** The rows that contain every word of the filter in some column. */
export function matching<Row>(rows: readonly Row[], columns: readonly Column<Row>[], filter: string): readonly Row[] {
  const words = filter.toLowerCase().split(/\s+/).filter(Boolean);
  if (words.length === 0) return rows;
  return rows.filter((row) => {
    const text = columns.map((c) => `${c.value(row) ?? ""}\n${c.text?.(row) ?? ""}`).join("\n").toLowerCase();
    return words.every((word) => text.includes(word));
  });
}

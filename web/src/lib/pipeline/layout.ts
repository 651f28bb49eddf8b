// Where the tasks of a pipeline are drawn: from left to right by their dependencies. Graphs inside the graph are drawn inside their task once
// they are opened; a loop then shows a page of its iterations. All lengths are in pixels.

import { ordered } from "../layers";
import { isGroup, isLoop, type Graphs, type Step } from "./graph";
import { indexOf, type Tree } from "./tasks";

export const NODE = { width: 190, height: 50 };
const GAP = { x: 56, y: 16 };
const PADDING = 14;
/** Height of the title of an open graph. */
export const HEADER = 40;
/** Widths with room for a title, and for the buttons that turn pages. */
const MIN_GROUP_WIDTH = 256;
const MIN_PAGED_WIDTH = 400;
/** Iterations of an open loop that are drawn at once, and in one column. */
export const ITERATIONS = 20;
const ITERATION_ROWS = 5;

export interface Box {
  path: string;
  title: string;
  x: number;
  y: number;
  width: number;
  height: number;
  /** Whether there is something inside that can be opened. */
  isGroup: boolean;
  isOpen: boolean;
  /** The step that it executes; undefined for what the specification does not have. */
  step: Step | undefined;
  isLoop: boolean;
  /** Of an open loop: the number of iterations, and the page that is shown. */
  iterations?: { count: number; page: number };
}
export interface Line {
  id: string;
  from: [x: number, y: number];
  to: [x: number, y: number];
}
export interface Drawing {
  boxes: Box[];
  lines: Line[];
  width: number;
  height: number;
}

/** What to draw: an open task by its path; a loop by the page of its iterations, from 0. */
export type Open = ReadonlyMap<string, number>;

interface Block {
  width: number;
  height: number;
  boxes: Box[];
  lines: Line[];
}

function shift(block: Block, dx: number, dy: number, into: { boxes: Box[]; lines: Line[] }) {
  for (const box of block.boxes) {
    box.x += dx;
    box.y += dy;
    into.boxes.push(box);
  }
  for (const line of block.lines) into.lines.push({ id: line.id, from: [line.from[0] + dx, line.from[1] + dy], to: [line.to[0] + dx, line.to[1] + dy] });
}

/** Draws columns of blocks, each as wide as its widest block. */
function columnsOf(columns: Block[][], gapX: number): Block {
  const heights = columns.map((column) => column.reduce((sum, block) => sum + block.height + GAP.y, -GAP.y));
  const height = Math.max(0, ...heights);
  const all: Block = { width: 0, height, boxes: [], lines: [] };
  let x = 0;
  columns.forEach((column, c) => {
    let y = (height - (heights[c] ?? 0)) / 2;
    for (const block of column) {
      shift(block, x, y, all);
      y += block.height + GAP.y;
    }
    x += Math.max(0, ...column.map((block) => block.width)) + gapX;
  });
  all.width = Math.max(0, x - gapX);
  return all;
}

class Layout {
  constructor(
    readonly graphs: Graphs,
    readonly tree: Tree | undefined,
    readonly open: Open,
  ) {}

  /** A graph of steps. */
  graph(component: string, path: string): Block {
    const steps = this.graphs.of(component);
    const prefix = path ? `${path}/` : "";
    const columns = ordered([...steps.keys()], (name) => steps.get(name)?.needs ?? []);
    const all = columnsOf(columns.map((names) => names.map((name) => this.step(steps.get(name)!, prefix + name))), GAP.x);
    const at = new Map(all.boxes.map((box) => [box.path, box]));
    for (const step of steps.values())
      for (const need of step.needs) {
        const [a, b] = [at.get(prefix + need), at.get(prefix + step.name)];
        if (a && b) all.lines.push({ id: `${a.path} ${b.path}`, from: [a.x + a.width, a.y + Math.min(a.height, NODE.height) / 2], to: [b.x, b.y + Math.min(b.height, NODE.height) / 2] });
      }
    return all;
  }

  step(step: Step, path: string): Block {
    return isLoop(step) ? this.loop(step, path) : this.task(step, path, step.displayName);
  }

  /** A task, or an iteration of a loop. */
  task(step: Step, path: string, title: string): Block {
    const box = { path, title, x: 0, y: 0, step, isGroup: isGroup(step), isLoop: false, isOpen: isGroup(step) && this.open.has(path) };
    return box.isOpen ? this.around(box, this.graph(step.component, path)) : { ...NODE, boxes: [{ ...box, ...NODE }], lines: [] };
  }

  loop(step: Step, path: string): Block {
    const iterations = this.tree?.children(path) ?? [];
    const page = this.open.get(path);
    const box = { path, title: step.displayName, x: 0, y: 0, step, isLoop: true, isGroup: iterations.length > 0 || (!this.tree && isGroup(step)), isOpen: page !== undefined };
    if (page === undefined || !box.isGroup) return { ...NODE, boxes: [{ ...box, ...NODE, isOpen: false }], lines: [] };
    // Without a run, a loop shows what one iteration does.
    if (!this.tree) return this.around(box, this.graph(step.component, path));
    const shown = [...iterations].sort((a, b) => (indexOf(a.path) ?? 0) - (indexOf(b.path) ?? 0)).slice(page * ITERATIONS, (page + 1) * ITERATIONS);
    const blocks = shown.map((task) => this.task(step, task.path, `Iteration ${(indexOf(task.path) ?? 0) + 1}`));
    const columns: Block[][] = [];
    blocks.forEach((block, i) => (columns[Math.floor(i / ITERATION_ROWS)] ??= []).push(block));
    return this.around({ ...box, iterations: { count: iterations.length, page } }, columnsOf(columns, GAP.y));
  }

  around(box: Omit<Box, "width" | "height">, inside: Block): Block {
    const width = Math.max(MIN_GROUP_WIDTH, inside.width + 2 * PADDING, box.iterations && box.iterations.count > ITERATIONS ? MIN_PAGED_WIDTH : 0);
    const all: Block = { width, height: inside.height + HEADER + PADDING, boxes: [], lines: [] };
    all.boxes.push({ ...box, width, height: all.height });
    shift(inside, PADDING, HEADER, all);
    return all;
  }
}

/** Draws a pipeline, with the tasks of a run if there is one. */
export function layout(graphs: Graphs, tree: Tree | undefined, open: Open): Drawing {
  return new Layout(graphs, tree, open).graph("", "");
}

/** Lines that are drawn at once. More would be slow, and an area instead of lines. */
const MAX_LINES = 400;

/** The part of a drawing that a window shows, with a margin. */
export function visible(drawing: Drawing, window: { left: number; top: number; width: number; height: number }): { boxes: Box[]; lines: Line[] } {
  const margin = 200;
  const [left, top, right, bottom] = [window.left - margin, window.top - margin, window.left + window.width + margin, window.top + window.height + margin];
  const shows = (x1: number, y1: number, x2: number, y2: number) => x2 >= left && x1 <= right && y2 >= top && y1 <= bottom;
  const has = ([x, y]: Line["from"]) => shows(x, y, x, y);
  let lines = drawing.lines.filter((l) => shows(Math.min(l.from[0], l.to[0]), Math.min(l.from[1], l.to[1]), Math.max(l.from[0], l.to[0]), Math.max(l.from[1], l.to[1])));
  // Of too many lines, those that only pass through are left out first, and then those that lead out of the window.
  if (lines.length > MAX_LINES) lines = lines.filter((l) => has(l.from) || has(l.to));
  if (lines.length > MAX_LINES) lines = lines.filter((l) => has(l.from) && has(l.to));
  return { boxes: drawing.boxes.filter((b) => shows(b.x, b.y, b.x + b.width, b.y + b.height)), lines };
}

/** The tasks that must be open so that the task at this path is drawn. */
export function openFor(path: string): Map<string, number> {
  const open = new Map<string, number>();
  const segments = path.split("/");
  segments.forEach((segment, i) => {
    const full = segments.slice(0, i + 1).join("/");
    const index = indexOf(segment);
    if (index !== undefined) open.set(full.slice(0, full.lastIndexOf("[")), Math.floor(index / ITERATIONS));
    if (i < segments.length - 1) open.set(full, open.get(full) ?? 0);
  });
  return open;
}

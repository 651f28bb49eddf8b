// The tasks of a run as a tree: an iteration belongs to its loop, every other task to the graph that it is in.

import type { TaskState, TaskSummary } from "../pipelines";

export interface StateStyle {
  /** In the words of the UI. */
  word: string;
  icon: "waiting" | "running" | "done" | "cached" | "skipped" | "failed" | "stopped";
}
export const states: Record<TaskState, StateStyle> = {
  PENDING: { word: "waiting", icon: "waiting" },
  RUNNING: { word: "running", icon: "running" },
  SUCCEEDED: { word: "succeeded", icon: "done" },
  CACHED: { word: "cached", icon: "cached" },
  SKIPPED: { word: "skipped", icon: "skipped" },
  FAILED: { word: "failed", icon: "failed" },
  CANCELED: { word: "cancelled", icon: "stopped" },
};

/** The states in the order in which sums of them are shown. */
const ORDER: TaskState[] = ["FAILED", "RUNNING", "PENDING", "SUCCEEDED", "CACHED", "SKIPPED", "CANCELED"];

/** The path of the task that a task belongs to; undefined for the whole pipeline. */
export function parentOf(path: string): string | undefined {
  if (!path) return undefined;
  if (path.endsWith("]")) return path.slice(0, path.lastIndexOf("["));
  return path.slice(0, Math.max(0, path.lastIndexOf("/")));
}
/** The last name of a path, with the index of an iteration. */
export const nameOf = (path: string) => path.slice(path.lastIndexOf("/") + 1);
/** The number of an iteration, from 0; undefined for another task. */
export const indexOf = (path: string) => (path.endsWith("]") ? Number(path.slice(path.lastIndexOf("[") + 1, -1)) : undefined);
export const isExecuted = (task: TaskSummary) => task.kind === "CONTAINER" || task.kind === "IMPORTER";

export type Counts = Partial<Record<TaskState, number>>;

export class Tree {
  readonly byPath = new Map<string, TaskSummary>();
  #children = new Map<string, TaskSummary[]>();
  #counts = new Map<string, Counts>();

  constructor(readonly tasks: readonly TaskSummary[]) {
    for (const task of tasks) {
      this.byPath.set(task.path, task);
      const parent = parentOf(task.path);
      if (parent === undefined) continue;
      const siblings = this.#children.get(parent);
      if (siblings) siblings.push(task);
      else this.#children.set(parent, [task]);
    }
  }

  children(path: string): readonly TaskSummary[] {
    return this.#children.get(path) ?? [];
  }

  /** The states of the direct children of a task: of the iterations of a loop, of the tasks of a graph. */
  counts(path: string): Counts {
    let found = this.#counts.get(path);
    if (!found) {
      found = {};
      for (const child of this.children(path)) found[child.state] = (found[child.state] ?? 0) + 1;
      this.#counts.set(path, found);
    }
    return found;
  }
}

/** Counts in words, such as `2 failed, 8 succeeded`. */
export const inWords = (counts: Counts) =>
  ORDER.filter((state) => counts[state]).map((state) => `${counts[state]} ${states[state].word}`).join(", ");

/** Milliseconds that a task took, or has taken until now; undefined before its start and for what did not run. */
export function took(task: TaskSummary, now: number): number | undefined {
  if (task.state === "CACHED" || task.state === "SKIPPED") return undefined;
  const from = task.startedAt ?? (task.kind === "CONTAINER" || task.kind === "IMPORTER" ? undefined : task.createdAt);
  return from === undefined ? undefined : Math.max(0, (task.finishedAt ?? now) - from);
}

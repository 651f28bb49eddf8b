// How two runs of pipelines differ: their parameters, the tasks that did other things, and what was measured.

import type { Artifact, RunFacts, Task, Values } from "../pipelines";
import { isExecuted } from "./tasks";
import { valueText } from "./artifacts";

export type CompleteRun = RunFacts & { tasks: Task[] };

export interface TaskDifference {
  path: string;
  /** Inputs that differ, by name. */
  inputs: { name: string; left: string; right: string }[];
  outputs: { name: string; left: string; right: string }[];
  left?: Task;
  right?: Task;
}

/** Characters of a value that are shown. */
const MAX_SHOWN = 80;
const short = (text: string) => (text.length > MAX_SHOWN ? `${text.slice(0, MAX_SHOWN - 1)}…` : text);
/** An artifact is its content; each run has its own place for it. Of one without content, such as metrics, the metadata is all there is. */
const identity = (artifact: Artifact) => artifact.digest ?? JSON.stringify(artifact.metadata);
const shown = (list: Artifact[]) => short(list.map((artifact) => (artifact.digest ? artifact.digest.replace(/^sha256:/, "").slice(0, 12) : JSON.stringify(artifact.metadata))).join(", "));

function differences(left: Values | undefined, right: Values | undefined) {
  const names = (key: keyof Values) => [...new Set([...Object.keys(left?.[key] ?? {}), ...Object.keys(right?.[key] ?? {})])].sort();
  const found: { name: string; left: string; right: string }[] = [];
  for (const name of names("parameters")) {
    const [a, b] = [valueText(left?.parameters[name]), valueText(right?.parameters[name])];
    if (a !== b) found.push({ name, left: short(a), right: short(b) });
  }
  for (const name of names("artifacts")) {
    const [a, b] = [left?.artifacts[name] ?? [], right?.artifacts[name] ?? []];
    if (a.map(identity).join("\n") !== b.map(identity).join("\n")) found.push({ name, left: shown(a), right: shown(b) });
  }
  return found;
}

/** The tasks that executed something in one of the runs, with their differences. */
export function compareTasks(left: CompleteRun, right: CompleteRun): TaskDifference[] {
  const [a, b] = [new Map(left.tasks.map((t) => [t.path, t])), new Map(right.tasks.map((t) => [t.path, t]))];
  const paths = [...new Set([...a.keys(), ...b.keys()])].filter((path) => [a.get(path), b.get(path)].some((task) => task && isExecuted(task)));
  return paths.map((path) => {
    const [l, r] = [a.get(path), b.get(path)];
    return { path, left: l, right: r, inputs: l && r ? differences(l.inputs, r.inputs) : [], outputs: l && r ? differences(l.outputs, r.outputs) : [] };
  });
}

/** What differs of a task, in words; undefined if nothing does. */
export function inWords(d: TaskDifference): string | undefined {
  if (!d.left || !d.right) return d.left ? "only in the first" : "only in the second";
  const parts = [
    d.inputs.length ? `other ${d.inputs.map((i) => i.name).join(", ")}` : "",
    d.outputs.length ? "other outputs" : "",
    d.left.state !== d.right.state ? `${d.left.state.toLowerCase()} and ${d.right.state.toLowerCase()}` : "",
  ].filter(Boolean);
  return parts.length ? parts.join("; ") : undefined;
}

export interface Measure {
  path: string;
  name: string;
  values: [number | undefined, number | undefined];
}

/** The numbers that the tasks gave: of `Metrics` artifacts, and output parameters. */
export function measures(left: CompleteRun, right: CompleteRun): Measure[] {
  const found = new Map<string, Measure>();
  [left, right].forEach((run, side) => {
    for (const task of run.tasks) {
      if (!isExecuted(task)) continue;
      const metrics = Object.values(task.outputs.artifacts).flat().filter((a) => a.schemaTitle === "system.Metrics").flatMap((a) => Object.entries(a.metadata));
      for (const [name, value] of [...metrics, ...Object.entries(task.outputs.parameters)]) {
        if (typeof value !== "number") continue;
        const key = `${task.path}\n${name}`;
        const measure = found.get(key) ?? { path: task.path, name, values: [undefined, undefined] };
        measure.values[side] = value;
        found.set(key, measure);
      }
    }
  });
  return [...found.values()];
}

/** Parameters of the runs that differ, or all of them. */
export function parameters(left: CompleteRun, right: CompleteRun): { name: string; values: [string, string] }[] {
  const names = [...new Set([...Object.keys(left.parameters), ...Object.keys(right.parameters)])].sort();
  return names.map((name) => ({ name, values: [valueText(left.parameters[name]) || "default", valueText(right.parameters[name]) || "default"] }));
}

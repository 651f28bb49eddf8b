// What runs of pipelines used and cost: hours of processors and accelerators, and prices that the reader gives.

import type { Usage } from "../pipelines";

/** US dollars per hour; undefined where the reader has given no price. */
export interface Prices {
  processorHour?: number;
  acceleratorHour?: number;
}
export const NO_PRICES: Prices = {};
export function isPrices(value: unknown): value is Prices {
  if (typeof value !== "object" || value === null) return false;
  const { processorHour, acceleratorHour } = value as Record<string, unknown>;
  return [processorHour, acceleratorHour].every((price) => price === undefined || (typeof price === "number" && price >= 0));
}

type TaskUsage = Usage["tasks"][number];
export const HOUR = 3600;
const sum = (values: Record<string, number> | undefined) => Object.values(values ?? {}).reduce((total, value) => total + value, 0);

/** Whether a run reserved accelerators. */
export const isReserved = (usage: Usage) => sum(usage.acceleratorSeconds) > 0;

/** The cost of a task in US dollars, of what has a price. */
export const cost = (task: TaskUsage, prices: Prices) =>
  (task.seconds / HOUR) * (task.processors * (prices.processorHour ?? 0) + sum(task.accelerators) * (prices.acceleratorHour ?? 0));

export interface Total {
  name: string;
  /** Times are in seconds. */
  unit: "time" | "percent" | "kilojoules" | "dollars";
  values: [number | undefined, number | undefined];
}
export const changeOf = ({ values: [first, second] }: Total) => (first === undefined || second === undefined ? undefined : second - first);

/** `nvidia.com/gpu` is a GPU to readers; other accelerators keep their names. */
const timeOf = (resource: string) => (resource === "nvidia.com/gpu" ? "GPU time" : `Time of ${resource}`);

/** The totals of two runs; those of accelerators, measurements and costs only where there are any. */
export function totals(usages: readonly [Usage, Usage], prices: Prices): Total[] {
  const row = (name: string, unit: Total["unit"], value: (usage: Usage) => number | undefined): Total => ({ name, unit, values: [value(usages[0]), value(usages[1])] });
  const resources = [...new Set(usages.flatMap((usage) => Object.keys(usage.acceleratorSeconds)))].sort();
  const busy = ({ measured }: Usage) => (measured && measured.busySeconds + measured.idleSeconds > 0 ? (100 * measured.busySeconds) / (measured.busySeconds + measured.idleSeconds) : undefined);
  const all = [
    row("Running time of the tasks", "time", (u) => u.taskSeconds),
    row("CPU time", "time", (u) => u.processorSeconds),
    ...resources.map((resource) => row(timeOf(resource), "time", (u) => u.acceleratorSeconds[resource] ?? 0)),
    row("GPUs busy", "percent", busy),
    row("Energy of the GPUs in kJ", "kilojoules", (u) => u.measured && u.measured.joules / 1000 || undefined),
    row("Cost of the CPUs", "dollars", (u) => prices.processorHour && (u.processorSeconds / HOUR) * prices.processorHour),
    row("Cost of the GPUs", "dollars", (u) => prices.acceleratorHour && (sum(u.acceleratorSeconds) / HOUR) * prices.acceleratorHour),
  ];
  return all.filter((total) => total.values.some((value) => value !== undefined));
}

export interface TaskRow {
  path: string;
  /** In words; that of the second run, if both ran the task. */
  reserved: string;
  tasks: [TaskUsage | undefined, TaskUsage | undefined];
}

/** The tasks that ran in one of the runs, the longest first. */
export function taskRows(usages: readonly [Usage, Usage]): TaskRow[] {
  const [first, second] = usages.map((usage) => new Map(usage.tasks.map((task) => [task.path, task]))) as [Map<string, TaskUsage>, Map<string, TaskUsage>];
  const rows = [...new Set([...first.keys(), ...second.keys()])].map((path): TaskRow => {
    const tasks: TaskRow["tasks"] = [first.get(path), second.get(path)];
    const task = tasks[1] ?? tasks[0]!;
    const reserved = [`${task.processors} CPU`, ...Object.entries(task.accelerators ?? {}).map(([name, count]) => `${count} ${name}`)].join(", ");
    return { path, reserved, tasks };
  });
  const longest = (row: TaskRow) => Math.max(...row.tasks.map((task) => task?.seconds ?? 0));
  return rows.sort((a, b) => longest(b) - longest(a));
}

// The histories of metrics, as series of charts.

import { api, type Metric } from "../api";
import { palette } from "../format";
import type { Range, Series } from "./curve";

/** Points per run that a page loads at first; charts load more when the reader zooms in. */
export const MAX_POINTS = 1000;
/** Points per run of a range in detail: the most that the server samples. */
const MAX_DETAILED_POINTS = 2500;

export interface RunName {
  id: string;
  name: string;
}
export interface History {
  key: string;
  metrics: Metric[];
}
export interface HistoryChart {
  key: string;
  series: Series[];
  sampled: boolean;
  source: (steps?: Range) => Promise<Series[]>;
}

const points = (metrics: Metric[]): Series["points"] =>
  metrics.map((m) => ({ step: m.step, time: m.timestamp, y: Number.isFinite(Number(m.value)) ? Number(m.value) : null }));

/** Loads the histories of all metrics of some runs. */
export function load(runs: string[], keys: string[]): Promise<History[]> {
  return Promise.all(keys.map(async (key) => ({ key, metrics: await api.history(runs, key, MAX_POINTS) })));
}

/** A chart for each metric. A run has the same colour in all of them, and no line where it has no points. */
export function charts(runs: RunName[], histories: History[]): HistoryChart[] {
  return histories.map(({ key, metrics }) => {
    const ofRun = groups(metrics);
    const present = runs.map((run, i) => ({ ...run, colour: palette[i % palette.length]!, metrics: ofRun.get(run.id) ?? [] })).filter((r) => r.metrics.length > 0);
    const asSeries = (r: (typeof present)[number], metrics: Metric[]): Series => ({ name: r.name, colour: r.colour, points: points(metrics) });
    return {
      key,
      series: present.map((r) => asSeries(r, r.metrics)),
      sampled: present.some((r) => r.metrics.length >= MAX_POINTS),
      source: async (steps) => {
        if (!steps) return Promise.all(present.map(async (r) => asSeries(r, await api.fullHistory(r.id, key))));
        const found = groups(await api.history(present.map((r) => r.id), key, MAX_DETAILED_POINTS, steps));
        return present.map((r) => asSeries(r, found.get(r.id) ?? []));
      },
    };
  });
}

function groups(metrics: Metric[]): Map<string | undefined, Metric[]> {
  const result = new Map<string | undefined, Metric[]>();
  for (const m of metrics) {
    const list = result.get(m.run_id);
    if (list) list.push(m);
    else result.set(m.run_id, [m]);
  }
  return result;
}

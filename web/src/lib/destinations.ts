// What the command palette leads to: pages, experiments, runs, models and deployments.

import { pages, references } from "../navigation";
import { api } from "./api";
import type { IconName } from "./icons";

export interface Destination {
  kind: "page" | "experiment" | "run" | "model" | "deployment";
  name: string;
  /** Shown beside the name; the palette searches it too. */
  detail: string;
  href: string;
  icon: IconName;
  words?: string;
}

/** The newest runs that are loaded when the palette opens; older ones are searched by the server. */
const MAX_NEWEST_RUNS = 300;
const MAX_FOUND_RUNS = 20;

export const pageDestinations: Destination[] = [
  ...pages.map((p): Destination => ({ kind: "page", name: p.name, detail: "", href: `/${p.segment}`, icon: p.icon, words: p.words })),
  ...references.map((r): Destination => ({ kind: "page", name: r.name, detail: "", href: r.path, icon: r.icon, words: r.words })),
];

const isSettled = <T>(result: PromiseSettledResult<T>): result is PromiseFulfilledResult<T> => result.status === "fulfilled";

/** Runs by the name of their experiment. */
async function runs(experiments: Map<string, string>, filter: string, max: number): Promise<Destination[]> {
  if (experiments.size === 0) return [];
  const found = await api.searchRuns([...experiments.keys()], filter, ["attributes.start_time DESC"], max);
  return found.runs.map(({ info }) => ({ kind: "run", name: info.run_name, detail: experiments.get(info.experiment_id) ?? "", href: `/runs/${info.run_id}`, icon: "run", words: info.run_id }));
}

/** Everything that one user may open. A list that the user may not read, or that fails, is left out. */
export class Destinations {
  #experiments = new Map<string, string>();

  async load(): Promise<Destination[]> {
    const experiments = async (): Promise<Destination[]> => {
      const list = await api.experiments();
      this.#experiments = new Map(list.map((e) => [e.experiment_id, e.name]));
      const own = list.map((e): Destination => ({ kind: "experiment", name: e.name, detail: "", href: `/experiments/${e.experiment_id}`, icon: "flask" }));
      return [...own, ...(await runs(this.#experiments, "", MAX_NEWEST_RUNS))];
    };
    const models = async () =>
      (await api.models()).map((m): Destination => ({ kind: "model", name: m.name, detail: "", href: `/models/${encodeURIComponent(m.name)}`, icon: "box" }));
    const deployments = async () =>
      (await api.deployments()).map((d): Destination => ({ kind: "deployment", name: d.name, detail: d.variants.map((v) => v.name).join(", "), href: "/deployments", icon: "rocket" }));
    const found = await Promise.allSettled([models(), deployments(), experiments()]);
    return found.filter(isSettled).flatMap((f) => f.value);
  }

  /** Runs whose name contains a text, also those that are not among the newest. */
  olderRuns(text: string): Promise<Destination[]> {
    // LIKE has two wildcards, and MLflow's filters know no escape for a quotation mark.
    const pattern = text.replace(/['%_\\]/g, "");
    return pattern.length < 2 ? Promise.resolve([]) : runs(this.#experiments, `attributes.run_name ILIKE '%${pattern}%'`, MAX_FOUND_RUNS);
  }
}

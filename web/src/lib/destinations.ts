// What the command palette leads to: pages, experiments, runs, models, deployments, pipelines with their runs and schedules.

import { pages, references } from "../navigation";
import { api } from "./api";
import type { IconName } from "./icons";
import { NOT_ARCHIVED, predicatesOf } from "./pipeline/filter";
import { pipelines, type RunFacts } from "./pipelines";

export interface Destination {
  kind: "page" | "experiment" | "run" | "model" | "deployment" | "pipeline" | "pipeline run" | "schedule";
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

const pipelineRun = (run: RunFacts): Destination => ({ kind: "pipeline run", name: run.displayName, detail: run.pipelineName, href: `/pipelines/runs/${run.runId}`, icon: "flow", words: run.runId });

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
    const ofPipelines = async (): Promise<Destination[]> =>
      (await pipelines.list("")).items.map((p) => ({ kind: "pipeline", name: p.display_name, detail: p.description ?? "", href: `/pipelines/definitions/${p.pipeline_id}`, icon: "flow" }));
    const schedules = async (): Promise<Destination[]> =>
      (await pipelines.schedules("")).items.map((s) => ({ kind: "schedule", name: s.display_name, detail: s.status === "ENABLED" ? "" : "off", href: "/pipelines?view=schedules", icon: "waiting" }));
    const pipelineRuns = async () => (await pipelines.runs({ namespace: "" }, [NOT_ARCHIVED])).items.map(pipelineRun);
    const found = await Promise.allSettled([models(), deployments(), ofPipelines(), schedules(), pipelineRuns(), experiments()]);
    return found.filter(isSettled).flatMap((f) => f.value);
  }

  /** Runs whose name contains a text, also those that are not among the newest. */
  async olderRuns(text: string): Promise<Destination[]> {
    // LIKE has two wildcards, and MLflow's filters know no escape for a quotation mark.
    const pattern = text.replace(/['%_\\]/g, "");
    if (pattern.length < 2) return [];
    const tracked = runs(this.#experiments, `attributes.run_name ILIKE '%${pattern}%'`, MAX_FOUND_RUNS);
    const ofPipelines = pipelines.runs({ namespace: "" }, [...predicatesOf({ text }), NOT_ARCHIVED], "", MAX_FOUND_RUNS).then((page) => page.items.map(pipelineRun));
    const found = await Promise.allSettled([ofPipelines, tracked]);
    return found.filter(isSettled).flatMap((f) => f.value);
  }
}

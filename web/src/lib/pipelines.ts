// Client of pipelines: Kubeflow's API, as its own clients use it, and slipway's views of runs, which are smaller and say more of a task.

import { call, fetchOk } from "./api";
import type { Outline } from "./pipeline/graph";

export interface Pipeline {
  pipeline_id: string;
  display_name: string;
  name: string;
  description?: string;
  created_at: string;
  /** Only where namespaces are tenants. */
  namespace?: string;
}
export interface Version {
  pipeline_id: string;
  pipeline_version_id: string;
  display_name: string;
  description?: string;
  created_at: string;
}
export interface Experiment {
  experiment_id: string;
  display_name: string;
}
export interface VersionReference {
  pipeline_id: string;
  pipeline_version_id?: string;
}
export type RunState = "PENDING" | "RUNNING" | "SUCCEEDED" | "SKIPPED" | "FAILED" | "CANCELING" | "CANCELED" | "PAUSED";
export interface Schedule {
  recurring_run_id: string;
  display_name: string;
  status: "ENABLED" | "DISABLED";
  max_concurrency: string;
  no_catchup?: boolean;
  trigger?: { cron_schedule?: { cron: string; start_time?: string; end_time?: string }; periodic_schedule?: { interval_second: string } };
  pipeline_version_reference?: VersionReference;
  runtime_config?: { parameters?: Record<string, unknown> };
  error?: { message: string };
  created_at: string;
}
export type TaskState = "PENDING" | "RUNNING" | "SUCCEEDED" | "CACHED" | "SKIPPED" | "FAILED" | "CANCELED";
export type TaskKind = "ROOT" | "DAG" | "LOOP" | "ITERATION" | "CONTAINER" | "IMPORTER";
/** A task in the list of a run. Times are milliseconds since the Unix epoch, as in all of slipway's own messages. */
export interface TaskSummary {
  /** Names of the enclosing tasks and its own, as in `for-loop-1[0]/train`; empty for the whole pipeline. */
  path: string;
  kind: TaskKind;
  state: TaskState;
  attempt: number;
  iterations?: number;
  createdAt: number;
  startedAt?: number;
  finishedAt?: number;
}
export interface Artifact {
  id: string;
  schemaTitle: string;
  uri: string;
  metadata: Record<string, unknown>;
  digest: string | null;
}
export interface Values {
  parameters: Record<string, unknown>;
  artifacts: Record<string, Artifact[]>;
}
export interface Task extends TaskSummary {
  displayName: string;
  inputs: Values;
  outputs: Values;
  failure: string | null;
  cachedFrom: string | null;
  history: { at: number; state: TaskState }[];
}
/** A run without its tasks. */
export interface RunFacts {
  runId: string;
  trackedRunId: string;
  displayName: string;
  pipelineName: string;
  pipelineId?: string;
  versionId?: string;
  experimentId: string;
  recurringRunId: string;
  namespace: string;
  state: RunState;
  error: string;
  parameters: Record<string, unknown>;
  createdAt: number;
  finishedAt: number | null;
}
export type Source = { pipeline_version_reference: VersionReference } | { pipeline_spec: unknown };
export interface NewRun {
  display_name: string;
  experiment_id?: string;
  source: Source;
  parameters: Record<string, unknown>;
}
export interface NewSchedule extends NewRun {
  cron?: string;
  intervalSeconds?: number;
  maxConcurrency: number;
  catchUp: boolean;
}
export interface Page<T> {
  items: T[];
  total: number;
  next: string;
}

/** A condition of a list, as Kubeflow's API has it. */
export interface Predicate {
  operation: "EQUALS" | "IS_SUBSTRING";
  key: string;
  string_value: string;
}
/** Where a task is executed, and with what. */
export interface Environment {
  image: string;
  packages: string[];
  variables: [name: string, value: string][];
  /** Amounts by the name of the resource, as in Kubernetes. */
  resources: Record<string, string | number>;
  program: string;
}
/** What the tasks of a run reserved while they ran, and what was measured on their GPUs. */
export interface Usage {
  taskSeconds: number;
  /** Seconds times processors, and times accelerators by the name of the resource. */
  processorSeconds: number;
  acceleratorSeconds: Record<string, number>;
  tasks: { path: string; seconds: number; processors: number; accelerators?: Record<string, number> }[];
  measured: { busySeconds: number; idleSeconds: number; joules: number } | null;
}
/** An artifact that a task was given or gave; a list has several of one name. */
export interface ArtifactPlace {
  run: string;
  task: string;
  of: "inputs" | "outputs";
  name: string;
  index: number;
}

const kubeflow = "/apis/v2beta1";
const own = "/api/v1/pipelines/runs";
/** Entries of a page of a list, and the most that the server gives at once. */
const PAGE = 100;

function post(body: unknown): RequestInit {
  return { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) };
}
function parameters(values: Record<string, string | undefined>) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) if (value) query.set(name, value);
  return query;
}
async function page<T>(path: string, field: string, query: Record<string, string | undefined>): Promise<Page<T>> {
  const found = await call<Record<string, unknown>>(`${kubeflow}/${path}?${parameters({ page_size: String(PAGE), ...query })}`);
  return { items: (found[field] as T[] | undefined) ?? [], total: Number(found.total_size ?? 0), next: String(found.next_page_token ?? "") };
}
const id = encodeURIComponent;

/** Milliseconds since the Unix epoch; undefined for a time that is not known, which the API writes as 1970. */
export const time = (text: string | undefined) => (text && Date.parse(text) > 0 ? Date.parse(text) : undefined);
export const isFinal = (state: RunState | TaskState) => !["PENDING", "RUNNING", "CANCELING", "PAUSED"].includes(state);

function runBody(run: NewRun) {
  return { display_name: run.display_name, experiment_id: run.experiment_id || undefined, runtime_config: { parameters: run.parameters }, ...run.source };
}

export const pipelines = {
  list: (namespace: string, token = "") => page<Pipeline>("pipelines", "pipelines", { namespace, page_token: token, sort_by: "created_at desc" }),
  get: (pipeline: string) => call<Pipeline>(`${kubeflow}/pipelines/${id(pipeline)}`),
  versions: (pipeline: string, token = "") => page<Version>(`pipelines/${id(pipeline)}/versions`, "pipeline_versions", { page_token: token, sort_by: "created_at desc" }),
  version: (pipeline: string, version: string) => call<Version>(`${kubeflow}/pipelines/${id(pipeline)}/versions/${id(version)}`),
  /** Uploads a compiled pipeline: a new one, or a version of `pipeline`. */
  upload: (file: File, name: string, namespace: string, pipeline?: string) => {
    const form = new FormData();
    form.append("uploadfile", file);
    const query = parameters(pipeline ? { name, pipelineid: pipeline } : { name, namespace });
    return call<Pipeline>(`${kubeflow}/pipelines/${pipeline ? "upload_version" : "upload"}?${query}`, { method: "POST", body: form });
  },
  remove: (pipeline: string) => call(`${kubeflow}/pipelines/${id(pipeline)}?cascade=true`, { method: "DELETE" }),
  experiments: (namespace: string) => page<Experiment>("experiments", "experiments", { namespace, sort_by: "created_at desc" }),
  createExperiment: (display_name: string, namespace: string) => call<Experiment>(`${kubeflow}/experiments`, post({ display_name, namespace })),

  /** Runs, the newest first. */
  runs: async (where: { namespace: string; experiment?: string }, predicates: Predicate[], token = "", size = PAGE): Promise<Page<RunFacts>> => {
    const query = parameters({ ...where, filter: JSON.stringify({ predicates }), page_size: String(size), page_token: token });
    const { runs, total, nextPageToken } = await call<{ runs: RunFacts[]; total: number; nextPageToken: string }>(`${own}?${query}`);
    return { items: runs, total, next: nextPageToken };
  },
  create: (run: NewRun) => call<{ run_id: string }>(`${kubeflow}/runs`, post(runBody(run))),
  cancel: (run: string) => call(`${kubeflow}/runs/${id(run)}:terminate`, { method: "POST" }),
  retry: (run: string) => call(`${kubeflow}/runs/${id(run)}:retry`, { method: "POST" }),

  /** A run with the states of its tasks; without tasks if they have not changed since the change `after`. */
  tasks: (run: string, after?: number) => call<RunFacts & { changes: number; tasks: TaskSummary[] | null }>(`${own}/${id(run)}/tasks?${parameters({ after: after?.toString() })}`),
  task: (run: string, path: string) => call<Task>(`${own}/${id(run)}/task?${new URLSearchParams({ task: path })}`),
  /** A run with everything that is known of its tasks. */
  complete: (run: string) => call<RunFacts & { tasks: Task[] }>(`${own}/${id(run)}`),
  specification: async (run: string) => (await call<{ specification: unknown }>(`${own}/${id(run)}/specification`)).specification,
  outline: (run: string) => call<Outline>(`${own}/${id(run)}/outline`),
  versionOutline: (pipeline: string, version: string) => call<Outline>(`/api/v1/pipelines/definitions/${id(pipeline)}/versions/${id(version)}/outline`),
  environment: (run: string, task: string) => call<Environment>(`${own}/${id(run)}/environment?${new URLSearchParams({ task })}`),
  usage: (run: string) => call<Usage>(`${own}/${id(run)}/usage`),
  log: (run: string, task: string, attempt: number | undefined, follow: boolean, signal: AbortSignal) =>
    fetchOk(`${own}/${id(run)}/log?${parameters({ task, attempt: attempt?.toString(), follow: String(follow) })}`, { signal }),
  /** The beginning of an artifact, at most `limit` bytes. */
  artifact: async ({ run, index, ...place }: ArtifactPlace, limit: number): Promise<{ bytes: Uint8Array<ArrayBuffer>; truncated: boolean }> => {
    const response = await fetchOk(`${own}/${id(run)}/artifact?${new URLSearchParams({ ...place, index: String(index) })}`);
    const reader = response.body!.getReader();
    const parts: Uint8Array<ArrayBuffer>[] = [];
    let length = 0;
    for (let part = await reader.read(); !part.done && length <= limit; part = await reader.read()) {
      parts.push(part.value);
      length += part.value.length;
    }
    await reader.cancel();
    const bytes = new Uint8Array(await new Blob(parts).slice(0, limit).arrayBuffer());
    return { bytes, truncated: length > limit };
  },

  schedules: (namespace: string, token = "") => page<Schedule>("recurringruns", "recurringRuns", { namespace, page_token: token, sort_by: "created_at desc" }),
  createSchedule: (schedule: NewSchedule) => {
    const trigger = schedule.cron ? { cron_schedule: { cron: schedule.cron } } : { periodic_schedule: { interval_second: String(schedule.intervalSeconds) } };
    const settings = { trigger, mode: "ENABLE", max_concurrency: String(schedule.maxConcurrency), no_catchup: !schedule.catchUp };
    return call<Schedule>(`${kubeflow}/recurringruns`, post({ ...runBody(schedule), ...settings }));
  },
  enableSchedule: (schedule: string, enabled: boolean) => call(`${kubeflow}/recurringruns/${id(schedule)}:${enabled ? "enable" : "disable"}`, { method: "POST" }),
  removeSchedule: (schedule: string) => call(`${kubeflow}/recurringruns/${id(schedule)}`, { method: "DELETE" }),
};

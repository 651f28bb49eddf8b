// Typed client of the server: MLflow's API for runs and models, slipway's own API for everything else.

import { send } from "./session.svelte";

export interface KeyValue {
  key: string;
  value: string;
}
export interface Metric {
  key: string;
  value: number | string;
  timestamp: number;
  step: number;
  run_id?: string;
}
/** A question to the fit of a model: names of the API's `FitRequest`. */
export interface FitQuestion {
  model?: string;
  params?: string;
  config?: unknown;
  dtype?: string;
  kv_dtype?: string;
  seq: number;
  batch: number;
  card?: string;
  train?: { method: string; recompute: string; lora_rank: number };
}
export interface FitPart {
  what: string;
  bytes: number;
  formula: string;
  numbers: string;
}
export interface FitEstimate {
  shape: { name: string; source: string; assumed: boolean; notes: string[] };
  assumptions: string[];
  parameters: number;
  active_parameters: number;
  formats: { weights: string; cache: string };
  parts: FitPart[];
  bytes: number;
  nearest?: string | null;
  fits: {
    name: string;
    count: number;
    nodes: number;
    memory: number;
    layout_name: string;
    bytes_per_gpu: number;
    parts: FitPart[];
    serving?: { tokens_per_second: number; seconds_to_first_token: number; concurrency: number } | null;
  }[];
}
export interface Experiment {
  experiment_id: string;
  name: string;
  lifecycle_stage: string;
  creation_time: number;
  last_update_time: number;
}
export interface Dataset {
  name: string;
  digest: string;
  source_type: string;
  source: string;
  schema?: string;
  profile?: string;
}
export interface Run {
  info: {
    run_id: string;
    run_name: string;
    experiment_id: string;
    status: string;
    start_time: number;
    end_time?: number;
    user_id: string;
    artifact_uri: string;
  };
  data: { metrics?: Metric[]; params?: KeyValue[]; tags?: KeyValue[] };
  inputs: { dataset_inputs?: { tags?: KeyValue[]; dataset: Dataset }[] };
}
export interface ModelVersion {
  name: string;
  version: string;
  creation_timestamp: number;
  current_stage: string;
  run_id?: string;
  source: string;
  description?: string;
  tags?: KeyValue[];
}
export interface RegisteredModel {
  name: string;
  description?: string;
  last_updated_timestamp: number;
  latest_versions?: ModelVersion[];
  aliases?: { alias: string; version: string }[];
}
export interface FileInfo {
  path: string;
  is_dir: boolean;
  file_size?: number;
}
export interface Stats {
  requests: number;
  errors: number;
  rows: number;
  p50_us: number;
  p95_us: number;
  p99_us: number;
  total_us: number;
}
export interface VariantStatus {
  name: string;
  uri: string;
  weight: number;
  state: "ready" | "loading" | "failed";
  reason: string | null;
  model: { name: string; version: string; run_id: string } | null;
  stats: Stats;
}
export interface Deployment {
  name: string;
  revision: number;
  ready: boolean;
  in_flight: number;
  variants: VariantStatus[];
}
/** An inference request that was served. */
export interface ServedRequest {
  id: string;
  deployment: string;
  variant: string;
  model: { name: string; version: string; run_id: string };
  time: number;
  took_us: number;
}
/** A full GPU or a MIG device that a node advertises. */
export interface Device {
  uuid: string;
  index: string;
  gpu: string;
  fault: string | null;
}
export interface Holder {
  namespace: string;
  pod: string;
  container: string;
  resource: string;
  device: string;
  replica: number | null;
}
/** A node of the cluster. The optional fields are reported by its agent and missing without one. */
export interface ClusterNode {
  node: string;
  ready: boolean;
  schedulable: boolean;
  error?: string;
  driver?: string | null;
  missing?: string | null;
  problem?: string | null;
  simulated?: boolean | null;
  gpus?: Gpu[];
  offers?: { resource: string; replicas: number | null; sharing: string | null; devices: Device[] }[] | null;
  holders?: { holder: Holder; used: { joules: number; busy_seconds: number; idle_seconds: number } }[] | null;
}
export interface Gpu {
  index: number;
  uuid: string;
  name: string;
  memory_total: number | null;
  memory_used: number | null;
  utilization_percent: number | null;
  power_watts: number | null;
  power_limit_watts: number | null;
  temperature_celsius: number | null;
  clock_sm_mhz: number | null;
  pcie: { generation_max: number; width: number } | null;
  mig: { enabled: boolean; devices: { uuid: string; profile: string }[] } | null;
  processes: { pid: number; memory_bytes: number | null; user: string; command: string }[];
  findings: { severity: "note" | "warning" | "error"; what: string; remedy: string }[];
}
/** A step of a `slipway cluster` command and its outcome. */
export interface ClusterStep {
  step: string;
  host: string;
  needs: string[];
  outcome: "waiting" | "running" | "unchanged" | "changed" | "passed" | "failed" | "skipped";
  changes?: number;
  saw?: string;
  reason?: string;
  because?: string;
  seconds: number;
}
export interface ClusterReport {
  cluster: string;
  verb: string;
  /** Start time in milliseconds since the Unix epoch, as a decimal string. */
  change: string;
  seconds: number;
  steps: ClusterStep[];
}
export interface BenchmarkReport {
  number: number;
  time: number;
  host: string;
  devices: string[];
  figures: { what: string; device: string; precision?: string; size?: number; median: number; unit: string }[];
}
export interface TensorMeta {
  name: string;
  datatype: string;
  shape: number[];
}

/** An error response, with the server's message. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    message: string,
  ) {
    super(message);
  }
}

/** Sends a request and returns a successful response; throws an {@link ApiError} for any other. */
export async function fetchOk(path: string, init?: RequestInit): Promise<Response> {
  const response = await send(path, init);
  if (response.ok) return response;
  const body: Record<string, unknown> = await response
    .text()
    .then((text) => JSON.parse(text))
    .catch(() => ({}));
  throw new ApiError(response.status, String(body.message ?? body.error_message ?? body.error ?? `${response.status} ${response.statusText}`));
}

/** Sends a request and parses the JSON of its response. */
export async function call<T>(path: string, init?: RequestInit): Promise<T> {
  const text = await (await fetchOk(path, init)).text();
  return (text ? JSON.parse(text) : {}) as T;
}

const jsonPost = (body: unknown): RequestInit => ({
  method: "POST",
  headers: { "content-type": "application/json" },
  body: JSON.stringify(body),
});

const mlflow = "/ajax-api/2.0/mlflow";

export const api = {
  status: () => call<{ version: string; uptime_seconds: number; memory_bytes: number; runtime: string }>("/api/v1/status"),
  experiments: async () =>
    (await call<{ experiments?: Experiment[] }>(`${mlflow}/experiments/search`, jsonPost({ max_results: 1000 }))).experiments ?? [],
  searchRuns: async (experiments: string[], filter: string, orderBy: string[], max: number, token?: string) => {
    const body = { experiment_ids: experiments, filter, order_by: orderBy, max_results: max, page_token: token };
    const found = await call<{ runs?: Run[]; next_page_token?: string }>(`${mlflow}/runs/search`, jsonPost(body));
    return { runs: found.runs ?? [], next: found.next_page_token };
  },
  run: async (id: string) => (await call<{ run: Run }>(`${mlflow}/runs/get?run_id=${encodeURIComponent(id)}`)).run,
  /** At most `max` points per run, sampled evenly over the full history or the part of it between two steps. */
  history: async (ids: string[], key: string, max: number, steps?: readonly [from: number, to: number]) => {
    const query = new URLSearchParams({ metric_key: key, max_results: String(max) });
    ids.forEach((id) => query.append("run_ids", id));
    if (steps) {
      query.set("start_step", String(Math.floor(steps[0])));
      query.set("end_step", String(Math.ceil(steps[1])));
    }
    return (await call<{ metrics?: Metric[] }>(`${mlflow}/metrics/get-history-bulk-interval?${query}`)).metrics ?? [];
  },
  /** Every point of a metric. */
  fullHistory: async (id: string, key: string) =>
    (await call<{ metrics?: Metric[] }>(`${mlflow}/metrics/get-history?${new URLSearchParams({ run_id: id, metric_key: key })}`)).metrics ?? [],
  artifacts: async (id: string, path: string) => {
    const query = new URLSearchParams({ run_id: id, ...(path ? { path } : {}) });
    return (await call<{ files?: FileInfo[] }>(`${mlflow}/artifacts/list?${query}`)).files ?? [];
  },
  /** The bytes of an artifact. Its content type is ignored, because callers derive how to show a file from its name. */
  artifact: async (id: string, path: string) => {
    const response = await fetchOk(`/get-artifact?${new URLSearchParams({ run_id: id, path })}`);
    return response.arrayBuffer();
  },
  models: async () =>
    (await call<{ registered_models?: RegisteredModel[] }>(`${mlflow}/registered-models/search?max_results=1000`))
      .registered_models ?? [],
  model: async (name: string) =>
    (await call<{ registered_model: RegisteredModel }>(`${mlflow}/registered-models/get?name=${encodeURIComponent(name)}`))
      .registered_model,
  versions: async (name: string) => {
    const query = new URLSearchParams({ filter: `name = '${name.replaceAll("'", "")}'`, max_results: "1000" });
    query.append("order_by", "version_number DESC");
    return (await call<{ model_versions?: ModelVersion[] }>(`${mlflow}/model-versions/search?${query}`)).model_versions ?? [];
  },
  setAlias: (name: string, alias: string, version: string) =>
    call(`${mlflow}/registered-models/alias`, jsonPost({ name, alias, version })),
  versionsOfRuns: (ids: string[]) => call<Record<string, [string, number][]>>("/api/v1/run-versions", jsonPost({ run_ids: ids })),
  lineage: (model: string, version: string) =>
    call<{ datasets: { dataset: Dataset }[] }>(`/api/v1/models/${encodeURIComponent(model)}/versions/${encodeURIComponent(version)}/lineage`),
  deployments: () => call<Deployment[]>("/api/v1/deployments"),
  split: (name: string, weights: Record<string, number>) =>
    call<Deployment>(`/api/v1/deployments/${encodeURIComponent(name)}/split`, jsonPost({ weights })),
  rollback: (name: string) => call<Deployment>(`/api/v1/deployments/${encodeURIComponent(name)}/rollback`, jsonPost({})),
  metadata: (name: string) =>
    call<{ inputs: TensorMeta[]; outputs: TensorMeta[]; platform: string }>(
      `/api/v1/deployments/${encodeURIComponent(name)}/metadata`,
    ),
  infer: (name: string, body: string) =>
    call<Record<string, unknown>>(`/api/v1/deployments/${encodeURIComponent(name)}/infer`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body,
    }),
  clusterReports: () => call<{ clusters: ClusterReport[] }>("/api/v1/clusters"),
  cluster: () => call<{ nodes: ClusterNode[]; outside?: string }>("/api/v1/cluster"),
  gpus: () => call<{ simulated: boolean; driver: string; cuda: string; gpus: Gpu[] }>("/api/v1/gpu"),
  fit: (question: FitQuestion) => call<FitEstimate>("/api/v1/gpu/fit", { method: "POST", body: JSON.stringify(question), headers: { "content-type": "application/json" } }),
  benchmarks: () => call<BenchmarkReport[]>("/api/v1/gpu/benchmarks?limit=50"),
  /** A picture (`topology.svg`, `slices.svg`, `roofline.svg`) as SVG text; `card` selects the GPU model of a roofline. */
  picture: async (name: string, card = "") =>
    (await fetchOk(`/api/v1/gpu/pictures/${name}${card ? `?card=${encodeURIComponent(card)}` : ""}`)).text(),
  requests: (limit: number) => call<ServedRequest[]>(`/api/v1/requests?limit=${limit}`),
};

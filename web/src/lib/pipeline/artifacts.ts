// What an artifact of a pipeline says of itself in its metadata: metrics, a confusion matrix, a curve.

import type { Artifact } from "../pipelines";

/** Names that the server writes beside the values of the step. */
const OWN = new Set(["display_name", "store_session_info"]);
export const typeOf = (artifact: Artifact) => artifact.schemaTitle.replace(/^system\./, "") || "Artifact";

/** A value as a text. */
export const valueText = (value: unknown) => (typeof value === "string" ? value : value === undefined ? "" : JSON.stringify(value));

export interface Matrix {
  labels: string[];
  /** Counts by true label, then by predicted label. */
  rows: number[][];
}
export interface Roc {
  falsePositives: number[];
  truePositives: number[];
  thresholds: number[];
}

const isRecord = (value: unknown): value is Record<string, unknown> => typeof value === "object" && value !== null && !Array.isArray(value);
/** The SDK writes some values inside `struct` and `list`, as protobuf does it. */
const bare = (value: unknown): unknown => (isRecord(value) && "struct" in value ? value.struct : isRecord(value) && "list" in value ? value.list : value);

export function matrix(artifact: Artifact): Matrix | undefined {
  const found = bare(artifact.metadata.confusionMatrix);
  if (!isRecord(found) || !Array.isArray(found.annotationSpecs) || !Array.isArray(found.rows)) return undefined;
  const labels = found.annotationSpecs.map((label) => (isRecord(label) ? valueText(label.displayName) : valueText(label)));
  const rows = found.rows.map((row: unknown) => (isRecord(row) && Array.isArray(row.row) ? row.row : Array.isArray(row) ? row : []).map(Number));
  return rows.length ? { labels, rows } : undefined;
}

export function roc(artifact: Artifact): Roc | undefined {
  const found = bare(artifact.metadata.confidenceMetrics);
  if (!Array.isArray(found) || found.length === 0) return undefined;
  const points = found.filter(isRecord);
  const list = (key: string) => points.map((point) => Number(point[key] ?? 0));
  return { falsePositives: list("falsePositiveRate"), truePositives: list("recall"), thresholds: list("confidenceThreshold") };
}

/** The area below a curve, by trapezoids. */
export function area({ falsePositives, truePositives }: Roc): number {
  const points = falsePositives.map((x, i) => [x, truePositives[i] ?? 0] as const).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  return points.slice(1).reduce((sum, [x, y], i) => sum + ((x - points[i]![0]) * (y + points[i]![1])) / 2, 0);
}

/** Metadata without what is drawn as a picture. */
export const facts = (artifact: Artifact) =>
  Object.entries(artifact.metadata).filter(([key]) => !OWN.has(key) && key !== "confusionMatrix" && key !== "confidenceMetrics");

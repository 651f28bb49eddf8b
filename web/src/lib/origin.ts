// Where the data of a run comes from: the datasets that a DVC repository tracks name their repository, commit and file.
import type { Dataset } from "./api";

export interface LineageNode {
  kind: string;
  name: string;
  detail?: string;
  href?: string;
}

interface Source {
  repo: string;
  commit: string;
  path: string;
  file: string;
}

/** The source of a dataset that a DVC repository tracks. */
function source(dataset: Dataset): Source | undefined {
  if (dataset.source_type !== "dvc") return undefined;
  try {
    return JSON.parse(dataset.source) as Source;
  } catch {
    return undefined; // A client of MLflow can log any text with this type.
  }
}

/** The commits and the files that track the datasets; each once. */
export function origins(datasets: Dataset[]): LineageNode[] {
  const nodes = new Map<string, LineageNode>();
  for (const found of datasets.map(source)) {
    if (!found) continue;
    const name = found.file || found.path;
    nodes.set(`${found.commit} ${name}`, { kind: `commit ${found.commit.slice(0, 10)}`, name, detail: found.repo });
  }
  return [...nodes.values()];
}

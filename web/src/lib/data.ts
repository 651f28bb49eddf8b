// Repositories of versioned data, as the server reads them: `/api/v1/data/repositories`.

import { call, fetchOk } from "./api";

export interface Repository {
  name: string;
  location: string;
  folder: string;
  added: number;
}
export interface Summary {
  commit: string;
  /** Seconds since the Unix epoch, as in all commits here. */
  time: number;
  author: string;
  subject: string;
  branch: string | null;
  references: { name: string; commit: string; is_tag: boolean }[];
  remotes: [name: string, url: string][];
}
export interface DataSet {
  path: string;
  file: string;
  stage: string | null;
  kind: "data" | "metric" | "plot";
  is_folder: boolean;
  digest: string | null;
  size: number | null;
  files: number | null;
  in_cache: boolean | null;
  remote: string | null;
}
export interface Version {
  commit: string;
  time: number;
  author: string;
  subject: string;
  names: string[];
  digest: string | null;
  size: number | null;
  files: number | null;
}
export interface Changes {
  folder: string;
  added: number;
  changed: number;
  removed: number;
  unchanged: number;
}
export interface FileChange {
  path: string;
  old: string | null;
  new: string | null;
  old_size: number | null;
  new_size: number | null;
}
export interface Differences {
  from: string;
  to: string;
  total: Changes;
  folders: Changes[];
  files: FileChange[];
}
export interface Children {
  folders: { name: string; files: number }[];
  files: { name: string; digest: string; size: number | null }[];
  total: number;
}
export interface Places {
  objects: number;
  cache: { checked: number; present: number } | null;
  remotes: { name: string; url: string; checked: number; present: number | null; failure: string | null }[];
}
export type Preview = { digest: string; size: number | null; truncated: boolean } & (
  | { kind: "table"; columns: string[]; rows: string[][] }
  | { kind: "text"; text: string }
  | { kind: "picture"; media: string }
  | { kind: "binary" }
);
export interface Stage {
  name: string;
  file: string;
  has_command: boolean;
  command: string | null;
  deps: string[];
  outs: string[];
  is_frozen: boolean;
  reasons: string[];
  is_behind: boolean;
}
export interface Stages {
  commit: string;
  stages: Stage[];
  edges: [from: number, to: number][];
}
export interface ValueRow {
  file: string;
  name: string;
  values: (string | null)[];
}
export interface Values {
  revisions: string[];
  metrics: ValueRow[];
  params: ValueRow[];
  failures: string[];
}
export interface Plots {
  plots: { title: string; light: string; dark: string; legend: { name: string; color: string; dash: string }[] }[];
  /** Plots that are pictures; `url` has the bytes. */
  pictures: { title: string; pictures: { revision: string; path: string; url: string }[] }[];
  failures: string[];
}
export interface Experiments {
  columns: string[];
  metrics: string[];
  rows: string[][];
}

/** Entries of lists of files that are loaded at once. */
export const PAGE = 200;

type Parameters = Record<string, string | number | undefined>;

/** The repositories of a namespace; of the installation for an empty one. */
export class Catalog {
  #path: string;
  constructor(namespace: string) {
    this.#path = `/api/v1/data${namespace ? `/namespaces/${encodeURIComponent(namespace)}` : ""}/repositories`;
  }

  #url(repository: string, what: string, parameters: Parameters) {
    const query = new URLSearchParams();
    for (const [name, value] of Object.entries(parameters)) if (value !== undefined && value !== "") query.set(name, String(value));
    return `${this.#path}/${encodeURIComponent(repository)}${what}?${query}`;
  }

  list = async () => (await call<{ repositories: Repository[] }>(this.#path)).repositories;
  summary = (name: string, rev: string) => call<Summary>(this.#url(name, "", { rev }));
  dataSets = (name: string, rev: string) => call<{ data_sets: DataSet[]; truncated: boolean }>(this.#url(name, "/datasets", { rev }));
  versions = (name: string, path: string, rev: string) => call<{ versions: Version[]; truncated: boolean }>(this.#url(name, "/versions", { path, rev }));
  files = (name: string, path: string, rev: string, offset: number) => call<Children>(this.#url(name, "/files", { path, rev, offset, limit: PAGE }));
  places = (name: string, path: string, rev: string) => call<Places>(this.#url(name, "/places", { path, rev }));
  differences = (name: string, path: string, from: string, to: string, offset: number) =>
    call<Differences>(this.#url(name, "/differences", { path, from, to, offset, limit: PAGE }));
  preview = (name: string, path: string, rev: string) => call<Preview>(this.#url(name, "/preview", { path, rev }));
  /** The bytes of a picture. */
  picture = async (name: string, path: string, rev: string) => (await fetchOk(this.#url(name, "/picture", { path, rev }))).arrayBuffer();
  stages = (name: string, rev: string) => call<Stages>(this.#url(name, "/stages", { rev }));
  values = (name: string, revs: string[]) => call<Values>(this.#url(name, "/values", { revs: revs.join(",") }));
  plots = (name: string, revs: string[]) => call<Plots>(this.#url(name, "/plots", { revs: revs.join(",") }));
  experiments = (name: string, rev: string, commits: number) => call<Experiments>(this.#url(name, "/experiments", { rev, commits }));
}

/** What the components of the page share: a repository at a revision. */
export interface Place {
  catalog: Catalog;
  name: string;
  /** Empty for the last commit of the current branch. */
  rev: string;
}

export const shortCommit = (commit: string) => commit.slice(0, 8);
/** A digest as it is recognised: its beginning, and whether it is that of a folder. */
export const shortDigest = (digest: string) => digest.slice(0, 10) + (digest.endsWith(".dir") ? "….dir" : "…");

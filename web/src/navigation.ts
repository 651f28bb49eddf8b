// The pages of the UI, grouped by what people come for. The side bar, the command palette, page titles and routing all read this list, so
// a new area is one line here (and its first path segment in `VIEWS` of the server, which serves the page for it).

import type { Component } from "svelte";

import Overview from "./views/Overview.svelte";
import type { IconName } from "./lib/icons";

export interface Page {
  /** The first path segment; empty for the start page. */
  segment: string;
  name: string;
  icon: IconName;
  /** Further words that the command palette finds the page by. */
  words?: string;
  /** Loads the view when the page is opened. */
  load: () => Promise<{ default: Component }>;
}

export interface Group {
  name: string;
  pages: Page[];
}

/** The start page is part of the first bundle; the other views are loaded when they are opened. */
export const overview: Page = { segment: "", name: "Overview", icon: "home", words: "start home", load: async () => ({ default: Overview }) };

export const groups: Group[] = [
  {
    name: "Build",
    pages: [
      { segment: "data", name: "Data", icon: "layers", words: "datasets versions dvc repositories pipelines stages metrics plots", load: () => import("./views/Data.svelte") },
      { segment: "pipelines", name: "Pipelines", icon: "flow", words: "kubeflow kfp graph tasks schedules recurring runs workflow", load: () => import("./views/Pipelines.svelte") },
      { segment: "experiments", name: "Experiments", icon: "flask", words: "runs tracking metrics", load: () => import("./views/Experiments.svelte") },
    ],
  },
  {
    name: "Models",
    pages: [
      { segment: "models", name: "Registry", icon: "box", words: "models versions aliases", load: () => import("./views/Models.svelte") },
      { segment: "deployments", name: "Deployments", icon: "rocket", words: "serving traffic inference", load: () => import("./views/Deployments.svelte") },
    ],
  },
  {
    name: "Machines",
    pages: [
      { segment: "gpu", name: "GPUs", icon: "chip", words: "mig topology roofline benchmarks", load: () => import("./views/Gpu.svelte") },
      { segment: "fit", name: "Fit", icon: "box", words: "memory model layout parallel kv cache training lora", load: () => import("./views/Fit.svelte") },
      { segment: "cluster", name: "Cluster", icon: "nodes", words: "nodes kubernetes pods machines", load: () => import("./views/Cluster.svelte") },
    ],
  },
];

/** Files of the server about itself, opened as they are. */
export const references = [{ path: "/openapi.json", name: "API description", icon: "book" as IconName, words: "openapi learn reference" }];

/** Views without an entry of their own: each belongs to a page that is marked as the current one meanwhile. */
const details: Record<string, { page: string; name: string; load: Page["load"] }> = {
  runs: { page: "experiments", name: "Run", load: () => import("./views/Run.svelte") },
  compare: { page: "experiments", name: "Compare runs", load: () => import("./views/Compare.svelte") },
};

export const pages: Page[] = [overview, ...groups.flatMap((g) => g.pages)];

/** The view for a first path segment, its title, and the segment of the page that it belongs to. */
export function resolve(segment: string): { page: string; name: string; load: Page["load"] } | undefined {
  const page = pages.find((p) => p.segment === segment);
  // Own properties only: `constructor` is not a view.
  return page ? { page: page.segment, name: page.name, load: page.load } : Object.hasOwn(details, segment) ? details[segment] : undefined;
}

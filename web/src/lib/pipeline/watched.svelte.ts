// A run that is watched while its page is open: its tasks are loaded when they change, and more rarely if there are thousands of them.

import { onDestroy } from "svelte";

import { isFinal, pipelines, type RunFacts } from "../pipelines";
import { Graphs, specificationOf } from "./spec";
import { Tree } from "./tasks";

const INTERVAL = 1000;
/** Additional milliseconds between requests for each task. */
const INTERVAL_PER_TASK = 0.4;

export class WatchedRun {
  facts = $state.raw<RunFacts>();
  tree = $state.raw<Tree>();
  graphs = $state.raw<Graphs>();
  error = $state<string>();
  #id: string;
  #changes: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #request = 0;
  #closed = false;

  constructor(id: string) {
    this.#id = id;
    void this.refresh();
    onDestroy(() => {
      this.#closed = true;
      clearTimeout(this.#timer);
    });
  }

  async refresh() {
    clearTimeout(this.#timer);
    const request = ++this.#request;
    try {
      if (!document.hidden || !this.facts) {
        const found = await pipelines.tasks(this.#id, this.#changes);
        // The specification of a run never changes.
        this.graphs ??= new Graphs(specificationOf(await pipelines.specification(this.#id)));
        if (this.#closed || request !== this.#request) return;
        if (found.tasks) this.tree = new Tree(found.tasks);
        this.#changes = found.changes;
        this.facts = found;
        this.error = undefined;
      }
    } catch (e) {
      if (this.#closed || request !== this.#request) return;
      this.error = e instanceof Error ? e.message : String(e);
    }
    if (!this.facts || !isFinal(this.facts.state)) this.#timer = setTimeout(() => void this.refresh(), INTERVAL + INTERVAL_PER_TASK * (this.tree?.tasks.length ?? 0));
  }
}

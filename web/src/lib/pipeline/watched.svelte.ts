// A run that is watched while its page is open: its tasks are loaded when they change, and more rarely if there are thousands of them.

import { Live } from "../live.svelte";
import { isFinal, pipelines, type RunFacts } from "../pipelines";
import { Graphs } from "./graph";
import { Tree } from "./tasks";

const INTERVAL = 1000;
/** Additional milliseconds between requests for each task. */
const INTERVAL_PER_TASK = 0.4;

interface Seen {
  facts: RunFacts;
  /** Number of changes of the tasks in `tree`. */
  changes: number;
  tree: Tree | undefined;
  graphs: Graphs;
}

export class WatchedRun {
  #live: Live<Seen>;
  readonly facts = $derived.by(() => this.#live.value?.facts);
  readonly tree = $derived.by(() => this.#live.value?.tree);
  readonly graphs = $derived.by(() => this.#live.value?.graphs);
  readonly error = $derived.by(() => this.#live.error);

  constructor(id: string) {
    const next = async (value: Seen | undefined): Promise<Seen> => {
      // The pipeline of a run never changes.
      const [{ tasks, changes, ...facts }, graphs] = await Promise.all([pipelines.tasks(id, value?.changes), value?.graphs ?? pipelines.outline(id).then((outline) => new Graphs(outline))]);
      return { facts, changes, tree: tasks ? new Tree(tasks) : value?.tree, graphs };
    };
    const interval = (seen: Seen | undefined) =>
      seen && isFinal(seen.facts.state) ? 0 : INTERVAL + INTERVAL_PER_TASK * (seen?.tree?.tasks.length ?? 0);
    this.#live = new Live(next, interval);
  }

  refresh() {
    return this.#live.refresh();
  }
}

// A value that is loaded once for each key, such as a path and a revision.

import { untrack } from "svelte";

export class Loaded<T> {
  value = $state.raw<T>();
  error = $state<string>();
  #latestRequest = 0;

  /** Loads again when what `fetch` reads changes; undefined if there is nothing to load. */
  constructor(fetch: () => Promise<T> | undefined) {
    $effect(() => {
      const request = ++this.#latestRequest;
      const promise = fetch();
      untrack(() => {
        this.value = this.error = undefined;
        promise?.then(
          // Drop the response if a newer request has started meanwhile.
          (value) => request === this.#latestRequest && (this.value = value),
          (error) => request === this.#latestRequest && (this.error = error instanceof Error ? error.message : String(error)),
        );
      });
    });
  }
}

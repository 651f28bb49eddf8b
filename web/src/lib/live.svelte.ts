// A value that is polled while its page is open and visible.

import { onDestroy } from "svelte";

export class Live<T> {
  value = $state<T>();
  error = $state<string>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #fetch: (previous: T | undefined) => Promise<T>;
  #interval: number | ((value: T | undefined) => number);
  #latestRequest = 0;
  #closed = false;

  /** Fetches at once and then every `interval` milliseconds, which can depend on the value; 0 fetches no more. `fetch` gets the value before. */
  constructor(fetch: (previous: T | undefined) => Promise<T>, interval: number | ((value: T | undefined) => number) = 2000) {
    this.#fetch = fetch;
    this.#interval = interval;
    void this.refresh();
    onDestroy(() => {
      this.#closed = true;
      clearTimeout(this.#timer);
    });
  }

  async refresh() {
    clearTimeout(this.#timer);
    const request = ++this.#latestRequest;
    if (!document.hidden || this.value === undefined) {
      try {
        const value = await this.#fetch(this.value);
        // Drop the response if a newer request has started meanwhile.
        if (request !== this.#latestRequest) return;
        this.value = value;
        this.error = undefined;
      } catch (error) {
        if (request !== this.#latestRequest) return;
        this.error = error instanceof Error ? error.message : String(error);
      }
    }
    const interval = typeof this.#interval === "number" ? this.#interval : this.#interval(this.value);
    if (!this.#closed && interval > 0) this.#timer = setTimeout(() => void this.refresh(), interval);
  }
}

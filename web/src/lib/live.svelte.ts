// A value that is fetched again and again while its page is open and visible.

import { onDestroy } from "svelte";

export class Live<T> {
  value = $state<T>();
  error = $state<string>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #fetch: () => Promise<T>;
  #every: number;
  #turn = 0;
  #closed = false;

  constructor(fetch: () => Promise<T>, every = 2000) {
    this.#fetch = fetch;
    this.#every = every;
    void this.refresh();
    onDestroy(() => {
      this.#closed = true;
      clearTimeout(this.#timer);
    });
  }

  async refresh() {
    clearTimeout(this.#timer);
    const turn = ++this.#turn;
    if (!document.hidden || this.value === undefined) {
      try {
        const value = await this.#fetch();
        // An answer that was overtaken by a newer question is dropped.
        if (turn !== this.#turn) return;
        this.value = value;
        this.error = undefined;
      } catch (error) {
        if (turn !== this.#turn) return;
        this.error = error instanceof Error ? error.message : String(error);
      }
    }
    if (!this.#closed && this.#every > 0) this.#timer = setTimeout(() => void this.refresh(), this.#every);
  }
}

// A list that the server gives in pages. The first page may be loaded again and again, for what is new.

import { onDestroy } from "svelte";

import type { Page } from "../pipelines";

export class Pages<T> {
  items = $state.raw<T[]>();
  total = $state(0);
  error = $state<string>();
  loading = $state(false);
  #next = "";
  #fetch: (token: string) => Promise<Page<T>>;
  #request = 0;
  #timer: ReturnType<typeof setInterval> | undefined;

  /** Loads again every `interval` milliseconds while only the first page is shown; 0 loads once. */
  constructor(fetch: (token: string) => Promise<Page<T>>, interval = 0) {
    this.#fetch = fetch;
    if (interval) this.#timer = setInterval(() => document.hidden || this.#pages > 1 || void this.reload(), interval);
    onDestroy(() => {
      this.#request++;
      clearInterval(this.#timer);
    });
  }
  #pages = 0;

  get hasMore() {
    return this.#next !== "" && this.items !== undefined && this.items.length < this.total;
  }

  reload = () => this.#load("", []);
  more = () => this.#load(this.#next, this.items ?? []);

  async #load(token: string, before: T[]) {
    const request = ++this.#request;
    this.loading = true;
    try {
      const page = await this.#fetch(token);
      // Drop the response if a newer request has started meanwhile.
      if (request !== this.#request) return;
      this.#next = page.next;
      this.#pages = token ? this.#pages + 1 : 1;
      this.items = [...before, ...page.items];
      this.total = page.total;
      this.error = undefined;
    } catch (e) {
      if (request === this.#request) this.error = e instanceof Error ? e.message : String(e);
    } finally {
      if (request === this.#request) this.loading = false;
    }
  }
}

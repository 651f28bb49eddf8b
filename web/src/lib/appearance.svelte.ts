// Light or dark: the choice of the reader, otherwise that of the system.

const KEY = "theme";
const system = matchMedia("(prefers-color-scheme: dark)");

class Appearance {
  #chosen = $state(localStorage.getItem(KEY) ?? "");
  #systemIsDark = $state(system.matches);

  constructor() {
    system.addEventListener("change", () => (this.#systemIsDark = system.matches));
    this.#apply();
  }

  get dark(): boolean {
    return this.#chosen ? this.#chosen === "dark" : this.#systemIsDark;
  }

  toggle() {
    this.#chosen = this.dark ? "light" : "dark";
    localStorage.setItem(KEY, this.#chosen);
    this.#apply();
  }

  #apply() {
    if (this.#chosen) document.documentElement.dataset.theme = this.#chosen;
  }
}

export const appearance = new Appearance();

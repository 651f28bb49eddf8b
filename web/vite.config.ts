import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// `npm run dev` forwards API requests to a slipway server on this machine.
const slipway = "http://127.0.0.1:7070";

export default defineConfig({
  plugins: [svelte()],
  build: { target: "es2022", assetsInlineLimit: 0 },
  server: {
    proxy: Object.fromEntries(
      ["/api", "/ajax-api", "/get-artifact"].map((path) => [path, { target: slipway, headers: { origin: slipway, host: "127.0.0.1:7070" } }]),
    ),
  },
});

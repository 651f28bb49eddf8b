import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// `npm run dev` talks to a slipway that runs beside it.
const slipway = "http://127.0.0.1:7070";

export default defineConfig({
  plugins: [svelte()],
  build: { target: "es2022", assetsInlineLimit: 0 },
  server: { proxy: { "/api": slipway, "/ajax-api": slipway, "/get-artifact": slipway } },
});

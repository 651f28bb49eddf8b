import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// `npm run dev` and `npx vite preview` forward API requests to a slipway server: `SLIPWAY_URL=http://127.0.0.1:7070 npm run dev`. The
// server accepts only requests that name itself as their host and origin.
const slipway = new URL(process.env.SLIPWAY_URL ?? "http://127.0.0.1:7070");
const forwarded = { target: slipway.origin, changeOrigin: true, headers: { origin: slipway.origin } };
const proxy = Object.fromEntries(["/api", "/apis", "/ajax-api", "/get-artifact", "/openapi.json"].map((path) => [path, forwarded]));

export default defineConfig({
  plugins: [svelte()],
  build: { target: "es2022", assetsInlineLimit: 0 },
  server: { proxy },
  preview: { proxy },
});

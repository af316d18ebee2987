import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vitest/config";

import { fixtureServer } from "./dev/fixture.ts";

/** `MARTLET_URL=http://127.0.0.1:8000 npm run dev` works against a server; without it answers are made up. */
const server = process.env["MARTLET_URL"];
const proxied = server ? { target: server, changeOrigin: true, headers: { origin: server } } : undefined;

export default defineConfig({
  base: "./",
  plugins: [vue(), ...(server ? [] : [fixtureServer()])],
  define: { __VUE_OPTIONS_API__: false, __VUE_PROD_DEVTOOLS__: false },
  server: proxied ? { proxy: { "/v1": proxied, "/api": proxied } } : {},
  build: {
    outDir: "../src/martlet/server/static",
    emptyOutDir: true,
    target: ["chrome123", "firefox128", "safari17.5"],
    // Everything is small and needed at once; polyfills and inlined assets would want a looser policy.
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
  },
  test: { environment: "node", include: ["tests/**/*.test.ts"] },
});

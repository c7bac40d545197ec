import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

/** What the libraries in the page ask to stand beside it. */
function licences(): Plugin {
  const files = ["svelte/LICENSE.md", "marked/LICENSE", "dompurify/LICENSE", "highlight.js/LICENSE"];
  const text = (file: string) => readFileSync(new URL(`../node_modules/${file}`, import.meta.url), "utf8").trim();
  const source = () => files.map((file) => `${file}\n\n${text(file)}\n`).join(`\n${"-".repeat(80)}\n\n`);
  return {
    name: "licences",
    generateBundle() {
      this.emitFile({ type: "asset", fileName: "licences.txt", source: source() });
    },
  };
}

/** Built beside the server's code; while working on the page, `npx vite web` asks a server on 8080. */
export default defineConfig({
  root: fileURLToPath(new URL(".", import.meta.url)),
  plugins: [svelte(), licences()],
  build: {
    outDir: fileURLToPath(new URL("../dist/web", import.meta.url)),
    emptyOutDir: true,
    modulePreload: { polyfill: false }, // which would be an inline script
    assetsInlineLimit: 0, // the page's policy takes no data: URLs
    reportCompressedSize: false,
    rolldownOptions: { checks: { pluginTimings: false } },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8080", "/health": "http://127.0.0.1:8080" } },
});

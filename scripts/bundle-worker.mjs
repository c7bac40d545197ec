// Joins dist/worker.js with the hundred modules that it loads into one file, in its place: each of them costs the start of
// every command a millisecond or two.

import { rmSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { build } from "vite";

const dist = fileURLToPath(new URL("../dist/", import.meta.url));
await build({
  configFile: false,
  logLevel: "warn",
  publicDir: false,
  build: {
    ssr: `${dist}worker.js`,
    target: "node20",
    outDir: dist,
    emptyOutDir: false,
    minify: false,
    rolldownOptions: { output: { entryFileNames: "worker.js", codeSplitting: false } },
  },
});
rmSync(`${dist}worker.js.map`, { force: true }); // of the file before

// `node --import ./scripts/ts.mjs bench/load.ts`: runs a TypeScript file as it stands on Node 20, which cannot by itself.

import { readFile } from "node:fs/promises";
import { register } from "node:module";
import { fileURLToPath } from "node:url";
import { isMainThread } from "node:worker_threads";

export async function load(url, context, next) {
  if (!url.endsWith(".ts")) return next(url, context);
  const { default: ts } = await import("typescript");
  const compilerOptions = { module: ts.ModuleKind.ESNext, target: ts.ScriptTarget.ES2022, inlineSourceMap: true };
  const text = await readFile(fileURLToPath(url), "utf8");
  return { format: "module", shortCircuit: true, source: ts.transpileModule(text, { compilerOptions }).outputText };
}

// This file is both the door and the hooks; loaded again in the hooks' own thread it must not register once more.
if (isMainThread) register(import.meta.url);

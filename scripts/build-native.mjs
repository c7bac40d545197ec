// Compiles native/ into native/build/llama4.node: `node scripts/build-native.mjs [--sanitize]`.
// Kernels are compiled once for each instruction set, everything else once; only what changed is compiled again.

import { execFile } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);
const native = fileURLToPath(new URL("../native/", import.meta.url));
const sanitize = process.argv.includes("--sanitize");
const build = join(native, sanitize ? "build-sanitized" : "build");

// The border, threads, memory and files; every other source is a kernel.
const once = ["addon.cc", "memory.cc", "pool.cc", "reader.cc"];

// What an instruction set stands for; native/addon.cc asks the processor for the same features.
const avx2 = ["-march=x86-64", "-mavx2", "-mfma", "-mf16c"];
const avx512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni", "-mprefer-vector-width=512"];
const isas =
  process.arch === "x64"
    ? {
        baseline: ["-march=x86-64"],
        avx2,
        avx512: [...avx2, ...avx512],
        amx: [...avx2, ...avx512, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"],
      }
    : { baseline: [] };

// Sources whose kernels use more than an instruction set stands for, where the processor has it: they ask.
const more = { "linear-bf16.cc": { avx512: ["-mavx512bf16"] }, "linear-backward.cc": { avx512: ["-mavx512bf16"] } };

// GCC 12 warns of uninitialised values inside its own AVX-512 intrinsics: those two warnings are off.
const flags = [
  ...[
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-pthread",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-uninitialized",
    "-Wno-maybe-uninitialized",
  ],
  ...["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-fno-strict-aliasing"],
  ...(sanitize ? ["-O1", "-g", "-fno-omit-frame-pointer", "-fsanitize=address,undefined"] : ["-O3"]),
  `-I${createRequire(import.meta.url)("node-api-headers").include_dir}`,
];

/** The first compiler that answers, with its version: another version compiles everything anew. */
async function findCompiler() {
  for (const name of process.env.CXX ? [process.env.CXX] : ["g++", "clang++", "c++"]) {
    try {
      const { stdout } = await run(name, ["--version"]);
      return { name, version: stdout.split("\n")[0] };
    } catch {
      // not this one
    }
  }
  return undefined;
}

function jobs() {
  const sources = readdirSync(native).filter((file) => file.endsWith(".cc"));
  return sources.flatMap((source) =>
    once.includes(source)
      ? [{ source, object: source.replace(".cc", ".o"), flags: [] }]
      : Object.entries(isas).map(([isa, isaFlags]) => ({
          source,
          object: source.replace(".cc", `.${isa}.o`),
          flags: [...isaFlags, ...(more[source]?.[isa] ?? []), `-DLLAMA4_ISA=${isa}`],
        })),
  );
}

const compiler = await findCompiler();
if (!compiler) {
  console.error("No C++ compiler answered (tried $CXX, g++, clang++, c++): the native backend was not built.");
  console.error("Install one (Debian, Ubuntu: apt-get install g++; macOS: xcode-select --install) and build again.");
  console.error("Without it llama4 computes with the plain TypeScript backend, which is slow.");
  process.exit(0);
}

mkdirSync(build, { recursive: true });

/** The file and all of native/ that it includes, and they do. */
function withHeaders(file, seen = new Set()) {
  if (seen.has(file) || !existsSync(join(native, file))) return seen;
  seen.add(file);
  for (const [, header] of readFileSync(join(native, file), "utf8").matchAll(/^#include "(.+)"/gm))
    withHeaders(header, seen);
  return seen;
}

async function compile({ source, object, flags: own }) {
  const target = join(build, object);
  const args = [...flags, ...own];
  const hash = createHash("sha256").update(`${compiler.version} ${args.join(" ")}`);
  for (const file of [...withHeaders(source)].sort()) hash.update(readFileSync(join(native, file)));
  const digest = hash.digest("hex");
  const note = `${target}.digest`;
  if (existsSync(target) && existsSync(note) && readFileSync(note, "utf8") === digest) return false;
  const { stderr } = await run(compiler.name, [...args, "-c", join(native, source), "-o", target], {
    maxBuffer: 1 << 26,
  });
  if (stderr) process.stderr.write(stderr);
  writeFileSync(note, digest);
  return true;
}

try {
  const queue = jobs();
  const objects = queue.map(({ object }) => join(build, object));
  let compiled = 0;
  const worker = async () => {
    for (let job = queue.shift(); job; job = queue.shift()) if (await compile(job)) compiled++;
  };
  const progress = setInterval(
    () => console.error(`native: ${compiled} objects compiled, ${queue.length} to go`),
    10_000,
  );
  await Promise.all([worker(), worker()]);
  clearInterval(progress);
  const addon = join(build, "llama4.node");
  if (compiled || !existsSync(addon)) {
    const link = process.platform === "darwin" ? ["-undefined", "dynamic_lookup"] : [];
    const next = join(build, `llama4.${process.pid}.node`);
    await run(compiler.name, ["-shared", "-pthread", ...flags, ...link, ...objects, "-o", next], {
      maxBuffer: 1 << 26,
    });
    renameSync(next, addon); // a process that has the old one loaded keeps it
    console.error(`${addon}: ${compiled} of ${objects.length} objects compiled by ${compiler.version}`);
  }
} catch (error) {
  process.stderr.write(error.stderr ?? `${error.stack}\n`);
  console.error(`build-native: ${compiler.name} failed, see above`);
  process.exit(1);
}

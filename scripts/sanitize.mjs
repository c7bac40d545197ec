// Builds the addon with AddressSanitizer and UndefinedBehaviorSanitizer and runs the tests of the backends under both:
// `node scripts/sanitize.mjs [vitest arguments]`. Leaks are not looked for: Node keeps much of its own until it ends.

import { execFileSync, spawnSync } from "node:child_process";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
const compiler = process.env.CXX ?? "g++";
const library = (name) => execFileSync(compiler, [`-print-file-name=${name}`], { encoding: "utf8" }).trim();

const built = spawnSync(process.execPath, ["scripts/build-native.mjs", "--sanitize"], { cwd: root, stdio: "inherit" });
if (built.status !== 0) process.exit(built.status ?? 1);

const env = {
  ...process.env,
  LD_PRELOAD: [library("libasan.so"), library("libubsan.so")].join(":"),
  ASAN_OPTIONS: "detect_leaks=0:allocator_may_return_null=1",
  UBSAN_OPTIONS: "print_stacktrace=1:halt_on_error=1",
  LLAMA4_ADDON: join(root, "native/build-sanitized/llama4.node"),
};
const vitest = join(root, "node_modules/vitest/vitest.mjs");
const tests = process.argv.length > 2 ? process.argv.slice(2) : ["tests/backends"];
const run = spawnSync(process.execPath, [vitest, "run", ...tests], { cwd: root, stdio: "inherit", env });
process.exit(run.status ?? 1);

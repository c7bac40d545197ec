// `npm start` and `npm test`: everything from a fresh clone, in plain JavaScript because nothing is built yet.

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, fstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const root = new URL("..", import.meta.url).pathname;
process.chdir(root);

/** Runs a command with our terminal; ends with its status if it fails. */
function must(command, args, options = {}) {
  const { status, signal, error } = spawnSync(command, args, { stdio: "inherit", ...options });
  if (error) throw error;
  if (status !== 0) {
    console.error(`${[command, ...args].join(" ")} failed (${signal ?? `status ${status}`})`);
    process.exit(status ?? 1);
  }
}

const quietly = { stdio: ["ignore", process.stderr.fd, process.stderr.fd] }; // stdout belongs to what was asked for

/** A digest of files that decide whether a step has to run again, and the note where the last one is kept. */
function changed(note, paths) {
  const hash = createHash("sha256");
  for (const path of paths.sort()) hash.update(path).update(readFileSync(path));
  const digest = hash.digest("hex");
  const stale = !existsSync(note) || readFileSync(note, "utf8") !== digest;
  return { stale, keep: () => writeFileSync(note, digest) };
}

const sources = (folder) =>
  readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile() && !entry.parentPath.includes("native/build"))
    .map((entry) => join(entry.parentPath, entry.name));

function install(folder, ...flags) {
  const lock = join(folder, "package-lock.json");
  const step = changed(join(folder, "node_modules/.installed"), [lock]);
  if (!step.stale) return;
  console.error(`installing ${folder === "." ? "" : `${folder}: `}the packages of ${lock}`);
  must("npm", ["ci", "--no-audit", "--no-fund", "--ignore-scripts", ...flags], { cwd: folder, ...quietly });
  step.keep();
}

function build() {
  mkdirSync("dist", { recursive: true });
  const step = changed("dist/.built", [
    ...sources("src"),
    ...sources("native"),
    "scripts/build-native.mjs",
    "tsconfig.build.json",
    "package-lock.json",
  ]);
  if (!step.stale) return;
  console.error("building: native kernels, then TypeScript (one to two minutes the first time)");
  must("npm", ["run", "--silent", "build"], quietly);
  step.keep();
}

/** The model that `npm start` talks to until a trained one ships: random weights, and it says so. */
function randomModel() {
  const model = "models/random";
  if (existsSync(join(model, "config.json"))) return model;
  console.error(`making ${model}: a small Llama 4 with random weights`);
  const shape = [
    "--layers",
    "4",
    "--dim",
    "256",
    "--heads",
    "4",
    "--kv-heads",
    "2",
    "--head-dim",
    "64",
    "--expert-ffn",
    "512",
  ];
  must(
    "node",
    [
      "dist/cli/main.js",
      "init",
      "scout",
      model,
      ...shape,
      "--ffn",
      "512",
      "--experts",
      "4",
      "--vocab",
      "512",
      "--vision",
      "off",
    ],
    quietly,
  );
  return model;
}

function start() {
  install(".");
  build();
  const shipped = "models/tiny";
  const trained = existsSync(join(shipped, "config.json"));
  const model = trained ? shipped : randomModel();
  if (!trained) {
    console.error("This model's weights are random: it shows that the machinery runs, and speaks nonsense.");
    console.error("For sense: node dist/cli/main.js chat --model <a Llama 4 folder or .gguf file>\n");
  }
  const input = fstatSync(process.stdin.fd);
  const mayNeverEnd = input.isFIFO() || input.isSocket(); // then one reply shows that it runs
  const args = ["--model", model, ...(mayNeverEnd ? ["--greet"] : []), ...process.argv.slice(3)];
  const chat = spawn("node", ["dist/cli/main.js", "chat", ...args], { stdio: "inherit" });
  process.on("SIGINT", () => {}); // a terminal's Ctrl-C reaches the chat too, which decides what it means
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => chat.kill(signal));
  chat.on("exit", (status) => process.exit(status ?? 1));
}

/** Checks, then every test of ours, then those against peers; the last line counts them. */
function test() {
  install(".");
  install("tests/peers");
  install("tests/clients");
  build();
  must("npx", ["biome", "check", "."]);
  must("npx", ["tsc", "--noEmit"]);
  const report = "dist/tests.json";
  const run = spawnSync(
    "npx",
    ["vitest", "run", "--reporter=default", "--reporter=json", `--outputFile.json=${report}`],
    { stdio: "inherit" },
  );
  if (!existsSync(report)) process.exit(run.status || 1);
  const { numPassedTests, numFailedTests, numPendingTests, numFailedTestSuites } = JSON.parse(
    readFileSync(report, "utf8"),
  );
  const failed = numFailedTests || (run.status === 0 ? 0 : Math.max(1, numFailedTestSuites)); // a suite that did not load failed
  console.log(`${numPassedTests} passed, ${failed} failed${numPendingTests ? `, ${numPendingTests} skipped` : ""}`);
  process.exit(failed ? 1 : 0);
}

const commands = { start, test };
const command = commands[process.argv[2]];
if (!command) {
  console.error(`run.mjs: "${process.argv[2]}" is not one of ${Object.keys(commands).join(", ")}`);
  process.exit(2);
}
command();

// `npm start` and `npm test`: everything from a fresh clone, in plain JavaScript because nothing is built yet.

import { spawn, spawnSync } from "node:child_process";
import { createHash } from "node:crypto";
import { existsSync, fstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer } from "node:net";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const root = fileURLToPath(new URL("..", import.meta.url));
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
  const page = changed("dist/.built-page", [...sources("web"), "package-lock.json"]);
  const step = changed("dist/.built", [
    ...sources("src"),
    ...sources("native"),
    "scripts/build-native.mjs",
    "tsconfig.build.json",
    "package-lock.json",
  ]);
  if (step.stale) {
    console.error(
      "building: native kernels, TypeScript, then the page (two minutes the first time, more where something else runs)",
    );
    must("npm", ["run", "--silent", "build"], quietly);
    step.keep();
    page.keep();
  } else if (page.stale) {
    console.error("building the page");
    must("npm", ["run", "--silent", "build:page"], quietly);
    page.keep();
  }
}

/** The model that `npm start` talks to until a trained one ships: random weights, and it says so. */
function randomModel() {
  const model = "models/random";
  const config = join(model, "config.json");
  // an earlier version's is text only, and does not say that it is random
  if (existsSync(config) && "llama4_random_seed" in JSON.parse(readFileSync(config, "utf8"))) return model;
  console.error(`making ${model}: a small Llama 4 with random weights`);
  const sizes = "--layers 4 --dim 256 --heads 4 --kv-heads 2 --head-dim 64 --ffn 512 --expert-ffn 512 --experts 8";
  const rest = "--vocab 512 --chunk 1024 --vision-layers 2 --vision-dim 64 --force";
  const shape = `${sizes} ${rest}`.split(" ");
  must("node", ["dist/cli/main.js", "init", "scout", model, ...shape], quietly);
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
  if (process.stdin.isTTY && process.stdout.isTTY) return void page(model);
  const input = fstatSync(process.stdin.fd);
  const mayNeverEnd = input.isFIFO() || input.isSocket(); // then one reply shows that it runs
  const args = ["--model", model, ...(mayNeverEnd ? ["--greet"] : []), ...process.argv.slice(3)];
  const chat = spawn("node", ["dist/cli/main.js", "chat", ...args], { stdio: "inherit" });
  process.on("SIGINT", () => {}); // a terminal's Ctrl-C reaches the chat too, which decides what it means
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => chat.kill(signal));
  chat.on("exit", (status) => process.exit(status ?? 1));
}

/** The server with the chat page, opened where there is a screen. */
async function page(model) {
  const given = process.argv.slice(3);
  const port = given.includes("--port") || (await isFree(8080)) ? [] : ["--port", "0"];
  const args = ["dist/cli/main.js", "serve", "--json", "--model", model, ...port, ...given];
  const server = spawn("node", args, { stdio: ["inherit", "pipe", "inherit"] });
  process.on("SIGINT", () => {}); // a terminal's Ctrl-C reaches the server too, which ends in good order
  for (const signal of ["SIGTERM", "SIGHUP"]) process.on(signal, () => server.kill(signal));
  server.on("exit", (status) => process.exit(status ?? 1));
  createInterface({ input: server.stdout }).once("line", (line) => {
    const { url, error } = JSON.parse(line);
    if (error) return console.error(error.message);
    console.log(`\nchat with ${model} at ${url}   (Ctrl-C ends it; in the terminal: npx llama4 chat)`);
    openInBrowser(url);
  });
}

function isFree(port) {
  return new Promise((resolve) => {
    const probe = createServer().once("error", () => resolve(false));
    probe.listen(port, "127.0.0.1", () => probe.close(() => resolve(true)));
  });
}

/** By the desktop's own program; over SSH, or where there is none, the printed address has to do. */
function openInBrowser(url) {
  const { platform, env } = process;
  const openers = { darwin: ["open"], win32: ["cmd", "/c", "start"] };
  const hasScreen = env.DISPLAY || env.WAYLAND_DISPLAY;
  const [command, ...args] = openers[platform] ?? (hasScreen ? ["xdg-open"] : []);
  if (command === undefined || env.SSH_CONNECTION || env.CI) return;
  const opener = spawn(command, [...args, url], { stdio: "ignore", detached: true });
  opener.on("error", () => {}); // the address has been printed
  opener.unref();
}

/** Checks, then every test of ours, then those against peers; the last line counts them. */
function test() {
  install(".");
  install("tests/peers");
  install("tests/clients");
  build();
  must("npx", ["biome", "check", "."]);
  must("npx", ["tsc", "--noEmit"]);
  must("npm", ["run", "--silent", "check:page"]);
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

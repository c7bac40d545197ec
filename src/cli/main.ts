#!/usr/bin/env node
// llama4: one command after the other stands in its own file; here they meet the process.

import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { Command, CommanderError } from "commander";
import { fail, Interrupted, print, type Run, status } from "./answer.ts";
import { bench } from "./bench.ts";
import { chat } from "./chat.ts";
import { convertCommand } from "./convert.ts";
import { generate } from "./generate.ts";
import { init } from "./init.ts";
import { inspect } from "./inspect.ts";
import { logits } from "./logits.ts";
import { plan } from "./plan.ts";

const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
const json = process.argv.includes("--json"); // known before commander reads it, for its own errors

const interrupt = new AbortController();
for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
  process.on(name, () => {
    const code = 128 + constants.signals[name]; // as shells count
    if (interrupt.signal.aborted) process.exit(code);
    interrupt.abort(new Interrupted(`stopped by ${name === "SIGINT" ? "Ctrl-C" : name}`, code));
    setTimeout(() => process.exit(code), 2000).unref(); // whatever still computes
  });
}
process.stdout.on("error", (error: NodeJS.ErrnoException) => {
  process.exit(error.code === "EPIPE" ? status.done : status.failed); // a reader like `head` has seen enough
});

const run: Run =
  (work) =>
  async (...args) => {
    const answer = await work({ json, signal: interrupt.signal }, ...args);
    if (answer) print(answer, json);
  };

const program = new Command("llama4")
  .description("Meta's Llama 4 on ordinary machines: checkpoints in, text out.")
  .version(version)
  .exitOverride()
  .showHelpAfterError("(--help shows what there is)");
for (const command of [chat, generate, logits, inspect, plan, init, convertCommand, bench]) command(program, run);

try {
  await program.parseAsync();
} catch (error) {
  const isHelp = error instanceof CommanderError && error.exitCode === 0;
  process.exitCode = isHelp ? status.done : fail(interrupt.signal.aborted ? interrupt.signal.reason : error, json);
}

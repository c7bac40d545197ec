// One command after the other stands in its own file; here they meet the process.

import { readFileSync } from "node:fs";
import { constants } from "node:os";
import { Command, CommanderError } from "commander";
import type { EngineThread } from "../thread.ts";
import { fail, Interrupted, print, type Run, type Session, status } from "./answer.ts";

// Only what is asked for is loaded; all of them for --help, or for a name that is none.
const commands: Readonly<Record<string, () => Promise<(program: Command, run: Run) => void>>> = {
  chat: async () => (await import("./chat.ts")).chat,
  generate: async () => (await import("./generate.ts")).generate,
  logits: async () => (await import("./logits.ts")).logits,
  inspect: async () => (await import("./inspect.ts")).inspect,
  plan: async () => (await import("./plan.ts")).plan,
  init: async () => (await import("./init.ts")).init,
  convert: async () => (await import("./convert.ts")).convertCommand,
  serve: async () => (await import("./serve.ts")).serve,
  bench: async () => (await import("./bench.ts")).bench,
  train: async () => (await import("./train.ts")).train,
  distil: async () => (await import("./distil.ts")).distil,
  eval: async () => (await import("./eval.ts")).evalCommand,
};

const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));

/** Does what the command line says, with `thread` for a model, and sets the exit status. */
export async function runCommand(thread: EngineThread | undefined): Promise<void> {
  const json = process.argv.includes("--json"); // known before commander reads it, for its own errors
  const { signal, allowToEnd } = interrupted(json);
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(status.done); // a reader like `head` has seen enough
    process.stderr.write(`the answer cannot be written: ${error.message}\n`);
    process.exit(status.failed);
  });
  const run: Run =
    (work) =>
    async (...args) => {
      const answer = await work({ json, signal, allowToEnd, thread }, ...args);
      if (answer) print(answer, json);
    };
  const program = new Command("llama4")
    .description("Meta's Llama 4 on ordinary machines: checkpoints in, text out.")
    .version(version)
    .exitOverride()
    .showHelpAfterError("(--help shows what there is)");
  const asked = commands[process.argv[2] ?? ""];
  for (const command of asked ? [asked] : Object.values(commands)) (await command())(program, run);
  try {
    await program.parseAsync();
  } catch (error) {
    const isHelp = error instanceof CommanderError && error.exitCode === 0;
    process.exitCode = isHelp ? status.done : fail(signal.aborted ? signal.reason : error, json);
  }
}

/** Aborted by the first signal that asks to stop; the second ends the process. */
function interrupted(json: boolean): Pick<Session, "signal" | "allowToEnd"> {
  let patienceMs = 2000;
  const interrupt = new AbortController();
  for (const name of ["SIGINT", "SIGTERM", "SIGHUP"] as const) {
    process.on(name, () => {
      const code = 128 + constants.signals[name]; // as shells count
      if (interrupt.signal.aborted) process.exit(code);
      interrupt.abort(new Interrupted(`stopped by ${name === "SIGINT" ? "Ctrl-C" : name}`, code));
      // Whatever still computes then is left alone; the answer says what happened.
      setTimeout(() => process.exit(fail(interrupt.signal.reason, json)), patienceMs).unref();
    });
  }
  const allowToEnd = (ms: number) => {
    patienceMs = ms;
  };
  return { signal: interrupt.signal, allowToEnd };
}

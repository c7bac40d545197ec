#!/usr/bin/env node
// llama4: where a command needs a model, the engine's thread begins to load while the command line is read.

import { startThread } from "../thread.ts";

const [, , command = ""] = process.argv;
const thread = ["chat", "generate", "logits", "serve", "eval"].includes(command) ? startThread() : undefined;
thread?.worker.unref(); // it keeps no command from ending
const { runCommand } = await import("./program.ts");
await runCommand(thread);

// The thread that a model lives in.

import { Worker } from "node:worker_threads";

/** Begins it, before anybody knows which model: `load` takes it. */
export function startThread(): Worker {
  return new Worker(new URL("./worker.js", import.meta.url), { name: "llama4" });
}

// The thread that a model lives in.

import { Worker } from "node:worker_threads";
import { EngineError } from "./tensor/errors.ts";

/** A thread that has begun; `load` takes it. */
export interface EngineThread {
  readonly worker: Worker;
  /** Settles when it ends, with the error that says how; heard from the beginning, so that no early end is missed. */
  readonly ended: Promise<EngineError>;
}

/** Begins it, before anybody knows which model: it loads its code meanwhile. */
export function startThread(): EngineThread {
  // A thread inherits `--input-type`, which Node refuses for a file. What else stood there it does without then: such programs are
  // one-liners.
  const isFromText = process.execArgv.some((arg) => arg.startsWith("--input-type"));
  const options = { name: "llama4", ...(isFromText && { execArgv: [] }) };
  const worker = new Worker(new URL("./worker.js", import.meta.url), options);
  const ended = new Promise<EngineError>((resolve) => {
    worker.once("error", (cause) =>
      resolve(new EngineError(`the engine's thread has stopped: ${cause.message}; load the model again`, { cause })),
    );
    worker.once("exit", (code) =>
      resolve(new EngineError(`the engine's thread has ended with status ${code}; load the model again`)),
    );
  });
  return { worker, ended };
}

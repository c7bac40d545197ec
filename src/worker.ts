// The engine's thread: opens checkpoint and backend, and answers the calls of index.ts.

import { parentPort } from "node:worker_threads";
import { complete } from "./engine/completion.ts";
import { Grammars } from "./engine/constraint.ts";
import { Engine } from "./engine/engine.ts";
import { likeliest } from "./engine/likeliest.ts";
import { modelShape } from "./engine/model-shape.ts";
import { promptLogprobs } from "./engine/prompt-logprobs.ts";
import type { LogitRows } from "./engine/requests.ts";
import type { Sampling } from "./engine/sampler.ts";
import { countParameters } from "./model/config.ts";
import { type OpenModel, openDraft, openModel } from "./open.ts";
import { imageProcessorConfig, needTokenizer, Processor } from "./processor.ts";
import { continuationTemplate } from "./prompt/template.ts";
import { type Call, flatten, type ModelInfo, type Start, type ToMain, type ToWorker } from "./protocol.ts";

if (!parentPort) throw new Error("worker.js is the engine's thread; expected to be started by load()");
const port = parentPort;
const say = (message: ToMain, given: ArrayBuffer[] = []) => port.postMessage(message, given);

const onWarning = (message: string) => say({ type: "warning", message });

const start = await new Promise<Start>((resolve) => port.once("message", resolve)); // what load() says first
try {
  const model = await openModel(start.path, {
    ...start,
    onProgress: throttled((done, total) => say({ type: "progress", done, total })),
    onWarning,
  });
  const { speculation = "off" } = start;
  if (typeof speculation === "string") serve(model, speculation);
  else serve(model, await openDraft(speculation.draft, model, start));
} catch (error) {
  say({ type: "failed", error: flatten(error) });
}

function serve(model: OpenModel, speculation: "off" | "lookup" | OpenModel): void {
  const { backend, parameters, vision, config, context, kvDtype } = model;
  const { sequences, stepTokens, imageCacheBytes } = start;
  const engine = new Engine({
    ...{ backend, parameters, vision, config, context, kvDtype, speculation, imageCacheBytes, onWarning },
    ...(sequences !== undefined && { sequences }),
    ...(stepTokens !== undefined && { stepTokens }),
  });
  const processor = new Processor(model);
  const grammars = model.tokenizer && new Grammars(model.tokenizer, stopTokensOf(model));
  const running = new Map<number, { cancel: AbortController; ended: Promise<void> }>();
  port.on("message", async (message: ToWorker) => {
    if (message.type === "cancel") return running.get(message.id)?.cancel.abort();
    if (message.type === "close") {
      for (const { cancel } of running.values()) cancel.abort(new Error("the model was closed"));
      await Promise.all([...running.values()].map(({ ended }) => ended)); // they close what they opened
      await engine.close();
      model.close();
      if (typeof speculation !== "string") speculation.close();
      say({ type: "closed" });
      return port.close();
    }
    const cancel = new AbortController();
    const ended = serveCall(message, cancel.signal).finally(() => running.delete(message.id));
    running.set(message.id, { cancel, ended });
  });
  async function serveCall({ id, call }: Extract<ToWorker, { type: "call" }>, signal: AbortSignal): Promise<void> {
    try {
      for await (const value of answer(call, { model, engine, processor, grammars }, signal))
        say(
          { type: "value", id, value },
          call.method === "logits" ? [(value as LogitRows).logits.buffer as ArrayBuffer] : [],
        );
      say({ type: "end", id });
    } catch (error) {
      say({ type: "error", id, error: flatten(error) });
    }
  }
  say({ type: "opened", info: infoOf(model) });
}

function infoOf(model: OpenModel): ModelInfo {
  const { path, backend, checkpoint, config, context, weightBytes, kvBytes, kvDtype, loadMs, tokenizer } = model;
  return {
    path,
    vision: imageProcessorConfig(model),
    backend: backend.name,
    vocabSize: config.vocabSize,
    parameters: countParameters(config),
    shape: modelShape(config),
    hasTokenizer: tokenizer !== undefined,
    knowsChats: checkpoint.chatTemplate !== continuationTemplate,
    ...{ context, weightBytes, kvBytes, kvDtype, loadMs },
  };
}

interface Served {
  readonly model: OpenModel;
  readonly engine: Engine;
  readonly processor: Processor;
  readonly grammars: Grammars | undefined;
}

function stopTokensOf({ tokenizer, config }: OpenModel): ReadonlySet<number> {
  return tokenizer?.stop ?? new Set(config.tokens.eos);
}

async function* answer(call: Call, served: Served, signal: AbortSignal): AsyncGenerator<unknown> {
  const { model, engine, processor, grammars } = served;
  const stopTokens = stopTokensOf(model);
  switch (call.method) {
    case "chat": {
      const { ids: tokens, images } = await processor.process(call, { ...call.options, signal });
      const tools = call.options.tools?.map((tool) => tool.name);
      const options = { ...call.options, sampling: samplingOf(model, call) };
      return yield* complete(
        engine,
        model.tokenizer,
        stopTokens,
        { ...options, tokens, images, tools, signal },
        grammars,
      );
    }
    case "complete": {
      const { ids: tokens, images } = await processor.process(call.prompt, { ...call.options, signal });
      const options = { ...call.options, sampling: samplingOf(model, call) };
      return yield* complete(engine, model.tokenizer, stopTokens, { ...options, tokens, images, signal }, grammars);
    }
    case "logits": {
      const { ids, images } = await processor.process(call.prompt, { ...call, signal });
      return yield* engine.logits(ids, { last: call.last, images, signal });
    }
    case "promptLogprobs": {
      const { ids } = await processor.process(call.prompt, { bos: call.bos, signal });
      const { vocabSize } = model.config;
      return yield await promptLogprobs(engine, model.tokenizer, ids, { vocabSize, top: call.top, signal });
    }
    case "likeliest": {
      const { ids, images } = await processor.process(call.prompt, { ...call, signal });
      const idsOf = (of: string | ArrayLike<number>) => (typeof of === "string" ? needTokenizer(model).encode(of) : of);
      const continuations = call.continuations.map(idsOf);
      const { k = continuations.length } = call;
      const { vocabSize } = model.config;
      return yield await likeliest(engine, ids, continuations, { vocabSize, k, images, signal });
    }
    case "encode":
      return yield (await processor.process(call.prompt, { ...call, signal })).ids;
    case "stats":
      return yield engine.stats();
    case "decode":
      return yield needTokenizer(model).decode(Array.from(call.tokens));
    default:
      throw new Error(`unknown call ${JSON.stringify(call satisfies never)}`);
  }
}

/** The checkpoint's recommendation under what the call asks for. */
function samplingOf(model: OpenModel, { options }: Extract<Call, { method: "chat" | "complete" }>): Sampling {
  const asked = Object.entries(options.sampling ?? {}).filter(([, value]) => value !== undefined);
  return { ...model.sampling, ...Object.fromEntries(asked) };
}

/** Calls at most every 50 ms, and once at the end. */
function throttled(f: (done: number, total: number) => void): (done: number, total: number) => void {
  let last = -Infinity;
  return (done, total) => {
    const now = done < total ? performance.now() : Infinity;
    if (now - last < 50 || last === Infinity) return;
    last = now;
    f(done, total);
  };
}

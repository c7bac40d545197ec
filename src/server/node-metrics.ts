// Measurements for Prometheus.

import { Counter, collectDefaultMetrics, Gauge, Histogram, Registry } from "prom-client";
import type { Observer } from "./serving.ts";

/** Measures what a handler tells it, in a registry of its own. */
export function prometheus(): Observer {
  const registry = new Registry();
  const registers = [registry];
  collectDefaultMetrics({ register: registry });
  const counter = <L extends string = never>(name: string, help: string, labelNames: L[] = []) =>
    new Counter({ name: `llama4_${name}`, help, labelNames, registers });
  const gauge = <L extends string = never>(name: string, help: string, labelNames: L[] = []) =>
    new Gauge({ name: `llama4_${name}`, help, labelNames, registers });
  const histogram = (name: string, help: string, buckets: number[]) =>
    new Histogram({ name: `llama4_${name}`, help, buckets, registers });

  const requests = counter("requests_total", "Requests answered.", ["route", "status"]);
  const cancelled = counter("requests_cancelled_total", "Streams that their readers gave up.");
  const promptTokens = counter("prompt_tokens_total", "Tokens of prompts.");
  const cachedTokens = counter("cached_prompt_tokens_total", "Tokens of prompts that were in the cache already.");
  const tokens = counter("generated_tokens_total", "Tokens of replies.");
  const first = histogram(
    "time_to_first_token_seconds",
    "From a request's arrival to its reply's first token.",
    [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120],
  );
  const between = histogram(
    "time_between_tokens_seconds",
    "From one token of a reply to the next.",
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
  );
  const queued = gauge("requests_queued", "Requests that wait for their turn.");
  const running = gauge("replies_running", "Replies that are computed.");
  const batch = gauge("batch_sequences", "Sequences in the engine's batch.");
  const waiting = gauge("engine_sequences_waiting", "Sequences that wait for room in the cache.");
  const cache = gauge("kv_cache_slots", "Slots of the KV cache.", ["layers"]);
  const cacheUsed = gauge("kv_cache_slots_used", "Slots that running requests hold.", ["layers"]);
  const steps = counter("engine_steps_total", "Steps of the engine.");
  const stepTokens = counter("engine_step_tokens_total", "Tokens computed in them, prompts' and replies'.");
  const tiles = counter("image_tiles_encoded_total", "Tiles that the vision encoder has encoded.");
  const found = counter("image_cache_hits_total", "Images whose features were kept from before.");
  const imageBytes = gauge("image_cache_bytes", "Bytes of images' features that are kept.");
  const experts = counter("expert_tokens_total", "Tokens that an expert has had.", ["layer", "expert"]);

  return {
    answered: (route, status) => requests.inc({ route, status }),
    cancelled: () => cancelled.inc(),
    prompt(prompt) {
      promptTokens.inc(prompt.promptTokens);
      cachedTokens.inc(prompt.cachedTokens);
    },
    firstToken(ms) {
      first.observe(ms / 1000);
      tokens.inc();
    },
    nextToken(ms) {
      between.observe(ms / 1000);
      tokens.inc();
    },
    async page(now) {
      queued.set(now.queued);
      running.set(now.running);
      batch.set(now.engine.running);
      waiting.set(now.engine.waiting);
      for (const counted of [steps, stepTokens, tiles, found, experts]) counted.reset(); // the engine has counted from its beginning
      steps.inc(now.engine.steps);
      stepTokens.inc(now.engine.stepTokens);
      for (const [layers, slots] of Object.entries(now.engine.cache)) {
        if (!slots) continue;
        cache.set({ layers }, slots.total);
        cacheUsed.set({ layers }, slots.used);
      }
      if (now.engine.images) {
        tiles.inc(now.engine.images.tilesEncoded);
        found.inc(now.engine.images.found);
        imageBytes.set(now.engine.images.bytes);
      }
      for (const { layer, tokens } of now.engine.experts)
        for (const [expert, count] of tokens.entries()) experts.inc({ layer, expert }, count);
      return { type: registry.contentType, text: await registry.metrics() };
    },
  };
}

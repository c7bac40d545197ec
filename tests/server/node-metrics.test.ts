import { expect, it } from "vitest";
import { prometheus } from "../../src/server/node-metrics.ts";
import { post, served, user } from "./scripted.ts";

it("/metrics counts requests and tokens, and shows what the engine does", async () => {
  const { handler } = served({ lines: ["a", "b"] }, { observer: prometheus(), limits: { concurrent: 1, queue: 0 } });
  for (const messages of [[user("x")], [user("y")], []]) await handler(post("/v1/chat/completions", { messages }));
  await handler(post("/anything/else", {}));
  const page = await (await handler(new Request("http://server/metrics"))).text();
  const lines = page.split("\n");
  for (const line of [
    'llama4_requests_total{route="/v1/chat/completions",status="200"} 2',
    'llama4_requests_total{route="/v1/chat/completions",status="400"} 1',
    'llama4_requests_total{route="other",status="404"} 1',
    "llama4_prompt_tokens_total 14",
    "llama4_cached_prompt_tokens_total 6",
    "llama4_generated_tokens_total 6",
    "llama4_time_to_first_token_seconds_count 2",
    "llama4_time_between_tokens_seconds_count 4",
    "llama4_requests_queued 0",
    "llama4_replies_running 0",
    "llama4_batch_sequences 1",
    'llama4_kv_cache_slots{layers="global"} 8',
    'llama4_kv_cache_slots_used{layers="global"} 4',
    "llama4_image_tiles_encoded_total 7",
    "llama4_image_cache_hits_total 8",
    "llama4_image_cache_bytes 10",
    'llama4_expert_tokens_total{layer="1",expert="1"} 6',
    ...["engine_steps", "engine_step_tokens", "image_tiles_encoded", "image_cache_hits", "expert_tokens"].map(
      (name) => `# TYPE llama4_${name}_total counter`,
    ),
    "# TYPE llama4_image_cache_bytes gauge",
  ])
    expect(lines).toContain(line);
});

it("/metrics counts a prompt once for all its replies, and no token where none is generated", async () => {
  const { handler } = served({ lines: ["a"] }, { observer: prometheus() });
  const lines = async () => (await (await handler(new Request("http://server/metrics"))).text()).split("\n");
  await handler(post("/v1/completions", { prompt: "ab", echo: true, max_tokens: 0 }));
  expect(await lines()).toEqual(
    expect.arrayContaining([
      "llama4_prompt_tokens_total 3",
      "llama4_generated_tokens_total 0",
      "llama4_time_to_first_token_seconds_count 0",
    ]),
  );
  await handler(post("/v1/chat/completions", { messages: [user("x")], n: 3 }));
  expect(await lines()).toEqual(
    expect.arrayContaining([
      "llama4_prompt_tokens_total 10",
      "llama4_cached_prompt_tokens_total 3",
      "llama4_generated_tokens_total 6",
      "llama4_time_to_first_token_seconds_count 3",
      'llama4_expert_tokens_total{layer="1",expert="1"} 6', // a page that is asked for again counts nothing twice
    ]),
  );
});

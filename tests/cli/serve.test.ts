// `llama4 serve` as a process: it says where it listens, answers, and ends in good order.

import { type ChildProcess, spawn } from "node:child_process";
import { request } from "node:http";
import { createInterface } from "node:readline";
import { text } from "node:stream/consumers";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { llama4, main, objectOf } from "./llama4.ts";
import { initTiny, temporaryPlace } from "./models.ts";

const place = temporaryPlace();
let model = "";
const started: ChildProcess[] = [];

beforeAll(async () => {
  model = await initTiny(place.at("tiny"));
});
afterAll(() => {
  for (const child of started) child.kill("SIGKILL");
  place.remove();
});

const serve = (...args: string[]) => serveModel(model, ...args);

async function serveModel(path: string, ...args: string[]) {
  const child = spawn(process.execPath, [main, "serve", "--model", path, "--port", "0", "--json", ...args]);
  started.push(child);
  const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
  const errors = text(child.stderr);
  const lines = createInterface({ input: child.stdout });
  const line = await new Promise<string>((resolve, reject) => {
    lines.once("line", resolve);
    ended.then(async (status) => reject(new Error(`ended with ${status}: ${await errors}`)));
  });
  return { child, ended, url: JSON.parse(line).url as string };
}

const ask = (url: string, body: object, init: RequestInit = {}) =>
  fetch(`${url}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ messages: [{ role: "user", content: "Hello" }], ...body }),
    ...init,
  });

/** Bans the tokens that could end a reply, so that it is as long as it may be. */
async function endless(url: string) {
  const metrics = async (name: string) => {
    const page = await (await fetch(`${url}/metrics`)).text();
    return Number(new RegExp(`^llama4_${name}(?:\\{.*\\})? (.+)$`, "m").exec(page)?.[1]);
  };
  const { max_model_len } = (await (await fetch(`${url}/v1/models`)).json()).data[0];
  expect(max_model_len).toBeGreaterThan(1000);
  const logit_bias = Object.fromEntries(Array.from({ length: 256 }, (_, i) => [256 + i, -100]));
  return { metrics, body: { logit_bias, temperature: 1, seed: 1 } };
}

describe("llama4 serve", () => {
  it("prints where it listens, answers there, and ends with 0 when it is told to", async () => {
    const { child, ended, url } = await serve();
    expect(url).toMatch(/^http:\/\/127\.0\.0\.1:\d+$/);
    const body = await (await ask(url, { max_tokens: 3 })).json();
    expect(body).toMatchObject({ model: "tiny", usage: { completion_tokens: expect.any(Number) } });
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  });

  it("ends with 0 when it is told to just before it listens", async () => {
    const early =
      "import net from 'node:net'; const { listen } = net.Server.prototype; net.Server.prototype.listen = function (...given) " +
      "{ process.kill(process.pid, 'SIGINT'); setTimeout(() => listen.apply(this, given), 100); return this; };";
    const args = ["--import", `data:text/javascript,${encodeURIComponent(early)}`, main];
    const child = spawn(process.execPath, [...args, "serve", "--model", model, "--port", "0", "--json"]);
    started.push(child);
    expect(await new Promise((resolve) => child.on("exit", resolve))).toBe(0);
  });

  it("serves a .gguf file", async () => {
    const file = place.at("tiny.gguf");
    expect((await llama4(["convert", model, file, "--allow-lossy"])).status).toBe(0);
    const { child, ended, url } = await serveModel(file);
    expect((await (await ask(url, { max_tokens: 3 })).json()).usage.completion_tokens).toBe(3);
    child.kill("SIGTERM");
    expect(await ended).toBe(0);
  });

  it("lets a reply end before it ends itself, and takes no other", async () => {
    const { child, ended, url } = await serve();
    const { body } = await endless(url);
    const response = await ask(url, { ...body, max_tokens: 300, stream: true });
    child.kill("SIGTERM");
    const reply = await response.text();
    expect(reply).toContain('"finish_reason":"length"');
    expect(reply.trimEnd().endsWith("data: [DONE]")).toBe(true);
    await expect(ask(url, {})).rejects.toThrow();
    expect(await ended).toBe(0);
  });

  it("gives up after its grace what does not end", async () => {
    const { child, ended, url } = await serve("--grace", "0.2");
    const { body } = await endless(url);
    const response = await ask(url, { ...body, stream: true });
    child.kill("SIGINT");
    expect(await response.text()).toContain("The server is stopping");
    expect(await ended).toBe(0);
  });

  it("stops computing within one step when the client leaves", async () => {
    const { child, url } = await serve();
    const { body, metrics } = await endless(url);
    const cancel = new AbortController();
    const response = await ask(url, { ...body, stream: true }, { signal: cancel.signal });
    await response.body!.getReader().read();
    expect(await metrics("batch_sequences")).toBe(1);
    cancel.abort();
    await expect.poll(() => metrics("requests_cancelled_total"), { timeout: 5000, interval: 5 }).toBe(1);
    const steps = await metrics("engine_steps_total");
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(await metrics("batch_sequences")).toBe(0);
    expect((await metrics("engine_steps_total")) - steps).toBeLessThanOrEqual(1);
    child.kill("SIGTERM");
  });

  it("cuts a client that does not read its stream", async () => {
    const { child, url } = await serve("--idle-timeout", "0.3");
    const { body, metrics } = await endless(url);
    const { hostname, port } = new URL(url);
    const client = request({
      ...{ hostname, port, method: "POST", path: "/v1/chat/completions" },
      headers: { "content-type": "application/json" },
    });
    const sent = {
      ...body,
      stream: true,
      logprobs: true,
      top_logprobs: 20,
      messages: [{ role: "user", content: "x" }],
    };
    client.end(JSON.stringify(sent));
    client.on("error", () => {});
    client.on("response", (response) => response.pause());
    await expect.poll(() => metrics("requests_cancelled_total"), { timeout: 60_000, interval: 100 }).toBe(1);
    expect(await metrics("replies_running")).toBe(0);
    client.destroy();
    child.kill("SIGTERM");
  });

  it("listens for other machines only with a key, or when told so twice", async () => {
    for (const args of [[], ["--insecure"]]) {
      const refused = await llama4(["serve", "--model", model, "--host", "0.0.0.0", "--port", "0", "--json", ...args]);
      expect(refused.status).toBe(2);
      expect(objectOf(refused)).toMatchObject({
        error: { name: "RequestError", message: expect.stringContaining("say --insecure twice") },
      });
    }
    for (const args of [
      ["--insecure", "--insecure"],
      ["--api-key", "long-enough"],
    ]) {
      const { child, url } = await serve("--host", "0.0.0.0", ...args);
      expect((await fetch(`${url}/v1/models`)).status).toBe(args[0] === "--insecure" ? 200 : 401);
      child.kill("SIGTERM");
    }
  });

  it("says so when the port is taken, and when a key is too short", async () => {
    const { child, url } = await serve();
    const taken = await llama4(["serve", "--model", model, "--port", new URL(url).port, "--json"]);
    expect(objectOf(taken)).toMatchObject({ error: { message: expect.stringContaining("another program listens") } });
    const short = await llama4(["serve", "--model", model, "--api-key", "short", "--json"]);
    expect(objectOf(short)).toMatchObject({ error: { message: expect.stringContaining("shorter than 8") } });
    child.kill("SIGTERM");
  });

  it.each([
    [["--cors-origin", "chat.example.org"], "expected an origin as https://chat.example.org"],
    [["--cors-origin", "https://chat.example.org/"], "expected an origin as https://chat.example.org"],
    [["--image-host", "https://pictures.example.org"], "expected a name as pictures.example.org"],
    [["--image-host", "pictures.example.org:443"], "expected a name as pictures.example.org"],
    [["--private-images"], "--private-images without --image-host"],
  ])("refuses %j, which nothing would ever meet", async (args, message) => {
    const refused = await llama4(["serve", "--model", model, "--port", "0", "--json", ...args]);
    expect(refused.status).toBe(2);
    expect(objectOf(refused)).toMatchObject({ error: { message: expect.stringContaining(message) } });
  });

  it.each(["--request-timeout", "--idle-timeout", "--grace"])(
    "refuses %s beyond what a timer counts",
    async (option) => {
      const long = await llama4(["serve", "--model", model, option, "2147484", "--json"]);
      expect(objectOf(long)).toMatchObject({
        error: { message: `${option} is 2147484; expected at most 2147000 seconds` },
      });
    },
  );
});

// What benchmarks of the server share: the process, a request, and reading its measurements.

import { spawn } from "node:child_process";
import { request } from "node:http";
import { join } from "node:path";
import { createInterface } from "node:readline";

/** Runs `llama4 serve` on a free port. */
export async function startServer(args: readonly string[]) {
  const main = join(import.meta.dirname, "../dist/cli/main.js");
  const child = spawn(process.execPath, [main, "serve", "--port", "0", "--json", ...args], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const ended = new Promise<number | null>((resolve) => child.on("exit", resolve));
  const line = new Promise<string>((resolve) => createInterface({ input: child.stdout }).once("line", resolve));
  const died = ended.then((status) => {
    throw new Error(`llama4 serve ended with status ${status}`);
  });
  died.catch(() => {});
  const { url } = JSON.parse(await Promise.race([line, died])) as { url: string };
  return {
    url,
    pid: child.pid!,
    isRunning: () => child.exitCode === null && child.signalCode === null,
    /** Reads a number by its name without the prefix, labels left out. */
    async metrics(): Promise<(name: string) => number> {
      const page = await (await fetch(`${url}/metrics`)).text();
      return (name) => {
        const values = [...page.matchAll(new RegExp(`^llama4_${name}(?:\\{.*\\})? (\\S+)$`, "gm"))];
        return values.reduce((sum, [, value]) => sum + Number(value), 0);
      };
    },
    async stop(): Promise<number | null> {
      child.kill("SIGTERM");
      return ended;
    },
  };
}

export interface Outcome {
  /** 0 where the connection was cut. */
  readonly status: number;
  /** From sending to the first event. */
  readonly firstMs: number | undefined;
  readonly text: string;
  /** Characters that came. */
  readonly length: number;
  /** The response came to its end. */
  readonly isWhole: boolean;
}

export interface Sending {
  readonly path?: string;
  readonly type?: string;
  readonly signal?: AbortSignal | undefined;
  /** Milliseconds that the reader waits before each piece that it takes. */
  readonly readEveryMs?: number;
  /** Milliseconds that it waits once, behind the first piece. */
  readonly stallMs?: number;
}

/** Sends a body on a connection of its own, and reads what comes. Never rejects: what went wrong is in the outcome. */
export function send(url: string, body: string | Buffer, options: Sending = {}): Promise<Outcome> {
  const { path = "/v1/completions", type = "application/json", signal, readEveryMs = 0, stallMs = 0 } = options;
  const { hostname, port } = new URL(url);
  return new Promise((resolve) => {
    const start = performance.now();
    let status = 0;
    let firstMs: number | undefined;
    let text = "";
    let length = 0;
    let isWhole = false;
    let waiting: ReturnType<typeof setTimeout> | undefined;
    const headers = { "content-type": type, "content-length": Buffer.byteLength(body) };
    const sent = request({ hostname, port, path, method: "POST", agent: false, headers, ...(signal && { signal }) });
    const done = () => resolve({ status, firstMs, text, length, isWhole });
    signal?.addEventListener("abort", done); // one that reads nothing would not hear of its end
    sent.on("error", () => {}); // a cut connection: `close` follows
    sent.on("close", () => status === 0 && done());
    sent.on("response", (response) => {
      response.on("close", done); // a reader that pauses has it later than the request
      status = response.statusCode ?? 0;
      response.setEncoding("utf8");
      response.on("data", (piece: string) => {
        firstMs ??= performance.now() - start;
        const waitMs = length === 0 && stallMs > 0 ? stallMs : readEveryMs;
        text = (text + piece).slice(-2000); // the end says how it ended
        length += piece.length;
        if (waitMs === 0) return;
        response.pause();
        waiting = setTimeout(() => response.resume(), waitMs);
      });
      response.on("close", () => clearTimeout(waiting));
      response.on("end", () => {
        isWhole = true;
      });
      response.on("error", () => {});
    });
    sent.end(body);
  });
}

export const completion = (url: string, body: object, signal?: AbortSignal): Promise<Outcome> =>
  send(url, JSON.stringify(body), { signal });

/** The value below which so many of a hundred lie. */
export function percentile(samples: readonly number[], percent: number): number {
  const sorted = [...samples].sort((a, b) => a - b);
  return sorted[Math.min(sorted.length - 1, Math.ceil((percent / 100) * sorted.length) - 1)] ?? Number.NaN;
}

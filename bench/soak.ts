// Does the server stand a crowd that misbehaves? 64 clients with random cancels, malformed bodies, slow readers and
// oversized images, for ten minutes: no crash, no leak, every accepted request answered or cancelled.
//
//   npm run build && node --import ./scripts/ts.mjs bench/soak.ts MODEL [--clients 64] [--seconds 600] [--out record.json]
//
// MODEL may be small: it is the server that is under test. Resident memory is the largest of each twentieth of the time;
// it may not grow by more than 5 % after the first fifth, in five minutes or more. Ends with status 1 where something is not
// as it should be.

import { setMaxListeners } from "node:events";
import { readFileSync } from "node:fs";
import { parseArgs } from "node:util";
import sharp from "sharp";
import { median, writeRecord } from "./samples.ts";
import { type Outcome, percentile, send, startServer } from "./served.ts";

const { values: options, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    clients: { type: "string", default: "64" },
    seconds: { type: "string", default: "600" },
    out: { type: "string" },
  },
});
const [model] = positionals;
if (!model) throw new Error("usage: bench/soak.ts MODEL [--clients 64] [--seconds 600] [--out F.json]");
const SETTLED_SECONDS = 300; // in less, memory has not found its size, and growth says nothing
const clients = Number(options.clients);
const seconds = Number(options.seconds);

const limits = ["--max-concurrent", "16", "--max-queue", "32", "--max-per-client", "1000", "--max-body", "2"];
const server = await startServer(["--model", model, ...limits, "--idle-timeout", "3", "--context", "8192"]);
const { vision } = await modelOf(server.url);
const picture = async (width: number, height: number) =>
  `data:image/png;base64,${(
    await sharp({ create: { width, height, channels: 3, background: "#336699" } })
      .png()
      .toBuffer()
  ).toString("base64")}`;
const small = await picture(64, 64);
const huge = await picture(9000, 9000); // 81 million pixels in a file of some hundred kilobytes

const whole = (n: number) => Math.floor(Math.random() * n);
const words = () => Array.from({ length: 1 + whole(200) }, () => "abcdefghij "[whole(11)]).join("");
const user = (content: unknown) => ({ role: "user", content });
const image = (url: string) =>
  user([
    { type: "image_url", image_url: { url } },
    { type: "text", text: "?" },
  ]);
const chat = "/v1/chat/completions";
const ended = (text: string) =>
  /data: \[DONE\]\s*$|event: (message_stop|response\.(completed|incomplete))\n/.test(text);
const json = JSON.stringify;

/** What a client does, and whether the outcome is one that it may have. */
interface Behaviour {
  readonly share: number;
  act(signal: AbortSignal): Promise<Outcome>;
  isRight(outcome: Outcome): boolean;
}

const answered = ({ status, isWhole, text }: Outcome) => status === 200 && isWhole && text.trimEnd().endsWith("}");
const streamed = ({ status, isWhole, text }: Outcome) => status === 200 && isWhole && ended(text);
const refused =
  (...statuses: readonly number[]) =>
  ({ status }: Outcome) =>
    statuses.includes(status);

const behaviours: Readonly<Record<string, Behaviour>> = {
  whole: {
    share: 4,
    act: () => send(server.url, json({ messages: [user(words())], max_tokens: 1 + whole(40) }), { path: chat }),
    isRight: answered,
  },
  stream: {
    share: 8,
    act: () => send(server.url, json({ prompt: words(), max_tokens: 1 + whole(80), stream: true })),
    isRight: streamed,
  },
  responses: {
    share: 2,
    act: () =>
      send(server.url, json({ input: words(), max_output_tokens: 20, stream: true }), { path: "/v1/responses" }),
    isRight: streamed,
  },
  messages: {
    share: 2,
    act: () =>
      send(server.url, json({ messages: [user(words())], max_tokens: 20, stream: true }), { path: "/v1/messages" }),
    isRight: streamed,
  },
  image: {
    share: vision ? 2 : 0,
    act: () => send(server.url, json({ messages: [image(small)], max_tokens: 8 }), { path: chat }),
    isRight: answered,
  },
  cancelled: {
    share: 6,
    act(signal) {
      const cancel = new AbortController();
      signal.addEventListener("abort", () => cancel.abort(), { once: true });
      setTimeout(() => cancel.abort(), whole(800));
      return send(
        server.url,
        json({ prompt: words(), max_tokens: 500, stream: Math.random() < 0.7, n: 1 + whole(3) }),
        {
          signal: cancel.signal,
        },
      );
    },
    isRight: ({ status }) => status === 0 || status === 200,
  },
  slowReader: {
    share: 2,
    act: () =>
      send(server.url, json({ prompt: words(), max_tokens: 40, stream: true }), { readEveryMs: 20 + whole(80) }),
    isRight: streamed,
  },
  stalledReader: {
    share: 1,
    act: (signal) => stalled(signal),
    isRight: ({ status, isWhole }) => status === 200 && !isWhole,
  },
  malformed: {
    share: 4,
    act: () => {
      const bodies = [
        "",
        "{",
        "[]",
        '{"messages":5}',
        '{"prompt":{}}',
        "\u0000",
        json({ prompt: "x", temperature: 1e9 }),
      ];
      const nested = `{"prompt":${"[".repeat(50_000)}`;
      return send(server.url, [...bodies, nested][whole(bodies.length + 1)]!);
    },
    isRight: refused(400),
  },
  wrongType: {
    share: 1,
    act: () => send(server.url, json({ prompt: "x" }), { type: "text/plain" }),
    isRight: refused(415),
  },
  largeBody: {
    share: 1,
    act: () => send(server.url, json({ prompt: "x".repeat(3_000_000) })),
    isRight: refused(413, 0), // 0: it was cut while it was being sent
  },
  largeImage: {
    share: 1,
    act: () => send(server.url, json({ messages: [image(huge)] }), { path: chat }),
    isRight: refused(400),
  },
  nowhere: { share: 1, act: () => send(server.url, "{}", { path: "/v2/anything" }), isRight: refused(404) },
};

/**
 * A reader that takes nothing of some 8 MB, written at once, for longer than it may: it has been cut meanwhile. 4 to 5 MB
 * go into buffers of the system and both ends (tcp_wmem).
 */
const stalled = (signal: AbortSignal): Promise<Outcome> => {
  const prompt = Array.from({ length: 4000 }, () => whole(256));
  return send(server.url, json({ prompt, echo: true, logprobs: 20, max_tokens: 0, n: 4 }), { stallMs: 10_000, signal });
};

async function modelOf(url: string): Promise<{ vision: boolean }> {
  const { data } = (await (await fetch(`${url}/v1/models`)).json()) as { data: { modalities: string[] }[] };
  return { vision: data[0]!.modalities.includes("image") };
}

const residentMB = () =>
  Number(/^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${server.pid}/status`, "utf8"))![1]) / 1024;

const names = Object.keys(behaviours);
const lots = names.flatMap((name) => Array<string>(behaviours[name]!.share).fill(name));
const counts: Record<string, { right: number; busy: number; wrong: number }> = Object.fromEntries(
  names.map((name) => [name, { right: 0, busy: 0, wrong: 0 }]),
);
const complaints: string[] = [];
const firsts: number[] = [];
const stop = new AbortController();
setMaxListeners(0, stop.signal);

async function client(): Promise<void> {
  while (!stop.signal.aborted && server.isRunning()) {
    const name = lots[whole(lots.length)]!;
    const outcome = await behaviours[name]!.act(stop.signal);
    const count = counts[name]!;
    if (outcome.status === 429) {
      count.busy++;
      await new Promise((resolve) => setTimeout(resolve, 100 + whole(400)));
    } else if (behaviours[name]!.isRight(outcome) || stop.signal.aborted) count.right++;
    else {
      count.wrong++;
      if (complaints.length < 10)
        complaints.push(
          `${name}: ${outcome.status}, ${outcome.isWhole ? "whole" : "cut"}: ${outcome.text.slice(-200)}`,
        );
    }
    if (outcome.firstMs !== undefined && ["stream", "responses", "messages"].includes(name) && outcome.status === 200)
      firsts.push(outcome.firstMs);
  }
}

const parts = 20;
const resident: number[] = [];
const crowd = Array.from({ length: clients }, client);
for (let part = 0; part < parts && server.isRunning(); part++) {
  let most = 0;
  const until = performance.now() + (seconds * 1000) / parts;
  while (performance.now() < until && server.isRunning()) {
    await new Promise((resolve) => setTimeout(resolve, 250));
    if (server.isRunning()) most = Math.max(most, residentMB());
  }
  resident.push(most);
  if (process.stderr.isTTY) process.stderr.write(`\r${part + 1}/${parts}: ${most.toFixed(0)} MB `);
}
stop.abort();
await Promise.all(crowd);
const hasCrashed = !server.isRunning();
let left: object = {};
if (!hasCrashed) {
  await new Promise((resolve) => setTimeout(resolve, 1500));
  const metrics = await server.metrics();
  left = Object.fromEntries(
    ["requests_queued", "replies_running", "batch_sequences", "kv_cache_slots_used"].map((name) => [
      name,
      metrics(name),
    ]),
  );
}
const status = hasCrashed ? null : await server.stop();

// The median of the second fifth and that of the last: single peaks of the collector say nothing.
const early = median(resident.slice(parts / 5, (2 * parts) / 5));
const late = median(resident.slice(-parts / 5));
const growth = late / early - 1;
const total = (kind: "right" | "busy" | "wrong") => Object.values(counts).reduce((sum, count) => sum + count[kind], 0);

for (const [name, { right, busy, wrong }] of Object.entries(counts))
  console.log(
    `${name.padEnd(14)} ${String(right).padStart(7)} as expected ${String(busy).padStart(6)} busy ${wrong} wrong`,
  );
console.log(
  `resident memory ${early.toFixed(0)} MB, at the end ${late.toFixed(0)} MB (${(growth * 100).toFixed(1)} %)`,
);
console.log(
  `first token: median ${median(firsts).toFixed(0)} ms, p99 ${percentile(firsts, 99).toFixed(0)} ms of ${firsts.length}`,
);
console.log(`afterwards ${json(left)}, ended with status ${status}`);
for (const complaint of complaints) console.log(complaint);

const faults = [
  ...(hasCrashed ? ["the server has crashed"] : []),
  ...(status === 0 ? [] : [`the server ended with status ${status}`]),
  ...(total("wrong") > 0 ? [`${total("wrong")} requests had another outcome than they may`] : []),
  ...(seconds >= SETTLED_SECONDS && growth > 0.05 ? ["resident memory has grown by more than 5 %"] : []),
  ...Object.entries(left).flatMap(([name, value]) => (value === 0 ? [] : [`${name} is ${value} when all is over`])),
];
for (const fault of faults) console.log(`FAULT: ${fault}`);
if (options.out)
  writeRecord(options.out, {
    ...{ model, clients, seconds, counts, resident, growth, left, faults },
    firstTokenMs: { median: median(firsts), p99: percentile(firsts, 99), count: firsts.length },
  });
process.exitCode = faults.length > 0 ? 1 : 0;

// `llama4 serve`: the model behind the HTTP APIs that programs already speak.

import { setMaxListeners } from "node:events";
import { existsSync } from "node:fs";
import { isIP } from "node:net";
import { basename } from "node:path";
import { fileURLToPath } from "node:url";
import type { Command } from "commander";
import { shippedModel } from "../index.ts";
import { createHandler, LIMITS } from "../server/handler.ts";
import { listen } from "../server/node.ts";
import { mediaFetcher } from "../server/node-fetch.ts";
import { prometheus } from "../server/node-metrics.ts";
import { pageFiles } from "../server/node-page.ts";
import { RequestError } from "../tensor/errors.ts";
import type { Answer, Run, Session } from "./answer.ts";
import { isRandom } from "./init.ts";
import { openModel } from "./model.ts";
import {
  collect,
  define,
  type ModelOptions,
  number,
  type SpeculationOptions,
  speculationOf,
  whole,
  withModel,
  withSpeculation,
} from "./options.ts";

interface ServeOptions extends ModelOptions, SpeculationOptions {
  readonly host: string;
  readonly port: number;
  readonly apiKey?: readonly string[];
  readonly insecure?: number;
  readonly name?: string;
  readonly corsOrigin?: readonly string[];
  readonly imageHost?: readonly string[];
  readonly privateImages?: true;
  readonly maxConcurrent: number;
  readonly maxQueue: number;
  readonly maxPerClient: number;
  readonly tokensPerMinute?: number;
  readonly maxBody: number;
  readonly requestTimeout: number;
  readonly idleTimeout: number;
  readonly grace: number;
}

export function serve(program: Command, run: Run): void {
  const command = define(
    program,
    "serve",
    "The HTTP server: OpenAI's API and Anthropic's for any program, and a page to chat on.",
    [
      "llama4 serve --model scout.gguf",
      "LLAMA4_API_KEY=secret llama4 serve --model ./scout --host 0.0.0.0 --port 8000",
      "llama4 serve --port 0 --json",
    ],
  );
  withSpeculation(withModel(command))
    .option("--host <address>", "where to listen; others than this machine's own need a key", "127.0.0.1")
    .option("--port <n>", "0 takes any that is free", whole(0, 65_535), 8080)
    .option("--api-key <key>", "what clients have to send; may stand several times (better: LLAMA4_API_KEY)", collect)
    .option("--insecure", "said twice: serves other machines without a key", (_, before: number) => before + 1, 0)
    .option("--name <name>", "the model's name for clients (default: its file's)")
    .option("--cors-origin <origin>", "web pages of this origin may ask; may stand several times", collect)
    .option("--image-host <host>", 'fetches images by https from there; "*.x.org": below it, "*": anywhere', collect)
    .option("--private-images", "with --image-host: from private addresses and by http too")
    .option("--max-concurrent <n>", "replies computed at once", whole(1), LIMITS.concurrent)
    .option("--max-queue <n>", "requests that may wait; more are told to come back", whole(0), LIMITS.queue)
    .option("--max-per-client <n>", "requests of one key, or of one address without keys", whole(1), LIMITS.perClient)
    .option("--tokens-per-minute <n>", "tokens of one client, of prompts and replies (default: no limit)", whole(1))
    .option("--max-body <megabytes>", "largest request", number, LIMITS.bodyBytes / 1e6)
    .option("--request-timeout <seconds>", "longest time for a reply", number, LIMITS.requestMs / 1000)
    .option(
      "--idle-timeout <seconds>",
      "gives up a reader that takes nothing for so long",
      number,
      LIMITS.idleMs / 1000,
    )
    .option("--grace <seconds>", "time that replies have to end after Ctrl-C or SIGTERM", number, 15)
    .addHelpText(
      "after",
      "\nPaths: / (the page) /v1/chat/completions /v1/completions /v1/responses /v1/messages /v1/models /tokenize /health /metrics; all in /openapi.json",
    )
    .action(run((session, options: ServeOptions) => served(session, options, program.version())));
}

async function served(session: Session, options: ServeOptions, version?: string): Promise<Answer | undefined> {
  const { host, port, model: path = shippedModel(), grace, maxConcurrent } = options;
  const keys = [...(options.apiKey ?? []), ...(process.env["LLAMA4_API_KEY"]?.split(",") ?? [])];
  checkKeys(keys, host, options.insecure ?? 0);
  checkOrigins(options.corsOrigin);
  checkHosts(options);
  const graceMs = timeout("--grace", grace);
  const limits = {
    concurrent: maxConcurrent,
    queue: options.maxQueue,
    perClient: options.maxPerClient,
    tokensPerMinute: options.tokensPerMinute ?? LIMITS.tokensPerMinute,
    bodyBytes: positive("--max-body", options.maxBody) * 1e6,
    requestMs: timeout("--request-timeout", options.requestTimeout),
    idleMs: timeout("--idle-timeout", options.idleTimeout),
  };
  const speculation = speculationOf(options);
  setMaxListeners(2 * maxConcurrent + LIMITS.images); // a request's signal has one for each of its replies and images
  await using model = await openModel(options, session, { speculation, sequences: maxConcurrent });
  const stop = new AbortController();
  const name = options.name ?? basename(path).replace(/\.gguf$/, "");
  const hosts = isLoopback(host) ? ["localhost", "127.0.0.1", "[::1]", host] : undefined;
  const handler = createHandler(model, {
    ...{ name, version, keys, limits, observer: prometheus(), signal: stop.signal },
    origins: options.corsOrigin,
    fetchMedia: options.imageHost && mediaFetcher({ hosts: options.imageHost, ...privateOf(options) }),
    hosts,
    randomWeights: isRandom(path),
    isDraining: () => session.signal.aborted,
    onError: (error, id) => process.stderr.write(`${id}: ${error instanceof Error ? error.stack : String(error)}\n`),
  });
  const server = await listen(handler, { host, port, page: chatPage(hosts), idleMs: limits.idleMs });
  const { url } = server;
  if (session.json) process.stdout.write(`${JSON.stringify({ url })}\n`);
  else process.stdout.write(`${name} at ${url}/v1${existsSync(PAGE) ? `, to chat with at ${url}` : ""}\n`);
  session.allowToEnd(graceMs + 5000);
  await new Promise<void>((resolve) => {
    session.signal.addEventListener("abort", () => resolve());
    if (session.signal.aborted) resolve(); // since the model was loaded
  });
  process.stderr.write(`stopping: replies have ${grace} seconds to end\n`);
  const late = setTimeout(() => stop.abort(), graceMs); // what is told so ends its stream or its request
  const later = setTimeout(server.cut, graceMs + 1000);
  await server.drain();
  clearTimeout(late);
  clearTimeout(later);
  stop.abort(); // whose connections were cut
  return undefined; // it has said where it listens
}

/** The page as `npm run build` makes it beside this code; a build without it serves the APIs alone. */
const PAGE = fileURLToPath(new URL("../web", import.meta.url));

const chatPage = (hosts: readonly string[] | undefined) => (existsSync(PAGE) ? pageFiles(PAGE, { hosts }) : undefined);

function checkKeys(keys: readonly string[], host: string, insecure: number): void {
  if (keys.some((key) => key.length < 8 || /[^\x21-\x7e]/.test(key)))
    throw new RequestError(
      "an API key is shorter than 8 characters, or has others than ASCII's without space; expected none such",
    );
  if (keys.length > 0 || isLoopback(host) || insecure >= 2) return;
  throw new RequestError(
    `serve: ${host} can be reached by other machines, and there is no API key; give one (LLAMA4_API_KEY, --api-key), listen on 127.0.0.1, ` +
      "or say --insecure twice, if everyone there may use and exhaust this machine",
  );
}

/** As browsers send them; another form would never be met. */
function checkOrigins(origins: readonly string[] = []): void {
  const wrong = origins.find(
    (origin) => origin !== "*" && !(URL.canParse(origin) && new URL(origin).origin === origin),
  );
  if (wrong !== undefined)
    throw new RequestError(`--cors-origin is ${wrong}; expected an origin as https://chat.example.org, or "*"`);
}

function checkHosts({ imageHost, privateImages }: ServeOptions): void {
  const isHost = (host: string) => URL.canParse(`https://${host}`) && new URL(`https://${host}`).hostname === host;
  const wrong = imageHost?.find((host) => host !== "*" && !isHost(host.replace(/^\*\./, "")));
  if (wrong !== undefined)
    throw new RequestError(`--image-host is ${wrong}; expected a name as pictures.example.org, "*.example.org" or "*"`);
  if (privateImages && !imageHost)
    throw new RequestError("--private-images without --image-host, so that nothing is fetched; name the hosts with it");
}

const privateOf = ({ privateImages }: ServeOptions) => ({ allowPrivate: privateImages, allowHttp: privateImages });

const isLoopback = (host: string): boolean =>
  host === "localhost" || host === "::1" || (isIP(host) === 4 && host.startsWith("127."));

function positive(option: string, value: number): number {
  if (value > 0) return value;
  throw new RequestError(`${option} is ${value}; expected a number above 0`);
}

const MOST_SECONDS = 2_147_000; // 24 days: a timer counts milliseconds in 31 bits, and a longer one ends at once

/** In milliseconds. */
function timeout(option: string, seconds: number): number {
  if (positive(option, seconds) <= MOST_SECONDS) return seconds * 1000;
  throw new RequestError(`${option} is ${seconds}; expected at most ${MOST_SECONDS} seconds`);
}

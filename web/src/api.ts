// The server as the page needs it: which model it has, and a reply as it is written. It is the API that all programs use.

import { type Message, type Usage, withNewest } from "./conversation.ts";
import { chunksOf, eventData } from "./event-stream.ts";
import { dataUrl } from "./media.ts";

/** An entry of /v1/models. */
export interface Model {
  readonly id: string;
  readonly max_model_len: number;
  readonly parameters: { readonly total: number; readonly active: number };
  readonly architecture?: {
    readonly layers: number;
    readonly global_layers: readonly number[];
    readonly attention_chunk: number;
    readonly expert_layers: readonly number[];
    readonly experts: number;
    readonly experts_per_token: number;
  };
  readonly random_weights?: boolean;
  readonly modalities: readonly string[];
}

/** What a person can do about it: nothing but wait (gone, busy), give a key, begin anew (full), mend the request, or try again. */
export type Trouble = "gone" | "busy" | "key" | "full" | "refused" | "failed";

export class ServerError extends Error {
  readonly trouble: Trouble;
  readonly retryAfterSeconds: number | undefined;

  constructor(trouble: Trouble, message: string, retryAfterSeconds?: number) {
    super(message);
    this.trouble = trouble;
    this.retryAfterSeconds = retryAfterSeconds;
  }
}

export interface Asking {
  readonly system: string;
  readonly temperature: number | null;
  readonly topP: number | null;
  readonly maxTokens: number | null;
  readonly seed: number | null;
  /** Whether each token is to come with the experts behind it. */
  readonly routes: boolean;
}

/** Which experts a token came by, as the server writes it. */
export interface RoutedToken {
  readonly layers: readonly number[];
  readonly experts: readonly (readonly number[])[];
  readonly scores: readonly (readonly number[])[];
  readonly margins: readonly (number | null)[];
}

export interface Delta {
  readonly text: string;
  readonly usage?: Usage;
  readonly routed?: readonly RoutedToken[];
  readonly finish?: "stop" | "length";
}

const gone = () => new ServerError("gone", "The server does not answer. Is it still running?");

async function ask(path: string, key: string, init: RequestInit = {}): Promise<Response> {
  const headers = new Headers(init.headers);
  if (key !== "") headers.set("authorization", `Bearer ${key}`);
  const response = await fetch(path, { ...init, headers }).catch((error: unknown) => {
    throw init.signal?.aborted ? error : gone();
  });
  if (response.ok) return response;
  const body = await response.json().catch(() => undefined);
  const after = response.headers.get("retry-after");
  throw refusal(response.status, body, after === null ? undefined : Number(after));
}

/** What an answer that is none means. */
export function refusal(status: number, body: unknown, retryAfterSeconds?: number): ServerError {
  const { message = `The server answered with status ${status}.`, code } =
    (body as { error?: { message?: string; code?: string | null } } | undefined)?.error ?? {};
  if (status === 401) return new ServerError("key", "This server wants an API key.");
  if (code === "context_length_exceeded") return new ServerError("full", message);
  if (status === 429 || (status === 503 && retryAfterSeconds !== undefined))
    return new ServerError("busy", message, retryAfterSeconds);
  return new ServerError(status >= 500 ? "failed" : "refused", message);
}

export async function theModel(key: string): Promise<Model> {
  const { data } = (await (await ask("/v1/models", key)).json()) as { data: readonly Model[] };
  return data[0]!;
}

/** The reply to the last of these messages, as it is written. Leaving the loop, or the signal, ends it on the server too. */
export async function* reply(
  messages: readonly Message[],
  { system, temperature, topP, maxTokens, seed, routes }: Asking,
  key: string,
  signal: AbortSignal,
): AsyncGenerator<Delta> {
  const asked = await Promise.all(withNewest(messages).map(written));
  if (system.trim() !== "") asked.unshift({ role: "system", content: system });
  const body = {
    messages: asked,
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
    ...(temperature !== null && { temperature }),
    ...(topP !== null && { top_p: topP }),
    ...(maxTokens !== null && { max_tokens: maxTokens }),
    ...(seed !== null && { seed }),
    ...(routes && { return_routed_experts: true }),
  };
  const response = await ask("/v1/chat/completions", key, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  let isWhole = false;
  try {
    for await (const data of eventData(chunksOf(response.body!))) {
      if (data === "[DONE]") {
        isWhole = true;
        return;
      }
      yield deltaOf(JSON.parse(data));
    }
  } catch (error) {
    if (signal.aborted || error instanceof ServerError) throw error;
    throw gone(); // the connection broke
  }
  if (!isWhole) throw gone();
}

interface Chunk {
  readonly error?: { readonly message: string; readonly code?: string | null };
  readonly choices: readonly {
    readonly delta: { readonly content?: string | null };
    readonly finish_reason: "stop" | "length" | null;
    readonly routed_experts?: readonly RoutedToken[];
  }[];
  readonly usage?: {
    readonly prompt_tokens: number;
    readonly completion_tokens: number;
    readonly prompt_tokens_details?: { readonly cached_tokens: number };
  } | null;
}

function deltaOf(chunk: Chunk): Delta {
  if (chunk.error) throw refusal(500, chunk);
  const [choice] = chunk.choices;
  const { usage } = chunk;
  return {
    text: choice?.delta.content ?? "",
    ...(usage && {
      usage: {
        promptTokens: usage.prompt_tokens,
        cachedTokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
        completionTokens: usage.completion_tokens,
      },
    }),
    ...(choice?.routed_experts && { routed: choice.routed_experts }),
    ...(choice?.finish_reason && { finish: choice.finish_reason }),
  };
}

type Written = { role: string; content: string | object[] };

async function written(message: Message): Promise<Written> {
  if (message.role === "assistant" || message.attachments.length === 0)
    return { role: message.role, content: message.text };
  const files = message.attachments.map(async ({ kind, blob }) => {
    const url = { url: await dataUrl(blob) };
    return kind === "image" ? { type: "image_url", image_url: url } : { type: "video_url", video_url: url };
  });
  const text = message.text === "" ? [] : [{ type: "text", text: message.text }];
  return { role: "user", content: [...(await Promise.all(files)), ...text] };
}

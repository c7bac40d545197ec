// OpenAI's /v1/completions: what follows a text.

import { z } from "zod";
import { usageOf } from "./chat-completions.ts";
import type { Dialect, Meta } from "./dialect.ts";
import { openAiError, Refusal } from "./errors.ts";
import type { ServerEvent } from "./events.ts";
import { type Ask, type Finish, type Reply, type Said, type ToldToken, totalUsage } from "./generation.ts";
import { list, MOST_TOKENS, maybe, newId, samplingFields, samplingOf, seconds, stop, wholeNumber } from "./wire.ts";

/** A list of token ids. zod by itself takes 0.3 s for a million of them, in one piece. */
export const tokenIds = ({ least }: { readonly least: number }) =>
  z
    .unknown()
    .meta({ type: "array", items: { type: "integer", minimum: 0 }, minItems: least, maxItems: MOST_TOKENS })
    .transform((given, context) => {
      const wrong = (message: string, path: number[] = []) => {
        context.addIssue({ code: "custom", path, message });
        return z.NEVER;
      };
      if (!Array.isArray(given)) return wrong("expected a list of token ids");
      if (given.length < least || given.length > MOST_TOKENS)
        return wrong(`expected ${least} to ${MOST_TOKENS.toLocaleString("en")} token ids`);
      const at = given.findIndex((id) => !Number.isSafeInteger(id) || id < 0);
      return at < 0 ? (given as number[]) : wrong("expected a token id, a whole number from 0", [at]);
    });

const tokens = tokenIds({ least: 1 });

const MOST_PROMPTS = 2048;

const schema = z.object({
  ...samplingFields,
  model: maybe(z.string()).describe("any name is served by the one model"),
  prompt: z.union([z.string(), list(z.string(), { least: 1 }), tokens, list(tokens, { least: 1 })]),
  max_tokens: maybe(wholeNumber(0)).describe("0 with `echo` alone: the prompt's log-probabilities and no reply"),
  n: maybe(wholeNumber(1, 128)),
  best_of: maybe(wholeNumber(1)),
  stop,
  stream: maybe(z.boolean()),
  stream_options: maybe(z.object({ include_usage: maybe(z.boolean()) })),
  logprobs: maybe(wholeNumber(0, 20)),
  echo: maybe(z.boolean()),
  suffix: maybe(z.string()),
  add_special_tokens: maybe(z.boolean()).describe("whether a text begins with the begin-of-text token; default true"),
});

type Body = z.output<typeof schema>;

export const completions: Dialect<typeof schema> = {
  summary: "OpenAI's completions: what follows a text.",
  schema,
  ask,
  isStreamed: (body) => body.stream ?? false,
  whole,
  events,
  failure: (refusal) => ({ data: JSON.stringify(openAiError(refusal)) }),
  keepAlive: ": keep-alive\n\n",
  error: openAiError,
};

function ask(body: Body): Ask {
  const { n = 1, best_of = n, stop, suffix, echo, logprobs } = body;
  if (best_of !== n)
    throw new Refusal(400, "Invalid value for 'best_of': expected no more than 'n'; replies are not ranked.", {
      param: "best_of",
    });
  if (suffix) throw new Refusal(400, "Invalid value for 'suffix': this model does not fill in.", { param: "suffix" });
  const count = promptsOf(body).length;
  if (count > MOST_PROMPTS)
    throw new Refusal(400, `Invalid value for 'prompt': there are ${count}; expected at most ${MOST_PROMPTS}.`, {
      param: "prompt",
    });
  if (body.max_tokens === 0 && !echo)
    throw new Refusal(400, "Invalid value for 'max_tokens': expected at least 1, or 'echo'.", { param: "max_tokens" });
  return {
    prompts: promptsOf(body),
    fields: {
      prompt: (i) =>
        typeof body.prompt === "string" || typeof body.prompt[0] === "number" ? "prompt" : `prompt[${i}]`,
    },
    n,
    options: {
      ...samplingOf(body),
      logprobs,
      maxTokens: body.max_tokens ?? 16, // OpenAI's default
      stop: typeof stop === "string" ? [stop] : stop,
    },
    oneCall: false,
    bos: body.add_special_tokens ?? true,
    echo,
  };
}

function promptsOf({ prompt }: Body): readonly (string | readonly number[])[] {
  if (typeof prompt === "string") return [prompt];
  return typeof prompt[0] === "number" ? [prompt as number[]] : (prompt as string[] | number[][]);
}

function whole(body: Body, replies: readonly Reply[], { model }: Meta): object {
  return {
    id: newId("cmpl-"),
    object: "text_completion",
    created: seconds(),
    model,
    choices: replies.map(({ text, logprobs, promptTokens = [], finish }, index) => ({
      index,
      text,
      logprobs: body.logprobs === undefined ? null : logprobsOf([...promptTokens, ...logprobs], 0),
      finish_reason: finish.reason,
    })),
    usage: usageOf(
      totalUsage(
        replies.map(({ finish }) => finish),
        body.n ?? 1,
      ),
    ),
  };
}

/** Lists that run side by side; the text of the first token begins at `offset`. */
function logprobsOf(list: readonly ToldToken[], offset: number) {
  let at = offset;
  return {
    tokens: list.map(({ text }) => text),
    token_logprobs: list.map(({ logprob }) => logprob),
    top_logprobs: list.map(({ logprob, top }) =>
      logprob === null ? null : Object.fromEntries(top.map(({ text, logprob }) => [text, logprob])),
    ),
    text_offset: list.map(({ text }) => {
      const here = at;
      at += text.length;
      return here;
    }),
  };
}

async function* events(body: Body, said: AsyncIterable<Said>, { model }: Meta): AsyncGenerator<ServerEvent> {
  const id = newId("cmpl-");
  const created = seconds();
  const wantsUsage = body.stream_options?.include_usage ?? false;
  const offsets = new Map<number, number>();
  const finishes: Finish[] = [];
  const chunk = (choices: readonly object[], usage?: object) => ({
    data: JSON.stringify({
      ...{ id, object: "text_completion", created, model, choices },
      ...(wantsUsage && { usage: usage ?? null }),
    }),
  });
  for await (const { index, text, logprobs: own, promptTokens = [], finish } of said) {
    const isFirst = !offsets.has(index); // told even without a text: a sign that the prompt is read
    const logprobs = [...promptTokens, ...own];
    const offset = offsets.get(index) ?? 0;
    offsets.set(index, offset + logprobs.reduce((sum, { text }) => sum + text.length, 0));
    if (finish) finishes[index] = finish;
    if (!isFirst && text === "" && logprobs.length === 0 && !finish) continue;
    const shown = body.logprobs === undefined ? null : logprobsOf(logprobs, offset);
    yield chunk([{ index, text, logprobs: shown, finish_reason: finish?.reason ?? null }]);
  }
  if (wantsUsage) yield chunk([], usageOf(totalUsage(finishes, body.n ?? 1)));
  yield { data: "[DONE]" };
}

// What a client may know of an error, in the words of its request. Nothing of the machine is in it.

import { Refusal } from "./errors.ts";
import type { Ask } from "./generation.ts";
import { filesOf } from "./urls.ts";

/** What of a request its errors are about. */
type Asked = Pick<Ask, "prompts" | "fields">;

/** What a client may know of an error in what it has `asked`; undefined where that is nothing but that there was one. */
export function refusalOf(error: unknown, context: number, asked?: Asked): Refusal | undefined {
  if (error instanceof Refusal) return error;
  // by name: an error that comes out of the engine's thread may be of another copy of its class
  if (!(error instanceof Error && ["RequestError", "CapacityError"].includes(error.name))) return undefined;
  const [long] = /^the prompt(?: has [\d,]+ tokens|'s [^;]*)/.exec(error.message) ?? [];
  if (long !== undefined)
    return new Refusal(
      400,
      `This model's maximum context length is ${context} tokens, and ${long}; expected a shorter prompt.`,
      { code: "context_length_exceeded", param: asked?.fields.prompt(0) ?? null },
    );
  const [, about, what] = /^(json_schema|tool ".*?"): (.*)$/s.exec(error.message) ?? [];
  const format = asked?.fields.format ?? "response_format";
  if (about === "json_schema") return new Refusal(400, `Invalid schema for ${format}: ${what}`, { param: format });
  if (about !== undefined)
    return new Refusal(400, `Invalid schema for ${about}: ${what}`, {
      code: "invalid_function_parameters",
      param: "tools",
    });
  if (error.name === "RequestError") return refusalAbout(error.message, asked);
  return new Refusal(503, "The server has no room for this request now; try again later.", { retryAfterSeconds: 5 });
}

/** What the library says of a request, with the field that it is about, in the request's words. */
function refusalAbout(message: string, asked: Asked | undefined): Refusal {
  const [, type, number = 1, wrong] = /^(image|video)(?: (\d+))?: (.*)$/s.exec(message) ?? [];
  if (type !== undefined && asked && "messages" in asked.prompts) {
    const param = filesOf(asked.prompts.messages).filter((part) => part.type === type)[Number(number) - 1]?.param;
    const what = wrong!.replace(/ \(`\w+`\)/, ""); // an option that the one who serves has
    if (param !== undefined)
      return new Refusal(400, `Invalid value for '${param}': ${what}.`, { code: "invalid_image", param });
  }
  const [, bias] = /^"(.*)" of logitBias (?=is no token)/s.exec(message) ?? [];
  if (bias !== undefined)
    return new Refusal(400, message.replace("logitBias", "logit_bias"), { param: "logit_bias", code: "invalid_value" });
  return new Refusal(400, message, { param: tokenParam(message, asked) });
}

/** Where in the request the token id stands that the engine, or the tokenizer, does not know. */
function tokenParam(message: string, asked: Asked | undefined): string | null {
  const [, at, id] = /^token (?:(\d+) of the prompt is|id) (\d+);/.exec(message) ?? [];
  if (id === undefined || !asked || "messages" in asked.prompts) return null;
  for (const [i, prompt] of asked.prompts.entries()) {
    if (typeof prompt === "string") continue;
    const place = at === undefined ? prompt.indexOf(Number(id)) : Number(at);
    if (prompt[place] === Number(id)) return `${asked.fields.prompt(i)}[${place}]`;
  }
  return null;
}

export const failed = (): Refusal => new Refusal(500, "The server failed on this request; its log says why.");

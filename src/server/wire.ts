// Words that several APIs share, as zod schemas: what is null counts as left out.

import { z } from "zod";
import type { Constraint, TextConstraint } from "../engine/constraint.ts";
import type { Tool, ToolCall } from "../prompt/chat-format.ts";
import type { MediaOptions } from "../prompt/media.ts";
import { Refusal } from "./errors.ts";

/** May be left out or null. */
export const maybe = <T extends z.ZodType>(schema: T) =>
  schema.nullish().transform((value) => value ?? undefined) as z.ZodPipe<
    z.ZodOptional<z.ZodNullable<T>>,
    z.ZodTransform<z.output<T> | undefined, z.output<T> | null | undefined>
  >;

export const wholeNumber = (least: number, most = Number.MAX_SAFE_INTEGER) => z.number().int().min(least).max(most);

export const jsonObject = z.record(z.string(), z.unknown());

const MOST_ELEMENTS = 100_000;
export const MOST_TOOLS = 512; // each has a grammar of its own; OpenAI takes 128
export const MOST_TOKENS = 16_000_000; // of a prompt; models go up to 10,485,760

/**
 * A list as bodies have it: of at most so many elements, which are looked at no further than the first that is wrong. zod by
 * itself notes each wrong one, and so needs hundreds of times the room of a body of nothing else.
 */
export const list = <T extends z.ZodType>(element: T, { least = 0, most = MOST_ELEMENTS } = {}) =>
  z
    .array(z.unknown())
    .min(least)
    .max(most)
    .meta({ items: inputSchema(element) })
    .transform((elements, context) => {
      const values: z.output<T>[] = [];
      for (const [i, given] of elements.entries()) if (!take(element, given, i, context, (v) => values.push(v))) break;
      return values;
    });

/** Values by name, bounded and looked at as those of a list are. */
export const valuesByName = <T extends z.ZodType>(value: T) =>
  z
    .record(z.string(), z.unknown())
    .refine((given) => Object.keys(given).length <= MOST_ELEMENTS, `expected at most ${MOST_ELEMENTS} entries`)
    .meta({ additionalProperties: inputSchema(value) })
    .transform((given, context) => {
      const entries: [string, z.output<T>][] = [];
      for (const name in given) if (!take(value, given[name], name, context, (v) => entries.push([name, v]))) break;
      return Object.fromEntries(entries) as Record<string, z.output<T>>;
    });

/** What OpenAPI says of a value inside of another. */
function inputSchema(schema: z.ZodType): object {
  const { $schema: _, ...rest } = z.toJSONSchema(schema, { io: "input", unrepresentable: "any" });
  return rest;
}

/** Hands on a value as its schema wants it, or notes what is wrong with it; whether it is right. */
function take<T extends z.ZodType>(
  schema: T,
  given: unknown,
  key: string | number,
  context: z.RefinementCtx,
  into: (value: z.output<T>) => void,
): boolean {
  const { success, data, error } = schema.safeParse(given);
  if (success) into(data);
  else {
    const { path, message } = deepest(error.issues[0]!);
    context.addIssue({ code: "custom", path: [key, ...path], message });
  }
  return success;
}

/** Where a reply ends. Each end of its text is compared with their beginnings, so that long ones would hold up everybody. */
export const stopStrings = list(z.string().min(1).max(1000), { most: 16 });
export const stop = maybe(z.union([z.string().min(1).max(1000), stopStrings]));

/** How tokens are chosen; the last three are not OpenAI's, but common. */
export const samplingFields = {
  temperature: maybe(z.number().min(0).max(2)),
  top_p: maybe(z.number().min(0).max(1)),
  presence_penalty: maybe(z.number().min(-2).max(2)),
  frequency_penalty: maybe(z.number().min(-2).max(2)),
  logit_bias: maybe(valuesByName(z.number().min(-100).max(100))),
  seed: maybe(
    z
      .number()
      .int()
      .transform((seed) => (seed < 0 ? seed + 2 ** 53 : seed)),
  ),
  top_k: maybe(z.number().int().min(-1)),
  min_p: maybe(z.number().min(0).max(1)),
  repetition_penalty: maybe(z.number().min(0.01).max(100)),
};

export function samplingOf(
  body: {
    readonly [K in keyof typeof samplingFields]?: z.output<(typeof samplingFields)[K]>;
  },
) {
  return {
    temperature: body.temperature,
    topP: body.top_p,
    presencePenalty: body.presence_penalty,
    frequencyPenalty: body.frequency_penalty,
    logitBias: body.logit_bias,
    seed: body.seed,
    topK: body.top_k === -1 ? 0 : body.top_k,
    minP: body.min_p,
    repetitionPenalty: body.repetition_penalty,
  };
}

/** One tile for each image, where all are asked to be seen in low detail. */
export const mediaOf = (details: readonly (string | undefined)[]): MediaOptions | undefined =>
  details.length > 0 && details.every((detail) => detail === "low") ? { maxTiles: 1 } : undefined;

/** A body as its schema wants it, or a Refusal that names the field. */
export function parsed<T extends z.ZodType>(schema: T, body: unknown): z.output<T> {
  const result = schema.safeParse(body);
  if (result.success) return result.data;
  const issue = deepest(result.error.issues[0]!);
  const param = issue.path.reduce<string>(
    (path, key) => (typeof key === "number" ? `${path}[${key}]` : path === "" ? String(key) : `${path}.${String(key)}`),
    "",
  );
  throw new Refusal(400, `Invalid value for ${param === "" ? "the body" : `'${param}'`}: ${issue.message}.`, {
    param: param === "" ? null : param,
    code: "invalid_value",
  });
}

interface Issue {
  readonly path: readonly PropertyKey[];
  readonly message: string;
  readonly code?: string | undefined;
}

/** Of a union, what is wrong with the form that came nearest. */
function deepest(issue: z.core.$ZodIssue): Issue {
  if (issue.code !== "invalid_union" || issue.errors.length === 0) return issue;
  const found = issue.errors
    .filter((issues) => issues.length > 0)
    .map((issues) => deepest(issues[0]!))
    .reduce((a, b) => (depth(b) > depth(a) ? b : a));
  return { ...found, path: [...issue.path, ...found.path] };
}

/** How near a form came: the deeper what is wrong lies, and in one place, a wrong value before a value of another type. */
const depth = ({ path, code }: Issue) => path.length + (code === "invalid_type" ? 0 : 0.5);

/** A fresh identifier with its API's prefix. */
export const newId = (prefix: string): string => `${prefix}${crypto.randomUUID().replaceAll("-", "")}`;

export const seconds = (): number => Math.floor(Date.now() / 1000);

/** The arguments of a call as the APIs write them: JSON in a string. */
export function argumentsOf(json: string, where: string): ToolCall["arguments"] {
  try {
    const value: unknown = JSON.parse(json === "" ? "{}" : json);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as ToolCall["arguments"];
  } catch {
    // said below
  }
  throw new Refusal(400, `Invalid value for '${where}': expected a JSON object in a string.`, {
    param: where,
    code: "invalid_value",
  });
}

/** The calls of a conversation so far, by their ids. */
export class CallIds {
  readonly #places = new Map<string, number>();
  #count = 0;

  add(ids: readonly string[]): void {
    for (const id of ids) this.#places.set(id, this.#count++);
  }

  /**
   * Results of tools in the order of the calls that they answer: the model knows them by nothing else. Throws Refusal for one
   * that answers none, about the field `where` that holds its id.
   */
  inOrder<T extends { readonly id: string; readonly where: string }>(results: readonly T[]): T[] {
    const placed = results.map((result) => {
      const place = this.#places.get(result.id);
      if (place === undefined) throw this.#unknown(result);
      return { result, place };
    });
    return placed.sort((a, b) => a.place - b.place).map(({ result }) => result);
  }

  #unknown({ id, where }: { readonly id: string; readonly where: string }): Refusal {
    const known = [...this.#places.keys()].slice(-5).map((id) => JSON.stringify(id.slice(0, 100)));
    const expected =
      known.length > 0 ? `that of a call before it, as ${known.join(", ")}` : "it behind the call that it answers";
    return new Refusal(
      400,
      `Invalid value for '${where}': no call before it has the id ${JSON.stringify(id.slice(0, 100))}; expected ${expected}.`,
      { param: where, code: "invalid_value" },
    );
  }
}

/** A tool without the fields that were left out. */
export const toolOf = (
  name: string,
  description: string | undefined,
  parameters: Readonly<Record<string, unknown>> | undefined,
): Tool => ({ name, ...(description !== undefined && { description }), ...(parameters && { parameters }) });

/** OpenAI's choice of some of the tools: the model is told of all, which keeps its prompt, and may call these. */
export const allowedTools = <Called extends z.ZodType>(called: Called) => ({
  mode: z.enum(["auto", "required"]),
  tools: list(called, { least: 1, most: MOST_TOOLS }),
});

/** Whether a reply has to call a tool, and which; undefined as "auto". */
type ToolChoice = "none" | "auto" | "required" | { readonly name: string } | Allowed | undefined;

interface Allowed {
  readonly mode: "auto" | "required";
  readonly names: readonly string[];
}

export interface Asked {
  readonly choice: ToolChoice;
  readonly tools: readonly Tool[];
  /** Whether the arguments of a tool are promised to fit, even where no call has to be. */
  readonly isStrict: boolean;
  /** Whether there may be several calls. */
  readonly parallel: boolean;
  /** What the reply is to be where it is no call. */
  readonly format: TextConstraint | undefined;
}

/** What a reply is held to. Throws Refusal for a choice that cannot be made. */
export function constraintOf({ choice = "auto", tools, isStrict, parallel, format }: Asked): Constraint | undefined {
  const wrong = (what: string) =>
    new Refusal(400, `Invalid value for 'tool_choice': ${what}.`, { param: "tool_choice" });
  if (choice === "none") return format;
  if (choice === "auto") {
    if (tools.length === 0) return format;
    if (!format && !isStrict) return undefined; // what is promised to nobody is left to the model
    return { type: "tool_calls", tools, parallel, otherwise: format ?? { type: "text" } };
  }
  if (tools.length === 0) throw wrong("it needs 'tools'");
  if (choice === "required") return { type: "tool_calls", tools, parallel };
  const named = new Set("names" in choice ? choice.names : [choice.name]);
  for (const name of named)
    if (!tools.some((tool) => tool.name === name)) throw wrong(`there is no tool "${name.slice(0, 64)}" in 'tools'`);
  const called = tools.filter(({ name }) => named.has(name));
  if ("name" in choice) return { type: "tool_calls", tools: called.slice(0, 1), parallel: false };
  if (choice.mode === "required") return { type: "tool_calls", tools: called, parallel };
  const others = tools.flatMap(({ name }) => (named.has(name) ? [] : [name]));
  return { type: "tool_calls", tools: called, parallel, otherwise: format ?? { type: "text" }, others };
}

/** The constraint of a response format. */
export function formatConstraint(
  type: "text" | "json_object" | "json_schema" | undefined,
  schema: Readonly<Record<string, unknown>> = {},
): TextConstraint | undefined {
  if (type === "json_object") return { type: "json" };
  return type === "json_schema" ? { type: "json_schema", schema } : undefined;
}

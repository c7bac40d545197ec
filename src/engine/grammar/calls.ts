// Tool calls as a grammar: `[f(a=1), g()]`, as Meta documents them, and `{"name": "f", "parameters": {…}}`, as Llama 4's chat
// template asks for them, alone or in a list. What reads them is src/prompt/tool-calls.ts.

import type { Tool } from "../../prompt/chat-format.ts";
import { isCallName } from "../../prompt/tool-calls.ts";
import { RequestError } from "../../tensor/errors.ts";
import { ALL } from "./code-points.ts";
import type { Expression } from "./expressions.ts";
import { JsonWriter, type Tools } from "./json.ts";
import { BLANKS } from "./pattern.ts";
import type { Regex } from "./regex.ts";

/** A tool without parameters is called without arguments. */
const NO_PARAMETERS = { type: "object", additionalProperties: false };

/** One call, or with `parallel` one or several. */
export function toolCalls(tools: readonly Tool[], parallel: boolean, made: Tools): Expression {
  const { regexes, expressions } = made;
  if (tools.length === 0)
    throw new RequestError("a tool call is asked for and there are no tools; expected at least one");
  const text = (text: string) => expressions.regex(regexes.text(text));
  const blank = regexes.optional(regexes.text(" "));
  const comma = expressions.regex(regexes.concat(regexes.text(","), blank));
  const both = tools.map((tool) => callsOf(tool, made));
  const json = expressions.choice(...both.map((call) => call.json));
  const python = both.flatMap((call) => call.python ?? []);
  const listed = (call: Expression) =>
    expressions.sequence(
      text("["),
      call,
      ...(parallel ? [expressions.repeat(expressions.sequence(comma, call), 0, Infinity)] : []),
      text("]"),
    );
  return expressions.choice(
    ...(python.length > 0 ? [listed(expressions.choice(...python))] : []),
    listed(json),
    parallel ? expressions.sequence(json, expressions.repeat(json, 0, Infinity)) : json,
  );
}

/** A call of one tool, in both forms; in Python's only where its names are Python's. */
function callsOf(
  { name, parameters = NO_PARAMETERS }: Tool,
  made: Tools,
): { json: Expression; python: Expression | undefined } {
  const { regexes, expressions } = made;
  const what = `tool ${JSON.stringify(name)}`;
  const text = (text: string) => regexes.text(text);
  const blank = regexes.optional(text(" "));
  const key = (name: string) => regexes.concat(text(JSON.stringify(name)), text(":"), blank);
  const comma = regexes.concat(text(","), blank);
  const type = regexes.optional(regexes.concat(key("type"), text('"function"'), comma));
  const writer = new JsonWriter(parameters, what, "json", made);
  if (!writer.forms.some(({ type }) => type === "object"))
    throw new RequestError(`${what}: its parameters are no object; expected a schema of type "object"`);
  const head = regexes.concat(text("{"), type, key("name"), text(JSON.stringify(name)), comma, key("parameters"));
  const json = expressions.sequence(expressions.regex(head), writer.object(), expressions.regex(text("}")));
  const keywords = isCallName(name) ? new JsonWriter(parameters, what, "python", made).keywords() : undefined;
  const python =
    keywords && expressions.sequence(expressions.regex(text(`${name}(`)), keywords, expressions.regex(text(")")));
  return { json, python };
}

/** Text in which no call of one of these names begins. */
export function textWithoutCalls(called: readonly string[], { regexes }: Tools): Regex {
  const text = (text: string) => regexes.text(text);
  const any = regexes.many(regexes.character(ALL));
  const blanks = regexes.many(regexes.character(BLANKS));
  const quote = regexes.union(text('"'), text("'"));
  const names = regexes.union(...called.flatMap((name) => [text(name), text(JSON.stringify(name).slice(1, -1))]));
  const quoted = regexes.concat(
    quote,
    regexes.union(text("name"), text("function")),
    quote,
    blanks,
    text(":"),
    blanks,
    quote,
  );
  const begins = regexes.union(
    regexes.concat(text("["), blanks, names, text("(")),
    regexes.concat(text("<function="), names, text(">")),
    regexes.concat(quoted, names, quote),
  );
  return regexes.and(any, regexes.not(regexes.concat(any, begins, any)));
}

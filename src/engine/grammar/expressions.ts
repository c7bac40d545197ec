// Context-free grammars over bytes: regular languages, sequences, choices, repetitions, and rules that may call each other.

import { RequestError } from "../../tensor/errors.ts";
import type { Regex } from "./regex.ts";

interface Common {
  readonly id: number;
  /** So many rules stand inside each other in it at least; Infinity where it never ends. */
  height: number;
}

export type Expression = Common &
  (
    | { readonly type: "regex"; readonly regex: Regex }
    | { readonly type: "sequence"; readonly parts: readonly Expression[] }
    | { readonly type: "choice"; readonly parts: readonly Expression[] }
    | { readonly type: "rule"; readonly rule: Rule }
    | { readonly type: "repeat"; readonly part: Expression; readonly least: number; readonly most: number }
  );

type Shape = Expression extends infer S ? (S extends Expression ? Omit<S, "id" | "height"> : never) : never;

/** Something that may contain itself. */
export interface Rule {
  body: Expression | undefined;
}

/** Rules inside each other, at most: as deep as what reads tool calls goes, and JSON with it. */
export const MOST_DEPTH = 60;
const MOST_SYMBOLS = 200_000;

/** Makes expressions; equal ones are one object. */
export class Expressions {
  readonly #known = new Map<string, Expression>();
  #rules = 0;

  regex(regex: Regex): Expression {
    return this.#once(`regex ${regex.id}`, { type: "regex", regex });
  }

  sequence(...parts: readonly Expression[]): Expression {
    if (parts.length === 1) return parts[0]!;
    return this.#once(`sequence ${ids(parts)}`, { type: "sequence", parts });
  }

  choice(...all: readonly Expression[]): Expression {
    const parts = [...new Set(all)];
    if (parts.length === 1) return parts[0]!;
    return this.#once(`choice ${ids(parts)}`, { type: "choice", parts });
  }

  repeat(part: Expression, least: number, most: number): Expression {
    return this.#once(`repeat ${part.id} ${least} ${most}`, { type: "repeat", part, least, most });
  }

  /** A rule whose body is said later. */
  rule(): Extract<Expression, { type: "rule" }> {
    const expression = this.#once(`rule ${this.#rules++}`, { type: "rule", rule: { body: undefined } });
    return expression as Extract<Expression, { type: "rule" }>;
  }

  /** Once all bodies are there: how high everything is at least. */
  measure(): void {
    for (let isDone = false; !isDone; ) {
      isDone = true;
      for (const expression of this.#known.values()) {
        const height = heightOf(expression);
        if (height >= expression.height) continue;
        expression.height = height;
        isDone = false;
      }
    }
  }

  #once(key: string, shape: Shape): Expression {
    const known = this.#known.get(key);
    if (known) return known;
    if (this.#known.size >= MOST_SYMBOLS)
      throw new RequestError(
        `the constraint has more than ${MOST_SYMBOLS.toLocaleString("en")} parts; expected a smaller schema`,
      );
    const expression: Expression = { ...shape, id: this.#known.size, height: Infinity };
    expression.height = heightOf(expression);
    this.#known.set(key, expression);
    return expression;
  }
}

const ids = (parts: readonly Expression[]) => parts.map(({ id }) => id).join();

/** By what is known of its parts. */
function heightOf(expression: Expression): number {
  switch (expression.type) {
    case "regex":
      return 0;
    case "sequence":
      return expression.parts.reduce((most, { height }) => Math.max(most, height), 0);
    case "choice":
      return expression.parts.reduce((least, { height }) => Math.min(least, height), Infinity);
    case "rule":
      return 1 + (expression.rule.body?.height ?? Infinity);
    case "repeat":
      return expression.least > 0 ? expression.part.height : 0;
    default:
      return expression satisfies never;
  }
}

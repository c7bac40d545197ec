// A grammar as an automaton over bytes that comes into being as it is walked. A state is a set of threads: a term that is
// being read, and the stack of what follows it. Equal stacks and equal states are one object.

import { type Expression, type Expressions, MOST_DEPTH } from "./expressions.ts";
import type { Regex, Regexes } from "./regex.ts";

/** What follows: a expression, and then the rest. */
export interface Stack {
  readonly id: number;
  readonly expression: Expression;
  readonly rest: Stack | undefined;
  /** Rules that it stands in. */
  readonly depth: number;
  /** The state in which it is what comes next. */
  state: State | undefined;
}

export interface Thread {
  readonly term: Regex;
  readonly rest: Stack | undefined;
}

export interface State {
  readonly threads: readonly Thread[];
  /** Whether everything may end here. */
  readonly isFinal: boolean;
  /** By byte, once it has been asked for; null where the byte cannot come. */
  readonly next: (State | null | undefined)[];
}

/** Kept states; beyond, those that nobody stands in are forgotten. */
const MOST_STATES = 20_000;

export class Automaton {
  readonly start: State;
  readonly #regexes: Regexes;
  readonly #expressions: Expressions;
  #states = new Map<string, State>();
  #stacks = new Map<string, Stack>();
  #made = 0;

  constructor(start: Expression, expressions: Expressions, regexes: Regexes) {
    this.#regexes = regexes;
    this.#expressions = expressions;
    this.start = this.#stateOf((into) => this.#expand(start, undefined, 0, into));
  }

  /** The state behind a byte; null where it cannot come. */
  next(state: State, byte: number): State | null {
    const known = state.next[byte];
    if (known !== undefined) return known;
    const next = this.#stateOf((into) => {
      for (const { term, rest } of state.threads) this.#enter(this.#regexes.next(term, byte), rest, into);
    });
    const found = next.threads.length > 0 || next.isFinal ? next : null;
    state.next[byte] = found;
    return found;
  }

  /** The state in which a stack is what comes next. */
  at(stack: Stack): State {
    stack.state ??= this.#stateOf((into) => this.#expand(stack.expression, stack.rest, stack.depth, into));
    return stack.state;
  }

  #expand(expression: Expression, rest: Stack | undefined, depth: number, into: Collected): void {
    switch (expression.type) {
      case "regex":
        this.#enter(expression.regex, rest, into);
        return;
      case "sequence": {
        const behind = expression.parts.slice(1).reduceRight((stack, part) => this.#stack(part, stack, depth), rest);
        if (expression.parts.length === 0) this.#leave(rest, into);
        else this.#expand(expression.parts[0]!, behind, depth, into);
        return;
      }
      case "choice":
        for (const part of expression.parts)
          if (depth + part.height <= MOST_DEPTH) this.#expand(part, rest, depth, into);
        return;
      case "rule":
        this.#expand(expression.rule.body!, rest, depth + 1, into);
        return;
      case "repeat": {
        const { part, least, most } = expression;
        if (least === 0) this.#leave(rest, into);
        if (most === 0 || depth + part.height > MOST_DEPTH) return;
        const more = this.#expressions.repeat(part, Math.max(0, least - 1), most - 1);
        this.#expand(part, this.#stack(more, rest, depth), depth, into);
        return;
      }
      default:
        expression satisfies never;
    }
  }

  #enter(term: Regex, rest: Stack | undefined, into: Collected): void {
    if (term === this.#regexes.empty) return;
    if (term !== this.#regexes.end) {
      const key = `${term.id}.${rest?.id ?? ""}`;
      if (into.threads.has(key)) return;
      into.threads.set(key, { term, rest });
    }
    if (term.isNullable) this.#leave(rest, into);
  }

  #leave(rest: Stack | undefined, into: Collected): void {
    if (!rest) into.isFinal = true;
    else if (!into.left.has(rest)) {
      into.left.add(rest);
      this.#expand(rest.expression, rest.rest, rest.depth, into);
    }
  }

  #stack(expression: Expression, rest: Stack | undefined, depth: number): Stack {
    const key = `${expression.id}.${rest?.id ?? ""}.${depth}`;
    let stack = this.#stacks.get(key);
    if (!stack) {
      stack = { id: this.#made++, expression, rest, depth, state: undefined };
      this.#stacks.set(key, stack);
    }
    return stack;
  }

  #stateOf(collect: (into: Collected) => void): State {
    const into: Collected = { threads: new Map(), left: new Set(), isFinal: false };
    collect(into);
    const key = `${[...into.threads.keys()].sort().join(" ")}${into.isFinal ? " end" : ""}`;
    const known = this.#states.get(key);
    if (known) return known;
    if (this.#states.size >= MOST_STATES) {
      this.#states = new Map();
      this.#stacks = new Map();
    }
    const state: State = { threads: [...into.threads.values()], isFinal: into.isFinal, next: [] };
    this.#states.set(key, state);
    return state;
  }
}

interface Collected {
  readonly threads: Map<string, Thread>;
  /** Stacks that have been gone on with already. */
  readonly left: Set<Stack>;
  isFinal: boolean;
}

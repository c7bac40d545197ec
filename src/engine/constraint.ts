// What a reply can be held to, and how it is held to it: a grammar, and a mask of the tokens that may come next.

import type { Tool } from "../prompt/chat-format.ts";
import type { Tokenizer } from "../prompt/tokenizer.ts";
import { RequestError } from "../tensor/errors.ts";
import { Automaton, type State } from "./grammar/automaton.ts";
import { textWithoutCalls, toolCalls } from "./grammar/calls.ts";
import { type Expression, Expressions } from "./grammar/expressions.ts";
import { JsonWriter, type Tools } from "./grammar/json.ts";
import { Masks, type TokenMask } from "./grammar/masks.ts";
import { pattern } from "./grammar/pattern.ts";
import { Regexes } from "./grammar/regex.ts";
import { anyCharacter, rawAlphabet } from "./grammar/strings.ts";
import { TokenTrie } from "./grammar/vocabulary.ts";

/** The form that a reply has to have. */
export type Constraint = TextConstraint | CallConstraint;

export type TextConstraint =
  /** Any JSON object. */
  | { readonly type: "json" }
  /** A value that a JSON schema allows: docs/constrained-output.md says which keywords are understood. */
  | { readonly type: "json_schema"; readonly schema: Readonly<Record<string, unknown>> | boolean }
  /** A text that a regular expression matches from its beginning to its end. */
  | { readonly type: "regex"; readonly pattern: string };

/** A call of one of these tools; with `parallel`, of one or several. */
export interface CallConstraint {
  readonly type: "tool_calls";
  readonly tools: readonly Tool[];
  readonly parallel: boolean;
  /** What may come in place of a call, and as a text also before it. Default: nothing, there has to be a call. */
  readonly otherwise?: { readonly type: "text" } | TextConstraint | undefined;
  /** Names of tools that are known and not to be called: no text becomes a call of one. */
  readonly others?: readonly string[] | undefined;
}

/** Whether a reply has to be a call, and is no text at all. */
export const isForcedCall = (constraint: Constraint | undefined): boolean =>
  constraint?.type === "tool_calls" && constraint.otherwise === undefined;

/** Grammars of constraints that have come lately, for one vocabulary. */
export class Grammars {
  readonly #tokenizer: Tokenizer;
  readonly #stopTokens: ReadonlySet<number>;
  /** By their constraints, the last used last. */
  readonly #grammars = new Map<string, Grammar>();
  #masks: Masks | undefined;

  constructor(tokenizer: Tokenizer, stopTokens: ReadonlySet<number>) {
    this.#tokenizer = tokenizer;
    this.#stopTokens = stopTokens;
  }

  /** A reply's way through the grammar of a constraint. Throws RequestError for a constraint that cannot be kept. */
  begin(constraint: Constraint): Matcher {
    const key = JSON.stringify(constraint);
    let grammar = this.#grammars.get(key);
    this.#grammars.delete(key);
    if (grammar?.regexes.isHalfFull) {
      this.#masks!.forget(grammar.regexes); // replies in it live on with what they have
      grammar = undefined;
    }
    grammar ??= this.#compile(constraint);
    this.#grammars.set(key, grammar);
    this.#evict();
    return new Matcher(grammar, this.#tokenizer, this.#stopTokens);
  }

  #compile(constraint: Constraint): Grammar {
    if (this.#stopTokens.size === 0)
      throw new RequestError("a constraint for a model without a token that ends replies; expected one that has it");
    this.#masks ??= this.#read();
    const regexes = new Regexes();
    const automaton = automatonOf(constraint, regexes);
    regexes.made();
    return { automaton, regexes, masks: this.#masks };
  }

  /** Forgets the least recently used, until the rest are few and small; the last one stays. */
  #evict(): void {
    const weightOf = (key: string, { regexes }: Grammar) => regexes.size + key.length / CHARACTERS_OF_A_TERM;
    let weight = 0;
    for (const [key, grammar] of this.#grammars) weight += weightOf(key, grammar);
    for (const [key, grammar] of this.#grammars) {
      const { size } = this.#grammars;
      if (size === 1 || (size <= MOST_GRAMMARS && weight <= MOST_WEIGHT)) break;
      this.#grammars.delete(key);
      weight -= weightOf(key, grammar);
      grammar.masks.forget(grammar.regexes);
    }
  }

  /** The vocabulary, with the masks that hardly a reply goes without. */
  #read(): Masks {
    const masks = new Masks(new TokenTrie(this.#tokenizer), this.#stopTokens);
    const regexes = new Regexes();
    const automaton = automatonOf({ type: "json" }, regexes);
    let state: State | null = automaton.start;
    for (const byte of new TextEncoder().encode(USUAL)) {
      masks.of(state, automaton, regexes);
      state = automaton.next(state, byte)!; // it is JSON
    }
    masks.forget(regexes);
    return masks;
  }
}

/** Goes through what terms of JSON allow: strings, escapes, numbers, words, blanks. */
const USUAL = '{"name": "a\\n", "n": [-10.5e1, true, false, null], "o": {"a": 1}, "b": ""\n}';

const MOST_GRAMMARS = 64;
const MOST_WEIGHT = 100_000; // of all grammars that are kept, in terms of some 3 kB
const CHARACTERS_OF_A_TERM = 1500; // of a constraint's text that weigh as much

/** A constraint's grammar with what its masks are computed by. */
export interface Grammar {
  readonly automaton: Automaton;
  readonly regexes: Regexes;
  readonly masks: Masks;
}

/** Throws RequestError for a constraint that cannot be kept, whatever the vocabulary. */
export function checkConstraint(constraint: Constraint): void {
  automatonOf(constraint, new Regexes());
}

/** The grammar of a constraint, as an automaton over bytes. */
export function automatonOf(constraint: Constraint, regexes: Regexes): Automaton {
  return bounded(() => compiled(constraint, regexes));
}

/** What nests so deep that the stack does not hold it is refused like anything else that is too large. */
function bounded<T>(work: () => T): T {
  try {
    return work();
  } catch (error) {
    if (!(error instanceof RangeError)) throw error;
    throw new RequestError("the constraint nests too deep, or is too long; expected a simpler one");
  }
}

function compiled(constraint: Constraint, regexes: Regexes): Automaton {
  const expressions = new Expressions();
  const made: Tools = { regexes, expressions, checks: [], any: anyCharacter(regexes), patterns: new Map() };
  const start = startOf(constraint, made);
  expressions.measure();
  for (const check of made.checks) check();
  if (start.height === Infinity)
    throw new RequestError("no reply satisfies the constraint; expected one that can be satisfied");
  return new Automaton(start, expressions, regexes);
}

function startOf(constraint: Constraint, made: Tools): Expression {
  const { regexes, expressions } = made;
  const { type } = constraint;
  switch (type) {
    case "json":
      return new JsonWriter({ type: "object" }, "json", "json", made).root();
    case "json_schema":
      return new JsonWriter(constraint.schema, "json_schema", "json", made).root();
    case "regex": {
      const term = pattern(constraint.pattern, "regex", regexes, { alphabet: rawAlphabet(regexes), searches: false });
      if (!regexes.isAlive(term))
        throw new RequestError("regex: no text matches the pattern; expected one that can be matched");
      return expressions.regex(term);
    }
    case "tool_calls": {
      const { tools, parallel, otherwise, others = [] } = constraint;
      const calls = toolCalls(tools, parallel, made);
      if (!otherwise) return calls;
      if (otherwise.type !== "text") return expressions.choice(calls, startOf(otherwise, made));
      const text = expressions.regex(textWithoutCalls([...tools.map(({ name }) => name), ...others], made));
      return expressions.sequence(text, expressions.choice(expressions.sequence(), calls));
    }
    default:
      throw new RequestError(
        `constraint: its type is ${JSON.stringify(type satisfies never)}; expected json, json_schema, regex or tool_calls`,
      );
  }
}

/** Where a reply stands in its grammar. */
export class Matcher {
  readonly #grammar: Grammar;
  readonly #tokenizer: Pick<Tokenizer, "tokenBytes">;
  readonly #stopTokens: ReadonlySet<number>;
  /** Undefined once the reply is over. */
  #state: State | undefined;
  #isGuess = false;

  constructor(grammar: Grammar, tokenizer: Pick<Tokenizer, "tokenBytes">, stopTokens: ReadonlySet<number>) {
    this.#grammar = grammar;
    this.#tokenizer = tokenizer;
    this.#stopTokens = stopTokens;
    this.#state = grammar.automaton.start;
  }

  /** The tokens that may come next; undefined once the reply is over. */
  mask(): TokenMask | undefined {
    if (!this.#state) return undefined;
    const { automaton, regexes, masks } = this.#grammar;
    const state = this.#state;
    const mask = this.#work(() => masks.of(state, automaton, regexes));
    if (mask.count === 0)
      throw new RequestError("no token of the vocabulary goes on with this reply; expected tokens for all bytes");
    return mask;
  }

  /** Goes on with a token that the mask allows. Throws RequestError where the grammar needs more states than it may have. */
  advance(token: number): void {
    if (!this.#state) return;
    if (this.#stopTokens.has(token)) {
      this.#state = undefined;
      return;
    }
    const from = this.#state;
    this.#state = this.#work(() => this.#behind(from, token));
  }

  #work<T>(work: () => T): T {
    return bounded(() => (this.#isGuess ? this.#grammar.regexes.guessing(work) : work()));
  }

  #behind(from: State, token: number): State {
    let state: State | null = from;
    for (const byte of this.#tokenizer.tokenBytes(token)) {
      state = this.#grammar.automaton.next(state, byte);
      if (!state) throw new Error(`token ${token} does not fit the grammar; the mask should have forbidden it`);
    }
    return state;
  }

  /** The same place, to guess from how the reply goes on: at no expense of the reply's. */
  fork(): Matcher {
    const copy = new Matcher(this.#grammar, this.#tokenizer, this.#stopTokens);
    copy.#state = this.#state;
    copy.#isGuess = true;
    return copy;
  }

  /** Whether the reply may end here. */
  get mayEnd(): boolean {
    return this.#state === undefined || this.#state.isFinal;
  }
}

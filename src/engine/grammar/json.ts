// JSON as a grammar: any, or what a schema allows. Properties are written in the schema's order, strings that a pattern binds
// with the escapes they need and no others, and blanks where writers of JSON put them.

import { isKeyword } from "../../prompt/tool-calls.ts";
import { RequestError } from "../../tensor/errors.ts";
import { ALL } from "./code-points.ts";
import type { Expression, Expressions } from "./expressions.ts";
import {
  type ArrayForm,
  type Form,
  isObject,
  isSame,
  type Json,
  keyOf,
  type Language,
  type ObjectForm,
  type Places,
} from "./forms.ts";
import { isInRange, numbers } from "./numbers.ts";
import { pattern } from "./pattern.ts";
import type { Regex, Regexes } from "./regex.ts";
import { SchemaDocument } from "./schema.ts";
import { anyWritten, jsonAlphabet, quoted, rawAlphabet } from "./strings.ts";

/** How literals are written: in a pythonic call Python's words stand beside JSON's. */
export type Style = "json" | "python";

/** What grammars are made with. */
export interface Tools {
  readonly regexes: Regexes;
  readonly expressions: Expressions;
  /** Run once everything is measured. */
  readonly checks: (() => void)[];
  /** Any character inside a JSON string. */
  readonly any: Regex;
  /** Languages of strings that have come up, by how they are written and their patterns. */
  readonly patterns: Map<string, Regex>;
}

const MOST_PATTERNS = 2000; // different ones; a millisecond or so each

/** Strings of a language as they stand in JSON, or as they are. */
function languageOf(
  { pattern: source, where }: Language,
  written: "json" | "raw",
  { regexes, patterns }: Pick<Tools, "regexes" | "patterns">,
): Regex {
  const key = `${written} ${source}`;
  const known = patterns.get(key);
  if (known) return known;
  if (patterns.size >= MOST_PATTERNS) {
    const shown = (n: number) => n.toLocaleString("en");
    throw new RequestError(
      `${where}, this is pattern ${shown(MOST_PATTERNS + 1)}; expected at most ${shown(MOST_PATTERNS)} different ones: use the same for several properties, or leave some out and check those values yourself`,
    );
  }
  const alphabet = written === "json" ? jsonAlphabet(regexes) : rawAlphabet(regexes);
  const language = pattern(source, where, regexes, { alphabet, searches: true });
  patterns.set(key, language);
  return language;
}

/** Makes expressions for the values of one schema. */
export class JsonWriter {
  readonly #regexes: Regexes;
  readonly #expressions: Expressions;
  readonly #checks: Tools["checks"];
  readonly #document: SchemaDocument;
  readonly #name: string;
  readonly #style: Style;
  readonly #rules = new Map<string, Expression>();
  /** Of forms that stand in several places. */
  readonly #scalars = new Map<Form, Regex>();
  readonly #bodies = new Map<readonly Form[], Expression>();
  /** A line break with what indents the next line, or a blank, or nothing. */
  readonly #blanks: Regex;
  /** A term of its own, with the blanks behind it: masks of all grammars share it. */
  readonly #comma: Expression;
  readonly #colon: Regex;
  readonly #any: Regex;
  /** Any name of a property, once it has been asked for. */
  #names: Regex | undefined;
  /** Numbers of ranges that have come up. */
  readonly #numbers = new Map<string, Regex>();
  readonly #made: Tools;

  /** `name` is what errors call the schema. */
  constructor(schema: unknown, name: string, style: Style, made: Tools) {
    const { regexes, expressions, checks, any } = made;
    this.#made = made;
    this.#checks = checks;
    this.#regexes = regexes;
    this.#expressions = expressions;
    this.#style = style;
    this.#name = name;
    this.#document = new SchemaDocument(schema, name, (language, text) =>
      regexes.has(languageOf(language, "raw", made), text),
    );
    const indent = regexes.union(regexes.loop(regexes.text(" "), 0, 32), regexes.loop(regexes.text("\t"), 0, 8));
    this.#blanks = regexes.union(regexes.end, regexes.text(" "), regexes.concat(regexes.text("\n"), indent));
    this.#comma = expressions.regex(regexes.concat(regexes.text(","), this.#blanks));
    this.#colon = regexes.concat(regexes.text(":"), regexes.optional(regexes.text(" ")));
    this.#any = any;
  }

  /** Forms of the whole; for callers that look into them. */
  get forms(): readonly Form[] {
    return this.#document.forms(["#"]);
  }

  /** A value that satisfies the schema. */
  root(): Expression {
    return this.#checked(this.value(["#"]));
  }

  #checked(expression: Expression): Expression {
    this.#checks.push(() => {
      if (expression.height === Infinity)
        throw new RequestError(
          `${this.#name}: no value satisfies the schema, or none that ends; expected one that can be satisfied`,
        );
    });
    return expression;
  }

  /** A value that satisfies these schemas together. */
  value(places: Places): Expression {
    return this.#rule(keyOf(places), () => this.#document.forms(places));
  }

  /** An object that satisfies the schema, whatever else does. */
  object(): Expression {
    return this.#checked(this.#rule("object", () => this.forms.filter(isObjectForm)));
  }

  #rule(key: string, formsOf: () => readonly Form[]): Expression {
    const known = this.#rules.get(key);
    if (known) return known;
    const rule = this.#expressions.rule();
    this.#rules.set(key, rule);
    const forms = formsOf();
    const body = this.#bodies.get(forms) ?? this.#body(forms);
    this.#bodies.set(forms, body);
    rule.rule.body = body;
    return rule;
  }

  #body(forms: readonly Form[]): Expression {
    const plain = forms.flatMap((form) =>
      form.type === "array" || form.type === "object" ? [] : [this.#scalar(form)],
    );
    const nested = forms.flatMap((form) =>
      form.type === "array" ? [this.#array(form)] : form.type === "object" ? [this.#object(form)] : [],
    );
    const scalars = this.#regexes.union(...plain);
    const ways = this.#regexes.isAlive(scalars) ? [this.#expressions.regex(scalars), ...nested] : nested;
    return this.#expressions.choice(...ways);
  }

  #scalar(form: Scalar): Regex {
    const known = this.#scalars.get(form) ?? this.#written(form);
    this.#scalars.set(form, known);
    return known;
  }

  #written(form: Scalar): Regex {
    const { text, union } = this.#words();
    switch (form.type) {
      case "null":
        return this.#style === "python" ? union(text("None"), text("null")) : text("null");
      case "boolean": {
        const words = union(text("true"), text("false"));
        return this.#style === "python" ? union(text("True"), text("False"), words) : words;
      }
      case "number":
        return this.#number(form);
      case "string":
        return quoted(this.#regexes, this.#content(form));
      case "value":
        return this.#literal(form.value);
      default:
        return form satisfies never;
    }
  }

  #number({ isInteger, min, max, step }: Extract<Form, { type: "number" }>): Regex {
    const key = JSON.stringify([isInteger, min, max, step]);
    const known = this.#numbers.get(key) ?? numbers({ isInteger, min, max, step }, this.#regexes);
    this.#numbers.set(key, known);
    return known;
  }

  #words() {
    return {
      text: (text: string) => this.#regexes.text(text),
      union: (...parts: readonly Regex[]) => this.#regexes.union(...parts),
    };
  }

  /** What stands between a string's quotes. */
  #content({ least, most, languages }: Extract<Form, { type: "string" }>): Regex {
    const regexes = this.#regexes;
    if (languages.length === 0) return regexes.loop(this.#any, least, most);
    const bound = languages.map((language) => this.#language(language));
    if (least > 0 || most < Infinity) bound.push(regexes.loop(jsonAlphabet(regexes)(ALL), least, most));
    return regexes.and(...bound);
  }

  #language(language: Language): Regex {
    return languageOf(language, "json", this.#made);
  }

  #literal(value: Json): Regex {
    const { text } = this.#words();
    if (this.#style === "python" && (value === null || typeof value === "boolean"))
      return this.#regexes.union(text(value === null ? "None" : value ? "True" : "False"), text(JSON.stringify(value)));
    return text(written(value));
  }

  #array({ prefix, items, least, most, unique }: ArrayForm): Expression {
    const expressions = this.#expressions;
    if (unique !== undefined && Math.min(most, items === false ? prefix.length : most) > 1)
      return this.#enclosed("[", this.#distinct(this.#finite(prefix, items, unique), least, most), "]", least === 0);
    const nothing = expressions.sequence();
    const behind = (i: number): Expression => {
      const ways = i >= least ? [nothing] : [];
      const item = prefix[i] ?? items;
      if (i >= most || item === false) return expressions.choice(...ways);
      const next = i === 0 ? this.value(item) : expressions.sequence(this.#comma, this.value(item));
      if (i < prefix.length) return expressions.choice(...ways, expressions.sequence(next, behind(i + 1)));
      if (i > 0) return expressions.repeat(next, Math.max(0, least - i), most - i);
      const more = expressions.repeat(
        expressions.sequence(this.#comma, this.value(item)),
        Math.max(0, least - 1),
        most - 1,
      );
      return expressions.choice(...ways, expressions.sequence(next, more));
    };
    return this.#enclosed("[", behind(0), "]", least === 0);
  }

  /** All values of items, where they can be listed. */
  #finite(prefix: readonly Places[], items: Places | false, where: string): readonly Json[] {
    const listed = prefix.length > 0 || items === false ? undefined : this.#document.forms(items).map(valuesOf);
    if (!listed?.every((values) => values !== undefined))
      throw new RequestError(
        `${this.#name}: at ${where}, it is supported for items of "enum", "const", booleans, null and up to ${MOST_LISTED} whole numbers; others no grammar remembers: leave it out, and look for items that came twice`,
      );
    const different: Json[] = [];
    for (const value of listed.flat()) {
      if (different.some((other) => isSame(other, value))) continue;
      if (different.length === MOST_LISTED)
        throw new RequestError(
          `${this.#name}: at ${where}, the items have more than ${MOST_LISTED} values; expected at most that: list fewer, or leave it out`,
        );
      different.push(value);
    }
    return different;
  }

  /** Some of the values, each at most once: in any order where they are few, else in theirs. */
  #distinct(values: readonly Json[], least: number, most: number): Expression {
    const expressions = this.#expressions;
    const items = values.map((value) => expressions.regex(this.#literal(value)));
    const behindComma = items.map((item) => expressions.sequence(this.#comma, item));
    const item = (i: number, written: number) => (written > 0 ? behindComma : items)[i]!;
    return items.length <= MOST_PERMUTED
      ? this.#permuted(items.length, item, least, most)
      : this.#inOrder(items.length, item, least, most);
  }

  #permuted(n: number, item: (i: number, written: number) => Expression, least: number, most: number): Expression {
    const expressions = this.#expressions;
    const known = new Map<string, Expression>();
    const behind = (left: readonly number[]): Expression => {
      const written = n - left.length;
      const key = left.join();
      const ways = written >= least ? [expressions.sequence()] : [];
      if (!known.has(key) && written < most)
        for (const i of left)
          ways.push(expressions.sequence(item(i, written), behind(left.filter((other) => other !== i))));
      const expression = known.get(key) ?? expressions.choice(...ways);
      known.set(key, expression);
      return expression;
    };
    return behind(Array.from({ length: n }, (_, i) => i));
  }

  #inOrder(n: number, item: (i: number, written: number) => Expression, least: number, most: number): Expression {
    const expressions = this.#expressions;
    const counts = least > 1 || most < n;
    const known = new Map<string, Expression>();
    // What follows once the first i have been written or left out, `written` of them; where none counts them, 1 stands for more.
    const behind = (i: number, written: number): Expression => {
      if (i === n || written === most) return written >= least ? expressions.sequence() : expressions.choice();
      const key = `${i} ${written}`;
      const expression =
        known.get(key) ??
        expressions.choice(
          expressions.sequence(item(i, written), behind(i + 1, counts ? written + 1 : 1)),
          behind(i + 1, written),
        );
      known.set(key, expression);
      return expression;
    };
    return behind(0, 0);
  }

  #object(form: ObjectForm): Expression {
    const free = this.#free(form);
    const content = this.#members(
      form,
      [...form.properties],
      (name, places, isBehind) => this.#member(this.#regexes.text(JSON.stringify(name)), places, isBehind),
      (written, counts) => this.#others(free, form, written, counts),
    );
    const listed = [...form.properties.values()].filter((places) => places !== false).length;
    if (free.length > 0 && form.least > listed + 1 && form.most > listed)
      this.#checks.push(() => {
        if (content.height === Infinity)
          throw new RequestError(
            `${this.#name}: "minProperties" is ${form.least}, more than the listed properties and one more; expected "required" names, since others may repeat`,
          );
      });
    return this.#enclosed("{", content, "}", form.required.size === 0 && form.least === 0);
  }

  /** Properties, each written or, where it is not required, left out; then what `end` says. */
  #members(
    { required, least, most }: ObjectForm,
    properties: readonly (readonly [string, Places | false])[],
    member: (name: string, places: Places, isBehind: boolean) => Expression,
    end: (written: number, counts: boolean) => Expression,
  ): Expression {
    const expressions = this.#expressions;
    const listed = properties.filter((entry): entry is [string, Places] => entry[1] !== false);
    const counts = least > required.size || most < Infinity;
    const known = new Map<string, Expression>();
    // What follows once the first i have been written or left out, `written` of them; where none counts them, 1 stands for more.
    const behind = (i: number, written: number): Expression => {
      const key = `${i} ${written}`;
      const expression = known.get(key) ?? (i < listed.length ? property(i, written) : end(written, counts));
      known.set(key, expression);
      return expression;
    };
    const property = (i: number, written: number): Expression => {
      const [name, places] = listed[i]!;
      const ways: Expression[] = [];
      if (written < most)
        ways.push(expressions.sequence(member(name, places, written > 0), behind(i + 1, counts ? written + 1 : 1)));
      if (!required.has(name)) ways.push(behind(i + 1, written));
      return expressions.choice(...ways);
    };
    return behind(0, 0);
  }

  /** The arguments of a pythonic call; undefined where a name that has to be there is none in Python. */
  keywords(): Expression | undefined {
    const [regexes, expressions] = [this.#regexes, this.#expressions];
    const forms = this.forms.filter(isObjectForm).filter(({ required }) => [...required].every(isKeyword));
    if (forms.length === 0) return undefined;
    const comma = regexes.concat(regexes.text(","), regexes.optional(regexes.text(" ")));
    const member = (name: string, places: Places, isBehind: boolean) =>
      expressions.sequence(
        expressions.regex(regexes.concat(isBehind ? comma : regexes.end, regexes.text(`${name}=`))),
        this.value(places),
      );
    const nothing = expressions.sequence();
    return expressions.choice(
      ...forms.map((form) =>
        this.#members(
          form,
          [...form.properties].filter(([name]) => isKeyword(name)),
          member,
          (written, counts) => (counts && written < form.least ? expressions.choice() : nothing),
        ),
      ),
    );
  }

  /** Properties that are not listed: their names and values. */
  #free(form: ObjectForm): { readonly name: Regex; readonly value: Places }[] {
    const regexes = this.#regexes;
    const isClosed = form.others === false || (!form.saysOthers && form.properties.size > 0);
    if (isClosed && form.matching.length === 0) return [];
    const taken = [...form.properties.keys()].map((name) => regexes.text(JSON.stringify(name).slice(1, -1)));
    const others = regexes.and(this.#anyName(), ...this.#nameLanguages(form.names));
    const untaken = taken.length > 0 ? regexes.and(others, regexes.not(regexes.union(...taken))) : others;
    const patterns = form.matching.map(({ language, value }) => ({ name: this.#language(language), value }));
    if (patterns.length > 1)
      throw new RequestError(
        `${form.matching[1]!.language.where}, a second pattern in "patternProperties" is not supported; expected one, or "additionalProperties"`,
      );
    const free = patterns.map(({ name, value }) => ({ name: regexes.and(untaken, name), value }));
    const rest = regexes.and(untaken, ...patterns.map(({ name }) => regexes.not(name)));
    if (!isClosed) free.push({ name: rest, value: form.others });
    return free.flatMap(({ name, value }) =>
      value !== false && regexes.isAlive(name) ? [{ name: quoted(regexes, name), value }] : [],
    );
  }

  /** Made of hundreds of terms, and asked for by each object that is open. */
  #anyName(): Regex {
    this.#names ??= anyWritten(this.#regexes);
    return this.#names;
  }

  #nameLanguages(names: Places): Regex[] {
    if (names.length === 0) return [];
    const ways = this.#document.forms(names).flatMap((form) => {
      if (form.type === "string") {
        const { least, most, languages } = form;
        return [
          this.#regexes.and(
            this.#regexes.loop(jsonAlphabet(this.#regexes)(ALL), least, most),
            ...languages.map((l) => this.#language(l)),
          ),
        ];
      }
      return form.type === "value" && typeof form.value === "string"
        ? [this.#regexes.text(JSON.stringify(form.value).slice(1, -1))]
        : [];
    });
    return [this.#regexes.union(...ways)];
  }

  /** Properties that are not listed, behind `written` ones. Their names may repeat, so that all together count as one at least. */
  #others(
    free: readonly { readonly name: Regex; readonly value: Places }[],
    { least, most }: ObjectForm,
    written: number,
    counts: boolean,
  ): Expression {
    const expressions = this.#expressions;
    const nothing = expressions.sequence();
    const ways = !counts || written >= least ? [nothing] : [];
    const room = counts ? most - written : Infinity;
    if (free.length === 0 || room <= 0) return expressions.choice(...ways);
    if (counts && written + 1 < least) return expressions.choice();
    const member = (isBehind: boolean) =>
      expressions.choice(...free.map(({ name, value }) => this.#member(name, value, isBehind)));
    if (written > 0) return expressions.choice(...ways, expressions.repeat(member(true), 1, room));
    return expressions.choice(
      ...ways,
      expressions.sequence(member(false), expressions.repeat(member(true), 0, room - 1)),
    );
  }

  /** A property, behind another or not. */
  #member(name: Regex, places: Places, isBehind: boolean): Expression {
    const expressions = this.#expressions;
    const key = expressions.regex(this.#regexes.concat(name, this.#colon));
    const member = expressions.sequence(key, this.value(places));
    return isBehind ? expressions.sequence(this.#comma, member) : member;
  }

  #enclosed(open: string, content: Expression, close: string, mayBeEmpty: boolean): Expression {
    const [regexes, expressions] = [this.#regexes, this.#expressions];
    const blanks = this.#blanks;
    const begin = expressions.regex(regexes.concat(regexes.text(open), blanks));
    const end = expressions.regex(regexes.concat(blanks, regexes.text(close)));
    const full = expressions.sequence(begin, content, end);
    // the content may be nothing, too; then there is one way more to write no blanks
    return mayBeEmpty ? expressions.choice(expressions.regex(regexes.text(open + close)), full) : full;
  }
}

const MOST_LISTED = 100;
const MOST_PERMUTED = 8;

type Scalar = Exclude<Form, ArrayForm | ObjectForm>;

/** What a form allows, where it can be listed. */
function valuesOf(form: Form): readonly Json[] | undefined {
  if (form.type === "value") return [form.value];
  if (form.type === "null") return [null];
  if (form.type === "boolean") return [true, false];
  if (form.type !== "number" || !form.isInteger || !form.min || !form.max) return undefined;
  const [low, high] = [Math.ceil(form.min.value), Math.floor(form.max.value)];
  if (high - low >= MOST_LISTED) return undefined;
  return Array.from({ length: high - low + 1 }, (_, i) => low + i).filter((value) => isInRange(value, form));
}

/** As JSON.stringify writes it, but for whole numbers beyond 2^53: those with all the digits that they have. */
function written(value: Json): string {
  if (typeof value === "number" && Number.isInteger(value) && Math.abs(value) < 1e21) return String(BigInt(value));
  if (Array.isArray(value)) return `[${value.map(written).join()}]`;
  if (!isObject(value)) return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, of]) => `${JSON.stringify(name)}:${written(of as Json)}`)}}`;
}

const isObjectForm = (form: Form): form is ObjectForm => form.type === "object";

// JSON Schema (2020-12) as alternatives: what a value may be, one type at a time, with everything that several schemas ask
// of it put together. What is not understood is refused by name: a keyword that is passed over would be a promise broken.

import { RequestError } from "../../tensor/errors.ts";
import { formats } from "./formats.ts";
import {
  ANYTHING,
  type ArrayForm,
  counts,
  type Form,
  isEmpty,
  isObject,
  isSame,
  type Json,
  keyOf,
  type Language,
  type ObjectForm,
  type Places,
  shown,
  together,
  typeOf,
} from "./forms.ts";
import { isInRange } from "./numbers.ts";
import { commonRange, rangeOf, type Wrong } from "./schema-numbers.ts";

type Schema = boolean | Readonly<Record<string, unknown>>;

const TYPES = ["null", "boolean", "number", "string", "array", "object"] as const;

// They say something about a schema, not about values.
const ANNOTATIONS = new Set([
  ...["title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly", "$comment"],
  ...[
    "$schema",
    "$id",
    "$anchor",
    "$defs",
    "definitions",
    "$vocabulary",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "strict",
  ],
]);
const UNDERSTOOD = new Set([
  ...["type", "enum", "const", "allOf", "anyOf", "oneOf", "not", "$ref", "multipleOf", "uniqueItems"],
  ...["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "pattern", "format"],
  ...[
    "prefixItems",
    "items",
    "additionalItems",
    "minItems",
    "maxItems",
    "properties",
    "required",
    "additionalProperties",
    "discriminator",
    "nullable",
  ],
  ...["patternProperties", "propertyNames", "minProperties", "maxProperties"],
]);

// They say nothing about a value by its type.
const COMBINING = new Set(["enum", "const", "allOf", "anyOf", "oneOf", "not", "$ref", "discriminator", "nullable"]);

const MOST_FORMS = 2000; // but for single values
const MOST_VALUES = 10_000;
const MOST_COMPARED = 1_000_000; // values and names that are looked at; a second or so
const COPIED = 4; // a form that comes again is written again, which takes as long
const MERGED = 10; // and so two that are put together
const MOST_SCHEMAS = 20_000;
const MOST_MEMBERS = 2000;

export class SchemaDocument {
  readonly #root: Schema;
  readonly #name: string;
  readonly #forms = new Map<string, readonly Form[]>();
  readonly #matches: (language: Language, text: string) => boolean;
  /** Schemas that stand nowhere in the document, by places that nothing else has. */
  readonly #made = new Map<string, Schema>();
  /** Being looked at, for one value; and for values around it. */
  #open: readonly string[] = [];
  #around: readonly string[] = [];
  #read = 0;
  #compared = 0;
  readonly #keys = new WeakMap<Form, string>();

  /** `name` is what errors call it; `matches` says whether a language has a text. */
  constructor(root: unknown, name: string, matches: (language: Language, text: string) => boolean) {
    this.#name = name;
    this.#matches = matches;
    if (!isSchema(root)) throw this.#wrong("#", `the schema is ${shown(root)}; expected an object`);
    this.#root = root;
  }

  /** All that a value may be that satisfies these schemas. */
  forms(places: Places): readonly Form[] {
    const key = keyOf(places);
    const known = this.#forms.get(key);
    if (known) return known;
    if (this.#around.includes(key)) throw UNKNOWN;
    if (this.#open.includes(key))
      throw this.#wrong(
        places[0]!,
        "it refers to itself and says nothing else; expected a schema that says what a value is",
      );
    const open = this.#open;
    this.#open = [...open, key];
    let forms: readonly Form[] = ANYTHING;
    for (const place of places) forms = this.#both(forms, this.#formsAt(place), place);
    this.#open = open;
    this.#forms.set(key, forms);
    return forms;
  }

  /** Whether a value satisfies these schemas. */
  allows(places: Places, value: Json): boolean {
    return this.forms(places).some((form) => this.#fits(form, value));
  }

  /** An error about a place. */
  #wrong(place: string, what: string): RequestError {
    return new RequestError(`${this.#name}: at ${place}, ${what}`);
  }

  #wrongAt(place: string): Wrong {
    return (keyword, what) => this.#wrong(`${place}/${keyword}`, what);
  }

  #formsAt(place: string): readonly Form[] {
    if (this.#read++ > MOST_SCHEMAS)
      throw this.#wrong(place, `there are more than ${MOST_SCHEMAS} schemas; expected fewer`);
    const schema = this.#at(place);
    if (typeof schema === "boolean") return schema ? ANYTHING : [];
    this.#checkKeywords(schema, place);
    let forms = this.#own(schema, place);
    for (const [i] of this.#list(schema, "allOf", place).entries())
      forms = this.#both(forms, this.forms([`${place}/allOf/${i}`]), place);
    if (schema["$ref"] !== undefined)
      forms = this.#both(forms, this.forms([this.#target(schema["$ref"], place)]), place);
    if (schema["anyOf"] !== undefined) {
      const any = this.#list(schema, "anyOf", place).map((_, i) => this.#alternative(schema, "anyOf", i, place));
      forms = this.#both(forms, this.#all(any, place), place);
    }
    if (schema["oneOf"] !== undefined) {
      const of = this.#list(schema, "oneOf", place).map((_, i) =>
        this.#both(forms, this.#alternative(schema, "oneOf", i, place), place),
      );
      this.#exclude(of, place);
      forms = this.#all(of, place);
    }
    if (schema["not"] !== undefined) forms = this.#without(schema["not"], forms, place);
    for (const keyword of ["enum", "const"]) {
      const given = schema[keyword];
      if (given === undefined) continue;
      if (keyword === "enum" && !Array.isArray(given))
        throw this.#wrong(`${place}/enum`, `it is ${shown(given)}; expected a list`);
      const values = (keyword === "enum" ? given : [given]) as readonly Json[]; // a schema comes from JSON
      this.#members(values, `${place}/enum`);
      if (forms !== ANYTHING) this.#compare(values.length * forms.length, place);
      const fitting = values.filter((value) => forms === ANYTHING || forms.some((form) => this.#fits(form, value)));
      forms = fitting.map((value) => ({ type: "value", value }));
    }
    return forms;
  }

  /** What satisfies one of several, which each have forms. */
  #all(of: readonly (readonly Form[])[], place: string): readonly Form[] {
    const copied = of.length === 1 ? 0 : of.reduce((count, { length }) => count + length, 0);
    this.#compare(COPIED * copied, place);
    return of.length === 1 ? of[0]! : this.#few(of.flat(), place);
  }

  /** Refuses alternatives of which a value may satisfy two. */
  #exclude(of: readonly (readonly Form[])[], place: string): void {
    const overlap = (i: number, j: number) =>
      this.#wrong(
        `${place}/oneOf`,
        `a value may satisfy both alternative ${Math.min(i, j)} and ${Math.max(i, j)}, and is then none of one; expected "anyOf", or alternatives that exclude each other (other types, or a required property with another "const")`,
      );
    const values = new Map<string, number>();
    const others = of.flatMap((forms, i) => forms.filter(isNoValue).map((form) => ({ form, i })));
    const byType = new Map(TYPES.map((type) => [type as string, others.filter(({ form }) => form.type === type)]));
    for (const [i, forms] of of.entries())
      for (const form of forms) {
        if (form.type !== "value") continue;
        const same = values.get(this.#keyOf(form)) ?? i;
        if (same !== i) throw overlap(same, i);
        values.set(this.#keyOf(form), i);
        const near = byType.get(typeOf(form.value))!;
        this.#compare(near.length, place);
        for (const other of near) if (other.i !== i && this.#fits(other.form, form.value)) throw overlap(other.i, i);
      }
    for (const alternatives of byType.values())
      for (const [a, b] of this.#untagged(alternatives, place))
        if (a.i !== b.i && this.#common(a.form, b.form, place)) throw overlap(a.i, b.i);
  }

  /** Pairs that no tag keeps apart: a property that both require, and whose values are listed. */
  *#untagged<T extends { readonly form: Others }>(alternatives: readonly T[], place: string): Generator<[T, T]> {
    const tags = alternatives.map(({ form }) => this.#tags(form, place));
    const counts = new Map<string, number>();
    for (const name of tags.flatMap((tag) => [...tag.keys()])) counts.set(name, (counts.get(name) ?? 0) + 1);
    const [usual] = [...counts].sort(([, a], [, b]) => b - a)[0] ?? [];
    const isApart = (i: number, j: number) =>
      [...tags[i]!].some(([name, values]) => {
        this.#compare(values.size, place);
        const others = tags[j]!.get(name);
        return others && ![...values].some((value) => others.has(value));
      });
    const byValue = new Map<string, number[]>();
    const without: number[] = [];
    for (const i of alternatives.keys()) {
      const values = usual === undefined ? undefined : tags[i]!.get(usual);
      const before = values
        ? [...without, ...[...values].flatMap((value) => byValue.get(value) ?? [])]
        : Array(i).keys();
      for (const j of new Set(before)) {
        if (!isApart(i, j)) yield [alternatives[j]!, alternatives[i]!];
      }
      if (!values) without.push(i);
      for (const value of values ?? []) byValue.set(value, [...(byValue.get(value) ?? []), i]);
    }
  }

  /** Required properties whose values are listed. */
  #tags(form: Others, place: string): ReadonlyMap<string, ReadonlySet<string>> {
    const tags = new Map<string, ReadonlySet<string>>();
    if (form.type !== "object") return tags;
    for (const name of form.required) {
      const places = form.properties.get(name) || [];
      const forms = this.#inside<readonly Form[]>(() => this.forms(places), []);
      const values = forms.flatMap((form) => (form.type === "value" ? [this.#keyOf(form)] : []));
      this.#compare(forms.length, place);
      if (values.length > 0 && values.length === forms.length) tags.set(name, new Set(values));
    }
    return tags;
  }

  /** One of several; where a discriminator names it and it says no values of that property itself, with its names. */
  #alternative(schema: Readonly<Record<string, unknown>>, keyword: string, i: number, place: string): readonly Form[] {
    const at = `${place}/${keyword}/${i}`;
    const forms = this.forms([at]);
    if (schema["discriminator"] === undefined) return forms;
    const { propertyName, mapping = {} } = isObject(schema["discriminator"]) ? schema["discriminator"] : {};
    if (typeof propertyName !== "string" || !isObject(mapping))
      throw this.#wrong(`${place}/discriminator`, `it is ${shown(schema["discriminator"])}; expected a "propertyName"`);
    const alternative = this.#at(at);
    const ref = typeof alternative === "object" ? alternative["$ref"] : undefined;
    if (typeof ref !== "string") return forms;
    const name = ref.slice(ref.lastIndexOf("/") + 1);
    const mapped = Object.keys(mapping).filter((value) => mapping[value] === ref || mapping[value] === name);
    const values = `${place}/discriminator/${keyword}/${i}`;
    this.#made.set(values, { enum: mapped.length > 0 ? mapped : [name] });
    return forms.map((form) => {
      if (form.type !== "object") return form;
      const own = this.#property(form, propertyName);
      const isNamed = own === false || this.#inside(() => this.forms(own).every(({ type }) => type === "value"), true);
      if (isNamed) return form;
      const properties = new Map(form.properties).set(propertyName, together(own, [values]));
      return { ...form, properties, required: new Set(form.required).add(propertyName) };
    });
  }

  /** Those that are not of the types of a schema that says nothing else. */
  #without(not: unknown, forms: readonly Form[], place: string): readonly Form[] {
    if (!isSchema(not)) throw this.#wrong(`${place}/not`, `there is ${shown(not)}; expected a schema`);
    if (not === false) return forms;
    const { type, ...rest } = not === true ? {} : not;
    const types = this.#types({ type }, `${place}/not`);
    const others = Object.keys(rest).filter((keyword) => !ANNOTATIONS.has(keyword) && !keyword.startsWith("x-"));
    if (others.length > 0 || (types.has("integer") && !types.has("number")))
      throw this.#wrong(
        `${place}/not`,
        `it is ${shown(not)}; "not" is supported of anything ({}) and of types (${TYPES.join(", ")})`,
      );
    return forms.filter((form) => !types.has(form.type === "value" ? typeOf(form.value) : form.type));
  }

  #checkKeywords(schema: Readonly<Record<string, unknown>>, place: string): void {
    for (const [keyword, value] of Object.entries(schema)) {
      if (ANNOTATIONS.has(keyword) || keyword.startsWith("x-") || value === undefined) continue;
      if (!UNDERSTOOD.has(keyword))
        throw this.#wrong(place, `"${keyword}" is not supported; expected one of ${[...UNDERSTOOD].join(", ")}`);
      if ((keyword === "uniqueItems" || keyword === "nullable") && typeof value !== "boolean")
        throw this.#wrong(`${place}/${keyword}`, `it is ${shown(value)}; expected true or false`);
      if (keyword === "format" && typeof value !== "string")
        throw this.#wrong(`${place}/format`, `it is ${shown(value)}; expected a name`);
      if (keyword === "discriminator" && schema["oneOf"] === undefined && schema["anyOf"] === undefined)
        throw this.#wrong(place, '"discriminator" is supported beside "oneOf" or "anyOf", whose alternatives it names');
    }
  }

  /** What the keywords say that look at a value's type and at the value itself. */
  #own(schema: Readonly<Record<string, unknown>>, place: string): readonly Form[] {
    const binding = Object.keys(schema).filter((keyword) => UNDERSTOOD.has(keyword) && !COMBINING.has(keyword));
    if (binding.every((keyword) => schema[keyword] === undefined)) return ANYTHING;
    const types = this.#types(schema, place);
    const forms: Form[] = [];
    for (const type of TYPES) {
      if (type !== "number" && !types.has(type)) continue;
      if (type === "null" || type === "boolean") forms.push({ type });
      if (type === "number" && (types.has("number") || types.has("integer")))
        forms.push({ type: "number", ...rangeOf(schema, !types.has("number"), this.#wrongAt(place)) });
      if (type === "string") forms.push(this.#string(schema, place));
      if (type === "array") forms.push(this.#array(schema, place));
      if (type === "object") forms.push(this.#object(schema, place));
    }
    return forms.filter((form) => !isEmpty(form));
  }

  #types({ type: given, nullable }: Readonly<Record<string, unknown>>, place: string): ReadonlySet<string> {
    if (given === undefined) return new Set(TYPES);
    const known: readonly unknown[] = [...TYPES, "integer"];
    const list: unknown[] = Array.isArray(given) ? given : [given];
    for (const type of list)
      if (!known.includes(type))
        throw this.#wrong(`${place}/type`, `it is ${shown(type)}; expected ${known.join(", ")}, or a list of them`);
    return new Set([...(list as string[]), ...(nullable === true ? ["null"] : [])]); // as OpenAPI 3.0 says it
  }

  #string(schema: Readonly<Record<string, unknown>>, place: string): Form {
    const languages: Language[] = [];
    const { pattern, format } = schema;
    if (pattern !== undefined) languages.push(this.#language(pattern, `${place}/pattern`));
    if (typeof format === "string") {
      if (format === "regex") throw this.#wrong(`${place}/format`, '"regex" is not supported; expected a "pattern"');
      const known = formats.get(format); // others are annotations
      if (known !== undefined) languages.push(this.#language(known, `${place}/format`));
    }
    return { type: "string", ...this.#counts(schema, "Length", place), languages };
  }

  #language(pattern: unknown, place: string): Language {
    if (typeof pattern !== "string") throw this.#wrong(place, `it is ${shown(pattern)}; expected a regular expression`);
    return { pattern, where: `${this.#name}: at ${place}` };
  }

  #array(schema: Readonly<Record<string, unknown>>, place: string): Form {
    // before 2020, `items` could be the list, and `additionalItems` what follows it
    const old = Array.isArray(schema["items"]);
    const list = old ? "items" : "prefixItems";
    const rest = old ? "additionalItems" : "items";
    return {
      type: "array",
      prefix: this.#list(schema, list, place).map((_, i) => [`${place}/${list}/${i}`]),
      items: this.#places(schema[rest], `${place}/${rest}`),
      ...this.#counts(schema, "Items", place),
      unique: schema["uniqueItems"] === true ? `${place}/uniqueItems` : undefined,
    };
  }

  #object(schema: Readonly<Record<string, unknown>>, place: string): Form {
    const named = (keyword: string): readonly string[] => {
      const value = schema[keyword];
      if (value === undefined) return [];
      if (!isObject(value)) throw this.#wrong(`${place}/${keyword}`, `it is ${shown(value)}; expected an object`);
      return this.#members(Object.keys(value), `${place}/${keyword}`);
    };
    const under = (keyword: string, name: string) => `${place}/${keyword}/${escaped(name)}`;
    const listed = named("properties");
    const patterns = named("patternProperties");
    const required = schema["required"] ?? [];
    if (!Array.isArray(required) || required.some((name) => typeof name !== "string"))
      throw this.#wrong(`${place}/required`, `it is ${shown(required)}; expected a list of names`);
    const matching = patterns.map((pattern) => ({
      language: this.#language(pattern, under("patternProperties", pattern)),
      value: this.#places(this.#at(under("patternProperties", pattern)), under("patternProperties", pattern)),
    }));
    const { additionalProperties } = schema;
    const others = this.#places(additionalProperties, `${place}/additionalProperties`);
    const names: Places = schema["propertyNames"] === undefined ? [] : [`${place}/propertyNames`];
    const properties = new Map<string, Places | false>();
    for (const name of new Set([...listed, ...(required as readonly string[])])) {
      const matched = matching.filter(({ language }) => this.#matches(language, name)).map(({ value }) => value);
      const own = listed.includes(name) ? [under("properties", name)] : matched.length > 0 ? [] : others;
      properties.set(name, this.#fitsPlaces(names, name) && [own, ...matched].reduce(together));
    }
    return {
      type: "object",
      ...{ properties, required: new Set(required as readonly string[]), matching, others },
      saysOthers: additionalProperties !== undefined,
      names,
      ...this.#counts(schema, "Properties", place),
    };
  }

  /** "Anything" and "nothing" without a place of their own. */
  #places(schema: unknown, place: string): Places | false {
    if (schema === undefined || schema === true) return [];
    return schema === false ? false : [place];
  }

  #counts(schema: Readonly<Record<string, unknown>>, of: string, place: string) {
    const count = (keyword: string, otherwise: number) => {
      const value = schema[keyword] ?? otherwise;
      if (value === Infinity || (Number.isSafeInteger(value) && (value as number) >= 0)) return value as number;
      throw this.#wrong(`${place}/${keyword}`, `it is ${shown(value)}; expected a whole number from 0`);
    };
    return { least: count(`min${of}`, 0), most: count(`max${of}`, Infinity) };
  }

  #list(schema: Readonly<Record<string, unknown>>, keyword: string, place: string): readonly unknown[] {
    const value = schema[keyword] ?? [];
    if (!Array.isArray(value))
      throw this.#wrong(`${place}/${keyword}`, `it is ${shown(value)}; expected a list of schemas`);
    return this.#members(value, `${place}/${keyword}`);
  }

  #members<T>(list: readonly T[], place: string): readonly T[] {
    if (list.length <= MOST_MEMBERS) return list;
    throw this.#wrong(place, `there are ${list.length.toLocaleString("en")}; expected at most ${MOST_MEMBERS}`);
  }

  /** The schema at a place, which is "#" or a JSON pointer behind it. */
  #at(place: string): Schema {
    const made = this.#made.get(place);
    if (made !== undefined) return made;
    let here: unknown = this.#root;
    for (const step of place.split("/").slice(1)) {
      const name = step.replaceAll("~1", "/").replaceAll("~0", "~");
      const isThere = (isObject(here) || Array.isArray(here)) && Object.hasOwn(here, name);
      here = isThere ? (here as Readonly<Record<string, unknown>>)[name] : undefined;
    }
    if (!isSchema(here)) throw this.#wrong(place, `there is ${shown(here)}; expected a schema`);
    return here;
  }

  #target(ref: unknown, place: string): string {
    if (typeof ref !== "string" || !/^#(\/|$)/.test(ref))
      throw this.#wrong(place, `"$ref" is ${shown(ref)}; expected a place in this schema, as in "#/$defs/name"`);
    let target = ref;
    try {
      target = decodeURIComponent(ref);
    } catch {
      // as it stands
    }
    return target;
  }

  /** What satisfies one of the first and one of the second. */
  #both(a: readonly Form[], b: readonly Form[], place: string): readonly Form[] {
    if (a === ANYTHING) return b;
    if (b === ANYTHING) return a;
    const [x, y] = [a, b].map((forms) => forms.filter(isNoValue)) as [Others[], Others[]];
    const [values, others] = [this.#valuesOf(a), this.#valuesOf(b)];
    this.#compare(COPIED * (a.length + b.length) + values.size * y.length + x.length * others.size, place);
    const fits = (forms: readonly Form[], value: Json) => forms.some((form) => this.#fits(form, value));
    return this.#few(
      [
        ...x.flatMap((a) => y.flatMap((b) => this.#common(a, b, place) ?? [])),
        ...[...values].flatMap(([key, form]) => (others.has(key) || fits(y, form.value) ? [form] : [])),
        ...[...others].flatMap(([key, form]) => (!values.has(key) && fits(x, form.value) ? [form] : [])),
      ],
      place,
    );
  }

  #few(forms: readonly Form[], place: string): readonly Form[] {
    const others = forms.filter(isNoValue).length;
    for (const [count, most] of [
      [others, MOST_FORMS],
      [forms.length - others, MOST_VALUES],
    ] as const)
      if (count > most)
        throw this.#wrong(place, `there are ${count} combinations of alternatives; expected at most ${most}`);
    return forms;
  }

  /** Counts what is compared. */
  #compare(count: number, place: string): void {
    this.#compared += count;
    if (this.#compared > MOST_COMPARED)
      throw this.#wrong(
        place,
        `there are too many alternatives to compare; expected fewer, or in "oneOf" a required property with another "const" in each`,
      );
  }

  #valuesOf(forms: readonly Form[]): ReadonlyMap<string, ValueForm> {
    return new Map(forms.flatMap((form) => (form.type === "value" ? [[this.#keyOf(form), form]] : [])));
  }

  /** The same for the same values. */
  #keyOf(form: ValueForm): string {
    const known = this.#keys.get(form);
    if (known !== undefined) return known;
    const key = JSON.stringify(form.value, (_, value: unknown) =>
      isObject(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value,
    );
    this.#keys.set(form, key);
    return key;
  }

  #common(a: Others, b: Others, place: string): Form | undefined {
    this.#compare(a.type === b.type ? MERGED : 1, place);
    const form = this.#merged(a, b, place);
    return form && !isEmpty(form) ? form : undefined;
  }

  #merged(a: Others, b: Others, place: string): Form | undefined {
    if (a.type === "null" || a.type === "boolean") return a.type === b.type ? a : undefined;
    if (a.type === "number" && b.type === "number")
      return { type: "number", ...commonRange(a, b, this.#wrongAt(place)) };
    if (a.type === "string" && b.type === "string")
      return { type: "string", ...counts(a, b), languages: [...a.languages, ...b.languages] };
    if (a.type === "array" && b.type === "array") return this.#arrays(a, b, place);
    if (a.type === "object" && b.type === "object") return this.#objects(a, b, place);
    return undefined;
  }

  #arrays(a: ArrayForm, b: ArrayForm, place: string): Form | undefined {
    this.#compare(a.prefix.length + b.prefix.length, place);
    const item = (form: ArrayForm, i: number) => form.prefix[i] ?? form.items;
    const { least, most } = counts(a, b);
    const unique = a.unique ?? b.unique;
    const prefix: Places[] = [];
    for (let i = 0; i < Math.max(a.prefix.length, b.prefix.length); i++) {
      const places = together(item(a, i), item(b, i));
      if (places === false || this.#isImpossible(places))
        return { type: "array", prefix, items: false, least, most: Math.min(most, i), unique };
      prefix.push(places);
    }
    return { type: "array", prefix, items: together(a.items, b.items), least, most, unique };
  }

  #objects(a: ObjectForm, b: ObjectForm, place: string): Form | undefined {
    if (a.matching.length > 0 && b.matching.length > 0)
      throw this.#wrong(
        a.matching[0]!.language.where.split("at ")[1]!,
        `"patternProperties" in two schemas that hold together is not supported`,
      );
    this.#compare(a.properties.size + b.properties.size, place);
    const properties = new Map<string, Places | false>();
    for (const name of new Set([...a.properties.keys(), ...b.properties.keys()]))
      properties.set(name, together(this.#property(a, name), this.#property(b, name)));
    const required = new Set([...a.required, ...b.required]);
    for (const name of required) {
      const places = properties.get(name) ?? [];
      if (places === false || this.#isImpossible(places)) return undefined;
    }
    const [owner, other] = a.matching.length > 0 ? [a, b] : [b, a];
    return {
      type: "object",
      ...{ properties, required },
      matching: owner.matching.map(({ language, value }) => ({ language, value: together(value, other.others) })),
      others: together(a.others, b.others),
      saysOthers: a.saysOthers || b.saysOthers,
      names: [...a.names, ...b.names],
      ...counts(a, b),
    };
  }

  /** What a property's value has to satisfy; false where an object has none of that name. */
  #property({ properties, names, matching, others }: ObjectForm, name: string): Places | false {
    const own = properties.get(name);
    if (own !== undefined) return own;
    if (!this.#fitsPlaces(names, name)) return false;
    const matched = matching.filter(({ language }) => this.#matches(language, name)).map(({ value }) => value);
    return matched.length > 0 ? matched.reduce(together) : others;
  }

  /** Whether it is known already that nothing satisfies them. */
  #isImpossible(places: Places): boolean {
    return this.#inside(() => this.forms(places).length === 0, false);
  }

  /** Looks at a value inside the one that is being looked at; `otherwise` where that cannot be told yet. */
  #inside<T>(look: () => T, otherwise: T): T {
    const [open, around] = [this.#open, this.#around];
    this.#around = [...around, ...open];
    this.#open = [];
    try {
      return look();
    } catch (error) {
      if (error === UNKNOWN) return otherwise;
      throw error;
    } finally {
      [this.#open, this.#around] = [open, around];
    }
  }

  #fits(form: Form, value: Json): boolean {
    switch (form.type) {
      case "null":
        return value === null;
      case "boolean":
        return typeof value === "boolean";
      case "number":
        return typeof value === "number" && isInRange(value, form);
      case "string": {
        if (typeof value !== "string") return false;
        const length = Array.from(value).length;
        return length >= form.least && length <= form.most && form.languages.every((l) => this.#matches(l, value));
      }
      case "array":
        if (!Array.isArray(value) || value.length < form.least || value.length > form.most) return false;
        if (
          form.unique !== undefined &&
          value.some((item, i) => value.slice(0, i).some((other) => isSame(item, other)))
        )
          return false;
        return value.every((item, i) => this.#fitsPlaces(form.prefix[i] ?? form.items, item));
      case "object": {
        if (!isObject(value)) return false;
        const names = Object.keys(value);
        if (names.length < form.least || names.length > form.most) return false;
        if ([...form.required].some((name) => !Object.hasOwn(value, name))) return false;
        return names.every((name) => this.#fitsPlaces(this.#property(form, name), value[name] as Json));
      }
      case "value":
        return isSame(form.value, value);
      default:
        return form satisfies never;
    }
  }

  #fitsPlaces(places: Places | false, value: Json): boolean {
    return places !== false && this.#inside(() => this.allows(places, value), false);
  }
}

// Thrown where what is inside a value depends on what is being found out about the value.
const UNKNOWN = Symbol("unknown yet");

type ValueForm = Extract<Form, { type: "value" }>;
type Others = Exclude<Form, ValueForm>;

const isNoValue = (form: Form): form is Others => form.type !== "value";

const isSchema = (value: unknown): value is Schema => typeof value === "boolean" || isObject(value);

const escaped = (name: string): string => name.replaceAll("~", "~0").replaceAll("/", "~1");

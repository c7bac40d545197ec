import fc from "fast-check";
import { describe, expect, it } from "vitest";
import { complete, type Piece, StopStrings } from "../../src/engine/completion.ts";
import { Engine } from "../../src/engine/engine.ts";
import { byteLevel } from "../../src/prompt/small-vocabularies.ts";
import { backend, config, randomParameters } from "./random-model.ts";

const tokenizer = byteLevel({ vocabSize: 320 });
const vocabSize = tokenizer.vocabSize;
const eot = tokenizer.specialId("<|eot|>");

/** A model that says what it is told, whatever it is asked. */
function parrot(reply: Iterable<number>): Engine {
  const script = [...reply, eot];
  let said = 0;
  return new Engine({
    backend,
    parameters: randomParameters(),
    config: { ...config, vocabSize },
    context: 256,
    forward: async (_p, c, { wanted }) => {
      const logits = new Float32Array(wanted.length * c.vocabSize);
      if (wanted.length > 0) logits[script[said++]!] = 100;
      return backend.from(logits, [wanted.length, c.vocabSize]);
    },
  });
}

async function reply(engine: Engine, options: { stop?: string[]; tools?: string[]; maxTokens?: number } = {}) {
  const pieces: Piece[] = [];
  const request = { tokens: [1, 2, 3], sampling: { temperature: 0 }, ...options };
  for await (const piece of complete(engine, tokenizer, new Set([eot]), request)) pieces.push(piece);
  return { pieces, text: pieces.map((p) => p.text).join(""), end: pieces.at(-1)! };
}

describe("a completion", () => {
  it("gives the text, the tokens and the end", async () => {
    const { text, pieces, end } = await reply(parrot(tokenizer.encode("Grüße 🦙!")));
    expect(text).toBe("Grüße 🦙!");
    expect(pieces.flatMap((p) => p.tokens)).toEqual([...tokenizer.encode("Grüße 🦙!"), eot]);
    expect(pieces.every((p) => !p.text.includes("\ufffd"))).toBe(true);
    expect(end.finishReason).toBe("stop");
    expect(end.usage).toMatchObject({ promptTokens: 3, completionTokens: pieces.length });
    expect(end.timings!.decodeTokensPerSecond).toBeGreaterThan(0);
  });

  it("ends before a stop string, and computes nothing after it", async () => {
    const { text, end } = await reply(parrot(tokenizer.encode("one two three")), { stop: ["o t", " th"] });
    expect(text).toBe("one tw");
    expect(end.finishReason).toBe("stop");
    expect(end.usage!.completionTokens).toBe("one two t".length);
  });

  it("gives what looked like a stop string and was none", async () => {
    expect((await reply(parrot(tokenizer.encode("one tw")), { stop: ["two"] })).text).toBe("one tw");
    expect((await reply(parrot(tokenizer.encode("one two")), { stop: ["two"], maxTokens: 6 })).text).toBe("one tw");
  });

  it("takes tool calls out of the text", async () => {
    const { text, pieces } = await reply(parrot(tokenizer.encode('Look: [weather(city="Rome")] done')), {
      tools: ["weather"],
    });
    expect(text).toBe("Look:  done");
    expect(pieces.flatMap((p) => p.toolCalls ?? [])).toEqual([{ name: "weather", arguments: { city: "Rome" } }]);
  });

  it("leaves the text alone where there are no tools", async () => {
    expect((await reply(parrot(tokenizer.encode('[weather(city="Rome")]')))).text).toBe('[weather(city="Rome")]');
  });
});

describe("stop strings", () => {
  it("cut a text where they first appear, however it is cut into pieces", () => {
    const letters = (max: number) => fc.string({ unit: fc.constantFrom("a", "b"), minLength: 1, maxLength: max });
    fc.assert(
      fc.property(fc.array(letters(4)), fc.array(letters(3), { minLength: 1, maxLength: 3 }), (pieces, strings) => {
        const stops = new StopStrings(strings);
        let text = "";
        let read = "";
        for (const piece of pieces) {
          if (stops.found) break;
          read += piece;
          text += stops.push(piece);
        }
        if (!stops.found) text += stops.end();
        const first = strings.map((s) => read.indexOf(s)).filter((i) => i >= 0);
        expect(stops.found !== undefined).toBe(first.length > 0);
        if (stops.found !== undefined) expect(read.indexOf(stops.found)).toBe(Math.min(...first));
        expect(text).toBe(first.length > 0 ? read.slice(0, Math.min(...first)) : read);
      }),
    );
  });

  it("are refused when empty", () => {
    expect(() => new StopStrings("END" as never)).toThrow("stop is string; expected a list of texts");
    expect(() => new StopStrings([""])).toThrow("a stop string is empty; expected a text");
  });
});

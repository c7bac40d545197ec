// Files that lie. Whatever a header says, the answer is a checkpoint or one CheckpointError: no crash, no hang, no
// allocation beyond what the file could hold.

import { readFileSync } from "node:fs";
import { join } from "node:path";
import fc from "fast-check";
import { afterAll, describe, expect, it } from "vitest";
import { fromGguf, toGguf } from "../../src/checkpoint/config-gguf.ts";
import { fromHuggingFace } from "../../src/checkpoint/config-hugging-face.ts";
import { fromMeta } from "../../src/checkpoint/config-meta.ts";
import { readGguf, splitNames } from "../../src/checkpoint/gguf.ts";
import { parseObject } from "../../src/checkpoint/json.ts";
import { readTorch } from "../../src/checkpoint/meta.ts";
import { bindGguf, ggufNames, ggufVocabRows, hasGgufOutput } from "../../src/checkpoint/names-gguf.ts";
import { bindHuggingFace } from "../../src/checkpoint/names-hugging-face.ts";
import { bindMeta, metaVocabRows } from "../../src/checkpoint/names-meta.ts";
import { readIndex, readSafetensors } from "../../src/checkpoint/safetensors.ts";
import { memorySource } from "../../src/checkpoint/source.ts";
import { mapParameters } from "../../src/model/parameters.ts";
import { CheckpointError } from "../../src/tensor/errors.ts";
import type { ByteSource } from "../../src/tensor/tensor.ts";
import { type GgufTensor, ggufBytes, safetensorsBytes } from "./files.ts";

const golden = (path: string) => readFileSync(join(import.meta.dirname, "../golden/llama4", path));
const denseJson = JSON.parse(golden("dense/config.json").toString());
const dense = fromHuggingFace(denseJson);

/** As memorySource, but asking for more than the file is a failure of the reader, not of the file. */
function guarded(bytes: Uint8Array): ByteSource {
  const source = memorySource(bytes, "hostile");
  return {
    ...source,
    read(offset, length) {
      if (length > bytes.length) throw new Error(`the reader asks for ${length} bytes of ${bytes.length}`);
      return source.read(offset, length);
    },
  };
}

const asSafetensors = async (bytes: Uint8Array) => {
  bindHuggingFace(dense, await readSafetensors(guarded(bytes)), "hostile");
};
const asGguf = async (bytes: Uint8Array) => {
  const { metadata, tensors } = await readGguf(guarded(bytes));
  const facts = { vocabRows: ggufVocabRows(tensors), tied: !hasGgufOutput(tensors) };
  bindGguf(fromGguf(metadata, facts), tensors, "hostile");
};
const params = JSON.parse(golden("meta-1/params.json").toString());
const asTorch = async (bytes: Uint8Array) => {
  const tensors = await readTorch(guarded(bytes));
  bindMeta(fromMeta(params, { vocabRows: metaVocabRows(tensors) }), [tensors], "hostile");
};

/** Opens the file or gives a CheckpointError's sentence; anything else fails the test. */
async function outcome(read: (bytes: Uint8Array) => Promise<void>, bytes: Uint8Array): Promise<string> {
  try {
    await read(bytes);
    return "opened";
  } catch (error) {
    if (!(error instanceof CheckpointError)) throw error;
    expect(error.message.length).toBeLessThan(1000);
    return error.message;
  }
}

const tensorsOfDense: GgufTensor[] = (() => {
  const shapes = new Map<string, number[]>();
  const [D, Q, K] = [dense.dim, dense.nHeads * dense.headDim, dense.nKvHeads * dense.headDim];
  const by = (name: string): number[] => {
    if (/norm/.test(name)) return [D];
    if (/token_embd|^output/.test(name)) return [dense.vocabSize, D];
    if (/attn_q/.test(name)) return [Q, D];
    if (/attn_[kv]/.test(name)) return [K, D];
    if (/attn_output/.test(name)) return [D, Q];
    return /ffn_down/.test(name) ? [D, dense.ffnDim] : [dense.ffnDim, D];
  };
  mapParameters(ggufNames(dense).parameters, (name) => shapes.set(name, by(name)));
  return [...shapes].map(([name, shape]) => ({ name, shape, type: 0 }));
})();
const goodGguf = ggufBytes(
  new Map([
    ...toGguf(dense),
    ["tokenizer.ggml.tokens", { type: "array", of: "string", values: ["a", "b", "<|eot|>"] }],
    ["tokenizer.ggml.token_type", { type: "array", of: "i32", values: [1, 1, 3] }],
    ["general.alignment", { type: "u32", value: 32 }],
  ]),
  tensorsOfDense,
);
const goodSafetensors = golden("dense/model.safetensors");
const headerLength = Number(goodSafetensors.readBigUInt64LE(0));
const goodTorch = golden("meta-1/consolidated.00.pth");
const pickleEnd = goodTorch.indexOf("PK\x03\x04", 4, "latin1");
const directory = goodTorch.indexOf("PK\x01\x02", 0, "latin1");

it("the files that are spoiled below are whole at first", async () => {
  expect(await outcome(asSafetensors, goodSafetensors)).toBe("opened");
  expect(await outcome(asGguf, goodGguf)).toBe("opened");
  expect(await outcome(asTorch, goodTorch)).toBe("opened");
});

// ---- one lie each ----

type Header = Record<string, { dtype: string; shape: unknown[]; data_offsets: unknown[] }>;

describe("a safetensors file", () => {
  const withHeader = (change: (header: Header) => void) => {
    const header = JSON.parse(goodSafetensors.subarray(8, 8 + headerLength).toString());
    change(header);
    return safetensorsBytes(JSON.stringify(header), goodSafetensors.subarray(8 + headerLength));
  };
  const norm = "model.norm.weight";
  const withLength = (length: bigint) => {
    const bytes = Buffer.from(goodSafetensors);
    bytes.writeBigUInt64LE(length);
    return bytes;
  };

  it.each<[string, () => Uint8Array, RegExp]>([
    ["of no bytes", () => new Uint8Array(0), /has 0 bytes/],
    ["with a header of 2⁶³ bytes", () => withLength(2n ** 63n), /header says it has 9223372036854775808 bytes/],
    ["with a header longer than itself", () => withLength(BigInt(goodSafetensors.length)), /header says/],
    [
      "cut short",
      () => goodSafetensors.subarray(0, goodSafetensors.length - 1),
      /byte range of .*expected begin and end within/,
    ],
    ["whose header is no UTF-8", () => safetensorsBytes(Buffer.from([0xff, 0xfe]), Buffer.alloc(0)), /not UTF-8/],
    [
      "whose header is nested a million deep",
      () => safetensorsBytes("[".repeat(1e6), Buffer.alloc(0)),
      /nested deeper/,
    ],
    [
      "whose header nests in a value a million deep",
      () => safetensorsBytes(`{"a":${'{"a":'.repeat(1e6)}`, Buffer.alloc(0)),
      /nested deeper/,
    ],
    ["whose header is a list", () => safetensorsBytes("[]", Buffer.alloc(0)), /expected a JSON object/],
    [
      "with a dtype that nobody knows",
      () => withHeader((h) => Object.assign(h[norm]!, { dtype: "F4" })),
      /dtype of "model.norm.weight" is "F4"/,
    ],
    [
      "with a shape that overflows",
      () => withHeader((h) => Object.assign(h[norm]!, { shape: [2 ** 40, 2 ** 40, 2 ** 40] })),
      /the shape of .*product is below/,
    ],
    [
      "with an overflow behind a zero",
      () => withHeader((h) => Object.assign(h[norm]!, { shape: [0, 2 ** 50, 2 ** 50] })),
      /the shape of/,
    ],
    ["with a negative extent", () => withHeader((h) => Object.assign(h[norm]!, { shape: [-32] })), /the shape of/],
    [
      "with a shape that its bytes deny",
      () => withHeader((h) => Object.assign(h[norm]!, { shape: [33] })),
      /expected 132 bytes for F32 \[33\]/,
    ],
    ["with an end before the beginning", () => withHeader((h) => h[norm]!.data_offsets.reverse()), /byte range/],
    [
      "with an offset beyond the file",
      () => withHeader((h) => Object.assign(h[norm]!, { data_offsets: [2 ** 52, 2 ** 52 + 128] })),
      /byte range/,
    ],
    [
      "with two tensors on the same bytes",
      () => withHeader((h) => Object.assign(h[norm]!, { data_offsets: [4, 132] })),
      /share bytes/,
    ],
    [
      "with a tensor that the config does not know",
      () =>
        withHeader((h) => {
          h["model.norm.bias"] = h[norm]!;
          delete h[norm];
        }),
      /no tensor "model.norm.weight"; nearest is "model.norm.bias"/,
    ],
  ])("%s", async (_, bytes, sentence) => expect(await outcome(asSafetensors, bytes())).toMatch(sentence));

  it("with a name twice", async () => {
    const entry = '{"dtype":"F32","shape":[0],"data_offsets":[0,0]}';
    const bytes = safetensorsBytes(`{"a":${entry},"\\u0061":${entry}}`, Buffer.alloc(0));
    expect(await outcome(asSafetensors, bytes)).toMatch(/header has 2 names, some of them twice/);
  });

  it("with scales of no 8-bit float matrix, or such a matrix without, says that they are not read", async () => {
    const bytes = withHeader((h) => {
      h["model.layers.0.self_attn.q_proj.weight_scale"] = { dtype: "F32", shape: [0], data_offsets: [0, 0] };
    });
    expect(await outcome(asSafetensors, bytes)).toMatch(/a quantization that is not read.*get the bf16/);
    const unscaled = withHeader((h) => Object.assign(h[norm]!, { dtype: "F8_E4M3", shape: [4 * dense.dim] }));
    expect(await outcome(asSafetensors, unscaled)).toMatch(
      /is f8_e4m3; expected its factors as "model.norm.weight_scale"/,
    );
  });

  it("whose index leads out of its folder", () => {
    for (const file of ["../secret", "/etc/passwd", "..", ""])
      expect(() => readIndex(JSON.stringify({ weight_map: { a: file } }), "index")).toThrow(/a name in its folder/);
  });
});

describe("a GGUF file", () => {
  const at = (offset: number, write: (bytes: Buffer, offset: number) => void, of = goodGguf) => {
    const bytes = Buffer.from(of);
    write(bytes, offset);
    return bytes;
  };
  const u64 = (value: bigint) => (bytes: Buffer, offset: number) => bytes.writeBigUInt64LE(value, offset);
  const u32 = (value: number) => (bytes: Buffer, offset: number) => bytes.writeUInt32LE(value, offset);
  const changed = (name: string, change: Partial<GgufTensor>) =>
    ggufBytes(
      toGguf(dense),
      tensorsOfDense.map((t) => (t.name === name ? { ...t, ...change } : t)),
    );
  const norm = "output_norm.weight";
  const tokens = Buffer.from(goodGguf).indexOf("tokenizer.ggml.tokens") + "tokenizer.ggml.tokens".length + 8;

  it.each<[string, () => Uint8Array, RegExp]>([
    ["of no bytes", () => new Uint8Array(0), /ends at 0 bytes inside its header/],
    ["with another magic", () => at(0, u32(0)), /no GGUF file/],
    ["of version 1", () => at(4, u32(1)), /version 1; expected 2 or 3/],
    ["of a big-endian machine", () => at(4, u32(0x03000000)), /big-endian/],
    ["with 2⁶³ tensors", () => at(8, u64(2n ** 63n)), /a count is 9223372036854775808; expected less than 2⁵³/],
    ["with 2⁴⁰ tensors", () => at(8, u64(2n ** 40n)), /promises 1099511627776 entries/],
    ["with 2³² keys", () => at(16, u64(2n ** 32n)), /promises 4294967296 entries/],
    ["with a key of 2⁵⁰ bytes", () => at(24, u64(2n ** 50n)), /promises 1125899906842624 entries/],
    ["with an array of 2⁵² texts", () => at(tokens, u64(2n ** 52n)), /promises 4503599627370496 entries/],
    ["cut short", () => goodGguf.subarray(0, goodGguf.length - 64), /it is truncated/],
    ["cut in its header", () => goodGguf.subarray(0, 1000), /promises|inside its header/],
    ["with a type that was removed", () => changed(norm, { type: 4 }), /has the type type 4 \(4\), which is not read/],
    ["with a type that nobody reads", () => changed(norm, { type: 40 }), /has the type nvfp4/],
    ["with nine axes", () => changed(norm, { shape: [1, 1, 1, 1, 1, 1, 1, 1, 32] }), /has 9 axes/],
    ["with a shape that overflows", () => changed(norm, { shape: [2 ** 30, 2 ** 30] }), /product is below 2⁵³/],
    [
      "with a row that blocks do not divide",
      () => changed(norm, { type: 12 }),
      /rows of 32 elements; q4_k needs a multiple of 256/,
    ],
    ["with an offset beyond the file", () => changed(norm, { offset: 2 ** 50 }), /needs 128 bytes at/],
    ["with an odd offset", () => changed(norm, { offset: 4 }), /begins at 4; expected a multiple of 32/],
    ["with two tensors on the same bytes", () => changed(norm, { offset: 32 }), /share bytes/],
    ["with a name twice", () => changed(norm, { name: "output.weight" }), /there twice/],
    [
      "with an unknown tensor",
      () => changed(norm, { name: "output_norm.bias" }),
      /no tensor "output_norm.weight"; nearest is "output_norm.bias"/,
    ],
    [
      "with an alignment of 0",
      () => ggufBytes(new Map([["general.alignment", { type: "u32", value: 0 }]]), []),
      /general.alignment is 0/,
    ],
    [
      "of another architecture",
      () => ggufBytes(new Map([["general.architecture", { type: "string", value: "llama" }]]), []),
      /general.architecture is "llama"; expected "llama4"/,
    ],
  ])("%s", async (_, bytes, sentence) => expect(await outcome(asGguf, bytes())).toMatch(sentence));

  it("with arrays in arrays in arrays", async () => {
    const deep = Buffer.alloc(24 + 9 + 12e6);
    deep.write("GGUF");
    deep.writeUInt32LE(3, 4);
    deep.writeBigUInt64LE(1n, 16);
    deep.writeBigUInt64LE(1n, 24);
    deep.write("a", 32);
    deep.writeUInt32LE(9, 33);
    for (let i = 37; i + 12 <= deep.length; i += 12) {
      deep.writeUInt32LE(9, i);
      deep.writeBigUInt64LE(1n, i + 4);
    }
    expect(await outcome(asGguf, deep)).toMatch(/nests arrays deeper than 8/);
  });

  it("split by a name that counts wrong", () => {
    expect(splitNames("a-00002-of-00002.gguf")).toEqual(["a-00001-of-00002.gguf", "a-00002-of-00002.gguf"]);
    expect(() => splitNames("a-00003-of-00002.gguf")).toThrow(/part 00003 of 00002/);
  });
});

describe("a file of Meta's", () => {
  it.each<[string, () => Uint8Array, RegExp]>([
    ["of no bytes", () => new Uint8Array(0), /no end of a zip directory/],
    ["cut short", () => goodTorch.subarray(0, goodTorch.length / 2), /no end of a zip directory/],
    [
      "that would run a program",
      () => replaced("collections\nOrderedDict", "subprocess\ncheck_call"),
      /it calls subprocess.check_call/,
    ],
    [
      "with an instruction that has no place in it",
      () => replaced("tok_embeddings.weight", "tok_embeddings.weight", -5, 0x69),
      /0x69 has no place/,
    ],
    ["in big-endian order", () => replaced("little", "bigger"), /byte order is "bigger"/],
  ])("%s", async (_, bytes, sentence) => expect(await outcome(asTorch, bytes())).toMatch(sentence));

  function replaced(before: string, after: string, opcodeAt?: number, opcode = 0): Uint8Array {
    const bytes = Buffer.from(goodTorch);
    const at = bytes.indexOf(before);
    bytes.write(after.padEnd(before.length, "\n").slice(0, before.length), at, "latin1");
    if (opcodeAt !== undefined) bytes[at + opcodeAt] = opcode;
    return bytes;
  }
});

describe("JSON", () => {
  it("of a million brackets in a text is only a text", () => {
    expect(parseObject(JSON.stringify({ a: `${"[".repeat(1e6)}"` }), "json")["a"]).toHaveLength(1e6 + 1);
  });

  it("as large as the published tokenizer.json is read; a header of as many parts is not", async () => {
    const merges = `{"merges":[${'["a","b"],'.repeat(440_000)}[]]}`;
    expect(parseObject(merges, "tokenizer.json")["merges"]).toHaveLength(440_001);
    expect(await outcome(asSafetensors, safetensorsBytes(merges, Buffer.alloc(0)))).toMatch(/JSON of \d+ parts/);
  });
});

// ---- thousands of lies ----

const extremes = [0n, 1n, 7n, 255n, 65535n, 2n ** 31n, 2n ** 32n - 1n, 2n ** 53n, 2n ** 63n, 2n ** 64n - 1n];

/** One to four changes inside the header: other bytes, a number put in, a piece doubled or left out, the end cut off. */
const mutation = (header: number) =>
  fc.oneof(
    {
      weight: 3,
      arbitrary: fc.record({ kind: fc.constant("byte" as const), at: fc.nat(header - 1), value: fc.nat(255) }),
    },
    {
      weight: 3,
      arbitrary: fc.record({
        kind: fc.constant("u64" as const),
        at: fc.nat(header - 8),
        value: fc.constantFrom(...extremes),
      }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant("double" as const), at: fc.nat(header - 1), length: fc.nat(200) }),
    },
    {
      weight: 1,
      arbitrary: fc.record({ kind: fc.constant("drop" as const), at: fc.nat(header - 1), length: fc.nat(200) }),
    },
    { weight: 1, arbitrary: fc.record({ kind: fc.constant("cut" as const), at: fc.nat(header - 1) }) },
  );
type Mutation = ReturnType<typeof mutation> extends fc.Arbitrary<infer M> ? M : never;

function mutate(good: Uint8Array, changes: readonly Mutation[], base = 0): Uint8Array {
  let bytes = Buffer.from(good);
  for (const change of changes) {
    const at = base + change.at;
    if (change.kind === "byte" && at < bytes.length) bytes[at] = change.value;
    else if (change.kind === "u64" && at + 8 <= bytes.length) bytes.writeBigUInt64LE(change.value, at);
    else if (change.kind === "double")
      bytes = Buffer.concat([bytes.subarray(0, at + change.length), bytes.subarray(at)]);
    else if (change.kind === "drop") bytes = Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + change.length)]);
    else if (change.kind === "cut") bytes = bytes.subarray(0, at);
  }
  return bytes;
}

/** Numbers of the JSON text replaced by others, keys and words by each other. */
const jsonMutation = fc.record({
  at: fc.nat(),
  value: fc.constantFrom("-1", "1e308", "null", "[]", "{}", '"F32"', "9007199254740993", "0.5", "true", '"F16"', "128"),
});

describe("mutated files", () => {
  const opened: Record<string, number> = {};
  const tried: Record<string, number> = {};
  const before = process.memoryUsage().rss;
  afterAll(() => {
    console.log("mutated files tried:", tried, "of which still open:", opened);
  });

  const runs = 4000;
  const count = async (name: string, read: (bytes: Uint8Array) => Promise<void>, bytes: Uint8Array) => {
    tried[name] = (tried[name] ?? 0) + 1;
    if ((await outcome(read, bytes)) === "opened") opened[name] = (opened[name] ?? 0) + 1;
  };
  const several = (header: number) => fc.array(mutation(header), { minLength: 1, maxLength: 4 });

  it("of safetensors give a CheckpointError or open", async () => {
    const property = fc.asyncProperty(several(8 + headerLength), (changes) =>
      count("safetensors", asSafetensors, mutate(goodSafetensors, changes)),
    );
    await fc.assert(property, { numRuns: runs });
  });

  it("of safetensors with other words and numbers in the header give a CheckpointError or open", async () => {
    const text = goodSafetensors.subarray(8, 8 + headerLength).toString();
    const places = [...text.matchAll(/\d+(?=[,\]])|"F32"|\[\d+(, ?\d+)*\]/g)];
    const property = fc.asyncProperty(fc.array(jsonMutation, { minLength: 1, maxLength: 3 }), (changes) => {
      let header = text;
      for (const { at, value } of changes) {
        const place = places[at % places.length]!;
        header = header.slice(0, place.index) + value + header.slice(place.index + place[0].length);
      }
      return count(
        "safetensors JSON",
        asSafetensors,
        safetensorsBytes(header, goodSafetensors.subarray(8 + headerLength)),
      );
    });
    await fc.assert(property, { numRuns: runs });
  });

  it("of GGUF give a CheckpointError or open", async () => {
    const header =
      goodGguf.length - tensorsOfDense.reduce((sum, { shape }) => sum + 4 * shape.reduce((a, b) => a * b), 0);
    const property = fc.asyncProperty(several(header), (changes) => count("GGUF", asGguf, mutate(goodGguf, changes)));
    await fc.assert(property, { numRuns: 2 * runs });
  });

  it("of Meta's give a CheckpointError or open", async () => {
    // Only changes in place: the zip directory must still find the pickle.
    const changed = several(pickleEnd)
      .map((changes) => changes.filter(({ kind }) => kind === "byte" || kind === "u64"))
      .filter((changes) => changes.length > 0);
    const inPickle = fc.asyncProperty(changed, (changes) => count("pickle", asTorch, mutate(goodTorch, changes)));
    await fc.assert(inPickle, { numRuns: runs / 2 });
    const inZip = fc.asyncProperty(several(goodTorch.length - directory), (changes) =>
      count("zip", asTorch, mutate(goodTorch, changes, directory)),
    );
    await fc.assert(inZip, { numRuns: runs / 2 });
  });

  it("of config.json and params.json give a CheckpointError or a config", async () => {
    const values = fc.oneof(
      fc.constantFrom(null, -1, 0, 1, 2 ** 31, 1e308, "", "a", true, [], {}, [1], { a: 1 }),
      fc.jsonValue(),
    );
    for (const [name, json, read] of [
      ["config.json", denseJson, (json: object) => fromHuggingFace({ ...json })],
      ["params.json", params, (json: object) => fromMeta({ ...json }, { vocabRows: 48 })],
    ] as const) {
      const change = fc.dictionary(fc.constantFrom(...Object.keys(json)), values, { minKeys: 1, maxKeys: 3 });
      const property = fc.asyncProperty(change, async (changes) => {
        await count(name, async () => void read({ ...json, ...changes }), new Uint8Array(0));
      });
      await fc.assert(property, { numRuns: runs / 4 });
    }
  });

  it("took no memory to speak of", () => {
    const grown = process.memoryUsage().rss - before;
    expect(Object.values(tried).reduce((a, b) => a + b)).toBeGreaterThanOrEqual(10_000);
    expect(grown / 2 ** 20).toBeLessThan(500); // of all files together, before any is collected
  });
});

import { describe, expect, it } from "vitest";
import { preset } from "../../src/checkpoint/config.ts";
import { fromGguf, ggufLosses, toGguf } from "../../src/checkpoint/config-gguf.ts";
import { fromHuggingFace, readGenerationConfig, toHuggingFace } from "../../src/checkpoint/config-hugging-face.ts";
import { fromMeta } from "../../src/checkpoint/config-meta.ts";
import { readPreprocessorConfig, toPreprocessorConfig } from "../../src/checkpoint/preprocessor-config.ts";
import { ropeFreqs } from "../../src/checkpoint/rope-divisors.ts";
import { type Llama4Config, layerKinds, presets } from "../../src/model/config.ts";
import { ropeFrequencies } from "../../src/model/rope.ts";
import { CheckpointError, RequestError } from "../../src/tensor/errors.ts";

const small = {
  model_type: "llama4_text",
  vocab_size: 64,
  hidden_size: 32,
  num_hidden_layers: 8,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  head_dim: 8,
  intermediate_size: 16,
  intermediate_size_mlp: 48,
  num_local_experts: 4,
};

const facts = (c: Llama4Config) => {
  const freqs = ropeFreqs(c);
  return { vocabRows: c.vocabSize, tied: c.tied, ...(freqs && { ropeFreqs: freqs }) };
};

describe("config.json", () => {
  it("with the keys that transformers leaves out where they are usual gives Scout", () => {
    const { vision: _, tokens, ...scout } = preset("scout");
    const rope_scaling = {
      rope_type: "llama3",
      factor: 16,
      low_freq_factor: 1,
      high_freq_factor: 1,
      original_max_position_embeddings: 8192,
    };
    const config = fromHuggingFace({ model_type: "llama4_text", max_position_embeddings: 10485760, rope_scaling });
    expect(config).toEqual({ ...scout, tokens: { eos: [] } });
    expect(tokens.eos).toHaveLength(3);
  });

  it.each(["scout", "maverick"] as const)("written for %s and read again is the same config", (name) => {
    expect(fromHuggingFace(toHuggingFace(preset(name)))).toEqual(preset(name));
  });

  it("means the same with rope_parameters as with rope_theta and rope_scaling", () => {
    const rope = {
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
      rope_type: "llama3",
    };
    const before = fromHuggingFace({ ...small, rope_theta: 1e4, rope_scaling: rope });
    expect(fromHuggingFace({ ...small, rope_parameters: { ...rope, rope_theta: 1e4 } })).toEqual(before);
    expect(before.ropeScaling?.factor).toBe(8);
  });

  it("tunes the temperature for true and for the integer of older files, not for false and 0", () => {
    const of = (attn_temperature_tuning: unknown) => fromHuggingFace({ ...small, attn_temperature_tuning }).temperature;
    expect([of(true), of(4), of(false), of(0)].map(Boolean)).toEqual([true, true, false, false]);
  });

  it("takes a list of layers before an interval, and an empty list as none", () => {
    const ropes = (more: object) => fromHuggingFace({ ...small, ...more }).layers.map(({ rope }) => Number(rope));
    expect(ropes({ no_rope_layers: [] })).toEqual([1, 1, 1, 0, 1, 1, 1, 0]);
    expect(ropes({ no_rope_layer_interval: 2 })).toEqual([1, 0, 1, 0, 1, 0, 1, 0]);
    expect(ropes({ no_rope_layers: [0, 1, 1, 1, 1, 1, 1, 1] })).toEqual([0, 1, 1, 1, 1, 1, 1, 1]);
  });

  // transformers takes the remainder by the interval even where the list says all: by 0 it refused a model of 1 to 3 layers.
  it("without a global layer has an interval that no layer reaches, and never 0", () => {
    const c = fromHuggingFace({ ...small, num_hidden_layers: 3 });
    const { no_rope_layers, ...written } = toHuggingFace(c);
    expect(no_rope_layers).toEqual([1, 1, 1]);
    expect(written["no_rope_layer_interval"]).toBe(4);
    expect(fromHuggingFace(written).layers).toEqual(c.layers);
  });

  it("knows which layers have experts from a list, a step, or their absence", () => {
    const moe = (more: object) =>
      fromHuggingFace({ ...small, ...more }).layers.flatMap((kind, i) => (kind.moe ? [i] : []));
    expect(moe({ moe_layers: [2, 5] })).toEqual([2, 5]);
    expect(moe({ interleave_moe_layer_step: 4 })).toEqual([3, 7]);
    expect(moe({ interleave_moe_layer_step: 0, moe_layers: [] })).toEqual([]);
    expect(moe({ num_local_experts: 0 })).toEqual([]);
  });

  it("without a chunk size sees every layer whole", () => {
    const c = fromHuggingFace({ ...small, attention_chunk_size: null });
    expect(c.layers.some((kind) => kind.chunked)).toBe(false);
  });

  it("means by null what transformers means: derived, none, or an error", () => {
    const usual = fromHuggingFace(small);
    for (const key of [
      "rope_scaling",
      "rope_parameters",
      "no_rope_layers",
      "moe_layers",
      "layer_types",
      "bos_token_id",
    ])
      expect(fromHuggingFace({ ...small, [key]: null }), key).toEqual(usual);
    expect(fromHuggingFace({ ...small, eos_token_id: null, text_config: null, vision_config: null })).toEqual(usual);
    expect(fromHuggingFace({ ...small, num_key_value_heads: null }).nKvHeads).toBe(4);
    expect(fromHuggingFace({ ...small, num_attention_heads: 2, head_dim: null }).headDim).toBe(16);
  });

  it.each<[object, RegExp]>([
    [{ hidden_size: null }, /hidden_size is null; expected a whole number from 1/],
    [{ use_qk_norm: null }, /use_qk_norm is null; expected true or false/],
    [{ rms_norm_eps: null }, /rms_norm_eps is null; expected a number above 0/],
    [{ attn_temperature_tuning: null }, /attn_temperature_tuning is null; expected true, false/],
    [{ hidden_act: null }, /hidden_act is null; expected "silu"/],
    [{ hidden_size: "32" }, /hidden_size is "32"; expected a whole number from 1/],
    [{ no_rope_layers: "all" }, /no_rope_layers is "all"; expected a list of whole numbers/],
    [{ rope_scaling: [] }, /rope_scaling is \[\]; expected an object/],
    [{ quantization_config: { quant_method: "gptq" } }, /quant_method is "gptq"; expected "compressed-tensors"; get/],
    [
      { quantization_config: { quant_method: "compressed-tensors", format: "pack-quantized" } },
      /format is "pack-quantized"; expected "float-quantized"; get the bf16 checkpoint or a GGUF/,
    ],
    [{ model_type: "llama" }, /model_type is "llama"; expected "llama4"/],
    [{ hidden_size: -1 }, /hidden_size is -1; expected a whole number from 1/],
    [{ num_hidden_layers: 1e9 }, /num_hidden_layers is 1000000000; expected a whole number from 1 to 4096/],
    [{ num_key_value_heads: 3 }, /4 heads cannot share 3 key\/value heads/],
    [{ head_dim: 7 }, /head dim is 7; expected an even number/],
    [{ no_rope_layers: [1, 0] }, /no_rope_layers is \[1,0\]; expected one flag for each of 8/],
    [{ moe_layers: [8] }, /moe_layers is \[8\]; expected a list of whole numbers from 0 to 7/],
    [{ num_experts_per_tok: 5 }, /5 of 4 experts/],
    [{ rope_scaling: { rope_type: "yarn" } }, /rope_type is "yarn"; expected "llama3"/],
    [{ layer_types: ["sliding_attention"] }, /layer_types .*expected "chunked_attention"/],
    [{ attn_temperature_tuning: "yes" }, /attn_temperature_tuning is "yes"; expected true, false/],
    [{ attention_bias: true }, /attention_bias is true; expected false/],
    [{ rms_norm_eps: 0 }, /rms_norm_eps is 0; expected a number above 0/],
  ])("%j is refused by key, value and expectation", (wrong, sentence) => {
    const read = () => fromHuggingFace({ ...small, ...wrong });
    expect(read).toThrow(CheckpointError);
    expect(read).toThrow(sentence);
  });
});

describe("preprocessor_config.json", () => {
  const encoder = { imageSize: 336, nChannels: 3 };

  it("says tiles, canvas, mean and deviation; what is absent or null is as published", () => {
    const published = { maxTiles: 16, toMaxCanvas: false, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5] };
    const full = {
      ...{ do_convert_rgb: true, do_normalize: true, do_rescale: true, do_resize: true, do_center_crop: null },
      ...{ image_processor_type: "Llama4ImageProcessorFast", image_mean: [0.5, 0.5, 0.5], image_std: 0.5 },
      ...{ max_patches: 16, resample: 2, rescale_factor: 0.00392156862745098, resize_to_max_canvas: false },
      size: { height: 336, width: 336 },
    };
    expect(readPreprocessorConfig(full, encoder)).toEqual(published);
    expect(readPreprocessorConfig({ max_patches: null }, encoder)).toEqual(published);
    const other = { max_patches: 4, resize_to_max_canvas: true, image_mean: [0, 0.1, 0.2], image_std: [1, 2, 3] };
    const preprocessing = { maxTiles: 4, toMaxCanvas: true, mean: [0, 0.1, 0.2], std: [1, 2, 3] };
    expect(readPreprocessorConfig(other, encoder)).toEqual(preprocessing);
    const written = toPreprocessorConfig({ ...presets.scout.vision!, preprocessing });
    expect(readPreprocessorConfig(written, encoder)).toEqual(preprocessing);
  });

  it.each([
    [{ max_patches: 0 }, "max_patches is 0; expected a whole number from 1 to 64"],
    [{ size: { height: 448, width: 448 } }, "size: height is 448; expected 336, the side of the encoder's tiles"],
    [{ image_std: [0.5, 0, 0.5] }, "image_std is [0.5,0,0.5]; expected 3 numbers above 0, one for each channel"],
    [{ image_mean: [0.5] }, "image_mean is [0.5]; expected 3 numbers, one for each channel"],
    [{ resize_to_max_canvas: 1 }, "resize_to_max_canvas is 1; expected true or false"],
    [{ do_normalize: false }, "do_normalize is false; expected true"],
    [{ resample: 3 }, "resample is 3; expected 2, bilinear"],
    [{ rescale_factor: 1 }, "rescale_factor is 1; expected 1/255"],
  ])("%o is refused", (json, message) => {
    expect(() => readPreprocessorConfig(json, encoder)).toThrow(CheckpointError);
    expect(() => readPreprocessorConfig(json, encoder)).toThrow(`preprocessor_config.json: ${message}`);
  });
});

describe("generation_config.json", () => {
  it("gives the end tokens and the sampling", () => {
    const json = { bos_token_id: 1, eos_token_id: [2, 3], do_sample: true, temperature: 0.6, top_p: 0.9 };
    expect(readGenerationConfig(json)).toEqual({ bos: 1, eos: [2, 3], defaults: { temperature: 0.6, topP: 0.9 } });
    expect(readGenerationConfig({ do_sample: false, eos_token_id: 2 }).defaults).toEqual({ temperature: 0 });
  });
});

describe("params.json", () => {
  const scout = {
    dim: 5120,
    n_layers: 48,
    n_heads: 40,
    n_kv_heads: 8,
    vocab_size: -1,
    ffn_dim_multiplier: 1.2,
    multiple_of: 2048,
    ffn_exp: 4,
    norm_eps: 1e-5,
    rope_theta: 500000,
    use_scaled_rope: true,
    nope_layer_interval: 4,
    use_qk_norm: true,
    attention_chunk_size: 8192,
    attn_temperature_tuning: true,
    moe_args: { num_experts: 16, capacity_factor: 1, auto_scale_F: true, top_k: 1, interleave_moe_layer_step: 1 },
    vision_args: {
      image_size: { height: 336, width: 336 },
      patch_size: { height: 14, width: 14 },
      dim: 1408,
      n_layers: 34,
      n_heads: 16,
      mlp_ratio: 4,
      output_dim: 4096,
      pixel_shuffle_ratio: 0.5,
    },
  };

  it("of Scout gives Scout", () => {
    expect(fromMeta(scout, { vocabRows: 202048 })).toEqual(preset("scout"));
  });

  it("means by null that a key is not there", () => {
    const dumped = {
      ...scout,
      head_dim: null,
      rope_scaling_factor: null,
      rope_high_freq_factor: null,
      max_seq_len: null,
    };
    expect(fromMeta(dumped, { vocabRows: 202048 })).toEqual(preset("scout"));
    expect(() => fromMeta({ ...scout, dim: null }, { vocabRows: 1 })).toThrow(
      /dim is missing; expected a whole number/,
    );
  });

  it("of Maverick gives Maverick", () => {
    const moe_args = { ...scout.moe_args, num_experts: 128, interleave_moe_layer_step: 2 };
    const json = { ...scout, use_scaled_rope: false, use_qk_norm: false, moe_args };
    expect(fromMeta(json, { vocabRows: 202048 })).toEqual(preset("maverick"));
  });
});

describe("GGUF metadata", () => {
  const text = ({ vision: _, tokens: __, ...config }: Llama4Config) => config;

  it.each(["scout", "maverick"] as const)("say all of %s, and need none of our hints", (name) => {
    const c = preset(name);
    const metadata = toGguf(c);
    expect(ggufLosses(c)).toEqual([]);
    expect([...metadata.keys()].filter((key) => /chunk_size|qk_norm|temperature|layers$|sliding/.test(key))).toEqual(
      [],
    );
    const { ropeScaling: _, ...expected } = text(c);
    const { ropeDivisors, ...read } = text(fromGguf(metadata, facts(c)));
    expect(read).toEqual(expected);
    expect(ropeDivisors?.filter((divisor) => divisor === 16).length).toBe(name === "scout" ? 29 : undefined);
  });

  const odd: Llama4Config = {
    ...fromHuggingFace(small),
    layers: layerKinds(8, 4, 1).map((kind, i) => ({ rope: i !== 0, chunked: i !== 0, moe: kind.moe && i !== 2 })),
    attentionChunk: 16,
    temperature: { floor: 4, scale: 0.5 },
    qkNorm: false,
  };

  it("carry hints for what llama.cpp fixes, and those are read again", () => {
    expect(text(fromGguf(toGguf(odd), facts(odd)))).toEqual(text(odd));
    expect(ggufLosses(odd)).toHaveLength(6);
    const { temperature: _, ...off } = odd;
    expect(fromGguf(toGguf(off), facts(off)).temperature).toBeUndefined();
    expect(ggufLosses(off).join()).toContain("no attention temperature");
  });

  it("name a dense model as llama.cpp wants it, with one expert that no layer has", () => {
    const dense = fromHuggingFace({ ...small, moe_layers: [] });
    expect(toGguf(dense).get("llama4.expert_count")).toEqual({ type: "u32", value: 1 });
    expect(text(fromGguf(toGguf(dense), facts(dense)))).toEqual(text(dense));
  });

  it("with a sliding window of 0 rotate every layer and chunk none; another window changes nothing", () => {
    const c = fromHuggingFace(small);
    const windowed = (value: number) =>
      fromGguf(toGguf(c).set("llama4.attention.sliding_window", { type: "u32", value }), facts(c));
    expect(windowed(0).layers.every((kind) => kind.rope && !kind.chunked)).toBe(true);
    expect(windowed(4096)).toEqual(fromGguf(toGguf(c), facts(c)));
  });

  it("may hold widths for each layer, if they agree", () => {
    const c = fromHuggingFace(small);
    const withKv = (values: number[]) =>
      fromGguf(toGguf(c).set("llama4.attention.head_count_kv", { type: "array", of: "u32", values }), facts(c));
    expect(withKv(Array(8).fill(2)).nKvHeads).toBe(2);
    expect(() => withKv([2, 2, 2, 2, 2, 2, 2, 1])).toThrow(/head_count_kv .*the same for each of 8 layers/);
  });

  it("find stop tokens and image tokens by their texts", () => {
    const c = fromHuggingFace(small);
    const values = ["a", "<|end_of_text|>", "<|eom|>", "<|eot|>", "<|patch|>"];
    const metadata = toGguf(c)
      .set("tokenizer.ggml.tokens", { type: "array", of: "string", values })
      .set("tokenizer.ggml.eos_token_id", { type: "u32", value: 3 });
    expect(fromGguf(metadata, facts(c)).tokens).toEqual({ eos: [1, 2, 3], patch: 4 });
  });

  it("become config.json again: rope divisors are recognised as the scaling that made them", () => {
    for (const highFreqFactor of [1, 4]) {
      const c = { ...preset("scout"), ropeScaling: { ...preset("scout").ropeScaling!, highFreqFactor } };
      const back = fromHuggingFace(toHuggingFace(fromGguf(toGguf(c), facts(c))));
      expect(back.ropeScaling).toEqual(c.ropeScaling);
    }
  });
});

describe("rope divisors", () => {
  it("divide the plain frequencies into those of the model", () => {
    const scout = preset("scout");
    for (const highFreqFactor of [1, 4]) {
      const c = { ...scout, ropeScaling: { ...scout.ropeScaling!, highFreqFactor } };
      const { ropeScaling: _, ...rest } = c;
      const divided = ropeFrequencies({ ...rest, ropeDivisors: [...ropeFreqs(c)!] });
      for (const [j, frequency] of ropeFrequencies(c).entries()) expect(divided[j]! / frequency).toBeCloseTo(1, 6);
    }
  });
});

describe("presets", () => {
  it("are named in the error for another name", () => {
    expect(() => preset("scuot")).toThrow(RequestError);
    expect(() => preset("scuot")).toThrow(/expected scout, maverick, behemoth/);
  });
});

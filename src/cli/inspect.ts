// `llama4 inspect`: what a checkpoint holds.

import type { Command } from "commander";
import { type Checkpoint, openCheckpoint } from "../checkpoint/open.ts";
import { countParameters, type Llama4Config, tokensPerTile, type VisionConfig } from "../model/config.ts";
import { openTokenizer } from "../open.ts";
import type { DType } from "../tensor/dtype.ts";
import { type Shape, storedBytes } from "../tensor/tensor.ts";
import { type Answer, bytes, type Run, table } from "./answer.ts";
import { define, type ModelOptions, mmprojHelp, named } from "./options.ts";

export function inspect(program: Command, run: Run): void {
  define(program, "inspect", "What a checkpoint holds: configuration, tensors, tokenizer, template.", [
    "llama4 inspect ./scout",
    "llama4 inspect scout.gguf --json",
  ])
    .argument("[model]", "a Hugging Face folder, a Meta folder or a .gguf file")
    .option("-m, --model <path>", "the same, as an option")
    .option("--mmproj <file>", mmprojHelp)
    .action(
      run((_, model: string | undefined, options: Pick<ModelOptions, "model" | "mmproj">) =>
        inspected(named("inspect", model, options), options),
      ),
    );
}

async function inspected(path: string, { mmproj }: Pick<ModelOptions, "mmproj">): Promise<Answer> {
  const checkpoint = await openCheckpoint(path, { mmproj });
  try {
    const json = contents(checkpoint);
    return { json, text: shown(json) };
  } finally {
    await checkpoint.close();
  }
}

interface StoredTensor {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: Shape;
  readonly bytes: number;
}

type Contents = ReturnType<typeof contents>;

function contents(checkpoint: Checkpoint) {
  const { path, format, config, tensors, tokenizer: material, chatTemplate, defaults, totalBytes } = checkpoint;
  const tokenizer = openTokenizer(checkpoint);
  const stored = tensors.map(
    ({ name, dtype, shape }): StoredTensor => ({ name, dtype, shape, bytes: storedBytes({ dtype, shape }) }),
  );
  return {
    ...{ path, format, config, parameters: countParameters(config), fileBytes: totalBytes, sampling: defaults },
    tensorBytes: stored.reduce((sum, tensor) => sum + tensor.bytes, 0),
    tensors: stored,
    tokenizer:
      tokenizer && material
        ? {
            kind: material.kind,
            vocabSize: tokenizer.vocabSize,
            special: tokenizer.special.size,
            stop: [...tokenizer.stop],
          }
        : null,
    chatTemplate: chatTemplate ?? null,
  };
}

function shown(c: Contents): string {
  const { parameters, tokenizer, chatTemplate } = c;
  return [
    `${c.path}: ${c.format}, ${bytes(c.fileBytes)}, ${parameters.total.toLocaleString("en")} parameters, ${parameters.active.toLocaleString("en")} active for a token`,
    "",
    table(configRows(c.config)),
    "",
    table([["tensor", "count", "dtype", "shape", "bytes"], ...summarised(c.tensors)]),
    `  ${c.tensors.length.toLocaleString("en")} tensors, ${bytes(c.tensorBytes)}`,
    "",
    tokenizer
      ? `Tokenizer: ${tokenizer.kind}, ${tokenizer.vocabSize.toLocaleString("en")} tokens, ${tokenizer.special} of them special`
      : "Tokenizer: none; give token ids, or put tokenizer.json beside the weights",
    chatTemplate === null
      ? "Chat template: none; the published format is used"
      : `Chat template: ${chatTemplate.length.toLocaleString("en")} characters of Jinja`,
  ].join("\n");
}

function configRows(c: Llama4Config): (string | number)[][] {
  const count = (test: (layer: Llama4Config["layers"][number]) => boolean) => c.layers.filter(test).length;
  const moe = count((layer) => layer.moe);
  return [
    ["vocabulary", c.vocabSize],
    ["dim", c.dim],
    ["layers", c.layers.length],
    ["  global (no rotation)", count((layer) => !layer.rope)],
    ["  chunk-local", count((layer) => layer.chunked)],
    ["  with experts", moe],
    ["heads", c.nHeads],
    ["key/value heads", c.nKvHeads],
    ["head dim", c.headDim],
    ...(moe < c.layers.length ? [["dense feed-forward", c.ffnDim]] : []),
    ...(moe > 0
      ? [
          ["experts", c.nExperts],
          ["experts a token", c.topK],
          ["expert feed-forward", c.expertDim],
        ]
      : []),
    ["attention chunk", c.attentionChunk],
    ["rope theta", c.ropeTheta],
    [
      "rope scaling",
      c.ropeScaling ? `factor ${c.ropeScaling.factor}` : c.ropeDivisors ? "divisors of the file" : "none",
    ],
    ["q and k normalised", c.qkNorm ? "yes" : "no"],
    ["attention temperature", c.temperature ? `floor ${c.temperature.floor}, scale ${c.temperature.scale}` : "none"],
    ["output", c.tied ? "the embedding table" : "its own matrix"],
    ["longest context", c.contextLength],
    ...visionRows(c.vision),
  ];
}

function visionRows(v: VisionConfig | undefined): (string | number)[][] {
  if (!v) return [["vision", "none"]];
  return [
    ["vision", `${v.nLayers} layers of ${v.dim}, ${v.nHeads} heads, feed-forward ${v.ffnDim}`],
    ["  a tile", `${v.imageSize} × ${v.imageSize} pixels in patches of ${v.patchSize}, ${tokensPerTile(v)} tokens`],
  ];
}

/** Tensors that differ only in a layer's (or an expert's) number are one row. */
function summarised(tensors: readonly StoredTensor[]): (string | number)[][] {
  const groups = new Map<string, StoredTensor[]>();
  for (const tensor of tensors) {
    const key = `${tensor.name.replaceAll(/(?<=\.)\d+(?=\.)/g, "*")} ${tensor.dtype} ${tensor.shape}`;
    groups.set(key, [...(groups.get(key) ?? []), tensor]);
  }
  return [...groups].map(([key, group]) => {
    const { dtype, shape } = group[0]!;
    const size = group.reduce((sum, tensor) => sum + tensor.bytes, 0);
    return [key.split(" ")[0]!, group.length, dtype, `[${shape.join(", ")}]`, bytes(size)];
  });
}

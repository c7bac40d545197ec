// The gradient table of docs/training.md: each operation's way back, and the whole model's, in plain TypeScript with f64
// against finite differences, and in C++ against that.
//
//   node --import ./scripts/ts.mjs scripts/gradients.ts        LLAMA4_ISA chooses the instruction set

import { openNative } from "../src/backends/native/backend.ts";
import { compare, distance, gradientsAt } from "../tests/train/differences.ts";
import { modelPoints, operations, pointsOf } from "../tests/train/operations.ts";
import { config } from "../tests/train/small-model.ts";

const native = openNative({ threads: 2, activations: "f32" });
const rounded = openNative({ threads: 2, activations: "bf16" });
const cases = [
  ...Object.keys(operations).map((name) => [name, pointsOf(name)] as const),
  ["the whole model, top 1", modelPoints(config)] as const,
  ["the whole model, top 2, tied", modelPoints({ ...config, topK: 2, tied: true })] as const,
];
console.log(`| ${native.isa} | reference in f64 from finite differences | native from reference | with bf16 factors |`);
console.log("| --- | --- | --- | --- |");
for (const [name, { points, loss }] of cases) {
  const differences = await compare(points, loss);
  const exact = await gradientsAt(points, loss);
  const [f32, bf16] = [
    distance(await gradientsAt(points, loss, {}, native), exact),
    distance(await gradientsAt(points, loss, {}, rounded), exact),
  ];
  console.log(`| ${name} | ${[differences, f32, bf16].map((x) => (x === 0 ? "0" : x.toExponential(0))).join(" | ")} |`);
}
native.close();
rounded.close();

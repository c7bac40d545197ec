// A quantized file's truth is the exactly dequantized model: native `logits` on the quantized bytes equal the reference's,
// which dequantizes every weight when it loads.

import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { llama4, objectOf } from "../cli/llama4.ts";

const folder = mkdtempSync(join(tmpdir(), "llama4-quantized-"));
const prompt = "1,7,300,22,41,5,311,90,17,64,2,8,128,250,33,19,77,4,101";

async function done(...args: string[]) {
  const ended = await llama4([...args, "--json"]);
  expect(ended.status, ended.stderr).toBe(0);
  return objectOf(ended);
}

/** The numbers of the tensor `logits` of a file. */
function logitsOf(path: string): Float32Array {
  const bytes = readFileSync(path);
  const headerBytes = Number(bytes.readBigUInt64LE(0));
  const header = JSON.parse(bytes.toString("utf8", 8, 8 + headerBytes));
  const [begin, end] = header.logits.data_offsets;
  return new Float32Array(
    bytes.buffer.slice(bytes.byteOffset + 8 + headerBytes + begin, bytes.byteOffset + 8 + headerBytes + end),
  );
}

describe("logits of a quantized file", () => {
  beforeAll(async () => {
    const sizes =
      "--layers 4 --dim 256 --heads 4 --kv-heads 2 --head-dim 64 --ffn 512 --expert-ffn 256 --experts 4 --vocab 320";
    await done("init", "scout", join(folder, "model"), ...sizes.split(" "), "--dtype", "f32");
  });
  afterAll(() => rmSync(folder, { recursive: true, force: true }));

  it.each(["f32", "f16", "bf16", "q8_0", "q4_0", "q4_k", "q6_k", "q4_k_m"])(
    "%s: native equals the dequantized model",
    async (type) => {
      const file = join(folder, `${type}.gguf`);
      await done("convert", join(folder, "model"), file, "--type", type);
      const logits = async (backend: string) => {
        const out = join(folder, `${type}-${backend}.safetensors`);
        await done("logits", "--model", file, "--tokens", prompt, "--backend", backend, "--out", out);
        return logitsOf(out);
      };
      const [native, reference] = [await logits("native"), await logits("reference")];
      expect(native.length).toBe(19 * 320);
      const worst = native.reduce((most, x, i) => Math.max(most, Math.abs(x - reference[i]!)), 0);
      expect(worst).toBeLessThan(2e-4);
      expect(reference.some((x) => Math.abs(x) > 1)).toBe(true); // not all of it is nothing
    },
  );
});

// The command line end to end: a published implementation's logits (tests/golden/README.md) from `llama4 logits`.

import { readFileSync } from "node:fs";
import { afterAll, describe, expect, it } from "vitest";
import { llama4 } from "./llama4.ts";
import { safetensors, temporaryPlace } from "./models.ts";

const place = temporaryPlace();
afterAll(() => place.remove());

describe("llama4 logits", () => {
  it.each(["scout", "maverick", "dense", "top-2", "tied", "chunk-16", "sharded", "meta-2", "fp8"])(
    "of the golden model %s are Hugging Face's to 2e-4, without a tokenizer",
    async (name) => {
      const folder = new URL(`../golden/llama4/${name}`, import.meta.url).pathname;
      const expected = JSON.parse(readFileSync(`${folder}/expected.json`, "utf8"));
      const out = place.at(`${name}.safetensors`);
      const ids = expected.input_ids.join(",");
      const { status, stderr } = await llama4(["logits", "--model", folder, "--tokens", ids, "--out", out]);
      expect(stderr).toBe("");
      expect(status).toBe(0);
      const logits = new Float32Array(safetensors(out).bytes("logits"));
      const rows: number[][] = expected.logits;
      expect(logits.length).toBe(rows.length * rows[0]!.length);
      const worst = Math.max(...rows.flat().map((x, i) => Math.abs(x - logits[i]!)));
      expect(worst).toBeLessThan(2e-4);
    },
  );
});

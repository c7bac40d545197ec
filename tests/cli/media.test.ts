// What the command line says of images and videos that it cannot show to a model.

import { writeFileSync } from "node:fs";
import sharp from "sharp";
import { afterAll, beforeAll, expect, it } from "vitest";
import { llama4, objectOf } from "./llama4.ts";
import { initTiny, temporaryPlace } from "./models.ts";

const place = temporaryPlace();
const image = place.at("grey.png");
let [blind, seer] = ["", ""];
beforeAll(async () => {
  const grey = sharp({ create: { width: 40, height: 30, channels: 3, background: "#777777" } });
  writeFileSync(image, await grey.png().toBuffer());
  blind = await initTiny(place.at("blind"));
  seer = await initTiny(place.at("seer"), "--vision", "on", "--vision-layers", "1", "--vision-dim", "32");
});
afterAll(() => place.remove());

const refused = async (...args: readonly string[]) => {
  const ended = await llama4([...args, "--json"]);
  expect(ended.status).toBe(2);
  return (objectOf(ended)["error"] as { message: string }).message;
};

it("options are named as they are here", async () => {
  const see = ["generate", "--model", seer, "--prompt", "x", "--image", image];
  expect(await refused(...see, "--max-pixels", "100")).toContain("expected at most 100 (--max-pixels)");
  expect(objectOf(await llama4([...see, "--max-pixels", "1200", "--max-tokens", "1", "--json"]))).toMatchObject({
    finishReason: "length",
  });
});

it("a model that reads text only refuses an image before its weights are read", async () => {
  for (const name of ["generate", "logits"]) {
    const args = [name, "--model", blind, "--prompt", "x", "--image", image, "--context", "1000000000"]; // does not load
    const more = name === "logits" ? ["--out", place.at("logits.safetensors")] : [];
    expect(await refused(...args, ...more)).toMatch(
      /an image for a model that reads text only; .* mmproj file, --mmproj/,
    );
  }
  expect((await llama4(["chat", "--model", blind, "--image", image], "hi")).status).toBe(2);
});

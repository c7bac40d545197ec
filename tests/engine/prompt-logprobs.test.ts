import { describe, expect, it } from "vitest";
import { promptLogprobs } from "../../src/engine/prompt-logprobs.ts";
import type { Generated } from "../../src/engine/requests.ts";
import { RequestError } from "../../src/tensor/errors.ts";
import { config, open, prompt } from "./random-model.ts";

const { vocabSize } = config;

describe("a prompt's log-probabilities", () => {
  it.each([3, 512])("are those with which its tokens are generated, in slices of %i", async (stepTokens) => {
    const said: Generated[] = [];
    const asked = { tokens: prompt(11), maxTokens: 20, sampling: { temperature: 0, logprobs: 3 } };
    for await (const piece of open().generate(asked)) said.push(piece);
    const all = [...prompt(11), ...said.map(({ token }) => token)];
    const told = await promptLogprobs(open({ stepTokens }), undefined, all, { vocabSize, top: 3 });
    expect(told.map(({ token }) => token)).toEqual(all);
    expect(told[0]).toMatchObject({ logprob: null, top: [] });
    const bare = ({ token, logprob }: { token: number; logprob: number | null }) => ({ token, logprob });
    expect(told.slice(11).map((of) => ({ ...bare(of), top: of.top.map(bare) }))).toEqual(
      said.map(({ token, logprob, top }) => ({ token, logprob, top })),
    );
  });

  it("are at most those of the likeliest, which come in order", async () => {
    const told = await promptLogprobs(open(), undefined, prompt(9), { vocabSize, top: 20 });
    for (const { logprob, top } of told.slice(1)) {
      const likeliest = top.map((of) => of.logprob);
      expect(likeliest).toEqual([...likeliest].sort((a, b) => b - a));
      expect(logprob).toBeLessThanOrEqual(likeliest[0]!);
    }
  });

  it("refuse a count that no place has", async () => {
    const asked = promptLogprobs(open(), undefined, prompt(3), { vocabSize, top: 21 });
    await expect(asked).rejects.toBeInstanceOf(RequestError);
  });
});

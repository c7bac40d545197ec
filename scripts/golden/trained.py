#!/usr/bin/env python3
"""Makes tests/golden/llama4/trained: a small model that `llama4 train` made, and what Hugging Face's own implementation
computes from it, past four chunks and the temperature's floor.

usage: python trained.py                          (see requirements.txt; after npm run build)
       python trained.py --check FOLDER LOGITS    any trained folder, also a multimodal one, against what `llama4 logits` wrote

The reference backend trains, so that the weights are the same everywhere. Loading must leave no tensor out and find none missing.
"""

import json
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from make import MARGIN, OUT, run, write_expected
from safetensors.torch import load_file
from transformers import AutoConfig, Llama4ForCausalLM, Llama4ForConditionalGeneration

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "model": {"depth": 4, "dim": 32, "heads": 2, "kvHeads": 1, "headDim": 16, "experts": 4, "expertFfn": 24, "ffn": 48, "chunk": 16,
              "moeStep": 2},
    "tokenizer": 320,
    "data": {"docs": "docs.jsonl"},
    "phases": [{"steps": 120, "mix": {"docs": 1}}],
    "context": 64, "batchTokens": 256,
    "optimizer": {"rate": 0.01}, "balance": {"by": "bias"}, "evaluate": {"every": 120}, "checkpoint": {"minutes": 60, "keep": 1},
    "seed": 6, "out": "run",
}
ANIMALS = ["cat", "dog", "ant", "owl", "fox", "hen"]
PLACES = ["garden", "house", "wood", "river", "field"]


def sentence(draw):
    one, two = draw.sample(ANIMALS, 2)
    return f"The {one} and the {two} met in the {draw.choice(PLACES)}; {draw.randint(2, 9)} of them went on."


def train(place):
    draw = random.Random(1)
    texts = [" ".join(sentence(draw) for _ in range(4)) for _ in range(80)]
    (place / "docs.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (place / "config.json").write_text(json.dumps(CONFIG))
    command = ["node", str(ROOT / "dist/cli/main.js"), "train", "--backend", "reference", "--config", str(place / "config.json")]
    subprocess.run(command, check=True)
    return place / "run" / "model"


def load(folder):
    kind = Llama4ForConditionalGeneration if AutoConfig.from_pretrained(folder).model_type == "llama4" else Llama4ForCausalLM
    model, info = kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    strays = {key: found for key, found in info.items() if found}
    assert not strays, strays
    return model.eval()


def make():
    with tempfile.TemporaryDirectory() as place:
        made = train(Path(place))
        folder = OUT / "trained"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(made, folder)
    model = load(folder)
    generator = torch.Generator().manual_seed(CONFIG["seed"])
    for _ in range(1000):
        ids = torch.randint(0, 288, (72,), generator=generator).tolist()
        hidden, logits, margin = run(model, ids)
        if margin > MARGIN:
            break
    write_expected(folder, CONFIG["seed"], ids, hidden, logits)
    print(f"trained: logits std {logits.std():.2f}, router margin {margin:.4f}")


@torch.no_grad()
def check(folder, file):
    ours = load_file(file)
    theirs = load(folder)(input_ids=ours["tokens"][None].long(), use_cache=False).logits[0]
    print(f"{len(theirs)} rows of logits up to {theirs.abs().max():.1f} differ by {(theirs - ours['logits']).abs().max():.1e}")


if __name__ == "__main__":
    check(*sys.argv[2:]) if sys.argv[1:2] == ["--check"] else make()

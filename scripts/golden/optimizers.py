#!/usr/bin/env python3
"""Makes tests/golden/optimizers.json: five steps of torch.optim.AdamW, and of torch.optim.Muon beside it, in float64.

usage: python optimizers.py        (see requirements.txt)

Weights and gradients come from a formula (`numbers`), so that only results are stored. Gradients are clipped by
torch.nn.utils.clip_grad_norm_; matrices decay, vectors do not; the rate changes from step to step. torch's Muon makes
matrices orthogonal in bfloat16; here it is kept from rounding, so that what is compared is the method.
"""

import json
from pathlib import Path

import torch

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "optimizers.json"
SHAPES = {"text.norm": [5], "text.layers.0.wq": [4, 6], "text.layers.0.wo": [6, 4], "text.output": [3, 4]}
RATES = [0.1, 0.2, 0.15, 0.05, 0.01]
OPTIONS = {"beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "decay": 0.1, "clip": 1.5}
MOMENTUM = 0.95


def numbers(seed, shape):
    """A linear congruential generator's highest bytes, as [-1, 1]."""
    n, x, values = torch.Size(shape).numel(), seed, []
    for _ in range(n):
        x = (1664525 * x + 1013904223) % 2**32
        values.append((x >> 24) / 127.5 - 1)
    return torch.tensor(values, dtype=torch.float64).reshape(shape)


def run(kind):
    weights = {name: torch.nn.Parameter(numbers(i + 1, shape)) for i, (name, shape) in enumerate(SHAPES.items())}
    muons = [w for name, w in weights.items() if kind == "muon" and name.startswith("text.layers.")]
    rest = [w for w in weights.values() if not any(w is m for m in muons)]
    adamw = dict(betas=(OPTIONS["beta1"], OPTIONS["beta2"]), eps=OPTIONS["eps"])
    optimizers = [torch.optim.AdamW([{"params": [w for w in rest if w.ndim > 1], "weight_decay": OPTIONS["decay"]},
                                     {"params": [w for w in rest if w.ndim == 1], "weight_decay": 0.0}], **adamw)]
    if muons:
        optimizers.append(torch.optim.Muon(muons, weight_decay=OPTIONS["decay"], momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw"))
    norms = []
    for step, rate in enumerate(RATES):
        for i, (name, w) in enumerate(weights.items()):
            w.grad = (0.1 if step == 3 else 1) * numbers(100 * (step + 1) + i, SHAPES[name])  # the fourth is not clipped
        norms.append(float(torch.nn.utils.clip_grad_norm_(list(weights.values()), OPTIONS["clip"])))
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
    return {"norms": norms, "weights": {name: w.detach().flatten().tolist() for name, w in weights.items()}}


if __name__ == "__main__":
    torch.Tensor.bfloat16 = lambda self: self
    golden = {"shapes": SHAPES, "rates": RATES, "options": OPTIONS, **{kind: run(kind) for kind in ("adamw", "muon")}}
    OUT.write_text(json.dumps(golden, indent=1) + "\n")
    print({kind: [round(n, 3) for n in golden[kind]["norms"]] for kind in ("adamw", "muon")})

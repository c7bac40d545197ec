#!/usr/bin/env python3
"""Makes tests/golden/adapter: low-rank adapters of golden models as PEFT writes them, and the logits with them.

usage: python adapter.py        (see requirements.txt, and peft)

On attention, shared and routed experts, and dense layers; every factor is random, none 0. `python adapter.py --check BASE
ADAPTER LOGITS.safetensors` has PEFT load an adapter that llama4 wrote, and compares with the logits that `llama4 logits` wrote.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
MODULES = r"(?:language_model\.)?model\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|feed_forward\.(?:shared_expert\.)?(?:gate|up|down)_proj)"
EXPERTS = ["feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"]

# name: (base model, rank, alpha, modules, parameters)
ADAPTERS = {
    "everything": ("maverick", 2, 3, MODULES, EXPERTS),
    "experts": ("scout", 3, 3, [], EXPERTS[:1]),
}


def base(folder):
    config = json.loads((folder / "config.json").read_text())
    if config["model_type"] == "llama4":
        return Llama4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    config["attn_temperature_tuning"] = bool(config["attn_temperature_tuning"])
    return Llama4ForCausalLM.from_pretrained(folder, config=Llama4TextConfig(**config), dtype=torch.float32, attn_implementation="eager")


@torch.no_grad()
def logits(model, ids):
    return model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]


@torch.no_grad()
def make(name):
    model_name, rank, alpha, modules, parameters = ADAPTERS[name]
    torch.manual_seed(7)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules, target_parameters=parameters, task_type="CAUSAL_LM")
    folder = GOLDEN / "llama4" / model_name
    ids = json.loads((folder / "expected.json").read_text())["input_ids"]
    plain = logits(base(folder), ids)
    model = get_peft_model(base(folder), config)
    for key, weight in model.named_parameters():
        if "lora_" in key:
            weight.copy_(0.3 * torch.randn(weight.shape))
    out = GOLDEN / "adapter" / name
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "README.md").unlink()
    saved = json.loads((out / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = f"../../llama4/{model_name}"
    (out / "adapter_config.json").write_text(json.dumps(saved, indent=2) + "\n")
    changed = logits(model, ids)
    again = logits(PeftModel.from_pretrained(base(folder), out), ids)
    merged = logits(PeftModel.from_pretrained(base(folder), out).merge_and_unload(), ids)
    moved = (changed - plain).abs().max().item()
    assert torch.equal(changed, again) and moved > 0.1, moved
    expected = dict(base=model_name, input_ids=ids, logits=[[round(v, 6) for v in row] for row in changed.tolist()])
    (out / "expected.json").write_text(json.dumps(expected) + "\n")
    print(f"{name}: moved by {moved:.3f}, merged differs by {(merged - changed).abs().max():.1e}")


def check(folder, adapter, file):
    ours = load_file(file)
    model = PeftModel.from_pretrained(base(Path(folder)), adapter)
    theirs = logits(model, ours["tokens"].tolist())
    plain = logits(base(Path(folder)), ours["tokens"].tolist())
    print(f"differs by {(theirs - ours['logits']).abs().max():.1e}; the adapter moved them by {(theirs - plain).abs().max():.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--check"]:
        check(*sys.argv[2:])
    else:
        for adapter in ADAPTERS:
            make(adapter)

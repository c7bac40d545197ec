#!/usr/bin/env python3
"""Computes golden folders again in float64 from the specification alone (no transformers) and prints the worst differences.

usage: python check.py [FOLDER]...     (without folders: all of tests/golden/llama4)
       python check.py --transformers [FOLDER]...     lets Hugging Face load the folders as they stand instead
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "llama4"


def read_config(folder):
    """One flat dictionary, whichever style the file has."""
    if (folder / "params.json").exists():
        p = json.loads((folder / "params.json").read_text())
        L, step = p["n_layers"], p["moe_args"]["interleave_moe_layer_step"]
        rope = {"rope_type": "llama3", "factor": p["rope_scaling_factor"], "low_freq_factor": 1, "high_freq_factor": p["rope_high_freq_factor"],
                "original_max_position_embeddings": 8192, "rope_theta": p["rope_theta"]}
        return dict(L=L, H=p["n_heads"], K=p["n_kv_heads"], d=p["dim"] // p["n_heads"], eps=p["norm_eps"], rope=rope, chunk=p["attention_chunk_size"],
                    is_rope=[(i + 1) % p["nope_layer_interval"] != 0 for i in range(L)], moe=[i for i in range(L) if (i + 1) % step == 0],
                    top_k=p["moe_args"]["top_k"], E=p["moe_args"]["num_experts"], qk_norm=p["use_qk_norm"],
                    temperature=(p["floor_scale"], p["attn_scale"]) if p["attn_temperature_tuning"] else None)
    c = json.loads((folder / "config.json").read_text())
    c = c.get("text_config", c)
    L = c["num_hidden_layers"]
    rope = c.get("rope_parameters") or {**(c["rope_scaling"] or {"rope_type": "default"}), "rope_theta": c["rope_theta"]}
    step = c["interleave_moe_layer_step"]
    is_rope = c.get("no_rope_layers") or [(i + 1) % c["no_rope_layer_interval"] != 0 for i in range(L)]
    moe = c["moe_layers"] if c.get("moe_layers") is not None else [i for i in range(L) if (i + 1) % step == 0]
    return dict(L=L, H=c["num_attention_heads"], K=c["num_key_value_heads"], d=c["head_dim"], eps=c["rms_norm_eps"], rope=rope, is_rope=is_rope,
                chunk=c["attention_chunk_size"], moe=moe, top_k=c["num_experts_per_tok"], E=c["num_local_experts"], qk_norm=c["use_qk_norm"],
                temperature=(c["floor_scale"], c["attn_scale"]) if c["attn_temperature_tuning"] else None)


def read_weights(folder, c):
    if (folder / "params.json").exists():
        return from_meta([torch.load(f, weights_only=True) for f in sorted(folder.glob("consolidated.*.pth"))], c)
    w = {}
    for file in sorted(folder.glob("*.safetensors")):
        w.update(load_file(file))
    return {k.removeprefix("language_model.").removeprefix("model."): v.double().numpy() for k, v in w.items()}


def from_meta(shards, c):
    """Meta's names and cuts back to Hugging Face's."""
    s = [{k: v.double().numpy() for k, v in shard.items()} for shard in shards]
    n, w = len(s), {}

    def whole(key, axis):
        return np.concatenate([x[key] for x in s], axis)

    w["embed_tokens.weight"], w["lm_head.weight"], w["norm.weight"] = whole("tok_embeddings.weight", 0), whole("output.weight", 0), s[0]["norm.weight"]
    for i in range(c["L"]):
        p = f"layers.{i}."
        f, h = p + "feed_forward.", p + "feed_forward."
        heads = [np.split(x[p + "attention.wqkv.weight"], np.cumsum([c["H"] // n * c["d"], c["K"] // n * c["d"]])) for x in s]
        for j, name in enumerate("qkv"):
            w[p + f"self_attn.{name}_proj.weight"] = np.concatenate([x[j] for x in heads])
        w[p + "self_attn.o_proj.weight"] = whole(p + "attention.wo.weight", 1)
        w[p + "input_layernorm.weight"] = s[0][p + "attention.wqkv.layer_norm_weight"]
        if i not in c["moe"]:
            w[p + "post_attention_layernorm.weight"] = s[0][f + "mlp.layer_norm_weight"]
            halves = [np.split(x[f + "mlp.fc1_weight"], 2) for x in s]
            w[h + "gate_proj.weight"], w[h + "up_proj.weight"] = (np.concatenate([x[j] for x in halves]) for j in (0, 1))
            w[h + "down_proj.weight"] = whole(f + "mlp.fc2_weight", 1)
            continue
        w[p + "post_attention_layernorm.weight"] = s[0][f + "norm.weight"]
        w[h + "router.weight"] = s[0][f + "router_DE"].T
        D = w["norm.weight"].size
        gate, up = (np.concatenate([x[f + f"experts.moe_w_{k}_eD_F"].reshape(c["E"], D, -1) for x in s], 2) for k in ("in", "swiglu"))
        w[h + "experts.gate_up_proj"] = np.concatenate([gate, up], 2)
        w[h + "experts.down_proj"] = np.concatenate([x[f + "experts.moe_w_out_eF_D"].reshape(c["E"], -1, D) for x in s], 1)
        for name, key, axis in (("gate", "w_in_shared_FD", 0), ("up", "w_swiglu_FD", 0), ("down", "w_out_shared_DF", 1)):
            w[h + f"shared_expert.{name}_proj.weight"] = whole(f + key + ".weight", axis)
    return w


def frequencies(d, rope):
    f = rope["rope_theta"] ** (-np.arange(0, d, 2) / d)
    if rope["rope_type"] == "default":
        return f
    wavelength, original = 2 * np.pi / f, rope["original_max_position_embeddings"]
    low, high, s = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    t = 0 if high == low else (original / wavelength - low) / (high - low)
    return np.where(wavelength < original / high, f, np.where(wavelength > original / low, f / s, (1 - t) * f / s + t * f))


def norm(x, eps, gain=1.0):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * gain


def swiglu(x, gate, up, down):
    g = x @ gate
    return (g / (1 + np.exp(-g)) * (x @ up)) @ down


def attention(x, w, c, i):
    T, H, K, d = len(x), c["H"], c["K"], c["d"]
    p = np.arange(T)
    q, k, v = ((x @ w[f"self_attn.{n}_proj.weight"].T).reshape(T, -1, d) for n in "qkv")
    visible = p[:, None] >= p
    if c["is_rope"][i]:
        turn = np.exp(1j * p[:, None] * frequencies(d, c["rope"]))[:, None]
        q, k = (((z[..., 0::2] + 1j * z[..., 1::2]) * turn).astype(complex).view(float).reshape(z.shape) for z in (q, k))
        if c["qk_norm"]:
            q, k = norm(q, c["eps"]), norm(k, c["eps"])
        visible &= p[:, None] // c["chunk"] == p // c["chunk"]
    elif c["temperature"]:
        floor, scale = c["temperature"]
        q = q * (1 + scale * np.log((p + 1) // floor + 1))[:, None, None]
    out = np.empty((T, H, d))
    for h in range(H):
        s = np.where(visible, q[:, h] @ k[:, h * K // H].T / d**0.5, -np.inf)
        a = np.exp(s - s.max(1, keepdims=True))
        out[:, h] = a / a.sum(1, keepdims=True) @ v[:, h * K // H]
    return out.reshape(T, -1) @ w["self_attn.o_proj.weight"].T


def feed_forward(x, w, c, i):
    if i not in c["moe"]:
        return swiglu(x, *(w[f"feed_forward.{n}_proj.weight"].T for n in ("gate", "up", "down")))
    y = swiglu(x, *(w[f"feed_forward.shared_expert.{n}_proj.weight"].T for n in ("gate", "up", "down")))
    r = x @ w["feed_forward.router.weight"].T
    for t, row in enumerate(r):
        for e in np.argsort(-row)[: c["top_k"]]:
            gate, up = np.split(w["feed_forward.experts.gate_up_proj"][e], 2, 1)
            y[t] += swiglu(x[t] / (1 + np.exp(-row[e])), gate, up, w["feed_forward.experts.down_proj"][e])
    return y


def compute(c, w, h):
    """Hidden states as expected.json counts them, and logits, of merged embeddings h [T, D]."""
    hidden = [h]
    for i in range(c["L"]):
        layer = {k.removeprefix(f"layers.{i}."): v for k, v in w.items() if k.startswith(f"layers.{i}.")}
        h = h + attention(norm(h, c["eps"], layer["input_layernorm.weight"]), layer, c, i)
        h = h + feed_forward(norm(h, c["eps"], layer["post_attention_layernorm.weight"]), layer, c, i)
        hidden.append(h)
    hidden[-1] = norm(h, c["eps"], w["norm.weight"])
    return hidden, hidden[-1] @ w.get("lm_head.weight", w["embed_tokens.weight"]).T


def spec(folder, expected):
    c = read_config(folder)
    w = read_weights(folder, c)
    h = w["embed_tokens.weight"][expected["input_ids"]]
    if "vision_adapter_output" in expected:  # tiny: the patches' rows are the projected adapter output
        patch = json.loads((folder / "config.json").read_text())["image_token_index"]
        rows = np.array(expected["vision_adapter_output"]).reshape(expected["vision_adapter_shape"])[0]
        h[np.array(expected["input_ids"]) == patch] = rows @ w["multi_modal_projector.linear_1.weight"].T
    worst = {}
    hidden, logits = compute(c, w, h)
    worst["hidden"] = max(np.abs(a[-1] - b).max() for a, b in zip(hidden, np.array(expected["hidden_after_layer"]), strict=True))
    worst["logits"] = np.abs(logits - expected["logits"]).max()
    if "text_only_ids" in expected:
        text = compute(c, w, w["embed_tokens.weight"][expected["text_only_ids"]])[1]
        worst["text only"] = np.abs(text - expected["text_only_logits"]).max()
    return worst


@torch.no_grad()
def transformers(folder, expected):
    from transformers import Llama4Config, Llama4ForCausalLM, Llama4ForConditionalGeneration, Llama4TextConfig

    if (folder / "params.json").exists():
        return {}
    c = json.loads((folder / "config.json").read_text())
    text = c.get("text_config", c)
    text["attn_temperature_tuning"] = bool(text["attn_temperature_tuning"])  # its validator rejects the 4 of older files
    if c["model_type"] == "llama4_text":
        load, config = Llama4ForCausalLM, Llama4TextConfig(**c)
    else:  # without a tower of its own it gets a small one
        small = dict(num_hidden_layers=1, hidden_size=16, intermediate_size=64, num_attention_heads=1, image_size=28,
                     vision_output_dim=8, projector_input_dim=8, projector_output_dim=8)
        load, config = Llama4ForConditionalGeneration, Llama4Config(**{"vision_config": small, **c})
    model, info = load.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    strays = [k for k in (*info["missing_keys"], *info["unexpected_keys"]) if "vision" not in k and "multi_modal" not in k]
    assert not strays, strays
    ids, logits = ("text_only_ids", "text_only_logits") if "text_only_ids" in expected else ("input_ids", "logits")
    got = model(input_ids=torch.tensor([expected[ids]]), use_cache=False).logits[0].numpy()
    return {logits: np.abs(got - expected[logits]).max()}


if __name__ == "__main__":
    arguments = [a for a in sys.argv[1:] if a != "--transformers"]
    check = transformers if len(arguments) < len(sys.argv[1:]) else spec
    for name in arguments or sorted(f for f in ROOT.iterdir() if f.is_dir()):
        worst = check(Path(name), json.loads((Path(name) / "expected.json").read_text()))
        print(f"{Path(name).name:15}", ", ".join(f"{k} {v:.1e}" for k, v in worst.items()))

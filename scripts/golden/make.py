#!/usr/bin/env python3
"""Makes tests/golden/llama4: small random Llama 4 models and what Hugging Face's own implementation computes from them.

usage: python make.py [NAME]...        (without names: all; see requirements.txt)

Float32, eager attention, one full pass without a cache. Weights are scaled so that a mistake moves the logits: their
standard deviation is 1 to 3, gains are random around 1, no router decision is closer than MARGIN, and each golden
names the mistakes (config changes) that must move its logits by at least MOVED.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Llama4ForCausalLM, Llama4TextConfig, logging

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "llama4"
MARGIN = 2e-3
MOVED = 1e-2

SCALED = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
          "original_max_position_embeddings": 64, "rope_theta": 500000.0}
LAUNCH = {**SCALED, "factor": 8.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 128, "rope_theta": 10000.0}
META = {**SCALED, "original_max_position_embeddings": 8192}
PLAIN = {"rope_type": "default", "rope_theta": 500000.0}

BASE = dict(
    vocab_size=48, hidden_size=32, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=1, head_dim=8,
    intermediate_size=8, intermediate_size_mlp=16, num_local_experts=3, num_experts_per_tok=1, interleave_moe_layer_step=2,
    attention_chunk_size=8, floor_scale=4, attn_scale=0.1, attn_temperature_tuning=True, use_qk_norm=True,
    rope_parameters=SCALED, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
)
DENSE = dict(moe_layers=[], interleave_moe_layer_step=0, num_local_experts=0)

# The mistakes a golden may catch: what a wrong reading of the config would compute instead.
NO_CHUNKS = dict(attention_chunk_size=8192)
NO_SCALING = dict(rope_parameters=PLAIN)
NO_TEMPERATURE = dict(attn_temperature_tuning=False)
NO_QK_NORM = dict(use_qk_norm=False)
ALL_ROPE = dict(no_rope_layers=[1] * 6)

# name: (config, what the folder looks like, mistakes that must show). Defaults: 27 tokens, f32, one file, new-style config.
GOLDENS = {
    "scout": (
        dict(num_hidden_layers=5, num_key_value_heads=2, num_local_experts=4, interleave_moe_layer_step=1, attention_chunk_size=16),
        dict(tokens=56), [NO_CHUNKS, NO_SCALING, NO_TEMPERATURE, NO_QK_NORM]),
    "maverick": (
        dict(num_hidden_layers=6, num_key_value_heads=2, num_local_experts=8, attention_chunk_size=16, use_qk_norm=False, rope_parameters=PLAIN),
        dict(tokens=56, style="old"), [NO_CHUNKS, NO_TEMPERATURE, dict(use_qk_norm=True)]),
    "dense": (DENSE, {}, [NO_CHUNKS, NO_TEMPERATURE, NO_QK_NORM]),
    "dense-rope": (
        dict(**DENSE, no_rope_layers=[1] * 4, attention_chunk_size=8192, attn_temperature_tuning=False, rope_parameters=PLAIN,
             tie_word_embeddings=True),
        {}, [NO_QK_NORM, dict(no_rope_layers=[1, 1, 1, 0]), dict(attention_chunk_size=8)]),
    "top-2": (dict(num_local_experts=4, num_experts_per_tok=2), {}, [dict(num_experts_per_tok=1)]),
    "tied": (dict(tie_word_embeddings=True), {}, [NO_CHUNKS]),
    "no-qk-norm": (dict(**DENSE, use_qk_norm=False), {}, [dict(use_qk_norm=True), NO_SCALING]),
    "no-temperature": (dict(**DENSE, attn_temperature_tuning=False), {}, [dict(attn_temperature_tuning=True)]),
    "chunk-16": (
        dict(**DENSE, num_hidden_layers=6, attention_chunk_size=16),
        dict(tokens=70), [NO_CHUNKS, dict(attention_chunk_size=17), ALL_ROPE]),
    "launch-scaling": (
        dict(**DENSE, rope_parameters=LAUNCH, head_dim=16, attention_chunk_size=24),
        dict(tokens=30, style="old"), [dict(rope_parameters={**LAUNCH, "high_freq_factor": 1.0}), dict(rope_parameters={**PLAIN, "rope_theta": 10000.0})]),
    "irregular": (
        dict(no_rope_layers=[0, 1, 1, 0, 1], moe_layers=[0, 3], num_hidden_layers=5, attn_scale=0.5, floor_scale=3),
        {}, [dict(no_rope_layers=[1, 1, 1, 0, 1]), dict(attn_scale=0.1), dict(floor_scale=4)]),
    "sharded": ({}, dict(shards=2, dtype=torch.bfloat16), []),
    "bf16": (dict(rope_parameters=META, num_key_value_heads=2, intermediate_size_mlp=24, num_local_experts=4),
             dict(dtype=torch.bfloat16), []),
    "f16": ({}, dict(dtype=torch.float16, style="old"), []),
    "nested": (dict(interleave_moe_layer_step=1), dict(style="nested"), []),
    "fp8": ({}, dict(style="nested", dtype=torch.bfloat16, fp8=True), []),
}

# As the published Maverick-FP8's config.json has it.
FP8 = {"quantization_config": {
    "quant_method": "compressed-tensors", "format": "float-quantized", "quantization_status": "compressed",
    "config_groups": {"group_0": {
        "targets": ["Linear"],
        "weights": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel", "dynamic": False},
        "input_activations": {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "token", "dynamic": True}}},
    "ignore": ["lm_head"]}}


def randomize(model, generator):
    """Norm gains 0.5 to 1.5, an embedding of unit variance, matrices that keep it (times a factor, so that every part speaks)."""
    gain = {"embed_tokens": 2 if model.config.tie_word_embeddings else 1, "q_proj": 1.6, "k_proj": 1.6, "router": 1.5, "lm_head": 2}
    for name, p in model.named_parameters():
        if p.ndim == 1:
            p.data = 0.5 + torch.rand(p.shape, generator=generator)
            continue
        lookup_only = "embed_tokens" in name and not model.config.tie_word_embeddings
        inputs = 1 if lookup_only else p.shape[1]  # [out, in]; experts [E, in, out]
        g = next((g for part, g in gain.items() if part in name), 1.4)
        p.data = torch.randn(p.shape, generator=generator) * g / inputs**0.5


def build(config, weights=None):
    c = Llama4TextConfig(**{**config, "num_local_experts": max(1, config["num_local_experts"])}, attn_implementation="eager")
    model = Llama4ForCausalLM(c).eval()
    assert model.config._attn_implementation == "eager"
    if weights is not None:
        model.load_state_dict(weights)
    return model


@torch.no_grad()
def run(model, ids):
    """(hidden states [L + 1][T, D]: embedding, then after each layer, the last one after the final norm; logits [T, V]; router margin)"""
    margins = [torch.tensor(torch.inf)]

    def watch(router, _inputs, output):
        top = torch.topk(output[1], router.top_k + 1, dim=1).values
        margins.append((top[:, -2] - top[:, -1]).min())

    hooks = [m.register_forward_hook(watch) for m in model.modules() if type(m).__name__ == "Llama4Router"]
    out = model(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    return [h[0] for h in out.hidden_states], out.logits[0], float(min(margins))


def to_fp8(weight, scale_dtype):
    """[out, in] as compressed-tensors stores it: 8-bit floats and, for each row, a factor that makes its largest 448; and what they stand for."""
    scale = (weight.abs().amax(1, keepdim=True) / 448).to(scale_dtype)
    codes = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return codes, scale, (codes.to(scale_dtype) * scale).float()


def quantize_fp8(model):
    """Routed experts, and one matrix with float32 factors, become what their 8-bit floats stand for. Returns what is stored in their stead, by name."""
    stored, gone = {}, []
    for name, p in list(model.named_parameters()):
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):  # fused [E, in, out]; stored unfused, [out, in]
            gone.append(name)
            prefix, halves = name.rsplit(".", 1)[0], ["gate", "up"] if "gate_up" in name else ["down"]
            for e in range(p.shape[0]):
                parts = []
                for half, w in zip(halves, p.data[e].T.chunk(len(halves), 0)):
                    key = f"{prefix}.{e}.{half}_proj.weight"
                    stored[key], stored[key + "_scale"], value = to_fp8(w, torch.bfloat16)
                    parts.append(value)
                p.data[e] = torch.cat(parts).T
        elif name.endswith("1.self_attn.o_proj.weight"):
            gone.append(name)
            stored[name], stored[name + "_scale"], p.data = to_fp8(p.data, torch.float32)
    return stored, gone


def config_json(config, style, dtype):
    """The config as files in the wild spell it: today's; `old` (rope_theta + rope_scaling, lists left to be derived); `nested` (llama4, old)."""
    c = build(config).config.to_dict()
    for key in ("_name_or_path", "transformers_version", "attn_implementation", "chunk_size_feed_forward", "is_encoder_decoder",
                "output_attentions", "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id", "architectures"):
        c.pop(key, None)
    c = {"architectures": ["Llama4ForCausalLM"], **c, "num_local_experts": config["num_local_experts"], "dtype": str(dtype).removeprefix("torch.")}
    if style == "new":
        return c
    rope = dict(c.pop("rope_parameters"))
    c["rope_theta"] = rope.pop("rope_theta")
    c["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    c["torch_dtype"] = c.pop("dtype")
    c.pop("layer_types")
    if c["moe_layers"]:
        c.pop("moe_layers")
    c["no_rope_layers"] = []
    if style == "nested":
        c.pop("architectures")
        c["attn_temperature_tuning"] = 4  # as the first published files have it
        return {"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4", "tie_word_embeddings": False,
                "boi_token_index": 45, "eoi_token_index": 46, "image_token_index": 47, "torch_dtype": c["torch_dtype"], "text_config": c}
    return c


def rows(tensor):
    return "[\n" + ",\n".join("[" + ",".join(f"{x:.5f}" for x in row) + "]" for row in tensor.tolist()) + "\n]"


def write_expected(folder, seed, ids, hidden, logits):
    last = torch.stack([h[-1] for h in hidden])
    (folder / "expected.json").write_text(
        f'{{"seed":{seed},"input_ids":{json.dumps(ids, separators=(",", ":"))},\n'
        f'"hidden_after_layer":{rows(last)},\n"logits":{rows(logits)}}}\n')


def write_weights(folder, weights, shards):
    weights = {k: v.contiguous() for k, v in weights.items()}
    if shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(weights)
    cut = [names[i * len(names) // shards:(i + 1) * len(names) // shards] for i in range(shards)]
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}, "weight_map": {}}
    for i, part in enumerate(cut):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        save_file({n: weights[n] for n in part}, folder / file, metadata={"format": "pt"})
        index["weight_map"].update(dict.fromkeys(part, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make(name):
    changes, files, mistakes = GOLDENS[name]
    config = {**BASE, **changes}
    dtype, style, shards = files.get("dtype", torch.float32), files.get("style", "new"), files.get("shards", 1)
    for seed in range(1, 100):
        generator = torch.Generator().manual_seed(seed)
        model = build(config)
        randomize(model, generator)
        for p in model.parameters():  # the truth is what float32 computes from the stored weights; buffers (frequencies) stay float32
            p.data = p.data.to(dtype).float()
        quantized, gone = quantize_fp8(model) if files.get("fp8") else ({}, [])
        ids = torch.randint(2, 48, (files.get("tokens", 27),), generator=generator).tolist()
        hidden, logits, margin = run(model, ids)
        if margin > MARGIN:
            break
    weights = dict(model.state_dict())
    moved = [float((run(build({**config, **m}, weights), ids)[1] - logits).abs().max()) for m in mistakes]
    assert all(m > MOVED for m in moved), (name, moved)
    assert 0.7 < float(logits.std()) < 4, (name, logits.std())

    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    stored = {**{k: v.to(dtype) for k, v in weights.items() if k not in gone}, **quantized}
    if config["tie_word_embeddings"]:
        del stored["lm_head.weight"]
    if style == "nested":
        stored = {"language_model." + k: v for k, v in stored.items()}
    write_weights(folder, stored, shards)
    (folder / "config.json").write_text(json.dumps({**config_json(config, style, dtype), **(FP8 if quantized else {})}, indent=2) + "\n")
    write_expected(folder, seed, ids, hidden, logits)
    print(f"{name:15} seed {seed:2} {len(ids)} tokens, logits std {logits.std():.2f}, router margin {margin:.4f}, mistakes move", [round(m, 3) for m in moved])
    if name == "bf16":
        for mp in (1, 2):
            make_meta(OUT / f"meta-{mp}", mp, config, weights, dtype)
            write_expected(OUT / f"meta-{mp}", seed, ids, hidden, logits)


def make_meta(folder, mp, config, weights, dtype):
    """The weights of golden bf16 under Meta's names, cut for `mp` model-parallel ranks, with the leftovers that Meta's files carry."""
    folder.mkdir(parents=True, exist_ok=True)
    D, F, E = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    w = {k.removeprefix("model."): v.to(dtype) for k, v in weights.items()}
    for rank in range(mp):
        def part(x, dim):
            return x.chunk(mp, dim)[rank].contiguous().clone()

        s = {"tok_embeddings.weight": part(w["embed_tokens.weight"], 0), "output.weight": part(w["lm_head.weight"], 0),
             "norm.weight": w["norm.weight"].clone(), "rope.freqs": torch.zeros(config["head_dim"] // 2)}
        for i in range(config["num_hidden_layers"]):
            hf, meta = f"layers.{i}.", f"layers.{i}."
            a, f = hf + "self_attn.", hf + "feed_forward."
            s[meta + "attention.wqkv.weight"] = torch.cat([part(w[a + f"{x}_proj.weight"], 0) for x in "qkv"])
            s[meta + "attention.wqkv.layer_norm_weight"] = w[hf + "input_layernorm.weight"].clone()
            s[meta + "attention.wqkv._extra_state"] = torch.zeros(5, dtype=torch.uint8)
            s[meta + "attention.wo.weight"] = part(w[a + "o_proj.weight"], 1)
            m = meta + "feed_forward."
            norm = w[hf + "post_attention_layernorm.weight"].clone()
            if f + "router.weight" not in w:
                s[m + "mlp.layer_norm_weight"] = norm
                s[m + "mlp.fc1_weight"] = torch.cat([part(w[f + f"{x}_proj.weight"], 0) for x in ("gate", "up")])
                s[m + "mlp.fc2_weight"] = part(w[f + "down_proj.weight"], 1)
                continue
            gate, up = w[f + "experts.gate_up_proj"].chunk(2, 2)  # [E, D, F]
            s[m + "norm.weight"] = norm
            s[m + "router_DE"] = w[f + "router.weight"].T.contiguous()
            s[m + "experts.moe_w_in_eD_F"] = part(gate, 2).reshape(E * D, F // mp)
            s[m + "experts.moe_w_swiglu_eD_F"] = part(up, 2).reshape(E * D, F // mp)
            s[m + "experts.moe_w_out_eF_D"] = part(w[f + "experts.down_proj"], 1).reshape(E * F // mp, D)
            s[m + "w_in_shared_FD.weight"] = part(w[f + "shared_expert.gate_proj.weight"], 0)
            s[m + "w_swiglu_FD.weight"] = part(w[f + "shared_expert.up_proj.weight"], 0)
            s[m + "w_out_shared_DF.weight"] = part(w[f + "shared_expert.down_proj.weight"], 1)
            s[m + "running_gate_stats_3E"] = torch.zeros(3, E)
            s[m + "global_gate_stats_3E"] = torch.zeros(3, E)
            s[m + "expert_activation_DE"] = torch.zeros(D, E, dtype=dtype)
        torch.save(s, folder / f"consolidated.{rank:02}.pth")
    # Meta's files do not state the widths: int(2/3 * 4 * dim) = 85, * 0.2 = 17 -> 24 dense; 17 / (1 + capacity_factor) = 8 -> 8 expert.
    params = {"dim": D, "n_layers": config["num_hidden_layers"], "n_heads": config["num_attention_heads"], "n_kv_heads": config["num_key_value_heads"],
              "vocab_size": config["vocab_size"], "ffn_exp": 4.0, "ffn_dim_multiplier": 0.2, "multiple_of": 8, "norm_eps": 1e-5,
              "rope_theta": 500000.0, "use_scaled_rope": True, "rope_scaling_factor": 16.0, "rope_high_freq_factor": 1.0,
              "nope_layer_interval": 4, "use_qk_norm": True, "attention_chunk_size": config["attention_chunk_size"],
              "attn_temperature_tuning": True, "floor_scale": config["floor_scale"], "attn_scale": config["attn_scale"],
              "moe_args": {"num_experts": E, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1, "interleave_moe_layer_step": 2}}
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()  # it warns that high_freq_factor equals low_freq_factor, as Scout's do
    for golden in sys.argv[1:] or GOLDENS:
        make(golden)

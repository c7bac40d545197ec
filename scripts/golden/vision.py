#!/usr/bin/env python3
"""Makes tests/golden/vision: small random multimodal models and what Hugging Face's own implementation computes from
them with 0, 1, 2 and 5 images in the prompt.

usage: python vision.py [NAME]...        (without names: all; see requirements.txt)

As make.py: float32, eager attention, one pass, weights scaled so that a mistake moves the logits. Pixels come from a
formula (`pixels`), so that no image is stored. Each golden names the mistakes that must move its logits.
"""

import json
import sys
from pathlib import Path
from types import ModuleType

# torchvision's registrations for tracing fail beside a torch for CPUs alone, and nothing here traces.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch
from make import BASE, MARGIN, META, MOVED, SCALED, make_meta, randomize, rows, write_weights
from transformers import Llama4Config, Llama4ForConditionalGeneration, logging

OUT = Path(__file__).resolve().parents[2] / "tests" / "golden" / "vision"
BOI, EOI, IMAGE, SEPARATOR_X, SEPARATOR_Y, PATCH = range(58, 64)
TEXT = {**BASE, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1}
# Rows × columns of tiles, image by image.
CASES = [[], [(1, 1)], [(2, 1), (1, 1)], [(1, 1), (1, 2), (1, 1), (3, 1), (1, 1)]]

# name: (text config, vision config, dtype of the stored weights)
GOLDENS = {
    # 6 × 6 patches, an odd number of rows a tile; d = 16
    "scout": (
        dict(num_key_value_heads=2, interleave_moe_layer_step=1, attention_chunk_size=16, rope_parameters=SCALED),
        dict(hidden_size=32, num_attention_heads=2, num_hidden_layers=2, intermediate_size=128, image_size=42, patch_size=7,
             pixel_shuffle_ratio=0.5, vision_output_dim=24, projector_input_dim=24, projector_output_dim=24),
        torch.float32),
    # 8 × 8 patches, 4 × 4 of them a row; d = 12
    "maverick": (
        dict(num_key_value_heads=2, rope_parameters=META, intermediate_size_mlp=24, num_local_experts=4, use_qk_norm=True),
        dict(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=384, image_size=56, patch_size=7,
             pixel_shuffle_ratio=0.25, vision_output_dim=20, projector_input_dim=20, projector_output_dim=20),
        torch.bfloat16),
}


def pixels(seed, shape):
    """Bytes of a linear congruential generator, highest first, as [-1, 1]."""
    n, x, values = torch.Size(shape).numel(), seed, []
    for _ in range(n):
        x = (1664525 * x + 1013904223) % 2**32
        values.append((x >> 24) / 127.5 - 1)
    return torch.tensor(values, dtype=torch.float32).reshape(shape)


def n_tiles(rows, columns):
    return rows * columns + 1 if rows * columns > 1 else 1  # and the global tile


def image_tokens(rows, columns, patches):
    """Specification §8.4."""
    patch = [PATCH] * patches
    if rows * columns == 1:
        return [BOI, IMAGE, *patch, EOI]
    row = patch + (columns - 1) * [SEPARATOR_X, *patch] + [SEPARATOR_Y]
    return [BOI, *(rows * row), IMAGE, *patch, EOI]


def build(text, vision):
    c = Llama4Config(text_config=text, vision_config=vision, boi_token_index=BOI, eoi_token_index=EOI, image_token_index=PATCH)
    for part in (c, c.text_config, c.vision_config):
        part._attn_implementation = "eager"
    return Llama4ForConditionalGeneration(c).eval()


def randomize_vision(model, generator):
    for name, p in [*model.vision_model.named_parameters(), *model.multi_modal_projector.named_parameters()]:
        noise = torch.randn(p.shape, generator=generator)
        if name.endswith("bias") or "embedding" in name and "linear" not in name:
            p.data = 0.4 * noise
        elif p.ndim == 1:
            p.data = 0.5 + torch.rand(p.shape, generator=generator)
        else:
            p.data = noise * (1.8 if "q_proj" in name or "k_proj" in name else 1.4) / p.shape[1] ** 0.5


@torch.no_grad()
def run(model, ids, tiles):
    """(parts of the encoder by name; logits [T, V]; router margin)"""
    parts, margins = {}, [torch.tensor(torch.inf)]

    def keep(name):
        return lambda _module, _inputs, output: parts.update({name: output[0] if isinstance(output, tuple) else output})

    def watch(router, _inputs, output):
        top = torch.topk(output[1], router.top_k + 1, dim=1).values
        margins.append((top[:, -2] - top[:, -1]).min())

    hooks = [m.register_forward_hook(watch) for m in model.modules() if type(m).__name__ == "Llama4Router"]
    vision = model.vision_model
    named = [vision.layernorm_pre, *vision.model.layers, vision.vision_adapter, model.multi_modal_projector]
    hooks += [m.register_forward_hook(keep(i)) for i, m in enumerate(named)]
    out = model(input_ids=torch.tensor([ids]), pixel_values=tiles, use_cache=False)
    for hook in hooks:
        hook.remove()
    return parts, out.logits[0], float(min(margins))


def swap_axes(model):
    f = model.vision_model.rotary_embedding.freqs_ci
    x, y = f.chunk(2, -1)
    model.vision_model.rotary_embedding.freqs_ci = torch.cat([y, x], -1)


def one_gelu(model):
    mlp = model.vision_model.vision_adapter.mlp
    fc2 = mlp.fc2
    mlp.forward = lambda x: fc2(mlp.activation_fn(mlp.fc1(x)))


def class_first(model):
    p = model.vision_model.positional_embedding_vlm
    p.data = p.data.roll(1, 0)


def transposed_patches(model):
    p, side = model.vision_model.patch_embedding.linear.weight, model.config.vision_config.patch_size
    p.data = p.data.reshape(len(p), 3, side, side).transpose(2, 3).reshape(len(p), -1)


MISTAKES = [swap_axes, one_gelu, class_first, transposed_patches]


def make(name):
    text, vision, dtype = GOLDENS[name]
    text = {**TEXT, **text}
    side, patches = vision["image_size"], round((vision["image_size"] / vision["patch_size"] * vision["pixel_shuffle_ratio"]) ** 2)
    for seed in range(1, 100):
        generator = torch.Generator().manual_seed(seed)
        model = build(text, vision)
        randomize(model.language_model, generator)
        randomize_vision(model, generator)
        for p in model.parameters():
            p.data = p.data.to(dtype).float()
        cases = []
        for images in CASES:
            ids = [0, *torch.randint(2, 58, (5,), generator=generator).tolist()]
            for image in images:
                ids += image_tokens(*image, patches) + torch.randint(2, 58, (3,), generator=generator).tolist()
            N = sum(n_tiles(*image) for image in images)
            tiles = pixels(1000 + len(images), (N, 3, side, side)) if N else None
            cases.append((images, ids, tiles, *run(model, ids, tiles)))
        if min(case[-1] for case in cases) > MARGIN:
            break
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    moved = []
    for mistake in MISTAKES:
        wrong = build(text, vision)
        wrong.load_state_dict(weights)
        mistake(wrong)
        _, ids, tiles, _, logits, _ = cases[2]
        moved.append(float((run(wrong, ids, tiles)[1] - logits).abs().max()))
    assert all(m > MOVED for m in moved), (name, moved)

    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder, {k: v.to(dtype) for k, v in weights.items()}, 1)
    c = model.config.to_dict()
    config = {"architectures": ["Llama4ForConditionalGeneration"], **{k: c[k] for k in ("model_type", "boi_token_index", "eoi_token_index", "image_token_index",
              "tie_word_embeddings")}, "dtype": str(dtype).removeprefix("torch."), "text_config": slim(c["text_config"]), "vision_config": slim(c["vision_config"])}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_expected(folder, seed, cases)
    print(f"{name:10} seed {seed}, logits std {cases[2][4].std():.2f}, mistakes move", [round(m, 3) for m in moved])
    if name == "maverick":
        meta(text, vision, weights, dtype, seed, cases)


def slim(c):
    return {k: v for k, v in c.items() if k not in ("_name_or_path", "transformers_version", "attn_implementation", "chunk_size_feed_forward", "is_encoder_decoder",
            "output_attentions", "output_hidden_states", "return_dict", "problem_type", "id2label", "label2id", "architectures", "dtype")}


def write_expected(folder, seed, cases):
    def shown(case):
        images, ids, tiles, parts, logits, _ = case
        wanted = list(range(len(ids))) if len(images) < 3 else list(range(7, len(ids), 8)) + [len(ids) - 1]
        encoder = f',\n"parts":[{",".join(rows(parts[i].flatten(0, -2)) for i in sorted(parts))}]' if len(images) == 1 else ""
        return (f'{{"images":{json.dumps(images)},"tiles":{0 if tiles is None else len(tiles)},\n"input_ids":{json.dumps(ids, separators=(",", ":"))},\n'
                f'"wanted":{json.dumps(wanted, separators=(",", ":"))},\n"logits":{rows(logits[wanted])}{encoder}}}')

    (folder / "expected.json").write_text(f'{{"seed":{seed},"cases":[\n' + ",\n".join(map(shown, cases)) + "]}\n")


def meta(text, vision, weights, dtype, seed, cases, mp=2):
    """The same weights under Meta's names, cut for two model-parallel ranks (specification §13)."""
    folder = OUT / "meta-2"
    language = {k.removeprefix("language_model."): v for k, v in weights.items() if k.startswith("language_model.")}
    make_meta(folder, mp, text, language, dtype)
    e = "vision_embeddings.vision_encoder."
    names = {"vision_model.patch_embedding.linear": (e + "conv1._linear", 0), "vision_model.class_embedding": (e + "class_embedding", None),
             "vision_model.positional_embedding_vlm": (e + "positional_embedding_vlm", None), "vision_model.layernorm_pre": (e + "ln_pre", None),
             "vision_model.layernorm_post": (e + "ln_post", None), "vision_model.vision_adapter.mlp.fc1": ("vision_embeddings.vision_adapter.mlp.c_fc", 0),
             "vision_model.vision_adapter.mlp.fc2": ("vision_embeddings.vision_adapter.mlp.c_proj", 1), "multi_modal_projector.linear_1": ("vision_projection", 0)}
    for j in range(vision["num_hidden_layers"]):
        hf, to = f"vision_model.model.layers.{j}.", e + f"transformer.resblocks.{j}."
        names |= {hf + "input_layernorm": (to + "ln_1", None), hf + "post_attention_layernorm": (to + "ln_2", None), hf + "mlp.fc1": (to + "mlp.c_fc", 0),
                  hf + "mlp.fc2": (to + "mlp.c_proj", 1), **{hf + f"self_attn.{x}_proj": (to + f"attn.w{x}", 1 if x == "o" else 0) for x in "qkvo"}}
    for rank in range(mp):
        file = folder / f"consolidated.{rank:02}.pth"
        shard = torch.load(file, weights_only=True)
        for key, value in weights.items():
            if key.startswith("language_model."):
                continue
            name, kind = (key, "") if key in names else key.rsplit(".", 1)
            to, dim = names[name]
            whole = dim is None or kind == "bias" and dim == 1
            shard[to + (kind and "." + kind)] = (value if whole else value.chunk(mp, dim)[rank]).to(dtype).contiguous().clone()
        torch.save(shard, file)
    params = json.loads((folder / "params.json").read_text())
    side, patch = vision["image_size"], vision["patch_size"]
    params["vision_args"] = {"image_size": {"height": side, "width": side}, "patch_size": {"height": patch, "width": patch}, "dim": vision["hidden_size"],
                             "n_layers": vision["num_hidden_layers"], "n_heads": vision["num_attention_heads"], "mlp_ratio": vision["intermediate_size"] / vision["hidden_size"],
                             "output_dim": vision["vision_output_dim"], "pixel_shuffle_ratio": vision["pixel_shuffle_ratio"]}
    (folder / "params.json").write_text(json.dumps(params, indent=2) + "\n")
    write_expected(folder, seed, cases[2:3])


if __name__ == "__main__":
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    for golden in sys.argv[1:] or GOLDENS:
        make(golden)

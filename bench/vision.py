"""Hugging Face's vision encoder of Llama 4 at its full width, random weights: what bench/vision.ts runs beside ours.

usage: python vision.py TILES LAYERS THREADS      (torch and transformers as in scripts/golden/requirements.txt)

Reads a dtype a line ("bf16" or "f32") from stdin, encodes once, prints the seconds.
"""

import sys
import time
from types import ModuleType

# torchvision's registrations for tracing fail beside a torch for CPUs alone, and nothing here traces.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch
from transformers import Llama4VisionConfig, Llama4VisionModel

tiles, layers, threads = map(int, sys.argv[1:])
torch.set_num_threads(threads)
config = Llama4VisionConfig(hidden_size=1408, num_hidden_layers=layers, num_attention_heads=16, intermediate_size=5632, image_size=336, patch_size=14,
                            vision_output_dim=4096, projector_input_dim=4096, projector_output_dim=4096)
config._attn_implementation = "sdpa"
models = {}


def build(dtype):
    with torch.device("meta"):  # without the time that its own initialisation takes
        model = Llama4VisionModel(config).to(dtype).eval()
    model.to_empty(device="cpu")
    for p in model.parameters():
        p.data.uniform_(-0.02, 0.02)
    model.rotary_embedding.freqs_ci = model.rotary_embedding._compute_freqs_ci(config)
    return model


def run(name):
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[name]
    if name not in models:
        models.clear()
        models[name] = build(dtype)
    pixels = torch.rand(tiles, 3, 336, 336).to(dtype) * 2 - 1
    start = time.perf_counter()
    with torch.inference_mode():
        models[name](pixels).last_hidden_state
    return time.perf_counter() - start


for line in sys.stdin:
    print(run(line.strip()), flush=True)

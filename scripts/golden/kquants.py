"""Writes tests/golden/gguf/kquants_llama_cpp.json: rows of numbers and the Q4_K, Q5_K and Q6_K blocks that llama.cpp's
own quantizer makes of them without importance data.

    npm pack @node-llama-cpp/linux-x64@3.22.1 && tar xzf node-llama-cpp-linux-x64-3.22.1.tgz
    python3 kquants.py package/bins/linux-x64/libggml-base.so

Needs numpy; tests need only the file. The numbers are rounded to bfloat16, as checkpoints hold them.
"""

import base64
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

SEED = 4
BLOCKS = 8  # of 256, for each row
TYPES = {"q4_k": (12, 144), "q5_k": (13, 176), "q6_k": (14, 210)}


def rows(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    normal = rng.standard_normal(n) * 0.02
    sub_block = np.arange(n) // 32
    outlier = rng.standard_normal(n) * 0.02
    outlier[7::256] = 1
    return {
        "normal": normal,
        "uniform": rng.uniform(-1, 1, n),
        "heavy-tailed": rng.standard_t(3, n) * 0.02,
        "positive": 1 + 0.5 * np.abs(rng.standard_normal(n)),
        "scales that vary by sub-block": rng.standard_normal(n) * 0.02 * np.exp((sub_block % 7 - 3) * 0.5),
        "one outlier a block": outlier,
    }


def to_bf16(x: np.ndarray) -> np.ndarray:
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def main() -> None:
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    n = 256 * BLOCKS
    cases = []
    for name, x in rows(np.random.default_rng(SEED), n).items():
        bf16 = to_bf16(x)
        f32 = np.ascontiguousarray((bf16.astype(np.uint32) << 16).view(np.float32))
        case = {"name": name, "bf16": base64.b64encode(bf16.tobytes()).decode()}
        for dtype, (ggml_type, block_bytes) in TYPES.items():
            out = np.zeros(BLOCKS * block_bytes, np.uint8)
            pointers = [ctypes.c_void_p(a.ctypes.data) for a in (f32, out)]
            written = ggml.ggml_quantize_chunk(
                ggml_type, *pointers, ctypes.c_int64(0), ctypes.c_int64(1), ctypes.c_int64(n), None
            )
            assert written == out.size
            case[dtype] = base64.b64encode(out.tobytes()).decode()
        cases.append(case)
    out = Path(__file__).parents[2] / "tests/golden/gguf/kquants_llama_cpp.json"
    note = "Made by scripts/golden/kquants.py with libggml-base.so of @node-llama-cpp/linux-x64 3.22.1 (llama.cpp, MIT)."
    out.write_text(json.dumps({"note": note, "seed": SEED, "cases": cases}, indent=1) + "\n")


main()

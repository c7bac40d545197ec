#!/usr/bin/env python3
"""Writes tests/golden/gguf/quantize_reference.json: how well llama.cpp quantizes numbers that anyone can make again bit for bit.

usage: python quantize_reference.py LIBGGML_BASE      (libggml-base.so as llama_cpp.md builds it, or as kquants.py unpacks it)

No importance data. Q8_0 and Q4_0 come with their bytes, which every writer must equal; for the k-quants, whose search is free,
the root mean square error is the figure to reach.
"""

import base64
import ctypes
import json
import sys
from pathlib import Path

import numpy as np

TYPES = {"q4_0": (2, 32, 18), "q8_0": (8, 32, 34), "q4_k": (12, 256, 144), "q5_k": (13, 256, 176), "q6_k": (14, 256, 210)}
N = 2048
NOTE = (
    "state = seed; u(): state = (1664525 * state + 1013904223) mod 2^32, gives state / 2^32. g(): u() twelve times, added in order, less 6. "
    "x[0..2047] in order, in float64, then rounded to float32: gaussian g() * 0.02; heavy-tailed t * t * t * 0.01 with t = g(); "
    "uniform (u() - 0.5) * 0.2; outliers g() * 0.02, times 50 where i mod 97 = 13. "
    "rmse: sqrt(mean((dequantized - x)^2)) in float64. Made by scripts/golden/quantize_reference.py with llama.cpp de3ff81 (MIT)."
)


def numbers(name, seed):
    def u():
        nonlocal seed
        seed = (1664525 * seed + 1013904223) % 2**32
        return seed / 2**32

    def g():
        total = 0.0
        for _ in range(12):  # sum() would compensate
            total += u()
        return total - 6

    def one(i):
        if name == "uniform":
            return (u() - 0.5) * 0.2
        t = g()
        if name == "heavy-tailed":
            return t * t * t * 0.01
        return t * 0.02 * 50 if name == "outliers" and i % 97 == 13 else t * 0.02

    return np.array([one(i) for i in range(N)]).astype(np.float32)


def pointer(array):
    return ctypes.c_void_p(array.ctypes.data)


def main():
    ggml = ctypes.CDLL(sys.argv[1])
    ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
    cases = []
    for seed, name in enumerate(("gaussian", "heavy-tailed", "uniform", "outliers"), 1):
        x = numbers(name, seed)
        case = {"name": name, "seed": seed, "first": x[:4].astype(float).tolist(), "rmse": {}}
        for dtype, (ggml_type, elements, size) in TYPES.items():
            blocks, back = np.zeros(N // elements * size, np.uint8), np.zeros(N, np.float32)
            written = ggml.ggml_quantize_chunk(ggml_type, pointer(x), pointer(blocks), ctypes.c_int64(0), ctypes.c_int64(1), ctypes.c_int64(N), None)
            assert written == blocks.size
            getattr(ggml, f"dequantize_row_{dtype.replace('k', 'K')}")(pointer(blocks), pointer(back), ctypes.c_int64(N))
            case["rmse"][dtype] = float(np.sqrt(np.mean((back.astype(float) - x) ** 2)))
            if elements == 32:
                case[dtype] = base64.b64encode(blocks.tobytes()).decode()
        cases.append(case)
    out = Path(__file__).resolve().parents[2] / "tests" / "golden" / "gguf" / "quantize_reference.json"
    out.write_text(json.dumps({"note": NOTE, "cases": cases}, indent=1) + "\n")


main()

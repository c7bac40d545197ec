"""Tiles and tokens of images of many sizes, by Pillow and by Hugging Face's processor.

    python scripts/golden/preprocess.py > tests/golden/llama4/preprocess_sizes.json

Needs transformers, torch, torchvision and Pillow (requirements.txt). Pixel c of (x, y) is made of integers, the same
here and in tests/prompt/image.test.ts, so that no image has to be kept.
"""

import hashlib
import json
import sys
import types

# The CPU build of torch lacks operators that torchvision would register shapes for; none of them is used here.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("torchvision._meta_registrations")

import numpy as np
import torch
from PIL import Image
from transformers.models.llama4 import image_processing_llama4
from transformers.models.llama4.image_processing_llama4 import Llama4ImageProcessor
from transformers.models.llama4.processing_llama4 import Llama4Processor

TILE = 336
IDS = {"image_start": 200080, "image_end": 200081, "tile_x_separator": 200084, "tile_y_separator": 200085,
       "image": 200090, "patch": 200092}
SIZES = [  # width, height
    (1, 1), (16, 9), (100, 80), (200, 400), (335, 337), (336, 336), (337, 336), (336, 337), (500, 1000), (640, 480),
    (671, 673), (672, 672), (700, 500), (800, 600), (1000, 500), (1008, 336), (1024, 1024), (1280, 720), (1345, 1344),
    (1920, 1080), (2000, 1500), (1500, 2000), (5376, 336), (8000, 200), (200, 8000), (10, 10000), (10000, 10),
    (3, 1000), (1279, 1),
]


def picture(width, height):
    """Half noise, half slopes: uint8 [h, w, 3]."""
    y, x, c = np.meshgrid(np.arange(height, dtype=np.uint32), np.arange(width, dtype=np.uint32),
                          np.arange(3, dtype=np.uint32), indexing="ij")
    h = x * np.uint32(374761393) + y * np.uint32(668265263) + c * np.uint32(2246822519)
    h = (h ^ (h >> np.uint32(13))) * np.uint32(1274126177)
    noise = (h ^ (h >> np.uint32(16))) & np.uint32(255)
    slope = (x * np.uint32(3) + y * (c + np.uint32(1))) & np.uint32(255)
    return np.where((x // np.uint32(32) + y // np.uint32(32)) % np.uint32(2) == 0, noise, slope).astype(np.uint8)


def by_pillow(pixels, rows, cols, size):
    """Meta's pipeline with the sizes that Hugging Face's code chose: uint8 tiles [n, 3, 336, 336]."""
    image = Image.fromarray(pixels)
    canvas = Image.new("RGB", (cols * TILE, rows * TILE))
    canvas.paste(image.resize(size, Image.BILINEAR), (0, 0))
    array = np.asarray(canvas).reshape(rows, TILE, cols, TILE, 3).transpose(0, 2, 4, 1, 3)
    tiles = [array.reshape(rows * cols, 3, TILE, TILE)]
    if rows * cols > 1:
        tiles.append(np.asarray(image.resize((TILE, TILE), Image.BILINEAR)).transpose(2, 0, 1)[None])
    return np.concatenate(tiles)


# Meta's code turns the canvas into plain numbers before it divides. Hugging Face's divides a tensor in float32, which
# makes 839 x 1680 of 200 x 400 with resize_to_max_canvas, where 840 fit.
best_fit = image_processing_llama4.get_best_fit
image_processing_llama4.get_best_fit = lambda *args, **kwargs: tuple(best_fit(*args, **kwargs).tolist())


class Recording(Llama4ImageProcessor):
    """Keeps the sizes asked for, and leaves the pixels as bytes."""

    def resize(self, image, size, **kwargs):
        self.sizes.append((int(size.width), int(size.height)))
        return super().resize(image, size, **kwargs)

    def rescale_and_normalize(self, images, *args):
        return images


def runs(text):
    """[[id, count], ...] of a string of special tokens."""
    found = []
    for name in text.removeprefix("<|").removesuffix("|>").split("|><|"):
        if found and found[-1][0] == IDS[name]:
            found[-1][1] += 1
        else:
            found.append([IDS[name], 1])
    return found


def main():
    cases = []
    for width, height in SIZES:
        pixels = picture(width, height)
        for to_max in (False, True):
            processor = Recording(resize_to_max_canvas=to_max)
            processor.sizes = []
            out = processor(torch.from_numpy(pixels).permute(2, 0, 1), input_data_format="channels_first",
                            return_tensors="pt")
            rows, cols = (int(n) for n in out["aspect_ratios"][0])
            theirs = out["pixel_values"].numpy().astype(np.int16)
            tiles = by_pillow(pixels, rows, cols, processor.sizes[0])
            text = Llama4Processor._prompt_split_image(None, (rows, cols), (TILE // 14) ** 2 // 4)
            difference = np.abs(theirs.reshape(tiles.shape) - tiles)
            cases.append({
                "width": width, "height": height, "toMaxCanvas": to_max, "rows": rows, "cols": cols,
                "resized": processor.sizes[0], "ids": runs(text),
                "sha256": [hashlib.sha256(tile.tobytes()).hexdigest()[:16] for tile in tiles],
                "torchvisionDiffersBy": int(difference.max()), "torchvisionDiffersIn": float((difference > 0).mean()),
            })
    print("[\n" + ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases) + "\n]")


main()

"""A training step of Hugging Face's Llama 4: what bench/train-step.ts runs beside ours.

usage: python train-step.py FOLDER TOKENS ROWS LENGTH MODE DTYPE THREADS   (torch and transformers as in scripts/golden/requirements.txt)

FOLDER holds the weights to begin with, TOKENS int32 numbers, of which each step takes the next ROWS x LENGTH. MODE "hf" is
the model as it is, which runs every expert on every token; "sparse" sends each token to its expert alone. DTYPE "f32", or
"bf16" for autocast. For each line of stdin: forward, backward, clipping, AdamW; prints the seconds, the loss and the
process's largest resident memory in MB so far.
"""

import os
import resource
import sys
import time
from types import ModuleType

# torchvision's registrations for tracing fail beside a torch for CPUs alone, and nothing here traces.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch
import transformers.models.llama4.modeling_llama4 as modeling
from transformers import Llama4ForCausalLM

folder, tokens_file, rows, length, mode, dtype, threads = sys.argv[1:8]
torch.set_num_threads(int(threads))


def sparse(self, hidden_states):
    x = hidden_states.reshape(-1, self.hidden_dim)
    logits = torch.nn.functional.linear(x, self.router.weight)
    best, expert = logits.max(-1)
    order = torch.argsort(expert)
    counts = torch.bincount(expert, minlength=logits.shape[1]).tolist()
    rows = []
    for e, part in enumerate(torch.split((x * torch.sigmoid(best)[:, None])[order], counts)):
        gate, up = (part @ self.experts.gate_up_proj[e]).chunk(2, -1)
        rows.append((torch.nn.functional.silu(gate) * up) @ self.experts.down_proj[e])
    return self.shared_expert(x).index_add(0, order, torch.cat(rows)), logits


if mode == "sparse":
    modeling.Llama4TextMoe.forward = sparse
model = Llama4ForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")
model.train()
# As ours: norms do not decay.
matrices = [p for p in model.parameters() if p.ndim > 1]
vectors = [p for p in model.parameters() if p.ndim == 1]
groups = [dict(params=matrices, weight_decay=0.01), dict(params=vectors, weight_decay=0.0)]
optimizer = torch.optim.AdamW(groups, lr=1e-3, fused=True)
steps = torch.from_file(tokens_file, dtype=torch.int32, size=os.path.getsize(tokens_file) // 4)
steps = steps.long().reshape(-1, int(rows), int(length))
for step, _ in enumerate(sys.stdin):
    tokens = steps[step % len(steps)]
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    print(seconds, loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)

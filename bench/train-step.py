"""A training step of Hugging Face's Llama 4: what bench/train-step.ts runs beside ours.

usage: python train-step.py SHAPE MODE DTYPE THREADS      (torch and transformers as in scripts/golden/requirements.txt)

SHAPE is JSON. MODE "hf" is the model as it is, which runs every expert on every token; "sparse" sends each token to its
expert alone. DTYPE "f32", or "bf16" for autocast. For each line of stdin: forward, backward, clipping, AdamW; prints the
seconds, the loss and the process's largest resident memory in MB so far.
"""

import json
import resource
import sys
import time
from types import ModuleType

# torchvision's registrations for tracing fail beside a torch for CPUs alone, and nothing here traces.
sys.modules["torchvision._meta_registrations"] = ModuleType("torchvision._meta_registrations")

import torch
import transformers.models.llama4.modeling_llama4 as modeling
from transformers import Llama4ForCausalLM, Llama4TextConfig

shape, mode, dtype, threads = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(0)


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
config = Llama4TextConfig(vocab_size=shape["vocab"], hidden_size=shape["dim"], intermediate_size=shape["expert"],
                          intermediate_size_mlp=2 * shape["expert"], num_hidden_layers=shape["layers"],
                          num_attention_heads=shape["heads"], num_key_value_heads=shape["kvHeads"], head_dim=shape["headDim"],
                          num_local_experts=shape["experts"], attention_chunk_size=shape["chunk"], max_position_embeddings=4096,
                          rope_parameters=dict(rope_type="default", rope_theta=10000.0), bos_token_id=1, eos_token_id=2,
                          pad_token_id=0)
config._attn_implementation = "sdpa"
model = Llama4ForCausalLM(config).to(torch.float32)
model.train()
with torch.no_grad():
    for p in model.parameters():
        if p.ndim > 1:
            p.normal_(0, 0.02)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
tokens = torch.randint(0, shape["vocab"], (shape["batch"], shape["length"]))
for _ in sys.stdin:
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bf16"):
        loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    print(seconds, loss.item(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)

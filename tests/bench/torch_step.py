"""The training steps of workloads.cc in PyTorch, for a ratio in the same run: torch_step.py [threads].

Prints nothing but a note where PyTorch is not installed.
"""
import statistics
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError:
    print("PyTorch is not installed: no ratio")
    sys.exit(0)

torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
torch.manual_seed(0)


class GPT(nn.Module):
    """nanoGPT: no biases, tied embeddings, exact GELU, fused attention."""

    def __init__(self, layers, heads, width, block, vocab):
        super().__init__()
        self.heads = heads
        self.te, self.pe = nn.Embedding(vocab, width), nn.Embedding(block, width)
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        norm = lambda: nn.LayerNorm(width, bias=False)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(dict(n1=norm(), qkv=linear(width, 3 * width), o=linear(width, width),
                               n2=norm(), up=linear(width, 4 * width), down=linear(4 * width, width)))
            for _ in range(layers))
        self.nf, self.head = norm(), linear(width, vocab)
        self.te.weight = self.head.weight

    def forward(self, x, y):
        n, t = x.shape
        h = self.te(x) + self.pe(torch.arange(t))
        for b in self.blocks:
            q, k, v = (p.view(n, t, self.heads, -1).transpose(1, 2)
                       for p in b["qkv"](b["n1"](h)).split(h.shape[-1], 2))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + b["o"](a.transpose(1, 2).reshape(n, t, -1))
            h = h + b["down"](F.gelu(b["up"](b["n2"](h))))
        logits = self.head(self.nf(h))
        return F.cross_entropy(logits.view(-1, logits.shape[-1]), y.view(-1))


for name, shape, batch in (("gpt_small", (4, 4, 128, 64), 12), ("gpt_384", (6, 6, 384, 256), 8)):
    model = GPT(*shape, 65)
    x, y = torch.randint(0, 65, (batch, shape[3])), torch.randint(0, 65, (batch, shape[3]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)

    def step():
        optimizer.zero_grad(set_to_none=True)
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    for _ in range(3):
        step()
    times, end = [], time.perf_counter() + 3
    while time.perf_counter() < end or len(times) < 5:
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    seconds = statistics.median(times)
    print(f"torch {torch.__version__} {name:20s} {seconds * 1e3:10.3f} ms  {batch * shape[3] / seconds:12.1f} tokens/s")

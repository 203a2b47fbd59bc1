"""Attention: packed, its gradient, and over a paged cache."""

import ctypes

import torch

from harness.check import F32, FLOATS, check

PAGE = 32


class Packed:
    """Sequences of those lengths, side by side."""

    def __init__(self, c, lengths, heads, kv_heads, dim, dtype):
        self.c, self.lengths, self.heads, self.kv_heads, self.dim = c, lengths, heads, kv_heads, dim
        self.dtype = dtype
        self.tokens = sum(lengths)
        starts = [0]
        for length in lengths:
            starts.append(starts[-1] + length)
        self.starts = starts
        self.scale = ctypes.c_float(dim ** -0.5).value
        self.q = c.normal(self.tokens, heads, dim, dtype=dtype, scale=1.5)
        self.k = c.normal(self.tokens, kv_heads, dim, dtype=dtype)
        self.v = c.normal(self.tokens, kv_heads, dim, dtype=dtype)

    def fields(self, q, k, v, starts):
        c = self.c
        return dict(dtype=c.dtype(self.dtype), capability=c.device.capability,
                    tokens=q.shape[0], sequences=len(starts) - 1, heads=self.heads,
                    kv_heads=self.kv_heads, head_dim=self.dim, scale=self.scale)

    def wide(self, q, k, v):
        """out and lse of doubles; a sequence at a time."""
        outs, lses = [], []
        group = self.heads // self.kv_heads
        for begin, end in zip(self.starts, self.starts[1:]):
            qs = q[begin:end].transpose(0, 1)
            ks = k[begin:end].transpose(0, 1).repeat_interleave(group, 0)
            vs = v[begin:end].transpose(0, 1).repeat_interleave(group, 0)
            scores = qs @ ks.mT * self.scale
            n = end - begin
            later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
            scores = scores.masked_fill(later, float('-inf'))
            lses.append(scores.logsumexp(-1).T)
            outs.append((scores.softmax(-1) @ vs).transpose(0, 1))
        return torch.cat(outs), torch.cat(lses)

    def run(self):
        """out, lse, and what they must outlive."""
        c = self.c
        held = [c.up(t) for t in (self.q, self.k, self.v)]
        held.append(c.up(torch.tensor(self.starts, dtype=torch.int32)))
        out = c.out(*self.q.shape, dtype=self.dtype)
        lse = c.out(self.tokens, self.heads)
        params = c.struct('tandem_cuda_attention_params', query_start=held[3], q=held[0],
                          k=held[1], v=held[2], out=out, lse=lse,
                          **self.fields(self.q, self.k, self.v, self.starts))
        c.call('tandem_cuda_attention', params=params)
        c.device.finish()
        return out, lse, params, held


# lengths, heads, kv_heads, dim
SHAPES = {
    'd64': (([1, 37, 130], 2, 2, 64), ([1, 300, 2500, 129], 8, 8, 64)),
    'd128': (([140, 9], 4, 2, 128), ([128, 1000, 4097, 5], 16, 4, 128)),
    'd80': (([33, 20], 3, 1, 80), ([257, 700], 6, 2, 80)),
}


@check('attention', SHAPES, FLOATS)
def forward_and_gradient(c, name, dtype):
    p = Packed(c, *c.size(*SHAPES[name]), dtype)
    wide = [t.double().requires_grad_() for t in (p.q, p.k, p.v)]
    expected, expected_lse = p.wide(*wide)
    out, lse, params, held = p.run()
    c.near(out, expected.detach(), 'out', scale=4 if dtype == F32 else 1)
    c.near(lse, expected_lse.detach(), 'lse', scale=8)
    dout = c.normal(*p.q.shape, dtype=dtype)
    gradients = torch.autograd.grad(expected, wide, dout.double())
    dev_dout = c.up(dout)
    results = []
    for _ in range(2):
        got = [c.out(*t.shape, dtype=dtype) for t in (p.q, p.k, p.v)]
        delta = c.out(p.tokens, p.heads)
        grad = c.struct('tandem_cuda_attention_grad_params', forward=params, dout=dev_dout,
                        dq=got[0], dk=got[1], dv=got[2], delta=delta)
        c.call('tandem_cuda_attention_grad', params=grad)
        c.device.finish()
        results.append(got)
    for got, again, wanted, what in zip(*results, gradients, ('dq', 'dk', 'dv')):
        c.near(got, wanted, what, scale=20 if dtype == F32 else 4)
        c.same(got, again, what + ', twice')
    del held


class Cache:
    """A paged cache, NaN where nothing was written; pages in random order."""

    def __init__(self, c, p):
        self.c, self.p = c, p
        blocks = [(length + PAGE - 1) // PAGE for length in p.lengths]
        self.pages = sum(blocks) + 2
        order = torch.randperm(self.pages, generator=c.generator, device=c.reference).tolist()
        self.width = max(blocks)
        rows = []
        for count in blocks:
            rows.append([order.pop() for _ in range(count)] + [-1] * (self.width - count))
        self.rows = rows
        self.table = c.up(torch.tensor(rows, dtype=torch.int32))
        shape = (self.pages, p.kv_heads, PAGE, p.dim)
        self.k = c.out(*shape, dtype=p.dtype)
        self.v = c.out(*shape, dtype=p.dtype)

    def attend(self, past, counts, whole_rows=0):
        """The next counts[s] tokens of each sequence, past[s] already there; out by sequence."""
        c, p = self.c, self.p
        index, starts = [], [0]
        for s, (before, count) in enumerate(zip(past, counts)):
            index += range(p.starts[s] + before, p.starts[s] + before + count)
            starts.append(starts[-1] + count)
        index = torch.tensor(index, device=c.reference)
        parts = [t[index] for t in (p.q, p.k, p.v)]
        held = [c.up(t) for t in parts]
        held += [c.up(torch.tensor(t, dtype=torch.int32)) for t in (starts, past)]
        out = c.out(*parts[0].shape, dtype=p.dtype)
        params = c.struct('tandem_cuda_attention_params', query_start=held[3], q=held[0],
                          k=held[1], v=held[2], out=out, past_length=held[4],
                          block_table=self.table, k_cache=self.k, v_cache=self.v,
                          pages=self.pages, blocks_per_sequence=self.width,
                          whole_rows=whole_rows, **p.fields(*parts, starts))
        size = ctypes.c_int64()
        c.call('tandem_cuda_paged_attention_scratch', params=params, bytes=size)
        scratch = c.scratch(size.value)
        params.scratch = scratch.pointer
        c.call('tandem_cuda_paged_attention', params=params)
        c.device.finish()
        got = out.get()
        return [got[a:b] for a, b in zip(starts, starts[1:])]

    def expect_holds(self, filled):
        """The first filled[s] tokens of each sequence, and nothing else."""
        for cache, tensor, what in ((self.k, self.p.k, 'k'), (self.v, self.p.v, 'v')):
            expected = torch.full(cache.shape, 0, dtype=self.p.dtype, device=self.c.reference)
            expected.view(torch.uint8).fill_(0xff)
            for s, count in enumerate(filled):
                for at in range(count):
                    page = self.rows[s][at // PAGE]
                    expected[page, :, at % PAGE] = tensor[self.p.starts[s] + at]
            self.c.same(cache, expected, 'cache of ' + what)


PAGED = {'d64': (([70, 33, 1], 2, 2, 64), ([300, 2100, 33, 1], 8, 8, 64)),
         'd128': (([45, 130], 4, 1, 128), ([5000, 129, 64], 16, 4, 128))}


@check('attention', PAGED, FLOATS)
def paged(c, name, dtype):
    """Half of each sequence, then the rest but the last token, then that one."""
    p = Packed(c, *c.size(*PAGED[name]), dtype)
    expected, _ = p.wide(*(t.double() for t in (p.q, p.k, p.v)))
    cache = Cache(c, p)
    past = [0] * len(p.lengths)
    for last in ([n // 2 for n in p.lengths], [n - 1 for n in p.lengths], p.lengths):
        counts = [b - a for a, b in zip(past, last)]
        for s, out in enumerate(cache.attend(past, counts)):
            begin = p.starts[s] + past[s]
            c.near(out, expected[begin:begin + counts[s]], 'sequence %d from %d' % (s, past[s]),
                   scale=4 if dtype == F32 else 1)
        past = last
        cache.expect_holds(past)


@check('attention', PAGED, FLOATS, part='bitwise')
def decode_is_prefill_is_packed(c, name, dtype):
    """The same bits token by token, in chunks, whole, and packed for training."""
    p = Packed(c, *c.size(*PAGED[name]), dtype)
    packed = p.run()[0].get()
    rows = [packed[a:b] for a, b in zip(p.starts, p.starts[1:])]
    prefilled = Cache(c, p).attend([0] * len(p.lengths), p.lengths)
    for s, out in enumerate(prefilled):
        c.same(out, rows[s], 'prefill of sequence %d' % s)
    for whole_rows in (0, 1):
        cache = Cache(c, p)
        past = [0] * len(p.lengths)
        for step in range(6):  # chunks of 31 and more, then single tokens at the end
            counts = []
            for s, length in enumerate(p.lengths):
                left = length - past[s]
                take = (31, 32, left - 3, 1, 1, 1)[step]
                counts.append(max(0, min(take, left if step >= 3 else left - 3)))
            for s, out in enumerate(cache.attend(past, counts, whole_rows)):
                c.same(out, rows[s][past[s]:past[s] + counts[s]],
                       'sequence %d, %d tokens from %d, whole_rows %d' %
                       (s, counts[s], past[s], whole_rows))
            past = [a + b for a, b in zip(past, counts)]


@check('attention', ('d64', 'd128'), FLOATS, part='bitwise')
def neighbours_do_not_matter(c, name, dtype):
    """A sequence's bits, alone or packed between others."""
    p = Packed(c, *c.size(*SHAPES[name]), dtype)
    whole = p.run()[0].get()
    for s, length in enumerate(p.lengths):
        begin = p.starts[s]
        alone = Packed(c, [length], p.heads, p.kv_heads, p.dim, dtype)
        alone.q, alone.k, alone.v = (t[begin:begin + length] for t in (p.q, p.k, p.v))
        c.same(alone.run()[0], whole[begin:begin + length], 'sequence %d' % s)

"""Rotary positions and the gradient of an embedding."""

import ctypes

import torch

from harness.check import F32, FLOATS, check


@check('embedding', (0, 1), FLOATS)
def rope(c, inverse, dtype):
    """A token's heads within a wider row; some positions outside the table."""
    tokens, heads, dim = c.size((7, 3, 10), (3001, 16, 128))
    positions, wide_row = c.size((20, 50), (4096, 3 * 16 * 128))
    x = c.normal(tokens, wide_row, dtype=dtype)
    angles = c.uniform(positions, dim // 2, high=6.28)
    table = torch.cat([angles.cos(), angles.sin()], 1)
    at = c.integers(-2, positions + 2, tokens, dtype=torch.int32)
    for table_dtype in {F32, dtype}:
        t = table.to(table_dtype)
        held = [c.up(x), c.up(at), c.up(t)]
        out = c.out(tokens, heads, dim, dtype=dtype)
        params = c.struct('tandem_cuda_rope_params', x=held[0], positions=held[1], table=held[2],
                          out=out, tokens=tokens, heads=heads, head_dim=dim, x_stride=wide_row,
                          out_stride=heads * dim, table_positions=positions, dtype=c.dtype(dtype),
                          table_dtype=c.dtype(table_dtype), inverse=inverse)
        c.call('tandem_cuda_rope', params=params)
        a, b = x[:, :heads * dim].view(tokens, heads, dim).double().chunk(2, 2)
        rows = t.double()[at.long().clamp(0, positions - 1)][:, None]
        cos, sin = rows.chunk(2, 2)
        sin = -sin if inverse else sin
        c.near(out, torch.cat([a * cos - b * sin, b * cos + a * sin], 2), 'out')


@check('embedding', FLOATS + (torch.float64, torch.int64), (torch.int32, torch.int64))
def gather_grad(c, dtype, id_dtype):
    rows, cols, vocabulary = c.size((61, 9, 13), (20011, 768, 5003))
    dy = c.normal(rows, cols).to(dtype) if dtype.is_floating_point else c.integers(
        -99, 99, rows, cols, dtype=dtype)
    ids = c.integers(-vocabulary, vocabulary, rows)
    ids[:rows // 3] = 4  # one row that many go to
    at = torch.where(ids < 0, ids + vocabulary, ids)
    expected = torch.zeros(vocabulary, cols, device=dy.device,
                           dtype=torch.float64 if dtype.is_floating_point else dtype)
    expected.index_add_(0, at, dy.to(expected.dtype))
    size = ctypes.c_int64()
    c.call('tandem_cuda_gather_grad_scratch', rows=rows, vocabulary=vocabulary, bytes=size)
    results = []
    for _ in range(2):
        held = [c.up(dy), c.up(ids.to(id_dtype)), c.scratch(size.value)]
        out = c.out(vocabulary, cols, dtype=dtype)
        params = c.struct('tandem_cuda_gather_grad_params', dy=held[0], ids=held[1], out=out,
                          scratch=held[2], rows=rows, cols=cols, vocabulary=vocabulary,
                          dtype=c.dtype(dtype), id_dtype=c.dtype(id_dtype))
        c.call('tandem_cuda_gather_grad', params=params)
        c.device.finish()
        results.append(out)
    c.near(results[0], expected, 'out', scale=(rows / 3) ** 0.5 if dtype == F32 else 1)
    c.same(results[0], results[1], 'out, twice')

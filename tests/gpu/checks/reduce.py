"""Sums, products, extremes and their places."""

import torch

from harness.check import FLOATS, F32, check

OPERATIONS = {'Sum': torch.sum, 'Prod': torch.prod,
              'Max': lambda x, dim: x.amax(dim), 'Min': lambda x, dim: x.amin(dim)}
SHAPES = {'rows': ((5, 71, 1), (4099, 1025, 1)), 'columns': ((2, 37, 13), (3, 4097, 515)),
          'all': ((1, 9001, 1), (1, 20000003, 1)), 'short': ((40, 3, 2), (100003, 3, 5))}


def scratch(c, outer, n, inner, element_bytes):
    """tandem_cuda_reduce_scratch_bytes, which is inline in the header."""
    chunk, results = c.constant('TANDEM_CUDA_REDUCE_CHUNK'), 0
    while n > chunk:
        n = (n + chunk - 1) // chunk
        results += n
    return c.scratch(outer * inner * results * element_bytes)


@check('reduce', OPERATIONS, SHAPES, FLOATS)
def reduce(c, op, name, dtype):
    shape = outer, n, inner = c.size(*SHAPES[name])
    x = c.normal(*shape, dtype=dtype)
    if op == 'Prod':  # near 1, so that products stay finite
        x = c.uniform(*shape, dtype=dtype, low=0.97, high=1.03) if n < 9 else torch.where(
            c.uniform(*shape) < 0.5, torch.ones_like(x), -torch.ones_like(x))
    out = c.out(outer, inner, dtype=dtype)
    c.call('tandem_cuda_reduce', op=c.constant('TANDEM_CUDA_REDUCE_' + op), x_dtype=c.dtype(dtype),
           out_dtype=c.dtype(dtype), out=out, x=c.up(x), outer=outer, n=n, inner=inner,
           scratch=scratch(c, outer, n, inner, 8))
    # A sum's rounding errors grow with the sum of magnitudes' root at worst as sqrt(n).
    loose = n ** 0.5 if op == 'Sum' and dtype == F32 else 1
    c.near(out, OPERATIONS[op](x.double(), dim=1), op, scale=loose)


@check('reduce', SHAPES, (0, 1), FLOATS + (torch.int32,))
def arg_reduce(c, name, largest, dtype):
    shape = outer, n, inner = c.size(*SHAPES[name])
    # Few different values: ties.
    x = c.integers(-40, 40, *shape).to(dtype)
    out = c.out(outer, inner, dtype=torch.int64)
    c.call('tandem_cuda_arg_reduce', largest=largest, dtype=c.dtype(dtype), out=out, x=c.up(x),
           outer=outer, n=n, inner=inner, scratch=scratch(c, outer, n, inner, 16))
    extreme = x.double().amax(1, keepdim=True) if largest else x.double().amin(1, keepdim=True)
    places = torch.arange(n, device=x.device)[None, :, None].expand(*shape)
    c.near(out, torch.where(x.double() == extreme, places, n).amin(1), 'places')

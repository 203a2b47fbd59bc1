"""What moves elements by position."""

import torch

from harness.check import BF16, F32, check
from checks.elementwise import dense, loop

TYPES = (torch.uint8, BF16, F32, torch.int64)


@check('shape', TYPES)
def copy_strided(c, dtype):
    """A transpose of three dimensions, a reversed slice, a broadcast, and a part of an output."""
    a, b, d = c.size((5, 6, 7), (129, 65, 257))
    x = c.integers(0, 100, a, b, d, dtype=dtype)
    dev_x = c.up(x)
    bytes_ = x.element_size()

    def copy(size, out_strides, x_strides, out, pointer=None):
        c.call('tandem_cuda_copy_strided', element_bytes=bytes_, out=out,
               x=dev_x if pointer is None else pointer, loop=loop(c, size, out_strides, x_strides))
        return out

    size = (d, a, b)
    c.same(copy(size, dense(size), [1, b * d, d], c.out(*size, dtype=dtype)),
           x.permute(2, 0, 1).contiguous(), 'transpose')
    size = (b // 2, d)
    last = dev_x.pointer + bytes_ * (2 * (b // 2) - 1) * d  # every other row, from the end
    c.same(copy(size, dense(size), [-2 * d, 1], c.out(*size, dtype=dtype), last),
           x[0, 1:2 * (b // 2):2].flip(0), 'reversed slice')
    size = (a, b, 3, d)
    c.same(copy(size, dense(size), [b * d, d, 0, 1], c.out(*size, dtype=dtype)),
           x[:, :, None].expand(size).contiguous(), 'broadcast')
    whole = c.integers(0, 100, a, b, 2 * d, dtype=dtype)
    out = c.up(whole)
    c.call('tandem_cuda_copy_strided', element_bytes=bytes_, out=out.pointer + bytes_ * d, x=dev_x,
           loop=loop(c, (a, b, d), [2 * b * d, 2 * d, 1], dense((a, b, d))))
    whole[:, :, d:] = x
    c.same(out, whole, 'concatenation')


@check('shape', TYPES)
def fill(c, dtype):
    n = c.size(1001, 10000019)
    value = torch.tensor([77], dtype=dtype)
    bits = int.from_bytes(bytes(value.view(torch.uint8).tolist()), 'little')
    out = c.out(n, dtype=dtype)
    c.call('tandem_cuda_fill', element_bytes=value.element_size(), out=out, bits=bits, n=n)
    c.same(out, value.to(c.reference).expand(n).contiguous(), 'fill')


@check('shape', TYPES, (torch.int32, torch.int64))
def gather(c, dtype, index_dtype):
    outer, axis, n, inner = c.size((3, 7, 11, 5), (3, 5003, 2049, 768))
    x = c.integers(0, 100, outer, axis, inner, dtype=dtype)
    indices = c.integers(-axis - 3, axis + 3, n)
    at = torch.where(indices < 0, indices + axis, indices).clamp(0, axis - 1)
    out = c.out(outer, n, inner, dtype=dtype)
    c.call('tandem_cuda_gather', element_bytes=x.element_size(), index_dtype=c.dtype(index_dtype),
           out=out, x=c.up(x), indices=c.up(indices.to(index_dtype)), outer=outer, axis=axis, n=n,
           inner=inner)
    c.same(out, x[:, at], 'gather')

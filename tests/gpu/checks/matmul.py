"""Matrix products and their epilogues."""

import torch
from torch.nn import functional as F

from harness.check import BF16, F16, F32, FLOATS, check

ACTIVATIONS = {
    'NONE': lambda x: x, 'RELU': F.relu, 'SILU': F.silu, 'GELU': F.gelu,
    'GELU_TANH': lambda x: F.gelu(x, approximate='tanh'),
}
# (batch, m, n, k): whole tiles, ragged ones whose rows are no multiple of 16 bytes, a few rows.
SIZES = {'tiles': ((1, 128, 256, 128), (1, 1024, 2048, 1024)),
         'ragged': ((2, 37, 75, 51), (3, 517, 1031, 333)),
         'few_rows': ((1, 3, 136, 200), (1, 7, 4096, 4096)),
         'one': ((1, 1, 1, 1), (1, 1, 1, 1))}


class Product:
    """One call: row-major operands, dense."""

    def __init__(self, c, batch, m, n, k, dtype, out_dtype, transpose_a=0, transpose_b=0):
        self.c, self.m, self.n, self.dtype, self.out_dtype = c, m, n, dtype, out_dtype
        self.batch, self.k = batch, k
        self.transpose_a, self.transpose_b = transpose_a, transpose_b
        self.a = c.normal(batch, *((k, m) if transpose_a else (m, k)), dtype=dtype)
        self.b = c.normal(batch, *((n, k) if transpose_b else (k, n)), dtype=dtype, scale=k ** -0.5)
        self.b2 = self.bias = self.residual = None
        self.activation = 'NONE'
        self.tf32 = 0

    def wide(self):
        a = self.a.double().mT if self.transpose_a else self.a.double()
        turn = (lambda t: t.double().mT) if self.transpose_b else (lambda t: t.double())
        y = a @ turn(self.b)
        if self.b2 is not None:
            y = F.silu(y) * (a @ turn(self.b2))
        if self.bias is not None:
            y = y + self.bias.double()
        y = ACTIVATIONS[self.activation](y)
        return y if self.residual is None else y + self.residual.double()

    def near(self):
        """Tensor cores cut their sums off instead of rounding them, which shows in an f32."""
        cut = self.dtype != F32 and self.out_dtype == F32
        self.c.near(self.run(), self.wide(), 'out', scale=16 if cut else 4)

    def run(self, a=None):
        """With other rows of a, where given."""
        c = self.c
        a = self.a if a is None else a
        m = a.shape[2] if self.transpose_a else a.shape[1]
        up = lambda t: None if t is None else c.up(t)
        held = [up(t) for t in (a, self.b, self.b2, self.bias, self.residual)]
        out = c.out(self.batch, m, self.n, dtype=self.out_dtype)
        params = c.struct(
            'tandem_cuda_matmul_params', a=held[0], b=held[1], b2=held[2], bias=held[3],
            residual=held[4], out=out, batch=self.batch, m=m, n=self.n, k=self.k,
            lda=a.shape[2], ldb=self.b.shape[2], ld_out=self.n, a_stride=a.shape[1] * a.shape[2],
            b_stride=self.b.shape[1] * self.b.shape[2], out_stride=m * self.n,
            dtype=c.dtype(self.dtype), out_dtype=c.dtype(self.out_dtype),
            transpose_a=self.transpose_a, transpose_b=self.transpose_b,
            activation=c.constant('TANDEM_CUDA_ACTIVATION_' + self.activation), tf32=self.tf32)
        c.call('tandem_cuda_matmul', params=params)
        c.device.finish()
        return out


@check('matmul', SIZES, ((0, 0), (0, 1), (1, 0), (1, 1)),
       ((F32, F32), (BF16, BF16), (F16, F16), (BF16, F32), (F16, F32)))
def product(c, name, transposes, dtypes):
    Product(c, *c.size(*SIZES[name]), *dtypes, *transposes).near()


@check('matmul', ACTIVATIONS, FLOATS)
def epilogue(c, activation, dtype):
    """Bias, activation, residual; the residual in the output's dtype."""
    for out_dtype in {dtype, F32}:
        p = Product(c, *c.size((1, 67, 136, 64), (1, 1000, 1032, 512)), dtype, out_dtype)
        p.activation = activation
        p.bias = c.normal(p.n, dtype=dtype)
        p.residual = c.normal(1, p.m, p.n, dtype=out_dtype)
        p.near()


@check('matmul', (0, 1), FLOATS)
def swiglu(c, transpose_b, dtype):
    p = Product(c, *c.size((1, 67, 136, 64), (1, 1000, 1032, 512)), dtype, dtype, 0, transpose_b)
    p.b2 = c.normal(*p.b.shape, dtype=dtype, scale=p.k ** -0.5)
    p.residual = c.normal(1, p.m, p.n, dtype=dtype)
    p.near()


@check('matmul')
def tf32(c):
    p = Product(c, *c.size((1, 67, 75, 51), (1, 1000, 1032, 512)), F32, F32)
    p.tf32 = 1
    c.near(p.run(), p.wide(), 'out', scale=4, dtype=F16)  # ten bits of fraction, as f16


@check('matmul', (torch.float64, torch.int32, torch.int64))
def other_types(c, dtype):
    p = Product(c, 2, 19, 23, 31, F32, F32)
    if dtype == torch.float64:
        p.a, p.b = p.a.double(), p.b.double()
    else:
        p.a, p.b = (c.integers(-99, 99, *t.shape, dtype=dtype) for t in (p.a, p.b))
    p.dtype = p.out_dtype = dtype
    c.near(p.run(), p.wide(), 'out')


@check('matmul', (0, 1), ('NONE', 'SILU'), FLOATS, part='bitwise')
def rows_of_a_product(c, transpose_b, activation, dtype):
    """A row's bits do not depend on the other rows, their number or its place."""
    m, n, k = c.size((150, 136, 104), (700, 1032, 1024))
    p = Product(c, 1, m, n, k, dtype, dtype, 0, transpose_b)
    p.activation = activation
    whole = p.run().get()
    for begin, end in ((0, 1), (m - 1, m), (5, 12), (1, 100)):
        rows = p.a[:, begin:end].contiguous()
        c.same(p.run(rows), whole[:, begin:end], 'rows %d to %d' % (begin, end))
    c.same(p.run(), whole, 'again')

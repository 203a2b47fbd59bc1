"""Elementwise operators, casts and SwiGLU."""

import torch
from torch.nn import functional as F

from harness.check import F32, FLOATS, Failed, check

F64 = torch.float64
# Of doubles; and the range of the inputs, where it is not (-3, 3).
UNARY = {
    'Neg': torch.neg, 'Abs': torch.abs, 'Sign': torch.sign, 'Exp': torch.exp, 'Log': torch.log,
    'Sqrt': torch.sqrt, 'Rsqrt': torch.rsqrt, 'Reciprocal': torch.reciprocal, 'Tanh': torch.tanh,
    'Sigmoid': torch.sigmoid, 'Erf': torch.erf, 'Relu': torch.relu, 'Gelu': F.gelu,
    'GeluTanh': lambda x: F.gelu(x, approximate='tanh'), 'Silu': F.silu, 'Softplus': F.softplus,
    'Sin': torch.sin, 'Cos': torch.cos, 'Floor': torch.floor, 'Ceil': torch.ceil,
    'Round': torch.round, 'Square': torch.square, 'Log1p': torch.log1p, 'Expm1': torch.expm1,
    'Not': torch.logical_not,
}
RANGES = {'Log': (0.1, 9), 'Sqrt': (0, 9), 'Rsqrt': (0.1, 9), 'Reciprocal': (0.2, 5),
          'Log1p': (-0.7, 5)}
BINARY = {
    'Add': torch.add, 'Sub': torch.sub, 'Mul': torch.mul, 'Div': torch.div, 'Pow': torch.pow,
    'Max': torch.maximum, 'Min': torch.minimum, 'Mod': torch.fmod, 'Equal': torch.eq,
    'Less': torch.lt, 'LessOrEqual': torch.le,
    'And': torch.logical_and, 'Or': torch.logical_or, 'Xor': torch.logical_xor,
}
LOGICAL = ('And', 'Or', 'Xor')
COMPARISONS = ('Equal', 'Less', 'LessOrEqual')


@check('elementwise')
def every_operator_has_a_reference(c):
    for prefix, references in (('TANDEM_CUDA_UNARY_', UNARY), ('TANDEM_CUDA_BINARY_', BINARY)):
        declared = {n[len(prefix):] for n in c.library.headers.constants
                    if n.startswith(prefix) and not n.startswith(prefix + 'GRAD_')
                    and n != prefix + 'COUNT'}
        if declared != set(references):
            raise Failed('%s: without a reference here or a kernel there: %s' %
                         (prefix, ', '.join(sorted(declared ^ set(references)))))


@check('elementwise', UNARY, FLOATS)
def unary(c, op, dtype):
    if op == 'Not':
        dtype = torch.bool
    n = c.size(1031, 3000001)
    low, high = RANGES.get(op, (-3, 3))
    x = c.integers(0, 2, n, dtype=torch.bool) if op == 'Not' else c.uniform(
        n, dtype=dtype, low=low, high=high)
    out = c.out(n, dtype=dtype)
    c.call('tandem_cuda_unary', op=c.constant('TANDEM_CUDA_UNARY_' + op), dtype=c.dtype(dtype),
           out=out, x=c.up(x), n=n)
    c.near(out, UNARY[op](x if op == 'Not' else x.double()), op)


@check('elementwise', ('Relu', 'Gelu', 'GeluTanh', 'Silu'), FLOATS)
def unary_grad(c, op, dtype):
    n = c.size(517, 1000003)
    x, dy = c.normal(n, dtype=dtype, scale=2), c.normal(n, dtype=dtype)
    wide = x.double().requires_grad_()
    (dx,) = torch.autograd.grad(UNARY[op](wide), wide, dy.double())
    out = c.out(n, dtype=dtype)
    c.call('tandem_cuda_unary_grad', op=c.constant('TANDEM_CUDA_UNARY_GRAD_' + op),
           dtype=c.dtype(dtype), dx=out, x=c.up(x), dy=c.up(dy), n=n)
    c.near(out, dx, op)


def loop(c, size, *strides):
    """A struct tandem_cuda_loop; strides of the operands, the output's first."""
    most = c.constant('TANDEM_CUDA_MAX_DIMS')
    pad = [0] * (most - len(size))
    rows = [list(s) + pad for s in strides]
    while len(rows) < c.constant('TANDEM_CUDA_MAX_OPERANDS'):
        rows.append([0] * most)
    return c.struct('tandem_cuda_loop', dims=len(size), size=list(size) + pad, stride=rows)


def dense(size):
    strides, step = [], 1
    for extent in reversed(size):
        strides.insert(0, step)
        step *= extent
    return strides


@check('elementwise', BINARY, FLOATS + (torch.int32,))
def binary(c, op, dtype):
    """(rows, 1, cols) and a broadcast row."""
    if op in LOGICAL:
        dtype = torch.bool
    size = c.size((5, 3, 37), (513, 7, 1001))
    if dtype.is_floating_point:
        a, b = c.uniform(*size, dtype=dtype, low=0.3, high=4), c.uniform(size[2], dtype=dtype,
                                                                        low=0.3, high=3)
    else:
        a, b = c.integers(0, 9, *size, dtype=dtype), c.integers(1, 5, size[2], dtype=dtype)
    if op in COMPARISONS:
        a[0] = b
    wide = (a, b) if not dtype.is_floating_point else (a.double(), b.double())
    expected = BINARY[op](*wide)
    if not dtype.is_floating_point and op == 'Div':
        expected = torch.div(a, b, rounding_mode='trunc')
    if not dtype.is_floating_point and op == 'Mod':
        expected = torch.remainder(a, b)
    out_dtype = torch.bool if op in COMPARISONS else dtype
    out = c.out(*size, dtype=out_dtype)
    c.call('tandem_cuda_binary', op=c.constant('TANDEM_CUDA_BINARY_' + op), dtype=c.dtype(dtype),
           out=out, a=c.up(a), b=c.up(b), loop=loop(c, size, dense(size), dense(size), [0, 0, 1]))
    c.near(out, expected, op, scale=8 if op == 'Pow' else 1)


@check('elementwise', FLOATS + (torch.uint8, torch.int64))
def where(c, dtype):
    """x seen transposed, y broadcast along rows."""
    rows, cols = c.size((13, 19), (1027, 2049))
    condition = c.integers(0, 2, rows, cols, dtype=torch.bool)
    if dtype.is_floating_point:
        x, y = c.normal(cols, rows, dtype=dtype), c.normal(rows, dtype=dtype)
    else:
        x, y = c.integers(0, 99, cols, rows, dtype=dtype), c.integers(0, 99, rows, dtype=dtype)
    out = c.out(rows, cols, dtype=dtype)
    size = (rows, cols)
    c.call('tandem_cuda_where', element_bytes=x.element_size(), out=out, condition=c.up(condition),
           x=c.up(x), y=c.up(y), loop=loop(c, size, dense(size), dense(size), [1, rows], [1, 0]))
    c.same(out, torch.where(condition, x.T, y[:, None]), 'where')


KINDS = (F32, F64, torch.float16, torch.bfloat16, torch.int8, torch.int32, torch.int64,
         torch.uint8, torch.bool)


@check('elementwise', KINDS)
def cast(c, source):
    """From one dtype to every other, values that all of them hold and, from floats, some that
    round."""
    n = c.size(301, 1000003)
    x = c.integers(0, 100, n)
    x = x.to(source) if not source.is_floating_point else (x + c.normal(n)).abs().to(source)
    dev = c.up(x)
    for to in KINDS:
        out = c.out(n, dtype=to)
        c.call('tandem_cuda_cast', **{'from': c.dtype(source)}, to=c.dtype(to), out=out, x=dev, n=n)
        through = x.float() if source == F64 and to.itemsize == 2 else x
        c.near(out, through.to(to), str(to), scale=0)


@check('elementwise', FLOATS)
def swiglu(c, dtype):
    n = c.size(777, 5000003)
    gate, up, dy = (c.normal(n, dtype=dtype) for _ in range(3))
    wide = [t.double().requires_grad_() for t in (gate, up)]
    y = F.silu(wide[0]) * wide[1]
    dgate, dup = torch.autograd.grad(y, wide, dy.double())
    args = {'dtype': c.dtype(dtype), 'gate': c.up(gate), 'up': c.up(up), 'n': n}
    out, got_gate, got_up = (c.out(n, dtype=dtype) for _ in range(3))
    c.call('tandem_cuda_swiglu', out=out, **args)
    c.near(out, y.detach(), 'y')
    c.call('tandem_cuda_swiglu_grad', dgate=got_gate, dup=got_up, dy=c.up(dy), **args)
    c.near(got_gate, dgate, 'dgate')
    c.near(got_up, dup, 'dup')

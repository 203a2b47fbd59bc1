"""Normalisations, softmax, log-sum-exp and cross entropy: a row at a time."""

import ctypes

import torch
from torch.nn import functional as F

from harness.check import F32, FLOATS, check

ROWS = {'narrow': ((7, 33), (4097, 77)), 'model': ((5, 768), (4096, 4096)),
        'wide': ((3, 5003), (64, 32001))}


@check('normalization', ROWS, ('rms', 'layer'), FLOATS)
def norm(c, name, kind, dtype):
    rows, cols = c.size(*ROWS[name])
    layer = kind == 'layer'
    x, dy = c.normal(rows, cols, dtype=dtype) + 0.5, c.normal(rows, cols, dtype=dtype)
    gamma, beta = c.normal(cols, dtype=dtype) + 1, c.normal(cols, dtype=dtype)
    wide = [t.double().requires_grad_() for t in (x, gamma, beta)]
    epsilon = ctypes.c_float(1e-5).value
    mean = wide[0].mean(1, keepdim=True) if layer else torch.zeros_like(wide[0][:, :1])
    rstd = ((wide[0] - mean).square().mean(1, keepdim=True) + epsilon).rsqrt()
    y = (wide[0] - mean) * rstd * wide[1] + (wide[2] if layer else 0)
    dx, dgamma, dbeta = torch.autograd.grad(y, wide, dy.double(), allow_unused=True)
    out, got_rstd, got_mean = c.out(rows, cols, dtype=dtype), c.out(rows), c.out(rows)
    dev_x, dev_gamma = c.up(x), c.up(gamma)
    shared = {'dtype': c.dtype(dtype), 'x': dev_x, 'gamma': dev_gamma, 'epsilon': epsilon, 'y': out,
              'rstd': got_rstd, 'rows': rows, 'cols': cols}
    if layer:
        c.call('tandem_cuda_layer_norm', beta=c.up(beta), mean=got_mean, **shared)
        c.near(got_mean, mean[:, 0].detach(), 'mean')
    else:
        c.call('tandem_cuda_rms_norm', **shared)
    c.near(out, y.detach(), 'y')
    c.near(got_rstd, rstd[:, 0].detach(), 'rstd')
    size = ctypes.c_int64()
    c.call('tandem_cuda_norm_grad_scratch', dtype=c.dtype(dtype), rows=rows, cols=cols,
           layer_norm=int(layer), bytes=size)
    results = []
    for _ in range(2):
        got = [c.out(rows, cols, dtype=dtype), c.out(cols, dtype=dtype), c.out(cols, dtype=dtype)]
        keep = [c.scratch(size.value), c.up(dy)]
        params = c.struct('tandem_cuda_norm_grad_params', x=dev_x, dy=keep[1], gamma=dev_gamma,
                          mean=got_mean if layer else None, rstd=got_rstd, dx=got[0],
                          dgamma=got[1], dbeta=got[2] if layer else None, scratch=keep[0],
                          rows=rows, cols=cols, dtype=c.dtype(dtype))
        c.call('tandem_cuda_norm_grad', params=params)
        c.device.finish()
        results.append(got)
    c.near(results[0][0], dx, 'dx', scale=4)
    # Sums over rows.
    scale = rows ** 0.5 if dtype == F32 else 4
    c.near(results[0][1], dgamma, 'dgamma', scale=scale)
    if layer:
        c.near(results[0][2], dbeta, 'dbeta', scale=scale)
    for a, b in zip(results[0][:3 if layer else 2], results[1]):
        c.same(a, b, 'gradients, twice')


@check('normalization', ROWS, ('softmax', 'log_softmax'), FLOATS)
def softmax(c, name, kind, dtype):
    rows, cols = c.size(*ROWS[name])
    x, dy = c.normal(rows, cols, dtype=dtype, scale=3), c.normal(rows, cols, dtype=dtype)
    x[0, cols // 2:] = float('-inf')
    reference = torch.softmax if kind == 'softmax' else torch.log_softmax
    out = c.out(rows, cols, dtype=dtype)
    args = {'dtype': c.dtype(dtype), 'rows': rows, 'cols': cols}
    c.call('tandem_cuda_' + kind, x=c.up(x), y=out, **args)
    c.near(out, reference(x.double(), 1), 'y')
    y = out.get()  # the gradient is of what the forward pass rounded to
    dx = c.out(rows, cols, dtype=dtype)
    c.call('tandem_cuda_%s_grad' % kind, y=out, dy=c.up(dy), dx=dx, **args)
    y, dy = y.double(), dy.double()
    if kind == 'softmax':
        expected = y * (dy - (y * dy).sum(1, keepdim=True))
    else:
        expected = dy - y.exp() * dy.sum(1, keepdim=True)
    c.near(dx, expected, 'dx', scale=8)


@check('loss', ROWS, FLOATS)
def cross_entropy(c, name, dtype):
    rows, cols = c.size(*ROWS[name])
    logits = c.normal(rows, cols, dtype=dtype, scale=4)
    targets = c.integers(0, cols, rows, dtype=torch.int32)
    dloss = c.normal(rows)
    wide = logits.double().requires_grad_()
    loss = F.cross_entropy(wide, targets.long(), reduction='none')
    (expected,) = torch.autograd.grad(loss, wide, dloss.double())
    args = {'dtype': c.dtype(dtype), 'logits': c.up(logits), 'rows': rows, 'cols': cols}
    dev_targets = c.up(targets)
    got, lse, only = (c.out(rows) for _ in range(3))
    c.call('tandem_cuda_cross_entropy', targets=dev_targets, loss=got, lse=lse, **args)
    c.near(got, loss.detach(), 'loss', scale=4)
    c.near(lse, wide.detach().logsumexp(1), 'lse')
    c.call('tandem_cuda_cross_entropy', targets=None, loss=None, lse=only, **args)
    c.same(only, lse, 'lse alone')
    dlogits = c.out(rows, cols, dtype=dtype)
    c.call('tandem_cuda_cross_entropy_grad', targets=dev_targets, lse=lse, dloss=c.up(dloss),
           dlogits=dlogits, **args)
    c.near(dlogits, expected, 'dlogits', scale=2)


@check('normalization', FLOATS, part='bitwise')
def rows_alone(c, dtype):
    """A row's bits do not depend on its neighbours, their number or its place."""
    rows, cols = c.size((9, 800), (257, 4096))
    x, gamma = c.normal(rows, cols, dtype=dtype), c.normal(cols, dtype=dtype)
    dev_gamma = c.up(gamma)

    def run(part):
        n = len(part)
        y, rstd, lse, soft = c.out(n, cols, dtype=dtype), c.out(n), c.out(n), c.out(n, cols,
                                                                                    dtype=dtype)
        dev = c.up(part)
        args = {'dtype': c.dtype(dtype), 'rows': n, 'cols': cols}
        c.call('tandem_cuda_rms_norm', x=dev, gamma=dev_gamma, epsilon=1e-5, y=y, rstd=rstd, **args)
        c.call('tandem_cuda_cross_entropy', logits=dev, targets=None, loss=None, lse=lse, **args)
        c.call('tandem_cuda_softmax', x=dev, y=soft, **args)
        return [t.get() for t in (y, rstd, lse, soft)]

    whole = run(x)
    for begin, end in ((0, 1), (rows - 1, rows), (2, 5)):
        for got, expected in zip(run(x[begin:end].contiguous()), whole):
            c.same(got, expected[begin:end], 'rows %d to %d' % (begin, end))

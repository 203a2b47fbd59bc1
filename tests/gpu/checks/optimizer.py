"""The optimizer's step, against torch.optim in doubles with clipping and a loss scale."""

import ctypes

import torch

from harness.check import BF16, FLOATS, Failed, check

F64 = torch.float64


def vector(c, prefix, **values):
    """OptimizerHyper or OptimizerState: places by the names of the C constants."""
    full = torch.zeros(c.constant('TANDEM_CUDA_%s_COUNT' % prefix), dtype=F64)
    for name, value in values.items():
        full[c.constant('TANDEM_CUDA_%s_%s' % (prefix, name.upper()))] = value
    return full


def sum_of_squares(c, x, n):
    size = ctypes.c_int64()
    c.call('tandem_cuda_sum_of_squares_scratch', n=n, bytes=size)
    out, scratch = c.out(1, dtype=F64), c.scratch(size.value)
    c.call('tandem_cuda_sum_of_squares', dtype=c.dtype(x.dtype), x=x, sum=out, scratch=scratch, n=n)
    c.device.finish()
    return out


@check('optimizer', FLOATS)
def squares(c, dtype):
    n = c.size(5003, 30000001)
    x = c.normal(n, dtype=dtype)
    dev = c.up(x)
    got = sum_of_squares(c, dev, n)
    expected = x.double().square().sum()[None]
    c.near(got.get() / expected, torch.ones(1, dtype=F64), 'sum')
    c.same(sum_of_squares(c, dev, n), got, 'sum, twice')
    x[n - 2] = float('inf')
    if bool(sum_of_squares(c, c.up(x), n).get().isfinite()):
        raise Failed('an infinity was not seen')


@check('optimizer', ('adam', 'adamw', 'sgd', 'nesterov'))
def steps(c, kind):
    """Four steps, the third with an infinite gradient, which must change nothing."""
    n = c.size(1003, 1000003)
    scale, clip = 1024.0, 3.0
    hyper = vector(c, 'HYPER', learning_rate=0.02, beta1=0.9, beta2=0.95, epsilon=1e-6,
                   weight_decay=0.1, momentum=0.8, max_grad_norm=clip, growth=2, backoff=0.5,
                   growth_interval=100)
    state = c.up(vector(c, 'STATE', loss_scale=scale))
    p = c.normal(n)
    decay = c.integers(0, 2, n, dtype=torch.uint8)
    wide = [p.double()[decay == 1].requires_grad_(), p.double()[decay == 0].requires_grad_()]
    groups = [{'params': wide[:1], 'weight_decay': 0.1}, {'params': wide[1:], 'weight_decay': 0.0}]
    if kind in ('sgd', 'nesterov'):
        rival = torch.optim.SGD(groups, lr=0.02, momentum=0.8, nesterov=kind == 'nesterov')
    else:
        maker = torch.optim.AdamW if kind == 'adamw' else torch.optim.Adam
        rival = maker(groups, lr=0.02, betas=(0.9, 0.95), eps=1e-6)
    held = [c.up(p), c.up(torch.zeros(n)), c.up(torch.zeros(n)), c.up(decay), c.up(hyper)]
    control = c.out(c.constant('TANDEM_CUDA_CONTROL_COUNT'), dtype=F64)
    copy = c.out(n, dtype=BF16)
    for step in range(4):
        g = c.normal(n, scale=(0.001 if step == 1 else 1.0))
        bad = step == 2
        # What the kernel is given: multiplied by the loss scale.
        scaled = g * (scale / 2 if step > 2 else scale)
        if bad:
            scaled[n // 2] = float('inf')
        dev_g = c.up(scaled)
        total = sum_of_squares(c, dev_g, n)
        c.call('tandem_cuda_optimizer_control', sum=total, hyper=held[4], state=state,
               control=control, next=state)
        params = c.struct('tandem_cuda_optimizer_step_params', p=held[0], g=dev_g, m=held[1],
                          v=held[2], decay=held[3], control=control, p_out=held[0], m_out=held[1],
                          v_out=held[2], p_copy=copy, n=n, copy_dtype=c.dtype(BF16),
                          flag=int(kind in ('adamw', 'nesterov')))
        name = 'sgd' if kind in ('sgd', 'nesterov') else 'adam'
        c.call('tandem_cuda_%s_step' % name, params=params)
        c.device.finish()
        if not bad:
            for part, flag in zip(wide, (1, 0)):
                part.grad = g.double()[decay == flag]
            torch.nn.utils.clip_grad_norm_(wide, clip)
            rival.step()
        expected = torch.empty(n, dtype=F64, device=p.device)
        expected[decay == 1], expected[decay == 0] = wide[0].detach(), wide[1].detach()
        got = held[0].get()
        c.near(got, expected, 'parameters after step %d' % step, scale=4)
        c.same(copy, got.to(BF16), 'the copy after step %d' % step)
    expected = vector(c, 'STATE', step=3, skipped=1, loss_scale=scale / 2, good_steps=1)
    c.near(state, expected.to(c.reference), 'state')

"""Tokens drawn on the device: cuts and Gumbel noise of Philox."""

import math

import torch

from checks.random import philox
from harness.check import F32, Failed, check

F64 = torch.float64


def gumbel(seed, stream, position, vocabulary, device):
    """The noise of every token at one position."""
    tokens = torch.arange(vocabulary, device=device)
    words = torch.stack(philox(seed, stream, (position << 32) | (tokens // 4)))
    word = words.gather(0, (tokens % 4)[None])[0]
    uniform = ((word >> 8).double() + 0.5) / 2 ** 24
    largest = 1 - 2.0 ** -24  # the last centre would round to 1 in f32
    uniform = uniform.float().double().clamp(max=largest)
    return -torch.log(-torch.log(uniform))


def candidates(scaled, top_k, top_p, min_p):
    """Tokens that may be drawn, likeliest first; how near a cut came to a token's edge."""
    order = torch.argsort(scaled, descending=True, stable=True)
    if 0 < top_k < len(order):
        order = order[:top_k]
    values = torch.exp(scaled[order].double() - scaled[order[0]].double())
    margin = math.inf
    if top_p < 1:
        sums = values.cumsum(0)
        total = float(sums[-1])
        before = sums - values
        keep = max(1, int((before < top_p * total).sum()))
        margin = float((before / total - top_p).abs().min())
        order, values = order[:keep], values[:keep]
    if min_p > 0:
        margin = min(margin, float((values - min_p).abs().min()))
        keep = max(1, int((values >= min_p).sum()))
        order = order[:keep]
    return order, margin


@check('sampling', ('plain', 'greedy', 'top_k', 'top_p', 'min_p', 'all'))
def sample_tokens(c, kind):
    rows, vocabulary = c.size((6, 515), (48, 50257))
    logits = c.normal(rows, vocabulary, scale=3)
    logits[0, 5] = logits[0, 9] = 20.0  # equal largest ones
    original = logits + c.normal(rows, vocabulary)
    lse = original.double().logsumexp(1).float()
    mixed = kind == 'all'
    temperature = torch.zeros(rows) if kind == 'greedy' else c.uniform(rows, low=0.5, high=2).cpu()
    if mixed:
        temperature[1] = 0
    top_k, top_p, min_p = [0] * rows, [1.0] * rows, [0.0] * rows
    for r in range(rows):
        if kind == 'top_k' or mixed:
            top_k[r] = c.integer(1, 60)
        if kind == 'top_p' or mixed:
            top_p[r] = 0.2 + 0.75 * float(c.uniform(1))
        if kind == 'min_p' or mixed:
            min_p[r] = 0.2 * float(c.uniform(1))
    seeds = [c.integer(0, 1 << 62) for _ in range(rows)]
    streams = [c.integer(0, 100) for _ in range(rows)]
    positions = [c.integer(0, 5000) for _ in range(rows)]
    host = {'logits': logits, 'model_logits': original, 'lse': lse, 'temperature': temperature,
            'top_k': torch.tensor(top_k, dtype=torch.int32),
            'top_p': torch.tensor(top_p, dtype=F64), 'min_p': torch.tensor(min_p, dtype=F64),
            'seed': torch.tensor(seeds), 'stream': torch.tensor(streams),
            'position': torch.tensor(positions)}
    held = {name: c.up(value) for name, value in host.items()}
    token, logprob = c.out(rows, dtype=torch.int32), c.out(rows)
    sampling_logprob = c.out(rows)
    params = c.struct('tandem_cuda_sample_params', token=token, logprob=logprob,
                      sampling_logprob=sampling_logprob, rows=rows, vocabulary=vocabulary, **held)
    c.call('tandem_cuda_sample_tokens', params=params)
    c.device.finish()
    got = token.get().tolist()
    for r in range(rows):
        if not 0 <= got[r] < vocabulary:
            raise Failed('row %d: token %d' % (r, got[r]))
        _expect_row(c, r, got[r], host, float(sampling_logprob.get()[r]), seeds, streams, positions)
    at = torch.tensor(got, device=c.reference)
    c.near(logprob, original.double().gather(1, at[:, None])[:, 0] - lse.double(), 'logprob')


def _expect_row(c, r, got, host, sampling_logprob, seeds, streams, positions):
    logits, t = host['logits'][r], float(host['temperature'][r])
    if t == 0:
        if got != int(logits.argmax()) and float(logits[got]) != float(logits.max()):
            raise Failed('row %d: token %d is not the largest' % (r, got))
        first = int((logits == logits.max()).nonzero()[0])
        if got != first or sampling_logprob != 0:
            raise Failed('row %d: token %d with %g, expected %d with 0' %
                         (r, got, sampling_logprob, first))
        return
    # f32, as the sampler divides.
    scaled = logits / torch.tensor(t, dtype=F32, device=logits.device)
    order, margin = candidates(scaled, int(host['top_k'][r]), float(host['top_p'][r]),
                               float(host['min_p'][r]))
    noise = gumbel(seeds[r], streams[r], positions[r], len(logits), logits.device)
    scores = scaled[order].double() + noise[order]
    best = scores.topk(min(2, len(scores)))
    close = len(best.values) > 1 and float(best.values[0] - best.values[1]) < 1e-6
    if margin < 1e-6 or close:
        return  # which side of the cut a token falls on is a matter of rounding
    expected = int(order[best.indices[0]])
    if got != expected:
        raise Failed('row %d: token %d, expected %d' % (r, got, expected))
    log_p = float(scaled[expected].double() - scaled[order].double().logsumexp(0))
    if not abs(sampling_logprob - log_p) <= 1e-5 * max(1.0, abs(log_p)):
        raise Failed('row %d: sampling_logprob %g, expected %g' % (r, sampling_logprob, log_p))

"""Counter-based noise, against the generator written out here."""

import math

import torch

from harness.check import F32, Failed, check

MASK = (1 << 32) - 1


def philox(key, stream, position):
    """Philox4x32-10 of positions, an int64 tensor: four tensors of words (Salmon et al. 2011)."""
    k0, k1 = key & MASK, key >> 32
    zero = torch.zeros_like(position)
    c0, c1 = position & MASK, (position >> 32) & MASK
    c2, c3 = zero + (stream & MASK), zero + (stream >> 32)
    for _ in range(10):
        # The products wrap around 2^64; their halves do not mind the sign.
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK,
                          ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK)
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


def fold(seed, call):
    words = philox(seed, (1 << 64) - 1, torch.tensor([call]))
    return int(words[0]) | int(words[1]) << 32


def words_of(key, stream, n, device):
    """The word of each of n elements of f32."""
    i = torch.arange(n, device=device)
    words = torch.stack(philox(key, stream, 16 * (i // 64) + i % 16))
    return words.gather(0, (i % 64 // 16)[None])[0]


def draw(c, noise, stream, n):
    seed, call = c.integer(0, 1 << 40), c.integer(0, 1 << 20)
    out = c.out(n)
    key = c.up(torch.tensor([seed, call]))
    c.call('tandem_cuda_random', noise=c.constant('TANDEM_CUDA_NOISE_' + noise),
           dtype=c.dtype(F32), out=out, key=key, stream_number=stream, n=n)
    c.device.finish()
    return out, words_of(fold(seed, call), stream, n, c.reference)


def minus_log_uniform(w):
    """-ln of the uniform of word w, precise at both ends."""
    low = -torch.log((2 * (w >> 1) + 1).double() / 2.0 ** 32)
    high = -torch.log1p(-((MASK - w).double() + 0.5) / 2.0 ** 32)
    return torch.where(w < 0xC0000000, low, high)


@check('random', ('UNIFORM',), part='bitwise')
def uniform_is_philox(c, noise):
    """31 bits of a word, rounded to f32; never 1."""
    n = c.size(1003, 4000037)
    out, w = draw(c, noise, 0x123456789, n)
    value = (w >> 1).float().double() / 2.0 ** 31 + 2.0 ** -32  # a fused multiply-add
    c.same(out, value.float().clamp(max=1 - 2.0 ** -24), 'uniform')


@check('random', ('EXPONENTIAL', 'GUMBEL', 'LOGISTIC'))
def noise_of_a_word(c, noise):
    n = c.size(1003, 4000037)
    out, w = draw(c, noise, 7, n)
    e = minus_log_uniform(w)
    expected = {'EXPONENTIAL': e, 'GUMBEL': -torch.log(e),
                'LOGISTIC': minus_log_uniform(MASK - w) - e}[noise]
    c.near(out, expected, noise)


@check('random', ('NORMAL', 'LAPLACE'))
def moments(c, noise):
    """Mean, variance and fourth moment, within six standard errors."""
    n = c.size(20000, 4000037)
    x = draw(c, noise, 9, n)[0].get().double()
    variance, fourth, eighth = (1, 3, 105) if noise == 'NORMAL' else (2, 24, 40320)
    for power, expected, spread in ((1, 0, variance), (2, variance, fourth - variance ** 2),
                                    (4, fourth, eighth - fourth ** 2)):
        got = float((x ** power).mean())
        limit = 6 * math.sqrt(spread / n)
        if not abs(got - expected) <= limit:
            raise Failed('moment %d is %g, expected %g +- %g' % (power, got, expected, limit))


@check('random', (('Lgamma', torch.lgamma), ('Digamma', torch.digamma),
                  ('Trigamma', lambda x: torch.polygamma(1, x))), (F32, torch.float64))
def special(c, op, dtype):
    n = c.size(501, 1000003)
    x = c.uniform(n, low=0.05, high=30).to(dtype)
    out = c.out(n, dtype=dtype)
    c.call('tandem_cuda_special', op=c.constant('TANDEM_CUDA_SPECIAL_' + op[0]),
           dtype=c.dtype(dtype), out=out, x=c.up(x), n=n)
    # torch's own trigamma ends its series where 1e-9 is left.
    wide = 1e4 if op[0] == 'Trigamma' else 100
    c.near(out, op[1](x.double()), op[0], scale=wide if dtype == torch.float64 else 1)

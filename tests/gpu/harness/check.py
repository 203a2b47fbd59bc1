"""Checks: functions of a Context that raise Failed, found by family and name."""

import math
import time
import traceback
import zlib

import torch

from harness import c_interface
from harness import device as devices
from harness.deadline import OutOfTime, limit

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
FLOATS = (F32, F16, BF16)
# Of a result that was computed in f32 and rounded once to the dtype: relative to the larger of 1
# and the expected value.
TOLERANCE = {F32: 1e-5, torch.float64: 1e-12, F16: 1e-3, BF16: 8e-3}

CHECKS = []


class Failed(Exception):
    """What was expected and what came."""


class Check:
    def __init__(self, part, family, name, function, arguments):
        self.part, self.family, self.function, self.arguments = part, family, function, arguments
        self.name = '/'.join([family, name] + [_show(a) for a in arguments])


def _show(argument):
    if isinstance(argument, tuple):
        return '-'.join(_show(a) for a in argument if not callable(a))
    return devices.NAMES[argument].lower() if argument in devices.NAMES else str(argument)


def check(family, *choices, part='correctness'):
    """Registers the function once for every combination of the choices."""

    def register(function):
        combinations = [()]
        for choice in choices:
            combinations = [c + (value,) for c in combinations for value in choice]
        for arguments in combinations:
            CHECKS.append(Check(part, family, function.__name__, function, arguments))
        return function

    return register


class Context:
    """What a check works with: the library, arrays, and numbers that follow from the seed and the
    check's name alone."""

    def __init__(self, library, device, seed, name, small):
        self.library = library
        self.device = device
        self.emulated = device.emulated
        self.small = small
        self.reference = device.reference
        self.generator = torch.Generator(device=self.reference)
        self.generator.manual_seed((seed << 32) ^ zlib.crc32(name.encode()))

    # --- numbers
    def size(self, small, large):
        """`small` under emulation and under a sanitizer, which are slow."""
        return small if self.small else large

    def normal(self, *shape, dtype=F32, scale=1.0):
        x = torch.randn(shape, generator=self.generator, device=self.reference)
        return (scale * x).to(dtype)

    def uniform(self, *shape, dtype=F32, low=0.0, high=1.0):
        x = torch.rand(shape, generator=self.generator, device=self.reference)
        return (low + (high - low) * x).to(dtype)

    def integers(self, low, high, *shape, dtype=torch.int64):
        """In [low, high)."""
        return torch.randint(low, high, shape, generator=self.generator, device=self.reference,
                             dtype=torch.int64).to(dtype)

    def integer(self, low, high):
        return int(self.integers(low, high, 1))

    # --- the library
    def dtype(self, dtype):
        return self.library.constant('TANDEM_CUDA_' + devices.NAMES[dtype])

    def constant(self, name):
        return self.library.constant(name)

    def call(self, name, **arguments):
        return self.library.call(name, **arguments)

    def struct(self, name, **fields):
        return self.library.struct(name, **fields)

    def up(self, tensor):
        return self.device.upload(tensor)

    def out(self, *shape, dtype=F32):
        return self.device.empty(shape, dtype)

    def scratch(self, size):
        return self.device.empty((max(int(size), 0),), torch.uint8)

    # --- expectations
    def near(self, array, expected, what, scale=1.0, dtype=None):
        """|got - expected| <= tolerance of the dtype * scale * max(1, |expected|), and NaN and
        infinity where they are expected."""
        got = array.get() if hasattr(array, 'get') else array
        limit = TOLERANCE.get(dtype or got.dtype, 0) * scale
        compare(got, expected, limit, what)

    def same(self, a, b, what):
        """Equal bits."""
        a = a.get() if hasattr(a, 'get') else a
        b = b.get() if hasattr(b, 'get') else b
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Failed('%s: %s %s against %s %s' % (what, a.dtype, tuple(a.shape), b.dtype,
                                                      tuple(b.shape)))
        different = _bits(a) != _bits(b)
        if bool(different.any()):
            at = int(different.flatten().nonzero()[0])
            raise Failed('%s: %d of %d elements differ in their bits, the first, %d: %r and %r' %
                         (what, int(different.sum()), a.numel(), at, a.flatten()[at].item(),
                          b.flatten()[at].item()))


def _bits(x):
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return x.contiguous().view(kinds[x.element_size()])


def compare(got, expected, limit, what):
    expected = expected.to(got.device)
    if got.shape != expected.shape:
        raise Failed('%s: shape %s, expected %s' % (what, tuple(got.shape), tuple(expected.shape)))
    if got.numel() == 0:
        return
    if not got.dtype.is_floating_point:
        wrong = got != expected.to(got.dtype)
        error = wrong.double()
    else:
        g, e = got.double(), expected.double()
        error = (g - e).abs() / e.abs().clamp(min=1.0)
        agree = (g == e) | (g.isnan() & e.isnan())  # infinities, NaN
        error = torch.where(agree, torch.zeros_like(error), error)
        wrong = ~(error <= limit)
    if bool(wrong.any()):
        at = int(wrong.flatten().nonzero()[0])
        worst = error.nan_to_num(nan=math.inf).max().item()
        raise Failed('%s: %d of %d elements are off; the first, %d: %r, expected %r; worst error '
                     '%.3g, limit %.3g' % (what, int(wrong.sum()), got.numel(), at,
                                           got.flatten()[at].item(),
                                           expected.flatten()[at].item(), worst, limit))


class Outcome:
    """passed, failed or not run (out of time)."""

    def __init__(self, check, status, message, seconds):
        self.check, self.status, self.message, self.seconds = check, status, message, seconds


def is_lost(device):
    """After an illegal access CUDA refuses everything else in this process."""
    try:
        device.finish()
    except Exception:
        print('the device is lost: nothing more can be run in this process', flush=True)
        return True
    return False


def run_checks(checks, library, device, seed, small, deadline, show):
    """Each check's outcome; those that have not ended at the deadline, or start after the device was
    lost, count as not run."""
    outcomes = []
    lost = False
    for c in checks:
        start = time.monotonic()
        if start > deadline or lost:
            why = 'the device is lost' if lost else 'out of time'
            outcomes.append(Outcome(c, 'not run', why, 0.0))
            continue
        try:
            with limit(deadline):
                c.function(Context(library, device, seed, c.name, small), *c.arguments)
                device.finish()
            status, message = 'passed', ''
        except OutOfTime:
            status, message = 'not run', 'out of time'
        except (Failed, c_interface.KernelError, devices.Overrun) as error:
            status, message = 'failed', str(error)
        except Exception:  # a reference that does not run is a failure too
            status, message = 'failed', traceback.format_exc(limit=-3)
        outcomes.append(Outcome(c, status, message, time.monotonic() - start))
        if status == 'failed':
            lost = is_lost(device)
        if status == 'failed' or show:
            last = outcomes[-1]
            print('%-8s %-48s %5.1f s  %s' % (last.status, c.name, last.seconds, last.message),
                  flush=True)
    return outcomes

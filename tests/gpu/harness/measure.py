"""Times on the device: medians of alternating measurements of a kernel and its rival."""

import statistics
import time

import torch


class Clock:
    """Seconds of a function's work, by CUDA events; by the host's clock under emulation, where they
    mean nothing."""

    def __init__(self, emulated):
        self.emulated = emulated

    def once(self, function, repeats):
        if self.emulated:
            start = time.perf_counter()
            for _ in range(repeats):
                function()
            return (time.perf_counter() - start) / repeats
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / repeats

    def compare(self, functions, seconds):
        """Median seconds of each, measured in turns so that clocks and heat are shared."""
        if self.emulated:
            return [self.once(f, 1) for f in functions]
        repeats = []
        for f in functions:
            for _ in range(3):
                f()  # warm-up: modules, allocations, plans
            estimate = self.once(f, 2)
            repeats.append(max(1, min(200, int(4e-3 / max(estimate, 1e-7)))))
        times = [[] for _ in functions]
        end = time.monotonic() + seconds
        while len(times[0]) < 5 or (time.monotonic() < end and len(times[0]) < 40):
            for f, n, t in zip(functions, repeats, times):
                t.append(self.once(f, n))
        return [statistics.median(t) for t in times]

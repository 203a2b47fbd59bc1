"""Gumbel-softmax over 1,000 x 50,000 logits, PyTorch's time over ours: torch_gumbel.py [threads] [bench_ops].

Both are measured in turn, several times, and the medians compared. Prints nothing but a note where
PyTorch is not installed.
"""
import json
import os
import statistics
import subprocess
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("PyTorch is not installed: no ratio")
    sys.exit(0)

threads = sys.argv[1] if len(sys.argv) > 1 else "2"
bench_ops = sys.argv[2] if len(sys.argv) > 2 else "build/release/tests/bench_ops"
torch.set_num_threads(int(threads))
torch.manual_seed(0)
logits = torch.rand(1000, 50000) * 4 - 2


def seconds_of_torch():
    begin = time.perf_counter()
    with torch.no_grad():
        F.gumbel_softmax(logits, tau=0.5)
    return time.perf_counter() - begin


def seconds_of_tandem():
    report = subprocess.run(
        [bench_ops, "--benchmark_filter=^GumbelSoftmax_long_rows", "--benchmark_format=json"],
        env={**os.environ, "OMP_NUM_THREADS": threads}, check=True, capture_output=True, text=True)
    (result,) = json.loads(report.stdout)["benchmarks"]
    assert result["time_unit"] == "us"
    return result["real_time"] * 1e-6


seconds_of_torch()
times = [(seconds_of_torch(), seconds_of_tandem()) for _ in range(7)]
theirs, ours = (statistics.median(column) for column in zip(*times))
print(f"torch {torch.__version__} {theirs * 1e3:10.3f} ms  tandem {ours * 1e3:10.3f} ms  "
      f"ratio {theirs / ours:.1f}, {threads} threads")

"""A few small checks of each family once more, under compute-sanitizer."""

import glob
import os
import shutil
import signal
import subprocess
import sys
import time

# One or two of each family: barriers, shared memory, ragged ends. Times are some 20 times longer.
CHECKS = ('elementwise/binary/Add/bf16,reduce/reduce/Sum/columns/f32,reduce/arg_reduce/rows/1/f32,'
          'shape/gather/f32/i32,normalization/norm/narrow/rms/bf16,'
          'normalization/norm/wide/layer/f32,'
          'loss/cross_entropy/wide/bf16,matmul/product/ragged/0-1/bf16-bf16,matmul/swiglu/1/bf16,'
          'attention/forward_and_gradient/d128/bf16,attention/paged/d64/bf16,'
          'embedding/gather_grad/bf16/i32,optimizer/steps/adamw,'
          'spatial/convolution/wide/bf16,spatial/max_pool/wide/f32,sampling/')
TOOLS = ('memcheck', 'racecheck')


def find():
    found = shutil.which('compute-sanitizer')
    places = sorted(glob.glob('/usr/local/cuda*/bin/compute-sanitizer'))
    return found or (places[-1] if places else None)


def count(results):
    """Of run()'s results: how many failed, and how many say nothing of the kernels."""
    return (sum(status == 'failed' for _, status, _ in results),
            sum(status in ('not run', 'not available') for _, status, _ in results))


def run(program, library, seed, deadline):
    """[(tool, 'passed' | 'failed' | 'not run' | 'not available', what it said)]"""
    sanitizer = find()
    results = []
    print('--- sanitizers', flush=True)
    for i, tool in enumerate(TOOLS):
        if sanitizer is None:
            results.append((tool, 'not available', 'there is no compute-sanitizer here'))
        else:
            left = (deadline - time.monotonic()) / (len(TOOLS) - i)
            if left <= 0:
                results.append((tool, 'not run', 'out of time'))
            else:
                results.append((tool,) + _run(sanitizer, tool, program, library, seed, left))
        print('%s: %s %s' % results[-1], flush=True)
    return results


def _run(sanitizer, tool, program, library, seed, seconds):
    # Ours alone: torch's kernels have been looked at by others.
    command = [sanitizer, '--tool', tool, '--kernel-name', 'kns=tandem', '--error-exitcode', '9',
               '--print-limit', '5', sys.executable, program, '--library', library, '--small',
               '--parts', 'correctness', '--only', CHECKS, '--seed', str(seed), '--no-budget']
    # A session of its own: what it starts is not to go on after it and disturb the benchmarks.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          start_new_session=True) as started:
        try:
            said, errors = started.communicate(
                timeout=None if seconds == float('inf') else seconds)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)
            started.communicate()
            return 'not run', 'did not end within %d s' % seconds
        except BaseException:
            os.killpg(started.pid, signal.SIGKILL)
            raise
    output = (said + errors).strip().split('\n')
    if started.returncode == 0:
        return 'passed', next((l for l in output if l.startswith('correctness:')), '')
    said = [l for l in output if l.startswith('=========') or l.startswith('failed')]
    return 'failed', 'status %d: %s' % (started.returncode, '\n'.join((said or output)[-12:]))

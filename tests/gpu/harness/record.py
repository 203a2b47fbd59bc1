"""Adds a run's results to RESULTS.md, as measured."""

import datetime
import os
import subprocess


UNMEASURED = '## Not measured yet'


def driver():
    command = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return said.split('\n')[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'


def section(results, torch_version, cuda_version):
    """The Markdown of one run."""
    today = datetime.datetime.now(datetime.timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
    lines = ['## %s, %s' % (results['device'], today), '',
             'Driver %s, PyTorch %s (CUDA %s), seed %d%s.' %
             (driver(), torch_version, cuda_version, results['seed'],
              ', --quick' if results['quick'] else ''), '']
    for part in ('correctness', 'bitwise'):
        if part not in results:
            lines.append('- %s: not run' % part)
            continue
        outcomes = results[part]
        counts = [sum(o.status == s for o in outcomes) for s in ('passed', 'failed', 'not run')]
        lines.append('- %s: %d passed, %d failed, %d not run' % (part, *counts))
        lines += ['  - failed: `%s`: %s' % (o.check.name, o.message.split('\n')[0])
                  for o in outcomes if o.status == 'failed']
    for tool, status, said in results.get('sanitizers', []):
        lines.append('- %s: %s: %s' % (tool, 'NOT RUN, ' + status if status == 'not available'
                                       else status, said.split('\n')[0]))
    if 'benchmarks' in results:
        import benchmarks
        rate, rows = results['benchmarks']
        lines += ['', 'Device copy: %.3g TB/s read and written.' % (rate / 1e12) if rate else
                  'Device copy: not measured.', '', benchmarks.markdown(rows)]
    return '\n'.join(lines) + '\n'


def add(text, new):
    """The file's text with the section; the first one replaces the table without numbers."""
    return text.split(UNMEASURED)[0].rstrip() + '\n\n' + new


def append(folder, results):
    import torch
    path = os.path.join(folder, 'RESULTS.md')
    with open(path, encoding='utf-8') as file:
        text = file.read()
    with open(path, 'w', encoding='utf-8') as file:
        file.write(add(text, section(results, torch.__version__, torch.version.cuda)))
    return path

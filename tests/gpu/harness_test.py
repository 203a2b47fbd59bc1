#!/usr/bin/env python3
"""tests/gpu's parts that need neither a GPU nor torch, against the emulated library.

harness_test.py LIBRARY SOURCE_DIR"""

import ctypes
import os
import re
import subprocess
import sys
import tempfile
import time
import unittest
from unittest import mock

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

from harness import c_interface  # noqa: E402

HEADER = 'engine/backend/cuda/kernels/tandem_cuda.h'
LIBRARY, ROOT = sys.argv.pop(1), sys.argv.pop(1)


def parse(text):
    """The declarations of a header of that text."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, 'x.h'), 'w', encoding='utf-8') as file:
            file.write(text)
        return c_interface.Headers(folder, 'x.h')


class ParserTest(unittest.TestCase):
    def test_declarations(self):
        h = parse('''
            #ifndef X_H_
            #define X_H_
            #include <stdint.h>
            #define SIZE 3
            #define API __attribute__((visibility("default")))
            #ifdef __cplusplus
            extern "C" {
            #endif
            /* int hidden(void); */
            typedef void* handle; // a comment
            enum kind { A, B = 5, C, D = 1 << 4, E = -2 };
            struct inner { char name[4]; int16_t a, b; };
            struct outer {
              struct inner in;
              int64_t stride[2][SIZE];
              const void *x, *y;
              float f;
            };
            static inline int64_t twice(int64_t n) { if (n > 0) { n += n; } return n; }
            TANDEM_CUDA_API int run(const struct outer* o, handle stream, double* const out);
            TANDEM_CUDA_API int64_t bytes(void);
            TANDEM_CUDA_API const char* text(enum kind k);
            #ifdef __cplusplus
            }
            #endif
            #endif''')
        self.assertEqual([h.constants[n] for n in ('SIZE', 'A', 'B', 'C', 'D', 'E')],
                         [3, 0, 5, 6, 16, -2])
        outer = h.structs['outer']
        self.assertEqual(ctypes.sizeof(h.structs['inner']), 8)
        self.assertEqual(outer.stride.offset, 8)
        self.assertEqual(outer.stride.size, 48)
        self.assertEqual(outer.y.offset, 64)
        self.assertEqual(ctypes.sizeof(outer), 80)
        self.assertEqual(sorted(h.functions), ['bytes', 'run', 'text'])
        run = h.functions['run']
        self.assertEqual([name for name, _ in run.arguments], ['o', 'stream', 'out'])
        self.assertTrue(run.returns_error)
        self.assertFalse(h.functions['bytes'].returns_error)
        self.assertIs(h.functions['bytes'].result, ctypes.c_int64)
        self.assertIs(h.functions['text'].result, ctypes.c_char_p)

    def test_what_it_does_not_understand_is_an_error(self):
        for text in ('int f(long x);', 'union u { int a; };', 'int f(int (*g)(int));',
                     'struct s { int a : 3; };', 'int f(struct t x);', 'int f(int x)',
                     'struct s { int a[N]; };', 'int f(int x); int f(int x);', '#ifdef WINDOWS',
                     'int f(@);'):
            with self.assertRaises(c_interface.HeaderError, msg=text):
                parse(text)


class LibraryTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.headers = c_interface.Headers(ROOT, HEADER)
        cls.library = c_interface.Library(LIBRARY, cls.headers)
        cls.library.call('tandem_cuda_use_device', device=0)

    def test_every_declared_function_is_there(self):
        self.assertEqual(self.library.missing(), [])
        self.assertGreater(len(self.headers.functions), 20)

    def test_every_exported_function_is_declared(self):
        symbols = subprocess.run(['nm', '-D', '--defined-only', LIBRARY], capture_output=True,
                                 text=True, check=True).stdout
        exported = set(re.findall(r' T (tandem_cuda_\w+)', symbols))
        self.assertEqual(exported - set(self.headers.functions), set())

    def test_layouts_are_the_compilers(self):
        """Every struct's size and offsets, as a C compiler says them."""
        lines = ['#include <stdio.h>', '#include "%s"' % HEADER, 'int main(void) {']
        expected = []
        for name, struct in self.headers.structs.items():
            lines.append('printf("%%zu\\n", sizeof(struct %s));' % name)
            expected.append('%s %d' % (name, ctypes.sizeof(struct)))
            for field, _ in struct._fields_:
                lines.append('printf("%%zu\\n", offsetof(struct %s, %s));' % (name, field))
                expected.append('%s.%s %d' % (name, field, getattr(struct, field).offset))
        lines.append('return 0; }')
        with tempfile.TemporaryDirectory() as folder:
            source, program = os.path.join(folder, 'x.c'), os.path.join(folder, 'x')
            with open(source, 'w', encoding='utf-8') as file:
                file.write('\n'.join(lines))
            subprocess.run(['cc', '-I' + ROOT, '-o', program, source], check=True)
            said = subprocess.run([program], capture_output=True, text=True, check=True).stdout
        numbers = said.split()
        self.assertEqual(len(numbers), len(expected))
        self.assertEqual([e.split()[0] + ' ' + n for e, n in zip(expected, numbers)], expected)

    def upload(self, values, kind):
        host = (kind * len(values))(*values)
        device = self.empty(ctypes.sizeof(host))
        self.library.call('tandem_cuda_upload', to_device=device, from_host=host,
                          bytes=ctypes.sizeof(host))
        return device

    def empty(self, size):
        pointer = ctypes.c_void_p()
        self.library.call('tandem_cuda_allocate', pointer=ctypes.byref(pointer), bytes=size)
        self.addCleanup(self.library.call, 'tandem_cuda_free', pointer=pointer)
        return pointer

    def download(self, device, count, kind):
        host = (kind * count)()
        self.library.call('tandem_cuda_download', to_host=host, from_device=device,
                          bytes=ctypes.sizeof(host))
        self.library.call('tandem_cuda_stream_finish')
        return list(host)

    def test_calls(self):
        x = self.upload([1.0, 5.0, 2.0, 4.0, 3.0], ctypes.c_float)
        window = self.library.struct('tandem_cuda_window_params', in_h=1, in_w=5, out_h=1, out_w=4,
                                     kernel_h=1, kernel_w=2, stride_h=1, stride_w=1, dilation_h=1,
                                     dilation_w=1)
        y, index = self.empty(16), self.empty(32)
        self.library.call('tandem_cuda_max_pool', y=y, index=index, x=x, planes=1, window=window,
                          dtype=self.library.constant('TANDEM_CUDA_F32'))
        self.assertEqual(self.download(y, 4, ctypes.c_float), [5.0, 5.0, 4.0, 4.0])
        self.assertEqual(self.download(index, 4, ctypes.c_int64), [1, 1, 3, 3])

    def test_errors(self):
        call = self.library.call
        with self.assertRaisesRegex(c_interface.KernelError, 'no argument window'):
            call('tandem_cuda_max_pool', y=None, index=None, x=None, planes=0, dtype=0)
        with self.assertRaisesRegex(c_interface.KernelError, 'takes no colour'):
            call('tandem_cuda_stream_finish', colour=1)
        with self.assertRaisesRegex(c_interface.KernelError, 'has no field colour'):
            self.library.struct('tandem_cuda_window_params', colour=1)
        with self.assertRaisesRegex(c_interface.KernelError, 'has no tandem_cuda_nothing'):
            call('tandem_cuda_nothing')
        with self.assertRaisesRegex(c_interface.KernelError, 'ordinal'):
            call('tandem_cuda_use_device', device=7)
        window = self.library.struct('tandem_cuda_window_params', stride_h=1, stride_w=1)
        with self.assertRaises(c_interface.Unsupported):
            call('tandem_cuda_average_pool', y=None, x=None, planes=0, window=window,
                 count_include_pad=0, dtype=self.library.constant('TANDEM_CUDA_I8'))


class ProgramTest(unittest.TestCase):
    def test_says_why_it_cannot_run(self):
        run = [sys.executable, os.path.join(HERE, 'run')]
        done = subprocess.run(run + ['--library', '/nonexistent/lib.so'], capture_output=True,
                              text=True, check=False)
        self.assertEqual(done.returncode, 2)
        self.assertIn('no library at /nonexistent/lib.so', done.stderr)
        # A module that cannot be imported stands for a machine without torch.
        with tempfile.TemporaryDirectory() as folder:
            with open(os.path.join(folder, 'torch.py'), 'w', encoding='utf-8') as file:
                file.write('raise ImportError("none here")')
            done = subprocess.run(run + ['--emulated', '--library', LIBRARY], capture_output=True,
                                  text=True, check=False, env=dict(os.environ, PYTHONPATH=folder))
        self.assertEqual(done.returncode, 2)
        self.assertIn('PyTorch is needed: none here', done.stderr)

    def test_package(self):
        with tempfile.TemporaryDirectory() as folder:
            tar = os.path.join(folder, 'gpu.tar')
            subprocess.run([os.path.join(HERE, 'package'), '--library', LIBRARY, tar], check=True)
            subprocess.run(['tar', '-xf', tar, '-C', folder], check=True)
            unpacked = os.path.join(folder, 'tandem-gpu-tests')
            headers = c_interface.Headers(unpacked, HEADER)
            self.assertEqual(set(headers.functions), set(LibraryTest.headers.functions)
                             if hasattr(LibraryTest, 'headers') else set(headers.functions))
            for file in ('tests/gpu/run', 'tests/gpu/checks/spatial.py', 'tests/gpu/RESULTS.md',
                         'build/release/libtandem_cuda.so'):
                self.assertTrue(os.path.exists(os.path.join(unpacked, file)), file)


class SanitizersTest(unittest.TestCase):
    def test_an_absent_sanitizer_leaves_the_run_incomplete(self):
        from harness import record, sanitizers
        with mock.patch.object(sanitizers, 'find', lambda: None):
            results = sanitizers.run('run', 'lib.so', 1, time.monotonic() + 60)
        self.assertEqual([status for _, status, _ in results], ['not available'] * 2)
        self.assertEqual(sanitizers.count(results), (0, 2))
        text = record.section({'device': 'x', 'seed': 1, 'quick': False, 'sanitizers': results},
                              '0', '0')
        self.assertIn('memcheck: NOT RUN, not available: there is no compute-sanitizer', text)
        self.assertEqual(sanitizers.count([('a', 'passed', ''), ('b', 'failed', ''),
                                           ('c', 'not run', '')]), (1, 1))

    def test_nothing_outlives_its_time(self):
        from harness import sanitizers
        with tempfile.TemporaryDirectory() as folder:
            pid, program = os.path.join(folder, 'pid'), os.path.join(folder, 'sanitizer')
            with open(program, 'w', encoding='utf-8') as file:
                file.write('#!/bin/sh\nsleep 600 &\necho $! >%s\nwait\n' % pid)
            os.chmod(program, 0o755)
            with mock.patch.object(sanitizers, 'find', lambda: program):
                results = sanitizers.run('run', 'lib.so', 1, time.monotonic() + 6)
            self.assertEqual([status for _, status, _ in results], ['not run'] * 2)
            with open(pid, encoding='utf-8') as file:
                child = int(file.read())
        # The dead child is its new parent's to collect.
        state = ''
        for _ in range(100):
            try:
                with open('/proc/%d/stat' % child, encoding='utf-8') as file:
                    state = file.read().rsplit(')', 1)[1].split()[0]
            except (FileNotFoundError, ProcessLookupError):
                state = 'gone'
            if state in ('gone', 'Z', 'X'):
                break
            time.sleep(0.05)
        self.assertIn(state, ('gone', 'Z', 'X'))


class DeadlineTest(unittest.TestCase):
    def test_limit(self):
        from harness import deadline
        start = time.monotonic()
        with self.assertRaises(deadline.OutOfTime):
            with deadline.limit(start + 0.2):
                time.sleep(60)
        self.assertLess(time.monotonic() - start, 30)
        with self.assertRaises(deadline.OutOfTime):
            with deadline.limit(start):
                self.fail('the deadline was over')
        with deadline.limit(time.monotonic() + 600):
            pass
        with deadline.limit(float('inf')):
            pass

    def test_guard(self):
        program = ('import sys, time; sys.path.insert(0, %r); from harness import deadline; '
                   'deadline.GRACE = 0; deadline.guard(time.monotonic() + 0.2); time.sleep(60)')
        done = subprocess.run([sys.executable, '-c', program % HERE], capture_output=True,
                              text=True, timeout=50, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn('giving up', done.stdout)


class ResultsTest(unittest.TestCase):
    def test_a_section_takes_the_place_of_the_empty_table(self):
        from harness import record
        with open(os.path.join(HERE, 'RESULTS.md'), encoding='utf-8') as file:
            text = file.read()
        first = record.add(text, '## A device\n')
        self.assertNotIn(record.UNMEASURED, first)
        self.assertNotIn('not measured', first)
        self.assertTrue(first.endswith('\n\n## A device\n'))
        self.assertEqual(record.add(first, '## Another\n'), first + '\n## Another\n')


if __name__ == '__main__':
    unittest.main()

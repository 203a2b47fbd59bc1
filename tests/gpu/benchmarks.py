"""Each kernel against its rival in the same run, and against the goals.

A case returns what to measure: our function, the rival's (or None: the rate of a device copy), and
what to call the rival. Ratios above 1 mean that ours is faster."""

import ctypes
import time
import traceback

import torch
from torch.nn import functional as F

from checks.optimizer import vector
from harness.check import BF16, F32, Context
from harness.deadline import OutOfTime, limit
from harness.measure import Clock

F64 = torch.float64


class Goal:
    """What the ratio is to reach."""

    def __init__(self, least, stretch=None):
        self.least, self.stretch = least, stretch

    def text(self):
        return '>= %.2f' % self.least + (' (%.2f)' % self.stretch if self.stretch else '')

    def judge(self, ratio):
        return 'pass' if ratio >= self.least else 'miss'


class Case:
    """`bytes` of memory traffic, where the rival is a copy's rate."""

    def __init__(self, ours, rival=None, rival_name='device copy', bytes_=0, held=()):
        self.ours, self.rival, self.rival_name, self.bytes = ours, rival, rival_name, bytes_
        self.held = held  # what the pointers point to


BENCHMARKS = []  # (name, goal, function of a Context)


def benchmark(name, goal):
    def register(function):
        BENCHMARKS.append((name, goal, function))
        return function

    return register


# --- attention -----------------------------------------------------------------------------------


def rival_attention(c, batch, heads, length, dim):
    """torch's, by cuDNN where it can: forward, q, k, v, and what it is called."""
    q, k, v = (c.normal(batch, heads, length, dim, dtype=BF16).requires_grad_() for _ in range(3))
    forward = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True)
    if c.emulated:
        return forward, (q, k, v), 'torch SDPA'
    from torch.nn.attention import SDPBackend, sdpa_kernel
    for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
        def chosen(backend=backend):
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        try:
            torch.autograd.grad(chosen(), (q, k, v), torch.ones_like(q))
            return chosen, (q, k, v), 'torch SDPA, ' + str(backend).split('.')[-1]
        except RuntimeError:
            continue
    return forward, (q, k, v), 'torch SDPA, default'


def packed_attention(c, length, dim=128):
    """16k tokens in all, 16 heads."""
    tokens, heads = c.size((2 * length, 2), (16384, 16))
    batch = max(1, tokens // length)
    q, k, v = (c.up(c.normal(batch * length, heads, dim, dtype=BF16)) for _ in range(3))
    starts = c.up(torch.arange(0, batch + 1, dtype=torch.int32) * length)
    out, lse = c.out(batch * length, heads, dim, dtype=BF16), c.out(batch * length, heads)
    params = c.struct('tandem_cuda_attention_params', dtype=c.dtype(BF16),
                      capability=c.device.capability, tokens=batch * length, sequences=batch,
                      heads=heads, kv_heads=heads, head_dim=dim, scale=dim ** -0.5,
                      query_start=starts, q=q, k=k, v=v, out=out, lse=lse)
    return params, batch, heads, [q, k, v, starts, out, lse]


for LENGTH in (2048, 4096, 8192):

    @benchmark('attention forward, d128 causal bf16, %dk' % (LENGTH // 1024), Goal(0.80, 0.95))
    def attention_forward(c, length=LENGTH):
        length = c.size(40, length)
        params, batch, heads, held = packed_attention(c, length)
        rival, _, name = rival_attention(c, batch, heads, length, 128)

        def without_grad():
            with torch.no_grad():
                rival()

        return Case(lambda: c.call('tandem_cuda_attention', params=params), without_grad, name,
                    held=held)


for LENGTH in (2048, 4096, 8192):

    @benchmark('attention backward, deterministic, d128 causal bf16, %dk' % (LENGTH // 1024),
               Goal(0.60, 0.80))
    def attention_backward(c, length=LENGTH):
        length = c.size(40, length)
        params, batch, heads, held = packed_attention(c, length)
        c.call('tandem_cuda_attention', params=params)
        shape = held[0].shape
        more = [c.up(c.normal(*shape, dtype=BF16))] + [c.out(*shape, dtype=BF16) for _ in range(3)]
        more.append(c.out(shape[0], shape[1]))
        grad = c.struct('tandem_cuda_attention_grad_params', forward=params, dout=more[0],
                        dq=more[1], dk=more[2], dv=more[3], delta=more[4])
        rival, leaves, name = rival_attention(c, batch, heads, length, 128)
        out = rival()
        dout = torch.randn_like(out)
        return Case(lambda: c.call('tandem_cuda_attention_grad', params=grad),
                    lambda: torch.autograd.grad(out, leaves, dout, retain_graph=True), name,
                    held=held + more)


@benchmark('paged decode, d128 GQA 32:8 bf16, 64 x 8k keys', Goal(0.75, 0.88))
def paged_decode(c):
    sequences, keys, heads, kv_heads, dim = c.size((2, 70, 4, 2, 64), (64, 8192, 32, 8, 128))
    width = (keys + 31) // 32
    pages = sequences * width
    cache = [c.up(c.normal(pages, kv_heads, 32, dim, dtype=BF16)) for _ in range(2)]
    q = c.up(c.normal(sequences, heads, dim, dtype=BF16))
    k, v = (c.up(c.normal(sequences, kv_heads, dim, dtype=BF16)) for _ in range(2))
    out = c.out(sequences, heads, dim, dtype=BF16)
    table = torch.randperm(pages, generator=c.generator, device=c.reference)
    held = [c.up(torch.arange(sequences + 1, dtype=torch.int32)),
            c.up(torch.full((sequences,), keys - 1, dtype=torch.int32)),
            c.up(table.view(sequences, width).int())]
    params = c.struct('tandem_cuda_attention_params', dtype=c.dtype(BF16),
                      capability=c.device.capability, tokens=sequences, sequences=sequences,
                      heads=heads, kv_heads=kv_heads, head_dim=dim, scale=dim ** -0.5,
                      query_start=held[0], q=q, k=k, v=v, out=out, past_length=held[1],
                      block_table=held[2], k_cache=cache[0], v_cache=cache[1], pages=pages,
                      blocks_per_sequence=width)
    size = ctypes.c_int64()
    c.call('tandem_cuda_paged_attention_scratch', params=params, bytes=size)
    held.append(c.scratch(size.value))
    params.scratch = held[-1].pointer
    return Case(lambda: c.call('tandem_cuda_paged_attention', params=params),
                bytes_=2 * 2 * sequences * keys * kv_heads * dim,
                held=held + cache + [q, k, v, out])


# --- matrix products -----------------------------------------------------------------------------


def product(c, m, n, k, transpose_b=1, a=None, out_dtype=BF16):
    """ours() and its operands: out (m, n) = a (m, k) b (n, k)^T."""
    a = c.up(c.normal(m, k, dtype=BF16)) if a is None else a
    b = c.up(c.normal(*((n, k) if transpose_b else (k, n)), dtype=BF16))
    out = c.out(m, n, dtype=out_dtype)
    params = c.struct('tandem_cuda_matmul_params', a=a, b=b, out=out, batch=1, m=m, n=n, k=k, lda=k,
                      ldb=k if transpose_b else n, ld_out=n, dtype=c.dtype(BF16),
                      out_dtype=c.dtype(out_dtype), transpose_b=transpose_b)
    return (lambda: c.call('tandem_cuda_matmul', params=params)), a, b, out, params


for SIZES in ((2048, 2048, 2048), (4096, 4096, 4096), (8192, 8192, 8192), (8192, 14336, 4096)):

    @benchmark('matmul bf16 %d x %d x %d' % SIZES, Goal(0.90))
    def large_matmul(c, sizes=SIZES):
        m, n, k = c.size((32, 48, 64), sizes)
        ours, a, b, out, params = product(c, m, n, k)
        left, right = c.normal(m, k, dtype=BF16), c.normal(n, k, dtype=BF16)
        return Case(ours, lambda: left @ right.T, 'torch.matmul (cuBLAS)',
                    held=[a, b, out, params])


for ROWS in (1, 16, 64):

    @benchmark('matmul bf16, %d x 14336 x 8192' % ROWS, Goal(0.70))
    def few_rows(c, rows=ROWS):
        n, k = c.size((48, 64), (14336, 8192))
        ours, a, b, out, params = product(c, rows, n, k)
        return Case(ours, bytes_=2 * (n * k + rows * (n + k)), held=[a, b, out, params])


@benchmark('batch-invariance tax: matmul bf16, 512 x 4096 x 4096', Goal(1 / 1.15))
def invariance_tax(c):
    """cuBLAS may split the inner dimension; ours never does."""
    m, n, k = c.size((32, 48, 64), (512, 4096, 4096))
    ours, a, b, out, params = product(c, m, n, k)
    left, right = c.normal(m, k, dtype=BF16), c.normal(n, k, dtype=BF16)
    return Case(ours, lambda: left @ right.T, 'torch.matmul (cuBLAS)', held=[a, b, out, params])


# --- memory-bound kernels ------------------------------------------------------------------------


def rms_norm_arrays(c):
    rows, cols = c.size((4, 64), (32768, 4096))
    x, gamma = c.up(c.normal(rows, cols, dtype=BF16)), c.up(c.normal(cols, dtype=BF16))
    y, rstd = c.out(rows, cols, dtype=BF16), c.out(rows)
    ours = lambda: c.call('tandem_cuda_rms_norm', dtype=c.dtype(BF16), x=x, gamma=gamma,
                          epsilon=1e-5, y=y, rstd=rstd, rows=rows, cols=cols)
    return ours, rows, cols, [x, gamma, y, rstd]


@benchmark('RMSNorm bf16, 32k x 4096', Goal(0.85))
def rms_norm(c):
    ours, rows, cols, held = rms_norm_arrays(c)
    return Case(ours, bytes_=2 * 2 * rows * cols, held=held)


@benchmark('RMSNorm bf16, 32k x 4096, against torch', Goal(1.0))
def rms_norm_rival(c):
    ours, rows, cols, held = rms_norm_arrays(c)
    x, gamma = c.normal(rows, cols, dtype=BF16), c.normal(cols, dtype=BF16)
    return Case(ours, lambda: F.rms_norm(x, (cols,), gamma, 1e-5), 'F.rms_norm', held=held)


class Step:
    """Our whole optimizer step over n parameters: gradients in f32, a copy in bf16."""

    def __init__(self, c, n):
        self.c, self.n = c, n
        p, g, m = (c.up(c.normal(n, scale=0.01)) for _ in range(3))
        v = c.up(c.uniform(n, high=1e-4))
        hyper = vector(c, 'HYPER', learning_rate=1e-4, beta1=0.9, beta2=0.95, epsilon=1e-8,
                       weight_decay=0.1, max_grad_norm=1, growth=2, backoff=0.5,
                       growth_interval=2000)
        state = vector(c, 'STATE', loss_scale=65536)
        size = ctypes.c_int64()
        c.call('tandem_cuda_sum_of_squares_scratch', n=n, bytes=size)
        self.hyper, self.state, self.sum = c.up(hyper), c.up(state), c.out(1, dtype=F64)
        self.scratch, self.copy = c.scratch(size.value), c.out(n, dtype=BF16)
        self.control = c.out(c.constant('TANDEM_CUDA_CONTROL_COUNT'), dtype=F64)
        self.g = g
        decay = c.up(torch.ones(n, dtype=torch.uint8))
        self.params = c.struct('tandem_cuda_optimizer_step_params', p=p, g=g, m=m, v=v, decay=decay,
                               control=self.control, p_out=p, m_out=m, v_out=v, p_copy=self.copy,
                               n=n, copy_dtype=c.dtype(BF16), flag=1)
        self.held = [p, g, m, v, decay]
        self.prepare()

    def prepare(self):
        self.c.call('tandem_cuda_sum_of_squares', dtype=self.c.dtype(F32), x=self.g, sum=self.sum,
                    scratch=self.scratch, n=self.n)
        self.c.call('tandem_cuda_optimizer_control', sum=self.sum, hyper=self.hyper,
                    state=self.state, control=self.control, next=self.state)

    def update(self):
        self.c.call('tandem_cuda_adam_step', params=self.params)

    def whole(self):
        self.prepare()
        self.update()


@benchmark('AdamW update, f32 master and bf16 copy, 256M', Goal(0.88, 0.95))
def adamw_update(c):
    step = Step(c, c.size(1000, 1 << 28))
    # p, g, m, v read; p, m, v, copy written; a byte of decay.
    return Case(step.update, bytes_=step.n * (16 + 12 + 2 + 1), held=[step])


@benchmark('unscale + check + clip + AdamW, 256M', Goal(1.5))
def whole_step(c):
    n = c.size(1000, 1 << 28)
    step = Step(c, n)
    p = torch.nn.Parameter(c.normal(n, scale=0.01))
    p.grad = c.normal(n, scale=0.01)
    rival = torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    scaler = torch.amp.GradScaler(c.reference.type, init_scale=65536.0)
    scaler.scale(torch.zeros((), device=c.reference))  # makes the scale
    copy = torch.empty(n, dtype=BF16, device=c.reference)

    def torch_step():
        scaler.unscale_(rival)
        torch.nn.utils.clip_grad_norm_([p], 1.0)
        scaler.step(rival)
        scaler.update()
        copy.copy_(p.detach())

    return Case(step.whole, torch_step, 'torch GradScaler + clip + fused AdamW + cast', held=[step])


@benchmark('linear + cross entropy, forward and backward, 8k x 4096 x 131k', Goal(1.8))
def linear_cross_entropy(c):
    rows, hidden, vocabulary, chunk = c.size((8, 32, 100, 4), (8192, 4096, 131072, 1024))
    x, w = c.up(c.normal(rows, hidden, dtype=BF16)), c.up(c.normal(vocabulary, hidden, dtype=BF16,
                                                                   scale=0.02))
    targets = c.integers(0, vocabulary, rows, dtype=torch.int32)
    dev_targets, dloss = c.up(targets), c.up(torch.full((rows,), 1.0 / rows))
    logits = c.out(chunk, vocabulary, dtype=BF16)
    loss, lse = c.out(rows), c.out(rows)
    dx, dw = c.out(rows, hidden, dtype=BF16), c.out(vocabulary, hidden)
    bf16, f32 = c.dtype(BF16), c.dtype(F32)
    products = []
    for at in range(0, rows, chunk):
        x_at, dx_at = (t.pointer + 2 * at * hidden for t in (x, dx))
        products.append((
            at,
            c.struct('tandem_cuda_matmul_params', a=x_at, b=w, out=logits, batch=1, m=chunk,
                     n=vocabulary, k=hidden, lda=hidden, ldb=hidden, ld_out=vocabulary, dtype=bf16,
                     out_dtype=bf16, transpose_b=1),
            c.struct('tandem_cuda_matmul_params', a=logits, b=w, out=dx_at, batch=1, m=chunk,
                     n=hidden, k=vocabulary, lda=vocabulary, ldb=hidden, ld_out=hidden, dtype=bf16,
                     out_dtype=bf16),
            c.struct('tandem_cuda_matmul_params', a=logits, b=x_at, out=dw,
                     residual=dw if at > 0 else None, batch=1, m=vocabulary, n=hidden, k=chunk,
                     lda=vocabulary, ldb=hidden, ld_out=hidden, dtype=bf16, out_dtype=f32,
                     transpose_a=1)))

    def ours():
        for at, forward, backward, weight in products:
            c.call('tandem_cuda_matmul', params=forward)
            part = {'dtype': bf16, 'logits': logits, 'targets': dev_targets.pointer + 4 * at,
                    'lse': lse.pointer + 4 * at, 'rows': chunk, 'cols': vocabulary}
            c.call('tandem_cuda_cross_entropy', loss=loss.pointer + 4 * at, **part)
            c.call('tandem_cuda_cross_entropy_grad', dloss=dloss.pointer + 4 * at, dlogits=logits,
                   **part)
            c.call('tandem_cuda_matmul', params=backward)
            c.call('tandem_cuda_matmul', params=weight)

    a = c.normal(rows, hidden, dtype=BF16).requires_grad_()
    b = c.normal(vocabulary, hidden, dtype=BF16, scale=0.02).requires_grad_()
    labels = targets.long()

    def chunked():
        a.grad = b.grad = None
        for at in range(0, rows, chunk):
            z = F.linear(a[at:at + chunk], b)
            (F.cross_entropy(z.float(), labels[at:at + chunk], reduction='sum') / rows).backward()

    return Case(ours, chunked, 'torch F.cross_entropy in chunks',
                held=[x, w, dev_targets, dloss, logits, loss, lse, dx, dw])


# --- the table -----------------------------------------------------------------------------------


class Row:
    """One line of the table; text where nothing was measured."""

    def __init__(self, name, goal):
        self.name, self.goal = name, goal
        self.ours = self.rival = self.ratio = None
        self.rival_name = ''
        self.verdict = 'not measured'

    def cells(self):
        ms = lambda t: 'not measured' if t is None else '%.4g ms' % (1e3 * t)
        ratio = 'not measured' if self.ratio is None else '%.2f' % self.ratio
        return [self.name, ms(self.ours), self.rival_name, ms(self.rival), ratio,
                self.goal.text(), self.verdict]


HEAD = ['kernel', 'ours', 'rival', "rival's", 'ratio', 'goal (stretch)', 'verdict']


def markdown(rows):
    lines = ['| ' + ' | '.join(HEAD) + ' |', '|' + '---|' * len(HEAD)]
    return '\n'.join(lines + ['| ' + ' | '.join(r.cells()) + ' |' for r in rows])


def copy_rate(c, clock):
    """Bytes read and written a second by a copy within the device: the memory's floor."""
    n = c.size(1 << 16, 1 << 31)
    a, b = c.out(n, dtype=torch.uint8), c.out(n, dtype=torch.uint8)
    copy = lambda: c.call('tandem_cuda_copy', to_device=b, from_device=a, bytes=n)
    (seconds,) = clock.compare([copy], 1.0)
    return 2 * n / seconds


def run(library, device, seed, matches, deadline):
    """The rows of the table; those past the deadline stay unmeasured."""
    clock = Clock(device.emulated)
    print('--- benchmarks' + (': they run; emulated times mean nothing' if device.emulated else ''),
          flush=True)
    context = lambda name: Context(library, device, seed, name, device.emulated)
    try:
        with limit(deadline):
            rate = copy_rate(context('copy'), clock)
    except OutOfTime:
        rate = None
    if not device.emulated and rate:
        print('device copy: %.3g TB/s read and written' % (rate / 1e12), flush=True)
    rows = []
    chosen = [b for b in BENCHMARKS if matches(b[0])]
    for i, (name, goal, make) in enumerate(chosen):
        row = Row(name, goal)
        rows.append(row)
        left = deadline - time.monotonic()
        if left <= 0 or rate is None:
            row.verdict = 'not measured: out of time'
            continue
        case = None
        try:
            with limit(deadline):
                case = make(context(name))
                seconds = min(4.0, left / (len(chosen) - i))
                both = [f for f in (case.ours, case.rival) if f is not None]
                times = clock.compare(both, seconds)
            row.ours, row.rival_name = times[0], case.rival_name
            row.rival = times[1] if case.rival else case.bytes / rate
            row.ratio = row.rival / row.ours
            row.verdict = goal.judge(row.ratio)
            if goal.stretch and row.ratio >= goal.stretch:
                row.verdict = 'pass, stretch'
        except OutOfTime:
            row.verdict = 'not measured: out of time'
        except Exception as error:  # one case's trouble is not the others'
            row.verdict = 'failed: ' + str(error).split('\n')[0]
            print(traceback.format_exc(limit=-3), flush=True)
        case = None
        if not device.emulated:
            torch.cuda.empty_cache()
        print(name if device.emulated and row.ratio else '  '.join(row.cells()), flush=True)
    return rate, rows

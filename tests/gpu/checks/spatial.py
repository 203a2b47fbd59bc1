"""Convolution, pooling and resampling."""

import torch
from torch.nn import functional as F

from harness.check import BF16, F32, FLOATS, check


def window(c, h, w, out_h, out_w, kernel, stride=(1, 1), pad=(0, 0), pad_end=None, dilation=(1, 1)):
    pad_end = pad if pad_end is None else pad_end
    return c.struct('tandem_cuda_window_params', in_h=h, in_w=w, out_h=out_h, out_w=out_w,
                    kernel_h=kernel[0], kernel_w=kernel[1], stride_h=stride[0], stride_w=stride[1],
                    dilation_h=dilation[0], dilation_w=dilation[1], pad_top=pad[0], pad_left=pad[1],
                    pad_bottom=pad_end[0], pad_right=pad_end[1])


# batch, channels, outputs, groups, (h, w), kernel, stride, pad, dilation; large sizes on a GPU.
CONVOLUTIONS = {
    'wide': ((3, 9, 21, 1, (9, 7), (3, 3), (1, 1), (1, 1), (1, 1)),
             (32, 64, 128, 1, (56, 56), (3, 3), (1, 1), (1, 1), (1, 1))),
    'strided': ((2, 3, 10, 1, (11, 8), (5, 3), (2, 3), (2, 0), (1, 2)),
                (16, 3, 64, 1, (224, 224), (7, 7), (2, 2), (3, 3), (1, 1))),
    'grouped': ((2, 8, 12, 2, (6, 5), (3, 2), (1, 2), (1, 1), (2, 1)),
                (8, 96, 64, 4, (30, 31), (3, 3), (1, 2), (2, 1), (2, 1))),
    'depthwise': ((2, 6, 6, 6, (7, 9), (3, 3), (1, 1), (1, 1), (1, 1)),
                  (8, 192, 192, 192, (28, 28), (5, 5), (1, 1), (2, 2), (1, 1))),
}


@check('spatial', CONVOLUTIONS, FLOATS)
def convolution(c, name, dtype):
    n, i, o, groups, (h, w), kernel, stride, pad, dilation = c.size(*CONVOLUTIONS[name])
    x = c.normal(n, i, h, w, dtype=dtype)
    weight = c.normal(o, i // groups, *kernel, dtype=dtype, scale=0.3)
    bias = c.normal(o, dtype=dtype)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    y = F.conv2d(*wide, stride=stride, padding=pad, dilation=dilation, groups=groups)
    dy = c.normal(*y.shape, dtype=dtype)
    dx, dweight, _ = torch.autograd.grad(y, wide, dy.double())
    params = c.struct('tandem_cuda_conv_params',
                      window=window(c, h, w, y.shape[2], y.shape[3], kernel, stride, pad,
                                    dilation=dilation),
                      batch=n, groups=groups, in_channels=i, out_channels=o, dtype=c.dtype(dtype))
    dev_x, dev_w, dev_b, dev_dy = c.up(x), c.up(weight), c.up(bias), c.up(dy)
    got = c.out(*y.shape, dtype=dtype)
    c.call('tandem_cuda_conv', y=got, x=dev_x, weight=dev_w, bias=dev_b, params=params)
    c.near(got, y.detach(), 'y', scale=8)
    got_dx = c.out(*x.shape, dtype=dtype)
    c.call('tandem_cuda_conv_input_grad', dx=got_dx, dy=dev_dy, weight=dev_w, params=params)
    c.near(got_dx, dx, 'dx', scale=8)
    scratch = c.scratch(c.call('tandem_cuda_conv_weight_grad_scratch_bytes', params=params))
    results = []
    for _ in range(2):
        got_dw = c.out(*weight.shape, dtype=dtype)
        c.call('tandem_cuda_conv_weight_grad', dweight=got_dw, dy=dev_dy, x=dev_x, params=params,
               scratch=scratch)
        results.append(got_dw)
    # Sums of n h w products: errors grow with their root, and so do the sums.
    c.near(results[0], dweight, 'dweight', scale=8 * (n * h * w) ** 0.5 if dtype == F32 else 8)
    c.same(results[0], results[1], 'dweight, twice')


@check('spatial', FLOATS)
def convolution_of_one_image(c, dtype):
    """An image's bits do not depend on its batch."""
    n, i, o, h, w = c.size((5, 8, 9, 8, 8), (64, 64, 64, 28, 28))
    x, weight = c.normal(n, i, h, w, dtype=dtype), c.normal(o, i, 3, 3, dtype=dtype)
    sizes = window(c, h, w, h, w, (3, 3), pad=(1, 1))
    dev_w = c.up(weight)

    def run(images):
        params = c.struct('tandem_cuda_conv_params', window=sizes, batch=len(images), groups=1,
                          in_channels=i, out_channels=o, dtype=c.dtype(dtype))
        y = c.out(len(images), o, h, w, dtype=dtype)
        c.call('tandem_cuda_conv', y=y, x=c.up(images), weight=dev_w, bias=None, params=params)
        return y.get()

    whole = run(x)
    for at in (0, n - 1):
        c.same(run(x[at:at + 1]), whole[at:at + 1], 'image %d' % at)


POOLS = {
    'halves': ((3, (8, 10), (2, 2), (2, 2), (0, 0), (1, 1)),
               (2048, (112, 112), (2, 2), (2, 2), (0, 0), (1, 1))),
    'overlapping': ((4, (9, 7), (3, 3), (2, 2), (1, 1), (1, 1)),
                    (2048, (112, 112), (3, 3), (2, 2), (1, 1), (1, 1))),
    'dilated': ((2, (11, 13), (3, 2), (1, 2), (1, 0), (2, 3)),
                (64, (51, 63), (3, 2), (1, 2), (1, 0), (2, 3))),
    'wide': ((2, (20, 24), (9, 11), (1, 1), (4, 5), (1, 1)),
             (16, (128, 128), (33, 31), (1, 1), (16, 15), (1, 1))),
}


@check('spatial', POOLS, FLOATS)
def max_pool(c, name, dtype):
    planes, (h, w), kernel, stride, pad, dilation = c.size(*POOLS[name])
    # Few different values: ties, of which the first place counts.
    x = (c.normal(1, planes, h, w) * 4).round().div(4).to(dtype)
    y, index = F.max_pool2d(x.double(), kernel, stride, pad, dilation, return_indices=True)
    sizes = window(c, h, w, y.shape[2], y.shape[3], kernel, stride, pad, dilation=dilation)
    dev_x = c.up(x)
    for function in ('tandem_cuda_max_pool', 'tandem_cuda_sliding_maximum'):
        got, places = c.out(*y.shape, dtype=dtype), c.out(*y.shape, dtype=torch.int64)
        more = {}
        if function == 'tandem_cuda_sliding_maximum':
            more['scratch'] = c.scratch(
                c.call('tandem_cuda_sliding_maximum_scratch_bytes', planes=planes, window=sizes))
        c.call(function, y=got, index=places, x=dev_x, planes=planes, window=sizes,
               dtype=c.dtype(dtype), **more)
        c.near(got, y, function, scale=0)
        at = places.get()
        c.near(x.flatten(2).gather(2, at.flatten(2)), y.flatten(2), 'elements at the places', 0)
        first = first_places(x, y, kernel, stride, pad, dilation)
        c.same(at, first, 'places')
    dy = c.normal(*y.shape, dtype=dtype)
    expected = torch.zeros(1, planes, h * w, dtype=torch.float64, device=x.device)
    expected.scatter_add_(2, at.flatten(2), dy.double().flatten(2))
    out = y.shape[2] * y.shape[3]
    results = []
    for _ in range(2):
        dx = c.out(1, planes, h * w, dtype=dtype)
        scratch = c.scratch(c.call('tandem_cuda_max_pool_grad_scratch_bytes', planes=planes,
                                   out=out))
        c.call('tandem_cuda_max_pool_grad', dx=dx, dy=c.up(dy), index=places, planes=planes,
               out=out, dtype=c.dtype(dtype), scratch=scratch, **{'in': h * w})
        results.append(dx)
    c.near(results[0], expected, 'dx', scale=8)
    c.same(results[0], results[1], 'dx, twice')


def first_places(x, y, kernel, stride, pad, dilation):
    """The first tap of each window, in row-major order, that equals its maximum."""
    _, planes, h, w = x.shape
    padded = F.pad(x.double(), (pad[1], pad[1] + kernel[1] * dilation[1], pad[0],
                                pad[0] + kernel[0] * dilation[0]), value=float('-inf'))
    places = torch.full(y.shape, -1, dtype=torch.int64, device=x.device)
    rows = torch.arange(y.shape[2], device=x.device) * stride[0]
    columns = torch.arange(y.shape[3], device=x.device) * stride[1]
    for kh in reversed(range(kernel[0])):
        for kw in reversed(range(kernel[1])):
            at_h, at_w = rows + kh * dilation[0], columns + kw * dilation[1]
            equal = padded[:, :, at_h][:, :, :, at_w] == y
            place = (at_h - pad[0])[:, None] * w + (at_w - pad[1])[None]
            places = torch.where(equal, place, places)
    return places


@check('spatial', POOLS, (0, 1), FLOATS)
def average_pool(c, name, include, dtype):
    planes, (h, w), kernel, stride, pad, dilation = c.size(*POOLS[name])
    # torch's own has no dilation: sums of taps, divided by how many there are.
    x = c.normal(planes, 1, h, w, dtype=dtype)
    wide = x.double().requires_grad_()
    ones = torch.ones(1, 1, *kernel, dtype=torch.float64, device=x.device)
    sums = F.conv2d(wide, ones, stride=stride, padding=pad, dilation=dilation)
    counts = F.conv2d(torch.ones_like(x[:1]).double(), ones, stride=stride, padding=pad,
                      dilation=dilation)
    y = sums / (kernel[0] * kernel[1] if include else counts)
    dy = c.normal(*y.shape, dtype=dtype)
    (dx,) = torch.autograd.grad(y, wide, dy.double())
    sizes = window(c, h, w, y.shape[2], y.shape[3], kernel, stride, pad, dilation=dilation)
    got, got_dx = c.out(*y.shape, dtype=dtype), c.out(*x.shape, dtype=dtype)
    c.call('tandem_cuda_average_pool', y=got, x=c.up(x), planes=planes, window=sizes,
           count_include_pad=include, dtype=c.dtype(dtype))
    c.near(got, y.detach(), 'y')
    c.call('tandem_cuda_average_pool_grad', dx=got_dx, dy=c.up(dy), planes=planes, window=sizes,
           count_include_pad=include, dtype=c.dtype(dtype))
    c.near(got_dx, dx, 'dx', scale=4)


def table(matrix):
    """first, begin and weights of a matrix's rows, zeros around them left out."""
    first, begin, weights = [], [0], []
    for row in matrix.tolist():
        used = [i for i, v in enumerate(row) if v != 0]
        low, high = (used[0], used[-1] + 1) if used else (0, 0)
        first.append(low)
        weights += row[low:high]
        begin.append(len(weights))
    return (torch.tensor(first, dtype=torch.int32), torch.tensor(begin, dtype=torch.int64),
            torch.tensor(weights))


@check('spatial', ('bilinear', 'bicubic'), FLOATS)
def resample(c, mode, dtype):
    """Along the last two dimensions one after the other, as torch interpolates; and back."""
    planes, h, w, to_h, to_w = c.size((3, 6, 7, 9, 11), (64, 100, 80, 171, 160))
    x = c.normal(1, planes, h, w, dtype=dtype)
    wide = x.double().requires_grad_()
    y = F.interpolate(wide, (to_h, to_w), mode=mode, align_corners=False)
    dy = c.normal(*y.shape, dtype=dtype)
    (dx,) = torch.autograd.grad(y, wide, dy.double())

    def matrix(n, to):  # what a dimension's interpolation does to each unit vector
        unit = torch.eye(n, dtype=torch.float64)[:, None, :, None].expand(n, 1, n, 2)
        rows = F.interpolate(unit, (to, 2), mode=mode, align_corners=False)
        return rows[:, 0, :, 0].T.contiguous()

    def along(m, values, axis, to):
        shape = list(values.shape)
        outer, inner = 1, 1
        for size in shape[:axis]:
            outer *= size
        for size in shape[axis + 1:]:
            inner *= size
        first, begin, weights = table(m)
        tables = [c.up(first), c.up(begin), c.up(weights)]
        params = c.struct('tandem_cuda_resample_params', outer=outer, inputs=shape[axis],
                          outputs=m.shape[0], inner=inner, first=tables[0], begin=tables[1],
                          weights=tables[2], x_dtype=c.dtype(values.dtype), y_dtype=c.dtype(to))
        shape[axis] = m.shape[0]
        out = c.out(*shape, dtype=to)
        c.call('tandem_cuda_resample', y=out, x=values, params=params)
        return out

    rows, columns = matrix(h, to_h), matrix(w, to_w)
    got = along(columns, along(rows, c.up(x), 2, F32), 3, dtype)
    c.near(got, y.detach(), 'y', scale=4)
    got = along(columns.T, along(rows.T, c.up(dy), 2, F32), 3, dtype)
    c.near(got, dx, 'dx', scale=4)


@check('spatial', (torch.uint8, BF16, F32, torch.int64))
def resample_nearest(c, dtype):
    x = c.integers(0, 100, 3, 7, 5, dtype=dtype)
    first = c.integers(0, 7, 19, dtype=torch.int32)
    y = c.out(3, 19, 5, dtype=dtype)
    c.call('tandem_cuda_resample_nearest', y=y, x=c.up(x), first=c.up(first), outer=3, inputs=7,
           outputs=19, inner=5, element_bytes=x.element_size())
    c.same(y, x[:, first.long()], 'y')

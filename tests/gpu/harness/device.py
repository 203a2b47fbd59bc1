"""Arrays where the library can reach them: torch's on a GPU, or the emulated device's.

Both give fresh outputs poisoned (all bits one, NaN in every float), so that an element which no
kernel wrote cannot pass."""

import ctypes

import torch

NAMES = {
    torch.float32: 'F32',
    torch.float64: 'F64',
    torch.float16: 'F16',
    torch.bfloat16: 'BF16',
    torch.int8: 'I8',
    torch.int16: 'I16',
    torch.int32: 'I32',
    torch.int64: 'I64',
    torch.uint8: 'U8',
    torch.bool: 'BOOL',
}


def element_bytes(dtype):
    return torch.empty(0, dtype=dtype).element_size()


def capability(library):
    """90 for compute capability 9.0."""
    info = library.struct('tandem_cuda_device_info')
    library.call('tandem_cuda_describe_device', device=0, info=info)
    return 10 * info.major + info.minor


class Overrun(Exception):
    """A kernel wrote past the end of an array."""


class TorchDevice:
    """torch's current CUDA device; each array is followed by bytes that nobody may touch."""

    kGuardBytes = 256
    emulated = False

    def __init__(self, library):
        self.library = library
        self.reference = torch.device('cuda')
        torch.cuda.init()
        library.call('tandem_cuda_use_device', device=torch.cuda.current_device())
        library.stream = torch.cuda.current_stream().cuda_stream
        self.capability = capability(library)

    def empty(self, shape, dtype):
        return self._array(torch.Size(shape), dtype)

    def upload(self, tensor):
        array = self._array(tensor.shape, tensor.dtype)
        array.tensor.copy_(tensor)
        return array

    def _array(self, shape, dtype):
        size = shape.numel() * element_bytes(dtype)
        memory = torch.full((size + self.kGuardBytes,), 0xff, dtype=torch.uint8, device='cuda')
        return TorchArray(memory, size, shape, dtype)

    def finish(self):
        torch.cuda.synchronize()


class TorchArray:
    """shape and dtype over `memory`."""

    def __init__(self, memory, size, shape, dtype):
        self.memory = memory
        self.size = size
        self.shape = shape
        self.dtype = dtype
        self.tensor = memory[:size].view(dtype).view(shape)
        self.pointer = memory.data_ptr()

    def get(self):
        """A copy, on the reference's device."""
        if not bool((self.memory[self.size:] == 0xff).all()):
            raise Overrun('written past the end of an array of %s' % (tuple(self.shape),))
        return self.tensor.clone()

    def set(self, tensor):
        self.tensor.copy_(tensor)


class EmulatedDevice:
    """The device of libtandem_cuda_emulated.so. What lies behind an array is not mapped."""

    emulated = True

    def __init__(self, library):
        self.library = library
        self.reference = torch.device('cpu')
        library.call('tandem_cuda_use_device', device=0)
        self.capability = capability(library)

    def empty(self, shape, dtype):
        return EmulatedArray(self.library, torch.Size(shape), dtype)

    def upload(self, tensor):
        array = self.empty(tensor.shape, tensor.dtype)
        array.set(tensor)
        return array

    def finish(self):
        self.library.call('tandem_cuda_stream_finish')


class EmulatedArray:
    """Freed when it goes."""

    def __init__(self, library, shape, dtype):
        self.library = library
        self.shape = shape
        self.dtype = dtype
        self.size = shape.numel() * element_bytes(dtype)
        pointer = ctypes.c_void_p()
        library.call('tandem_cuda_allocate', pointer=ctypes.byref(pointer), bytes=self.size)
        self.pointer = pointer.value

    def get(self):
        tensor = torch.empty(self.shape, dtype=self.dtype)
        self.library.call('tandem_cuda_download', to_host=tensor.data_ptr(),
                          from_device=self.pointer, bytes=self.size)
        self.library.call('tandem_cuda_stream_finish')
        return tensor

    def set(self, tensor):
        tensor = tensor.to(self.dtype).contiguous()
        self.library.call('tandem_cuda_upload', to_device=self.pointer,
                          from_host=tensor.data_ptr(), bytes=self.size)
        self.library.call('tandem_cuda_stream_finish')

    def __del__(self):
        self.library.call('tandem_cuda_free', pointer=self.pointer)

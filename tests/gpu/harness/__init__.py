"""What tests/gpu/run is made of: the library through ctypes, arrays, checks, measurements."""

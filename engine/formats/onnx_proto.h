// ONNX's protocol buffers, with the macros that libonnx's header wants. Only formats/onnx* and
// tests include this.
#pragma once

#ifndef ONNX_ML
#define ONNX_ML 1
#endif
#ifndef ONNX_NAMESPACE
#define ONNX_NAMESPACE onnx
#endif
#include <onnx/onnx_pb.h>

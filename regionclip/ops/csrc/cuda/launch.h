// Launching kernels on the stream of the tensors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include <algorithm>
#include <cstdint>

#include "../common.h"

namespace regionclip {

constexpr int threads_per_block = 256;

inline unsigned int blocks_for(int64_t items) {
  // Kernels stride over what a full grid leaves.
  return static_cast<unsigned int>(
      std::clamp<int64_t>((items + threads_per_block - 1) / threads_per_block, 1, int64_t(1) << 20));
}

inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(const char* name) {
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, name, ": ", cudaGetErrorString(error));
}

// Every item of [0, count) once, whatever the size of the grid.
#define REGIONCLIP_FOR_ITEMS(i, count)                                                                      \
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < (count);                \
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)

}  // namespace regionclip

// torch's threads for the kernels.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

namespace regionclip {

struct TorchFor {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t grain, const Body& body) const {
    torch::stable::parallel_for(begin, end, grain, body);
  }
  int64_t threads() const { return torch::stable::get_num_threads(); }
};

}  // namespace regionclip

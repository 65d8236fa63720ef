// The operators' names and arguments; implementations register themselves for CPU and CUDA.
#include <torch/csrc/stable/library.h>

#include <cstdint>

#include "cpu/instruction_set.h"

namespace {

int64_t instruction_set() { return static_cast<int64_t>(regionclip::instruction_set()); }

}  // namespace

STABLE_TORCH_LIBRARY(regionclip, library) {
  // What the loops on the CPU use: 0 baseline, 1 avx2, 2 avx512.
  library.def("instruction_set() -> int");
  // rois [R, 5]: batch index, x1, y1, x2, y2; float64 with float64 features, else float32.
  library.def(
      "roi_align(Tensor features, Tensor rois, SymInt height, SymInt width, float spatial_scale, int sampling_ratio, "
      "bool aligned, bool channels_last) -> Tensor");
  library.def(
      "roi_align_backward(Tensor gradient, Tensor rois, SymInt images, SymInt channels, SymInt map_height, "
      "SymInt map_width, float spatial_scale, int sampling_ratio, bool aligned, bool channels_last, "
      "bool deterministic) -> Tensor");
  // Without classes all boxes compete; `limit` below 0 keeps all.
  library.def("nms(Tensor boxes, Tensor scores, Tensor? classes, float iou_threshold, int limit) -> Tensor");
  // method: 0 hard, 1 linear, 2 Gaussian.
  library.def(
      "soft_nms(Tensor boxes, Tensor scores, Tensor? classes, int method, float sigma, float iou_threshold, "
      "float prune_threshold, int limit) -> (Tensor, Tensor)");
  // The two ends of a 3x3 convolution (regionclip/ops/winograd.py): components [n * n, T, C] of what the tiles from number
  // `first` on see of a channels-last map, and the cells of those tiles from products [n * n, T, C].
  library.def("winograd_windows(Tensor map, int first, Tensor(a!) windows) -> ()");
  library.def("winograd_assemble(Tensor products, Tensor? bias, bool relu, int first, Tensor(a!) map) -> ()");
  // The parts of NMS and soft-NMS that run on a GPU (regionclip/ops/native_cuda.py).
  library.def("suppress_sorted(Tensor boxes, Tensor? classes, Tensor scores, float iou_threshold) -> Tensor");
  library.def(
      "soft_nms_padded(Tensor boxes, Tensor scores, Tensor? classes, int method, float sigma, float iou_threshold, "
      "float prune_threshold, int limit) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(regionclip, CompositeImplicitAutograd, library) {
  library.impl("instruction_set", TORCH_BOX(&instruction_set));
}

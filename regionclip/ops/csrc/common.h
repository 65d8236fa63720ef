// What all operators need of torch: the stable interface only, so that one build serves many versions.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>

namespace regionclip {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// What a sum of values of a type is kept in.
template <typename Scalar>
using Accumulator = std::conditional_t<std::is_same_v<Scalar, double>, double, float>;

// Calls `body` with a zero of the C++ type behind `type`.
template <typename Body>
void for_floating_type(ScalarType type, const char* name, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float(0));
    case ScalarType::Double:
      return body(double(0));
    case ScalarType::Half:
      return body(torch::headeronly::Half(0));
    case ScalarType::BFloat16:
      return body(torch::headeronly::BFloat16(0));
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, float16 or bfloat16");
  }
}

template <typename Body>
void for_real_type(ScalarType type, const char* name, const Body& body) {
  switch (type) {
    case ScalarType::Float:
      return body(float(0));
    case ScalarType::Double:
      return body(double(0));
    default:
      STD_TORCH_CHECK(false, name, ": expected float32 or float64");
  }
}

inline void check_rois(const Tensor& features, const Tensor& rois) {
  STD_TORCH_CHECK(
      rois.dim() == 2 && rois.size(1) == 5,
      "roi_align: expected rois [R, 5] (batch index, x1, y1, x2, y2), got ",
      rois.dim(),
      " dimensions");
  const auto expected = features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  STD_TORCH_CHECK(
      rois.scalar_type() == expected, "roi_align: expected float64 rois with float64 features, else float32 rois");
  STD_TORCH_CHECK(features.get_device() == rois.get_device(), "roi_align: features and rois are on different devices");
}

inline void check_pooling(int64_t height, int64_t width, int64_t sampling_ratio) {
  STD_TORCH_CHECK(
      height > 0 && width > 0 && height <= 4096 && width <= 4096,
      "roi_align: expected an output size from 1 to 4096, got ", height, " x ", width);
  STD_TORCH_CHECK(
      sampling_ratio >= -4096 && sampling_ratio <= 4096, "roi_align: expected a sampling ratio from -4096 to 4096, got ",
      sampling_ratio);
}

inline void check_boxes(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& classes) {
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4, "nms: expected boxes [N, 4] (x1, y1, x2, y2), got ", boxes.dim(),
      " dimensions");
  STD_TORCH_CHECK(
      scores.dim() == 1 && scores.size(0) == boxes.size(0), "nms: expected as many scores as boxes, ", boxes.size(0));
  STD_TORCH_CHECK(scores.scalar_type() == boxes.scalar_type(), "nms: boxes and scores have different types");
  STD_TORCH_CHECK(scores.get_device() == boxes.get_device(), "nms: boxes and scores are on different devices");
  if (classes.has_value()) {
    STD_TORCH_CHECK(
        classes->dim() == 1 && classes->size(0) == boxes.size(0) && classes->scalar_type() == ScalarType::Long,
        "nms: expected an int64 class for each of ", boxes.size(0), " boxes");
    STD_TORCH_CHECK(classes->get_device() == boxes.get_device(), "nms: boxes and classes are on different devices");
  }
}

inline Tensor dense_map(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool channels_last) {
  return torch::stable::empty(
      {n, c, h, w}, like.scalar_type(), std::nullopt, like.device(), std::nullopt,
      channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
}

template <typename Scalar>
const Scalar* data_of(const Tensor& tensor) {
  return static_cast<const Scalar*>(tensor.const_data_ptr());
}

template <typename Scalar>
Scalar* mutable_data_of(const Tensor& tensor) {
  return static_cast<Scalar*>(tensor.mutable_data_ptr());
}

}  // namespace regionclip

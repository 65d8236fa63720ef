// NMS and soft-NMS on the CPU: checks and types around the kernels.
#include <algorithm>
#include <tuple>
#include <utility>

#include "../common.h"
#include "nms_kernel.h"
#include "soft_nms_kernel.h"
#include "torch_parallel.h"

namespace regionclip {
namespace {

template <typename Value>
Tensor to_tensor(const Tensor& like, const std::vector<Value>& values, ScalarType type) {
  Tensor tensor = torch::stable::new_empty(like, {static_cast<int64_t>(values.size())}, type);
  std::copy(values.begin(), values.end(), mutable_data_of<Value>(tensor));
  return tensor;
}

// The three inputs in dense memory.
struct Inputs {
  Inputs(const Tensor& boxes_in, const Tensor& scores_in, const std::optional<Tensor>& classes_in)
      : boxes((check_boxes(boxes_in, scores_in, classes_in), torch::stable::contiguous(boxes_in))),
        scores(torch::stable::contiguous(scores_in)) {
    if (classes_in.has_value()) {
      classes = torch::stable::contiguous(*classes_in);
    }
  }
  const int64_t* class_data() const { return classes.has_value() ? data_of<int64_t>(*classes) : nullptr; }
  int64_t count() const { return boxes.size(0); }

  Tensor boxes, scores;
  std::optional<Tensor> classes;
};

// exp as torch rounds it, so that scores equal those of the reference bit for bit: the C library
// differs in the last bit of one value in a hundred.
struct TorchExponential {
  template <typename Real>
  void operator()(Real* values, int64_t count) const {
    if (count == 0) {
      return;
    }
    const ScalarType type = std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;
    const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
    const Tensor exponents = torch::stable::from_blob(values, {count}, {1}, cpu, type);
    std::array<StableIValue, 1> stack{torch::stable::detail::from(exponents)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::exp", "", stack.data(), TORCH_ABI_VERSION));
    const Tensor result = torch::stable::detail::to<Tensor>(stack[0]);
    std::copy_n(data_of<Real>(result), count, values);
  }
};

Tensor nms_cpu(
    const Tensor& boxes, const Tensor& scores, std::optional<Tensor> classes, double iou_threshold, int64_t limit) {
  const Inputs inputs(boxes, scores, classes);
  std::vector<int64_t> kept;
  for_real_type(boxes.scalar_type(), "nms", [&](auto zero) {
    using Real = decltype(zero);
    kept = nms<Real>(
        data_of<Real>(inputs.boxes), data_of<Real>(inputs.scores), inputs.class_data(), inputs.count(), iou_threshold,
        limit, TorchFor());
  });
  return to_tensor(inputs.boxes, kept, ScalarType::Long);
}

std::tuple<Tensor, Tensor> soft_nms_cpu(
    const Tensor& boxes, const Tensor& scores, std::optional<Tensor> classes, int64_t method, double sigma,
    double iou_threshold, double prune_threshold, int64_t limit) {
  const Inputs inputs(boxes, scores, classes);
  STD_TORCH_CHECK(0 <= method && method <= 2, "soft_nms: expected a method from 0 to 2, got ", method);
  std::tuple<Tensor, Tensor> result{inputs.scores, inputs.scores};
  for_real_type(boxes.scalar_type(), "soft_nms", [&](auto zero) {
    using Real = decltype(zero);
    const SoftNMSRule<Real> rule{
        static_cast<Decay>(method), static_cast<Real>(sigma), static_cast<Real>(iou_threshold),
        static_cast<Real>(prune_threshold)};
    SoftNMS<Real, TorchExponential> job(
        data_of<Real>(inputs.boxes), data_of<Real>(inputs.scores), inputs.class_data(), inputs.count(), rule, {});
    const Emission<Real> emission = job.run(limit);
    result = {
        to_tensor(inputs.boxes, emission.indices, ScalarType::Long),
        to_tensor(inputs.boxes, emission.scores, boxes.scalar_type())};
  });
  return result;
}

}  // namespace
}  // namespace regionclip

STABLE_TORCH_LIBRARY_IMPL(regionclip, CPU, library) {
  library.impl("nms", TORCH_BOX(&regionclip::nms_cpu));
  library.impl("soft_nms", TORCH_BOX(&regionclip::soft_nms_cpu));
}

// Coverage-guided fuzzing of soft-NMS: scores never rise, and a limit gives the first of all.
#include "boxes.h"

#include "../../regionclip/ops/csrc/cpu/soft_nms_kernel.h"

struct Exponential {
  template <typename Real>
  void operator()(Real* values, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      values[i] = std::exp(values[i]);
    }
  }
};

template <typename Real>
void run(FuzzedDataProvider& data) {
  const regionclip::SoftNMSRule<Real> rule{
      data.PickValueInArray({regionclip::Decay::hard, regionclip::Decay::linear, regionclip::Decay::gaussian}),
      data.ConsumeFloatingPointInRange<Real>(Real(1e-3), Real(5)), data.ConsumeFloatingPointInRange<Real>(0, 1),
      data.ConsumeFloatingPointInRange<Real>(-1, 1)};
  const auto limit = data.ConsumeIntegralInRange<int64_t>(0, 70);
  const bool with_classes = data.ConsumeBool();
  const Boxes<Real> all(data);
  const auto suppress = [&](int64_t most) {
    return regionclip::SoftNMS<Real, Exponential>(
               all.boxes.data(), all.scores.data(), with_classes ? all.classes.data() : nullptr, all.count, rule, {})
        .run(most);
  };
  const auto emission = suppress(-1);
  require_candidates(all, emission.indices);
  require(emission.indices.size() == emission.scores.size());
  for (const Real score : emission.scores) {
    require(score == score);
  }
  const auto first = suppress(limit);
  require(first.indices.size() == std::min(emission.indices.size(), static_cast<size_t>(limit)));
  require(std::equal(first.indices.begin(), first.indices.end(), emission.indices.begin()));
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  data.ConsumeBool() ? run<float>(data) : run<double>(data);
  return 0;
}

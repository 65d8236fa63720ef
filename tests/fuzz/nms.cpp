// Coverage-guided fuzzing of NMS: a limit gives the first of all, in order.
#include "boxes.h"

#include "../../regionclip/ops/csrc/cpu/nms_kernel.h"
#include "../../regionclip/ops/csrc/cpu/parallel.h"

template <typename Real>
void run(FuzzedDataProvider& data) {
  const double threshold = data.ConsumeFloatingPointInRange(-0.5, 1.5);
  const auto limit = data.ConsumeIntegralInRange<int64_t>(0, 70);
  const bool with_classes = data.ConsumeBool();
  const Boxes<Real> all(data);
  const int64_t* classes = with_classes ? all.classes.data() : nullptr;
  const auto kept = regionclip::nms(
      all.boxes.data(), all.scores.data(), classes, all.count, threshold, -1, regionclip::SerialFor());
  require_candidates(all, kept);
  for (size_t i = 1; i < kept.size(); ++i) {
    require(all.scores[kept[i - 1]] >= all.scores[kept[i]]);
  }
  const auto first = regionclip::nms(
      all.boxes.data(), all.scores.data(), classes, all.count, threshold, limit, regionclip::SerialFor());
  require(first.size() == std::min(kept.size(), static_cast<size_t>(limit)));
  require(std::equal(first.begin(), first.end(), kept.begin()));
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  data.ConsumeBool() ? run<float>(data) : run<double>(data);
  return 0;
}

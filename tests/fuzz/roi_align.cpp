// Coverage-guided fuzzing of RoIAlign, forward and backward: any bits as coordinates, small maps.
#include <fuzzer/FuzzedDataProvider.h>

#include <cmath>

#include "../../regionclip/ops/csrc/cpu/parallel.h"
#include "../../regionclip/ops/csrc/cpu/roi_align_kernel.h"

namespace {

template <typename Real>
Real any_bits(FuzzedDataProvider& data) {
  Real value = 0;
  data.ConsumeData(&value, sizeof(value));
  return value;
}

void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

template <typename Real>
void run(FuzzedDataProvider& data) {
  const auto small = [&](int64_t low, int64_t high) { return data.ConsumeIntegralInRange<int64_t>(low, high); };
  const int64_t images = small(1, 3), channels = small(1, 80), height = small(1, 20), width = small(1, 20);
  const bool map_last = data.ConsumeBool();
  const regionclip::MapShape map{
      images,
      channels,
      height,
      width,
      channels * height * width,
      map_last ? 1 : height * width,
      map_last ? width * channels : width,
      map_last ? channels : 1};
  const regionclip::PoolingShape out{small(0, 5), small(1, 6), small(1, 6), map_last};
  const regionclip::Pooling pooling{
      data.ConsumeBool() ? 0.0625 : static_cast<double>(any_bits<float>(data)), small(-1, 80), data.ConsumeBool()};
  std::vector<Real> rois;
  for (int64_t r = 0; r < out.rois; ++r) {
    rois.push_back(static_cast<Real>(small(0, images - 1)));
    for (int i = 0; i < 4; ++i) {
      rois.push_back(data.ConsumeBool() ? static_cast<Real>(small(-100, 400)) / 8 : any_bits<Real>(data));
    }
  }
  const std::vector<Real> features(static_cast<size_t>(images * map.image_stride), Real(1));
  std::vector<Real> pooled(static_cast<size_t>(out.rois * channels * out.bins_y * out.bins_x), Real(7));
  regionclip::roi_align_forward<Real, Real>(
      features.data(), map, rois.data(), out, pooling, pooled.data(), regionclip::SerialFor());
  for (const Real value : pooled) {
    require(value >= 0 && value <= Real(1.001));  // a mean of ones and zeros
  }
  std::vector<Real> gradient(features.size(), Real(7));
  regionclip::roi_align_backward<Real, Real>(
      pooled.data(), rois.data(), out, pooling, map, gradient.data(), regionclip::SerialFor());
  for (const Real value : gradient) {
    require(std::isfinite(value) && value >= 0);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size) {
  FuzzedDataProvider data(bytes, size);
  data.ConsumeBool() ? run<float>(data) : run<double>(data);
  return 0;
}

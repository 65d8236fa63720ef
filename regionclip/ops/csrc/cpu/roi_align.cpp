// RoIAlign on the CPU: checks, types and layouts around the kernels.
#include "../common.h"
#include "roi_align_kernel.h"
#include "torch_parallel.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace regionclip {
namespace {

MapShape shape_of(const Tensor& map) {
  return {map.size(0),   map.size(1),   map.size(2),   map.size(3),
          map.stride(0), map.stride(1), map.stride(2), map.stride(3)};
}

bool is_empty(const MapShape& map, const PoolingShape& out) {
  return map.images == 0 || map.channels == 0 || map.height == 0 || map.width == 0 || out.rois == 0;
}

template <typename Real>
void check_batch_indices(const Real* rois, int64_t count, int64_t images) {
  for (int64_t r = 0; r < count; ++r) {
    const Real index = rois[5 * r];
    STD_TORCH_CHECK(
        index >= Real(0) && index < static_cast<Real>(images), "roi_align: expected batch indices from 0 to ",
        images - 1, ", got ", index, " in row ", r);
  }
}

// A large fresh result is written faster in large pages: the system clears and maps them at once.
void prefer_large_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  const auto begin = (reinterpret_cast<uintptr_t>(memory) + page - 1) / page * page;
  const auto end = (reinterpret_cast<uintptr_t>(memory) + static_cast<uintptr_t>(bytes)) / page * page;
  if (end > begin + 4 * page) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a hint: it may fail
  }
#endif
}

Tensor roi_align_cpu(
    const Tensor& features, const Tensor& rois_in, int64_t height, int64_t width, double spatial_scale,
    int64_t sampling_ratio, bool aligned, bool channels_last) {
  STD_TORCH_CHECK(features.dim() == 4, "roi_align: expected features [N, C, H, W], got ", features.dim(), " dimensions");
  check_rois(features, rois_in);
  check_pooling(height, width, sampling_ratio);
  const Tensor rois = torch::stable::contiguous(rois_in);
  const MapShape map = shape_of(features);
  const PoolingShape out{rois.size(0), height, width, channels_last};
  const Pooling pooling{spatial_scale, sampling_ratio, aligned};
  Tensor pooled = dense_map(features, out.rois, map.channels, height, width, channels_last);
  for_floating_type(features.scalar_type(), "roi_align", [&](auto zero) {
    using Scalar = decltype(zero);
    using Real = Accumulator<Scalar>;
    check_batch_indices(data_of<Real>(rois), out.rois, map.images);
    if (is_empty(map, out)) {
      torch::stable::zero_(pooled);
      return;
    }
    prefer_large_pages(pooled.mutable_data_ptr(), pooled.numel() * static_cast<int64_t>(sizeof(Scalar)));
    roi_align_forward<Scalar, Real>(
        data_of<Scalar>(features), map, data_of<Real>(rois), out, pooling, mutable_data_of<Scalar>(pooled),
        TorchFor());
  });
  return pooled;
}

Tensor roi_align_backward_cpu(
    const Tensor& gradient_in, const Tensor& rois_in, int64_t images, int64_t channels, int64_t map_height,
    int64_t map_width, double spatial_scale, int64_t sampling_ratio, bool aligned, bool channels_last,
    bool /*deterministic: it always is*/) {
  STD_TORCH_CHECK(gradient_in.dim() == 4, "roi_align_backward: expected a gradient [R, C, h, w]");
  check_rois(gradient_in, rois_in);
  STD_TORCH_CHECK(
      gradient_in.size(0) == rois_in.size(0) && gradient_in.size(1) == channels,
      "roi_align_backward: the gradient does not belong to these rois and channels");
  STD_TORCH_CHECK(
      images >= 0 && channels >= 0 && map_height >= 0 && map_width >= 0, "roi_align_backward: negative map size");
  check_pooling(gradient_in.size(2), gradient_in.size(3), sampling_ratio);
  const Tensor rois = torch::stable::contiguous(rois_in);
  const Tensor gradient =
      torch::stable::contiguous(gradient_in, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
  Tensor map_gradient = dense_map(gradient, images, channels, map_height, map_width, channels_last);
  const MapShape map = shape_of(map_gradient);
  const PoolingShape out{rois.size(0), gradient.size(2), gradient.size(3), channels_last};
  const Pooling pooling{spatial_scale, sampling_ratio, aligned};
  for_floating_type(gradient.scalar_type(), "roi_align_backward", [&](auto zero) {
    using Scalar = decltype(zero);
    using Real = Accumulator<Scalar>;
    check_batch_indices(data_of<Real>(rois), out.rois, map.images);
    if (is_empty(map, out)) {
      torch::stable::zero_(map_gradient);
      return;
    }
    roi_align_backward<Scalar, Real>(
        data_of<Scalar>(gradient), data_of<Real>(rois), out, pooling, map, mutable_data_of<Scalar>(map_gradient),
        TorchFor());
  });
  return map_gradient;
}

}  // namespace
}  // namespace regionclip

STABLE_TORCH_LIBRARY_IMPL(regionclip, CPU, library) {
  library.impl("roi_align", TORCH_BOX(&regionclip::roi_align_cpu));
  library.impl("roi_align_backward", TORCH_BOX(&regionclip::roi_align_backward_cpu));
}

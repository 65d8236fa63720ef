// RoIAlign on a GPU. Indices have 64 bits: 1000 regions of 2048 channels at 36 x 36 outgrow 32.
#include <cmath>

#include "../geometry.h"
#include "launch.h"

namespace regionclip {
namespace {

struct Problem {
  int64_t images, channels, height, width;                            // of the maps
  int64_t image_stride, channel_stride, row_stride, column_stride;    // of the maps
  int64_t rois, bins_y, bins_x;
  int64_t roi_stride, pooled_channel_stride, bin_row_stride, bin_stride;  // of the pooled maps
  bool pooled_channels_last;
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

struct PooledIndex {
  int64_t roi, channel, bin_y, bin_x;
};

// Adjacent threads take elements that are adjacent in memory.
__device__ PooledIndex pooled_index(int64_t i, const Problem& p) {
  if (p.pooled_channels_last) {
    return {i / p.channels / p.bins_x / p.bins_y, i % p.channels, i / p.channels / p.bins_x % p.bins_y,
            i / p.channels % p.bins_x};
  }
  return {i / p.bins_x / p.bins_y / p.channels, i / p.bins_x / p.bins_y % p.channels, i / p.bins_x % p.bins_y,
          i % p.bins_x};
}

template <typename Real>
__device__ Axis<Real> axis_of(const Real* roi, int low, int high, int64_t bins, const Problem& p) {
  return make_axis<Real>(
      roi[low], roi[high], static_cast<Real>(p.spatial_scale), bins, p.sampling_ratio, p.aligned);
}

template <typename Real>
__device__ bool is_image(Real index, const Problem& p) {
  return index >= Real(0) && index < static_cast<Real>(p.images);
}

// Calls `body(y, x, weight)` for each cell that a bin reads.
template <typename Real, typename Body>
__device__ void for_cells(const Real* roi, const PooledIndex& at, const Problem& p, const Body& body) {
  const Axis<Real> ys = axis_of(roi, 2, 4, p.bins_y, p), xs = axis_of(roi, 1, 3, p.bins_x, p);
  const SampleRange rows = samples_near_map(ys, at.bin_y, p.height), columns = samples_near_map(xs, at.bin_x, p.width);
  const Real share = Real(1) / (static_cast<Real>(ys.grid) * static_cast<Real>(xs.grid));
  for (int64_t i = rows.first; i < rows.last; ++i) {
    const Real y = sample_position(ys, at.bin_y, i);
    if (!is_inside(y, p.height)) {
      continue;
    }
    const Sample<Real> row = interpolate(y, p.height);
    for (int64_t j = columns.first; j < columns.last; ++j) {
      const Real x = sample_position(xs, at.bin_x, j);
      if (!is_inside(x, p.width)) {
        continue;
      }
      const Sample<Real> column = interpolate(x, p.width);
      body(row.low, column.low, row.low_weight * column.low_weight * share);
      body(row.low, column.high, row.low_weight * column.high_weight * share);
      body(row.high, column.low, row.high_weight * column.low_weight * share);
      body(row.high, column.high, row.high_weight * column.high_weight * share);
    }
  }
}

template <typename Scalar, typename Real>
__global__ void forward_kernel(const Scalar* features, const Real* rois, Scalar* pooled, Problem p) {
  REGIONCLIP_FOR_ITEMS(i, p.rois * p.channels * p.bins_y * p.bins_x) {
    const PooledIndex at = pooled_index(i, p);
    const Real* roi = rois + 5 * at.roi;
    if (!is_image(roi[0], p)) {
      pooled[i] = static_cast<Scalar>(static_cast<Real>(NAN));
      continue;
    }
    const Scalar* map = features + static_cast<int64_t>(roi[0]) * p.image_stride + at.channel * p.channel_stride;
    Real sum = 0;
    for_cells(roi, at, p, [&](int64_t y, int64_t x, Real weight) {
      sum += weight * static_cast<Real>(map[y * p.row_stride + x * p.column_stride]);
    });
    pooled[i] = static_cast<Scalar>(sum);
  }
}

// Sums in the order in which threads arrive.
template <typename Scalar, typename Real>
__global__ void scatter_kernel(const Scalar* gradient, const Real* rois, Real* map_gradient, Problem p) {
  REGIONCLIP_FOR_ITEMS(i, p.rois * p.channels * p.bins_y * p.bins_x) {
    const PooledIndex at = pooled_index(i, p);
    const Real* roi = rois + 5 * at.roi;
    if (!is_image(roi[0], p)) {
      continue;
    }
    const Real value = static_cast<Real>(
        gradient[at.roi * p.roi_stride + at.channel * p.pooled_channel_stride + at.bin_y * p.bin_row_stride +
                 at.bin_x * p.bin_stride]);
    Real* map = map_gradient + static_cast<int64_t>(roi[0]) * p.image_stride + at.channel * p.channel_stride;
    for_cells(roi, at, p, [&](int64_t y, int64_t x, Real weight) {
      atomicAdd(map + y * p.row_stride + x * p.column_stride, weight * value);
    });
  }
}

// weights[roi, bin, cell] of one axis, zero before; a thread a bin.
template <typename Real>
__global__ void weights_kernel(const Real* rois, int low, int high, int64_t bins, int64_t size, Real* weights, Problem p) {
  REGIONCLIP_FOR_ITEMS(i, p.rois * bins) {
    const Axis<Real> axis = axis_of(rois + 5 * (i / bins), low, high, bins, p);
    const int64_t bin = i % bins;
    const SampleRange range = samples_near_map(axis, bin, size);
    for (int64_t k = range.first; k < range.last; ++k) {
      const Real position = sample_position(axis, bin, k);
      if (is_inside(position, size)) {
        const Sample<Real> sample = interpolate(position, size);
        weights[i * size + sample.low] += sample.low_weight / static_cast<Real>(axis.grid);
        weights[i * size + sample.high] += sample.high_weight / static_cast<Real>(axis.grid);
      }
    }
  }
}

// Each cell gathers its own sum, region after region: the same bits at each run.
template <typename Scalar, typename Real>
__global__ void gather_kernel(
    const Scalar* gradient, const Real* rois, const Real* y_weights, const Real* x_weights, Scalar* map_gradient,
    Problem p) {
  REGIONCLIP_FOR_ITEMS(i, p.images * p.channels * p.height * p.width) {
    const int64_t x = i % p.width, y = i / p.width % p.height, channel = i / p.width / p.height % p.channels;
    const int64_t image = i / p.width / p.height / p.channels;
    Real sum = 0;
    for (int64_t r = 0; r < p.rois; ++r) {
      const Real index = rois[5 * r];
      if (!is_image(index, p) || static_cast<int64_t>(index) != image) {
        continue;
      }
      for (int64_t bin_y = 0; bin_y < p.bins_y; ++bin_y) {
        const Real y_weight = y_weights[(r * p.bins_y + bin_y) * p.height + y];
        if (y_weight == Real(0)) {
          continue;
        }
        const Scalar* row = gradient + r * p.roi_stride + channel * p.pooled_channel_stride + bin_y * p.bin_row_stride;
        for (int64_t bin_x = 0; bin_x < p.bins_x; ++bin_x) {
          const Real x_weight = x_weights[(r * p.bins_x + bin_x) * p.width + x];
          if (x_weight != Real(0)) {
            sum += y_weight * x_weight * static_cast<Real>(row[bin_x * p.bin_stride]);
          }
        }
      }
    }
    map_gradient[image * p.image_stride + channel * p.channel_stride + y * p.row_stride + x * p.column_stride] =
        static_cast<Scalar>(sum);
  }
}

Problem make_problem(
    const Tensor& map, const Tensor& pooled, double spatial_scale, int64_t sampling_ratio, bool aligned,
    bool channels_last) {
  return {map.size(0),      map.size(1),      map.size(2),      map.size(3),   map.stride(0),    map.stride(1),
          map.stride(2),    map.stride(3),    pooled.size(0),   pooled.size(2), pooled.size(3),  pooled.stride(0),
          pooled.stride(1), pooled.stride(2), pooled.stride(3), channels_last, spatial_scale,    sampling_ratio,
          aligned};
}

// Without images every region has a wrong image number, which the kernels find.
bool is_empty(const Problem& p) {
  return p.channels == 0 || p.height == 0 || p.width == 0 || p.rois == 0;
}

Tensor roi_align_cuda(
    const Tensor& features, const Tensor& rois_in, int64_t height, int64_t width, double spatial_scale,
    int64_t sampling_ratio, bool aligned, bool channels_last) {
  STD_TORCH_CHECK(features.dim() == 4, "roi_align: expected features [N, C, H, W], got ", features.dim(), " dimensions");
  check_rois(features, rois_in);
  check_pooling(height, width, sampling_ratio);
  const torch::stable::accelerator::DeviceGuard guard(features.get_device());
  const Tensor rois = torch::stable::contiguous(rois_in);
  Tensor pooled = dense_map(features, rois.size(0), features.size(1), height, width, channels_last);
  const Problem problem = make_problem(features, pooled, spatial_scale, sampling_ratio, aligned, channels_last);
  if (is_empty(problem)) {
    return torch::stable::zero_(pooled);
  }
  for_floating_type(features.scalar_type(), "roi_align", [&](auto zero) {
    using Scalar = decltype(zero);
    using Real = Accumulator<Scalar>;
    forward_kernel<Scalar, Real><<<blocks_for(pooled.numel()), threads_per_block, 0, current_stream(features)>>>(
        data_of<Scalar>(features), data_of<Real>(rois), mutable_data_of<Scalar>(pooled), problem);
    check_launch("roi_align");
  });
  return pooled;
}

template <typename Scalar, typename Real>
Tensor gather_gradient(const Tensor& gradient, const Tensor& rois, const Tensor& map_gradient, const Problem& p) {
  const ScalarType type = std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor ys = torch::stable::new_zeros(gradient, {p.rois, p.bins_y, p.height}, type);
  const Tensor xs = torch::stable::new_zeros(gradient, {p.rois, p.bins_x, p.width}, type);
  const cudaStream_t stream = current_stream(gradient);
  const auto* regions = data_of<Real>(rois);
  weights_kernel<Real><<<blocks_for(p.rois * p.bins_y), threads_per_block, 0, stream>>>(
      regions, 2, 4, p.bins_y, p.height, mutable_data_of<Real>(ys), p);
  weights_kernel<Real><<<blocks_for(p.rois * p.bins_x), threads_per_block, 0, stream>>>(
      regions, 1, 3, p.bins_x, p.width, mutable_data_of<Real>(xs), p);
  gather_kernel<Scalar, Real><<<blocks_for(map_gradient.numel()), threads_per_block, 0, stream>>>(
      data_of<Scalar>(gradient), regions, data_of<Real>(ys), data_of<Real>(xs), mutable_data_of<Scalar>(map_gradient),
      p);
  check_launch("roi_align_backward");
  return map_gradient;
}

template <typename Scalar, typename Real>
Tensor scatter_gradient(const Tensor& gradient, const Tensor& rois, const Tensor& sums, const Problem& p) {
  scatter_kernel<Scalar, Real><<<blocks_for(gradient.numel()), threads_per_block, 0, current_stream(gradient)>>>(
      data_of<Scalar>(gradient), data_of<Real>(rois), mutable_data_of<Real>(sums), p);
  check_launch("roi_align_backward");
  return torch::stable::to(sums, gradient.scalar_type());
}

Tensor roi_align_backward_cuda(
    const Tensor& gradient, const Tensor& rois_in, int64_t images, int64_t channels, int64_t map_height,
    int64_t map_width, double spatial_scale, int64_t sampling_ratio, bool aligned, bool channels_last,
    bool deterministic) {
  STD_TORCH_CHECK(gradient.dim() == 4, "roi_align_backward: expected a gradient [R, C, h, w]");
  check_rois(gradient, rois_in);
  STD_TORCH_CHECK(
      gradient.size(0) == rois_in.size(0) && gradient.size(1) == channels,
      "roi_align_backward: the gradient does not belong to these rois and channels");
  check_pooling(gradient.size(2), gradient.size(3), sampling_ratio);
  const torch::stable::accelerator::DeviceGuard guard(gradient.get_device());
  const Tensor rois = torch::stable::contiguous(rois_in);
  Tensor result;
  for_floating_type(gradient.scalar_type(), "roi_align_backward", [&](auto zero) {
    using Scalar = decltype(zero);
    using Real = Accumulator<Scalar>;
    const ScalarType sum_type = std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;
    Tensor sums = torch::stable::empty(
        {images, channels, map_height, map_width}, deterministic ? gradient.scalar_type() : sum_type, std::nullopt,
        gradient.device(), std::nullopt, channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous);
    torch::stable::zero_(sums);
    const Problem problem = make_problem(sums, gradient, spatial_scale, sampling_ratio, aligned, channels_last);
    if (is_empty(problem)) {
      result = torch::stable::to(sums, gradient.scalar_type());
    } else if (deterministic) {
      result = gather_gradient<Scalar, Real>(gradient, rois, sums, problem);
    } else {
      result = scatter_gradient<Scalar, Real>(gradient, rois, sums, problem);
    }
  });
  return result;
}

}  // namespace
}  // namespace regionclip

STABLE_TORCH_LIBRARY_IMPL(regionclip, CUDA, library) {
  library.impl("roi_align", TORCH_BOX(&regionclip::roi_align_cuda));
  library.impl("roi_align_backward", TORCH_BOX(&regionclip::roi_align_backward_cuda));
}

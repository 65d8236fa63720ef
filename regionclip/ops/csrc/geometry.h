// Where the samples of a region lie: what the CPU and the CUDA code share. No torch in here.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define REGIONCLIP_HOST_DEVICE __host__ __device__
#else
#define REGIONCLIP_HOST_DEVICE
#endif

namespace regionclip {

// Samples of all bins of a region along one axis, in cells of the feature map.
template <typename Real>
struct Axis {
  Real start;    // where the first bin begins
  Real bin;      // length of a bin
  int64_t grid;  // samples in a bin; 0 for a region that takes no samples
};

// A sample between two cells, with the weights of linear interpolation.
template <typename Real>
struct Sample {
  int64_t low, high;
  Real low_weight, high_weight;
};

template <typename Real>
REGIONCLIP_HOST_DEVICE inline bool is_finite(Real value) {
  return value - value == Real(0);
}

template <typename Real>
REGIONCLIP_HOST_DEVICE inline Real round_up(Real value) {
  const Real below = static_cast<Real>(static_cast<int64_t>(value));
  return below < value ? below + Real(1) : below;
}

// The axis from `low` to `high` in pixels of the image. A region with a coordinate that is not
// finite, or with bins of more cells than any map has, lies nowhere: it takes no samples. A sampling
// ratio of -k takes one sample a cell in each of the k parts of a bin.
template <typename Real>
REGIONCLIP_HOST_DEVICE inline Axis<Real> make_axis(
    Real low, Real high, Real scale, int64_t bins, int64_t sampling_ratio, bool aligned) {
  constexpr Real longest_bin = Real(1 << 30);
  const Real offset = aligned ? Real(0.5) : Real(0);
  const Real start = low * scale - offset;
  Real length = (high * scale - offset) - start;
  if (!aligned && length < Real(1)) {
    length = Real(1);
  }
  Axis<Real> axis{start, length / static_cast<Real>(bins), 0};
  if (is_finite(start) && is_finite(length) && -longest_bin < axis.bin && longest_bin > axis.bin) {
    const int64_t parts = sampling_ratio < 0 ? -sampling_ratio : 1;
    axis.grid = sampling_ratio > 0 ? sampling_ratio
                                   : parts * static_cast<int64_t>(round_up(axis.bin / static_cast<Real>(parts)));
    axis.grid = axis.grid > 0 ? axis.grid : 0;
  }
  return axis;
}

template <typename Real>
REGIONCLIP_HOST_DEVICE inline Real sample_position(const Axis<Real>& axis, int64_t bin, int64_t i) {
  return axis.start + static_cast<Real>(bin) * axis.bin +
      (static_cast<Real>(i) + Real(0.5)) * axis.bin / static_cast<Real>(axis.grid);
}

// Whether a sample counts; those outside, by more than a cell, are zero.
template <typename Real>
REGIONCLIP_HOST_DEVICE inline bool is_inside(Real position, int64_t size) {
  return position >= Real(-1) && position <= static_cast<Real>(size);
}

template <typename Real>
REGIONCLIP_HOST_DEVICE inline Sample<Real> interpolate(Real position, int64_t size) {
  position = position > Real(0) ? position : Real(0);
  const int64_t low = static_cast<int64_t>(position);
  if (low >= size - 1) {
    return {size - 1, size - 1, Real(1), Real(0)};
  }
  const Real fraction = position - static_cast<Real>(low);
  return {low, low + 1, Real(1) - fraction, fraction};
}

// The samples [first, last) of a bin among which all lie that count: far outside there may be 2^30.
struct SampleRange {
  int64_t first, last;
};

template <typename Real>
REGIONCLIP_HOST_DEVICE inline SampleRange samples_near_map(const Axis<Real>& axis, int64_t bin, int64_t size) {
  if (axis.grid <= 64) {
    return {0, axis.grid};
  }
  const double step = static_cast<double>(axis.bin) / static_cast<double>(axis.grid);
  const double base = static_cast<double>(axis.start) + static_cast<double>(bin) * static_cast<double>(axis.bin);
  if (step == 0) {
    return {0, axis.grid};
  }
  // Rounding moves a position by less than its own size times 2^-20; two cells more on either side.
  const double reach = base < 0 ? -base : base;
  const double slack = 2.0 + reach * 1e-6;
  double first = (-1.0 - slack - base) / step;
  double last = (static_cast<double>(size) + slack - base) / step;
  if (first > last) {
    const double swapped = first;
    first = last;
    last = swapped;
  }
  const double grid = static_cast<double>(axis.grid);
  first = first > 0 ? (first < grid ? first : grid) : 0;
  last = last + 1 > 0 ? (last + 1 < grid ? last + 1 : grid) : 0;
  return {static_cast<int64_t>(first), static_cast<int64_t>(last)};
}

}  // namespace regionclip

// RoIAlign on plain memory: no torch in here, so that fuzz targets build it alone.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include "../geometry.h"
#include "streaming.h"

namespace regionclip {

// A feature map or its gradient, [images, channels, height, width], with strides in elements.
struct MapShape {
  int64_t images, channels, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;
};

struct PoolingShape {
  int64_t rois, bins_y, bins_x;
  bool channels_last;  // the layout of the pooled maps
};

struct Pooling {
  double spatial_scale;
  int64_t sampling_ratio;
  bool aligned;
};

// The cells that the bins of one region average along one axis, with weights that hold the share of
// a sample in its bin. `first` has an entry a bin and one more.
template <typename Real>
struct BinWeights {
  int64_t bins;
  const int64_t* first;
  const int64_t* cells;
  const Real* weights;
  int64_t lowest, highest;  // cells; highest < lowest when no bin has any
};

template <typename Real>
struct BlockLoops {
  void (*pool)(const Real*, int64_t, const BinWeights<Real>&, const BinWeights<Real>&, Real*, Real*);
  void (*spread)(const Real*, const BinWeights<Real>&, const BinWeights<Real>&, Real*, Real*, int64_t);
  void (*transpose)(const Real*, int64_t, int64_t, int64_t, Real*, int64_t);
};

// The loops for this processor, for blocks of 16 or 64 channels; defined in roi_align_loops.cpp.
template <typename Real>
BlockLoops<Real> loops_for_processor(int64_t block);

template <typename Real>
class BinWeightTable {
 public:
  // Weights of every region along one axis; `low` and `high` are the columns of rois [R, 5].
  BinWeightTable(
      const Real* rois, int64_t count, int low, int high, int64_t bins, int64_t size, const Pooling& pooling)
      : bins_(bins) {
    first_.reserve(count * (bins + 1));
    for (int64_t r = 0; r < count; ++r) {
      add_region(make_axis<Real>(
                     rois[5 * r + low],
                     rois[5 * r + high],
                     static_cast<Real>(pooling.spatial_scale),
                     bins,
                     pooling.sampling_ratio,
                     pooling.aligned),
                 size);
    }
  }

  BinWeights<Real> of(int64_t region) const {
    return {bins_, first_.data() + region * (bins_ + 1), cells_.data(), weights_.data(), lowest_[region],
            highest_[region]};
  }

 private:
  void add_region(const Axis<Real>& axis, int64_t size) {
    int64_t lowest = size, highest = -1;
    for (int64_t bin = 0; bin < bins_; ++bin) {
      first_.push_back(static_cast<int64_t>(cells_.size()));
      const SampleRange range = samples_near_map(axis, bin, size);
      for (int64_t i = range.first; i < range.last; ++i) {
        const Real position = sample_position(axis, bin, i);
        if (is_inside(position, size)) {
          const Sample<Real> sample = interpolate(position, size);
          const Real share = Real(1) / static_cast<Real>(axis.grid);
          add(sample.low, sample.low_weight * share);
          add(sample.high, sample.high_weight * share);
          lowest = std::min(lowest, sample.low);
          highest = std::max(highest, sample.high);
        }
      }
    }
    first_.push_back(static_cast<int64_t>(cells_.size()));
    lowest_.push_back(lowest);
    highest_.push_back(highest);
  }

  void add(int64_t cell, Real weight) {
    // Adjacent samples share cells.
    const auto begin = static_cast<size_t>(first_.back());
    for (size_t back = 1; back <= 2 && begin + back <= cells_.size(); ++back) {
      if (cells_[cells_.size() - back] == cell) {
        weights_[weights_.size() - back] += weight;
        return;
      }
    }
    cells_.push_back(cell);
    weights_.push_back(weight);
  }

  int64_t bins_;
  std::vector<int64_t> first_, cells_, lowest_, highest_;
  std::vector<Real> weights_;
};

struct FreeDeleter {
  void operator()(void* memory) const { std::free(memory); }
};

// Scratch memory on the 64 bytes that the vectors need.
template <typename Real>
std::unique_ptr<Real[], FreeDeleter> scratch(int64_t count) {
  const size_t bytes = (static_cast<size_t>(std::max<int64_t>(count, 1)) * sizeof(Real) + 63) / 64 * 64;
  void* memory = std::aligned_alloc(64, bytes);
  if (memory == nullptr) {
    throw std::bad_alloc();
  }
  return std::unique_ptr<Real[], FreeDeleter>(static_cast<Real*>(memory));
}

// One call of RoIAlign: regions sorted by image, and the weights of all of them.
template <typename Real>
struct RegionPlan {
  RegionPlan(const Real* rois, const MapShape& map, const PoolingShape& out, const Pooling& pooling)
      : ys(rois, out.rois, 2, 4, out.bins_y, map.height, pooling),
        xs(rois, out.rois, 1, 3, out.bins_x, map.width, pooling),
        of_image(map.images) {
    for (int64_t r = 0; r < out.rois; ++r) {
      of_image[static_cast<size_t>(rois[5 * r])].push_back(r);
    }
  }

  BinWeightTable<Real> ys, xs;
  std::vector<std::vector<int64_t>> of_image;
};

template <typename Scalar, typename Real>
void convert(const Scalar* source, int64_t count, Real* target) {
  for (int64_t i = 0; i < count; ++i) {
    target[i] = static_cast<Real>(source[i]);
  }
}

constexpr int64_t widest_block = 64;

// Moves blocks of channels between the layouts of tensors and [cells, Block].
template <typename Scalar, typename Real>
class BlockMover {
 public:
  // `most_cells` is the largest number of cells that one call moves; with `streaming`, channels that
  // lie next to each other are stored past the caches.
  BlockMover(const BlockLoops<Real>& loops, int64_t block, int64_t most_cells, bool streaming = false)
      : loops_(loops), block_(block), streaming_(streaming), buffer_(scratch<Real>(std::is_same_v<Scalar, Real> ? 0 : block * most_cells)) {}

  // `count` channels of `cells` cells to [cells, Block]; channels that are not there become zero.
  void load(const Scalar* source, int64_t cell_stride, int64_t channel_stride, int64_t cells, int64_t count,
            Real* packed) const {
    if (cell_stride == 1 && channel_stride != 1) {
      load_rows(source, channel_stride, cells, count, packed);
    } else {
      for (int64_t cell = 0; cell < cells; ++cell) {
        for (int64_t c = 0; c < count; ++c) {
          packed[cell * block_ + c] = static_cast<Real>(source[cell * cell_stride + c * channel_stride]);
        }
      }
    }
    for (int64_t cell = 0; cell < cells && count < block_; ++cell) {
      std::fill(packed + cell * block_ + count, packed + (cell + 1) * block_, Real(0));
    }
  }

  // The way back; the strides of the target are those of a dense layout.
  void store(const Real* packed, int64_t cells, int64_t count, int64_t cell_stride, int64_t channel_stride,
             Scalar* target) const {
    if (channel_stride == 1) {
      store_cells(packed, cells, count, cell_stride, target);
    } else if constexpr (std::is_same_v<Scalar, Real>) {
      loops_.transpose(packed, block_, cells, count, target, channel_stride);
    } else {
      loops_.transpose(packed, block_, cells, count, buffer_.get(), cells);
      for (int64_t c = 0; c < count; ++c) {
        convert(buffer_.get() + c * cells, cells, target + c * channel_stride);
      }
    }
  }

 private:
  void load_rows(const Scalar* source, int64_t channel_stride, int64_t cells, int64_t count, Real* packed) const {
    if constexpr (std::is_same_v<Scalar, Real>) {
      loops_.transpose(source, channel_stride, count, cells, packed, block_);
    } else {
      for (int64_t c = 0; c < count; ++c) {
        convert(source + c * channel_stride, cells, buffer_.get() + c * cells);
      }
      loops_.transpose(buffer_.get(), cells, count, cells, packed, block_);
    }
  }

  void store_cells(const Real* packed, int64_t cells, int64_t count, int64_t cell_stride, Scalar* target) const {
    for (int64_t cell = 0; cell < cells; ++cell) {
      const Real* source = packed + cell * block_;
      if (!streaming_) {
        convert(source, count, target + cell * cell_stride);
      } else if constexpr (std::is_same_v<Scalar, Real>) {
        stream(source, count * static_cast<int64_t>(sizeof(Scalar)), target + cell * cell_stride);
      } else {
        Scalar converted[widest_block];
        convert(source, count, converted);
        stream(converted, count * static_cast<int64_t>(sizeof(Scalar)), target + cell * cell_stride);
      }
    }
    finish_streams();
  }

  BlockLoops<Real> loops_;
  int64_t block_;
  bool streaming_;
  std::unique_ptr<Real[], FreeDeleter> buffer_;
};

inline int64_t block_width(int64_t channels) { return channels > 16 ? widest_block : 16; }

// Pooled maps of `out.rois` regions, dense, in the layout that `out` names. The batch indices of the
// rois [R, 5] must be valid.
template <typename Scalar, typename Real, typename For>
void roi_align_forward(
    const Scalar* features, const MapShape& map, const Real* rois, const PoolingShape& out, const Pooling& pooling,
    Scalar* pooled, const For& for_ranges) {
  const RegionPlan<Real> plan(rois, map, out, pooling);
  const int64_t block = block_width(map.channels), blocks = (map.channels + block - 1) / block;
  const int64_t bins = out.bins_y * out.bins_x;
  const int64_t bin_stride = out.channels_last ? map.channels : 1, channel_stride = out.channels_last ? 1 : bins;
  const BlockLoops<Real> loops = loops_for_processor<Real>(block);
  // A task is one block of channels and a share of the regions of one image, so that its part of the
  // map stays in the second-level cache.
  const bool streaming = out.rois * map.channels * bins * static_cast<int64_t>(sizeof(Scalar)) > streaming_threshold;
  const int64_t shares = std::max<int64_t>(1, 4 * for_ranges.threads() / std::max<int64_t>(1, blocks * map.images));
  const int64_t tasks = map.images * blocks * shares;
  for_ranges(0, tasks, 1, [&](int64_t task_begin, int64_t task_end) {
    const auto packed = scratch<Real>(map.height * map.width * block);
    const auto row = scratch<Real>(map.width * block);
    const auto tile = scratch<Real>(bins * block);
    const BlockMover<Scalar, Real> mover(loops, block, std::max(bins, map.width), streaming);
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t share = task % shares, b = task / shares % blocks, image = task / shares / blocks;
      const auto& regions = plan.of_image[image];
      const auto count = static_cast<int64_t>(regions.size());
      const int64_t from = count * share / shares, to = count * (share + 1) / shares;
      int64_t top = map.height, bottom = -1, left = map.width, right = -1;
      for (int64_t i = from; i < to; ++i) {
        const auto ys = plan.ys.of(regions[i]), xs = plan.xs.of(regions[i]);
        top = std::min(top, ys.lowest), bottom = std::max(bottom, ys.highest);
        left = std::min(left, xs.lowest), right = std::max(right, xs.highest);
      }
      const int64_t begin = b * block, width = std::min(block, map.channels - begin);
      const Scalar* channels = features + image * map.image_stride + begin * map.channel_stride;
      for (int64_t y = top; y <= bottom; ++y) {
        mover.load(channels + y * map.row_stride + left * map.column_stride, map.column_stride, map.channel_stride,
                   right - left + 1, width, packed.get() + (y * map.width + left) * block);
      }
      for (int64_t i = from; i < to; ++i) {
        const int64_t r = regions[i];
        loops.pool(packed.get(), map.width, plan.ys.of(r), plan.xs.of(r), row.get(), tile.get());
        mover.store(tile.get(), bins, width, bin_stride, channel_stride,
                    pooled + r * map.channels * bins + begin * channel_stride);
      }
    }
  });
}

// The gradient of dense feature maps, every element written; bit-identical for any number of threads.
template <typename Scalar, typename Real, typename For>
void roi_align_backward(
    const Scalar* gradient, const Real* rois, const PoolingShape& out, const Pooling& pooling, const MapShape& map,
    Scalar* map_gradient, const For& for_ranges) {
  const RegionPlan<Real> plan(rois, map, out, pooling);
  const int64_t block = block_width(map.channels), blocks = (map.channels + block - 1) / block;
  const int64_t bins = out.bins_y * out.bins_x, area = map.height * map.width;
  const int64_t bin_stride = out.channels_last ? map.channels : 1, channel_stride = out.channels_last ? 1 : bins;
  const BlockLoops<Real> loops = loops_for_processor<Real>(block);
  for_ranges(0, map.images * blocks, 1, [&](int64_t task_begin, int64_t task_end) {
    const auto packed = scratch<Real>(area * block);
    const auto row = scratch<Real>(map.width * block);
    const auto tile = scratch<Real>(bins * block);
    const BlockMover<Scalar, Real> mover(loops, block, std::max(bins, area));
    for (int64_t task = task_begin; task < task_end; ++task) {
      const int64_t b = task % blocks, image = task / blocks;
      const int64_t begin = b * block, width = std::min(block, map.channels - begin);
      std::fill_n(packed.get(), area * block, Real(0));
      for (const int64_t r : plan.of_image[image]) {
        mover.load(gradient + r * map.channels * bins + begin * channel_stride, bin_stride, channel_stride, bins, width,
                   tile.get());
        loops.spread(tile.get(), plan.ys.of(r), plan.xs.of(r), row.get(), packed.get(), map.width);
      }
      mover.store(packed.get(), area, width, map.column_stride, map.channel_stride,
                  map_gradient + image * map.image_stride + begin * map.channel_stride);
    }
  });
}

}  // namespace regionclip

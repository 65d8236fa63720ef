// NMS and soft-NMS on a GPU, without a word from the host between two boxes. Sorting and the choice of
// results by mask are left to torch (regionclip/ops/native_cuda.py).
#include <cmath>
#include <limits>
#include <tuple>

#include "launch.h"

namespace regionclip {
namespace {

constexpr int64_t tile_size = 2048;  // boxes that are compared all with all at once
constexpr int64_t word_bits = 64;
constexpr int64_t tile_words = tile_size / word_bits;
constexpr int block_size = 1024;
constexpr int64_t most_class_blocks = 1 << 13;  // more than run at once; the others would only start and end

template <typename Real>
struct Box {
  Real x1, y1, x2, y2;
};

template <typename Real>
__device__ Box<Real> box_at(const Real* boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

__device__ float product(float a, float b) { return __fmul_rn(a, b); }
__device__ double product(double a, double b) { return __dmul_rn(a, b); }

// Not a number where the union is none; products are not fused into sums, so that results equal the CPU's.
template <typename Real>
__device__ Real iou_of(const Box<Real>& a, const Box<Real>& b) {
  const Real left = a.x1 < b.x1 ? b.x1 : a.x1, right = b.x2 < a.x2 ? b.x2 : a.x2;
  const Real top = a.y1 < b.y1 ? b.y1 : a.y1, bottom = b.y2 < a.y2 ? b.y2 : a.y2;
  const Real width = Real(0) < right - left ? right - left : Real(0);
  const Real height = Real(0) < bottom - top ? bottom - top : Real(0);
  const Real shared = product(width, height);
  const Real first = product(a.x2 - a.x1, a.y2 - a.y1), second = product(b.x2 - b.x1, b.y2 - b.y1);
  return shared / (first + second - shared);
}

// overlaps[i, word]: which of the 64 boxes of a word come after box i of the tile and overlap it.
template <typename Real>
__global__ void tile_overlaps(const Real* boxes, int64_t begin, int64_t count, double threshold, uint64_t* overlaps) {
  REGIONCLIP_FOR_ITEMS(item, count * tile_words) {
    const int64_t i = item / tile_words, word = item % tile_words;
    const Box<Real> box = box_at(boxes, begin + i);
    uint64_t bits = 0;
    for (int64_t bit = 0; bit < word_bits; ++bit) {
      const int64_t j = word * word_bits + bit;
      if (j > i && j < count && static_cast<double>(iou_of(box, box_at(boxes, begin + j))) > threshold) {
        bits |= uint64_t(1) << bit;
      }
    }
    overlaps[item] = bits;
  }
}

// Walks through a tile, best box first; one block, a thread a word.
__global__ void tile_scan(const uint64_t* overlaps, int64_t begin, int64_t count, bool* alive) {
  __shared__ uint64_t dead[tile_words];
  const int64_t word = threadIdx.x;
  uint64_t bits = 0;
  for (int64_t bit = 0; bit < word_bits; ++bit) {
    const int64_t j = word * word_bits + bit;
    bits |= j < count && !alive[begin + j] ? uint64_t(1) << bit : 0;
  }
  dead[word] = bits;
  uint64_t row = overlaps[word];
  __syncthreads();
  for (int64_t i = 0; i < count; ++i) {
    // Asked for before it is known whether it is needed: the walk waits for memory, not for arithmetic.
    const uint64_t next_row = i + 1 < count ? overlaps[(i + 1) * tile_words + word] : 0;
    const bool kept = !(dead[i / word_bits] >> (i % word_bits) & 1);
    __syncthreads();
    if (kept) {
      dead[word] |= row;
    }
    row = next_row;
    __syncthreads();
  }
  for (int64_t bit = 0; bit < word_bits; ++bit) {
    const int64_t j = word * word_bits + bit;
    if (j < count) {
      alive[begin + j] = !(dead[word] >> bit & 1);
    }
  }
}

// Drops the boxes behind a tile that overlap one that the tile kept.
template <typename Real>
__global__ void suppress_behind(
    const Real* boxes, int64_t begin, int64_t end, int64_t total, double threshold, bool* alive) {
  REGIONCLIP_FOR_ITEMS(item, total - end) {
    const int64_t j = end + item;
    const Box<Real> box = box_at(boxes, j);
    for (int64_t i = begin; i < end && alive[j]; ++i) {
      if (alive[i] && static_cast<double>(iou_of(box_at(boxes, i), box)) > threshold) {
        alive[j] = false;
      }
    }
  }
}

__device__ int64_t end_of_class(const int64_t* classes, int64_t begin, int64_t total) {
  int64_t low = begin, high = total;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (classes[middle] <= classes[begin]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Boxes sorted by class, then score: a block works through a class.
template <typename Real>
__global__ void suppress_classes(
    const Real* boxes, const int64_t* classes, int64_t total, double threshold, bool* alive) {
  for (int64_t begin = blockIdx.x; begin < total; begin += gridDim.x) {
    if (begin > 0 && classes[begin - 1] == classes[begin]) {
      continue;  // the same for all threads of the block
    }
    const int64_t end = end_of_class(classes, begin, total);
    for (int64_t i = begin; i < end; ++i) {
      __syncthreads();
      if (!alive[i]) {
        continue;  // not changed any more: the same for all threads
      }
      const Box<Real> box = box_at(boxes, i);
      for (int64_t j = i + 1 + threadIdx.x; j < end; j += blockDim.x) {
        if (alive[j] && static_cast<double>(iou_of(box, box_at(boxes, j))) > threshold) {
          alive[j] = false;
        }
      }
    }
  }
}

// A box without a score is none.
template <typename Real>
__global__ void mark_candidates(const Real* scores, int64_t total, bool* alive) {
  REGIONCLIP_FOR_ITEMS(i, total) {
    alive[i] = scores[i] == scores[i];
  }
}

template <typename Real>
void suppress_tiles(const Tensor& boxes, double threshold, bool* alive, cudaStream_t stream) {
  const int64_t total = boxes.size(0);
  const Tensor overlaps =
      torch::stable::new_empty(boxes, {std::min(total, tile_size) * tile_words}, ScalarType::Long);
  auto* bits = reinterpret_cast<uint64_t*>(mutable_data_of<int64_t>(overlaps));
  for (int64_t begin = 0; begin < total; begin += tile_size) {
    const int64_t end = std::min(begin + tile_size, total);
    tile_overlaps<Real><<<blocks_for((end - begin) * tile_words), threads_per_block, 0, stream>>>(
        data_of<Real>(boxes), begin, end - begin, threshold, bits);
    tile_scan<<<1, tile_words, 0, stream>>>(bits, begin, end - begin, alive);
    if (end < total) {
      suppress_behind<Real><<<blocks_for(total - end), threads_per_block, 0, stream>>>(
          data_of<Real>(boxes), begin, end, total, threshold, alive);
    }
  }
}

std::optional<Tensor> dense(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? std::optional<Tensor>(torch::stable::contiguous(*tensor)) : std::nullopt;
}

// Which of the candidates survive; boxes are sorted best first, within classes if there are any.
Tensor suppress_sorted(
    const Tensor& boxes_in, std::optional<Tensor> classes_in, const Tensor& scores, double iou_threshold) {
  check_boxes(boxes_in, scores, classes_in);
  const torch::stable::accelerator::DeviceGuard guard(boxes_in.get_device());
  const Tensor boxes = torch::stable::contiguous(boxes_in), sorted_scores = torch::stable::contiguous(scores);
  const std::optional<Tensor> classes = dense(classes_in);
  const int64_t total = boxes.size(0);
  const Tensor alive = torch::stable::new_empty(boxes, {total}, ScalarType::Bool);
  if (total == 0) {
    return alive;
  }
  const cudaStream_t stream = current_stream(boxes);
  for_real_type(boxes.scalar_type(), "nms", [&](auto zero) {
    using Real = decltype(zero);
    mark_candidates<Real><<<blocks_for(total), threads_per_block, 0, stream>>>(
        data_of<Real>(sorted_scores), total, mutable_data_of<bool>(alive));
    if (classes.has_value()) {
      const auto blocks = static_cast<unsigned int>(std::min<int64_t>(total, most_class_blocks));
      suppress_classes<Real><<<blocks, threads_per_block, 0, stream>>>(
          data_of<Real>(boxes), data_of<int64_t>(*classes), total, iou_threshold, mutable_data_of<bool>(alive));
    } else {
      suppress_tiles<Real>(boxes, iou_threshold, mutable_data_of<bool>(alive), stream);
    }
    check_launch("nms");
  });
  return alive;
}

// A candidate, or none where the index is negative.
template <typename Real>
struct Leader {
  Real score;
  int64_t index;
  __device__ bool beats(const Leader& other) const {
    if (index < 0 || other.index < 0) {
      return index >= 0;
    }
    return score > other.score || (score == other.score && index < other.index);
  }
};

// The best of the candidates that are left, for all threads of the block.
template <typename Real>
__device__ Leader<Real> find_leader(const Real* scores, int64_t total, Leader<Real>* shared) {
  Leader<Real> leader{Real(0), -1};
  for (int64_t i = threadIdx.x; i < total; i += blockDim.x) {
    const Leader<Real> other{scores[i], scores[i] == scores[i] ? i : -1};
    leader = other.beats(leader) ? other : leader;
  }
  shared[threadIdx.x] = leader;
  __syncthreads();
  for (int half = blockDim.x / 2; half > 0; half /= 2) {
    if (threadIdx.x < half && shared[threadIdx.x + half].beats(shared[threadIdx.x])) {
      shared[threadIdx.x] = shared[threadIdx.x + half];
    }
    __syncthreads();
  }
  leader = shared[0];
  __syncthreads();
  return leader;
}

template <typename Real>
__device__ Real decay_factor(Real iou, int64_t method, Real sigma, Real iou_threshold) {
  iou = iou == iou ? iou : Real(0);
  if (method == 0) {
    return iou < iou_threshold ? Real(1) : Real(0);
  }
  if (method == 1) {
    return iou > iou_threshold ? Real(1) - iou : Real(1);
  }
  return exp(-product(iou, iou) / sigma);
}

// One block; `scores` is consumed: boxes that are emitted or dropped get a score that is not a number.
template <typename Real>
__global__ void __launch_bounds__(block_size) soft_nms_kernel(
    const Real* boxes, const int64_t* classes, int64_t total, int64_t method, Real sigma, Real iou_threshold,
    Real prune_threshold, int64_t limit, Real* scores, int64_t* indices, Real* emitted_scores, int64_t* count) {
  __shared__ Leader<Real> shared[block_size];
  const Real gone = std::numeric_limits<Real>::quiet_NaN();
  int64_t emitted = 0;
  for (; emitted < limit; ++emitted) {
    const Leader<Real> leader = find_leader(scores, total, shared);
    if (leader.index < 0) {
      break;
    }
    if (threadIdx.x == 0) {
      indices[emitted] = leader.index;
      emitted_scores[emitted] = leader.score;
    }
    const Box<Real> box = box_at(boxes, leader.index);
    for (int64_t i = threadIdx.x; i < total; i += blockDim.x) {
      Real score = scores[i];
      if (classes == nullptr || classes[i] == classes[leader.index]) {
        score *= decay_factor(iou_of(box, box_at(boxes, i)), method, sigma, iou_threshold);
      }
      scores[i] = i != leader.index && score > prune_threshold ? score : gone;
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    *count = emitted;
  }
}

// Indices and scores, of which `count` [1] are filled in. Boxes whose score is not a number are left out.
std::tuple<Tensor, Tensor, Tensor> soft_nms_padded(
    const Tensor& boxes_in, const Tensor& scores, std::optional<Tensor> classes_in, int64_t method, double sigma,
    double iou_threshold, double prune_threshold, int64_t limit) {
  check_boxes(boxes_in, scores, classes_in);
  STD_TORCH_CHECK(method >= 0 && method <= 2, "soft_nms: expected method 0, 1 or 2, got ", method);
  const torch::stable::accelerator::DeviceGuard guard(boxes_in.get_device());
  const Tensor boxes = torch::stable::contiguous(boxes_in);
  const std::optional<Tensor> classes = dense(classes_in);
  const int64_t total = boxes.size(0), room = limit < 0 ? total : std::min(limit, total);
  const Tensor indices = torch::stable::new_empty(boxes, {room}, ScalarType::Long);
  const Tensor emitted = torch::stable::new_empty(boxes, {room});
  const Tensor count = torch::stable::new_zeros(boxes, {1}, ScalarType::Long);
  const Tensor remaining = torch::stable::clone(torch::stable::contiguous(scores));
  if (room == 0) {
    return {indices, emitted, count};
  }
  for_real_type(boxes.scalar_type(), "soft_nms", [&](auto zero) {
    using Real = decltype(zero);
    soft_nms_kernel<Real><<<1, block_size, 0, current_stream(boxes)>>>(
        data_of<Real>(boxes), classes.has_value() ? data_of<int64_t>(*classes) : nullptr, total, method,
        static_cast<Real>(sigma), static_cast<Real>(iou_threshold), static_cast<Real>(prune_threshold), room,
        mutable_data_of<Real>(remaining), mutable_data_of<int64_t>(indices), mutable_data_of<Real>(emitted),
        mutable_data_of<int64_t>(count));
    check_launch("soft_nms");
  });
  return {indices, emitted, count};
}

}  // namespace
}  // namespace regionclip

STABLE_TORCH_LIBRARY_IMPL(regionclip, CUDA, library) {
  library.impl("suppress_sorted", TORCH_BOX(&regionclip::suppress_sorted));
  library.impl("soft_nms_padded", TORCH_BOX(&regionclip::soft_nms_padded));
}

// Non-maximum suppression on plain memory: no torch in here, so that fuzz targets build it alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <vector>

#include "box_list.h"

namespace regionclip {

template <typename Real>
struct Candidate {
  Real score;
  int64_t index;
  // Best first; of equal scores the earlier box.
  bool operator<(const Candidate& other) const {
    return score > other.score || (score == other.score && index < other.index);
  }
};

// All boxes whose score is a number.
template <typename Real>
std::vector<Candidate<Real>> candidates_of(const Real* scores, int64_t count) {
  std::vector<Candidate<Real>> candidates;
  candidates.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    if (scores[i] == scores[i]) {
      candidates.push_back({scores[i], i});
    }
  }
  return candidates;
}

// Class numbers from 0 without gaps, in the order of their first box.
class ClassNumbers {
 public:
  ClassNumbers(const int64_t* classes, int64_t count) : of_box_(static_cast<size_t>(count), 0) {
    std::unordered_map<int64_t, int64_t> numbers;
    for (int64_t i = 0; i < count && classes != nullptr; ++i) {
      // Boxes often come class by class.
      of_box_[i] = i > 0 && classes[i] == classes[i - 1]
          ? of_box_[i - 1]
          : numbers.emplace(classes[i], static_cast<int64_t>(numbers.size())).first->second;
    }
    count_ = std::max<int64_t>(1, static_cast<int64_t>(numbers.size()));
  }
  int64_t count() const { return count_; }
  int64_t of(int64_t box) const { return of_box_[box]; }

 private:
  std::vector<int64_t> of_box_;
  int64_t count_ = 1;
};

// The largest value of the type that is not above `threshold`: an IoU of that type exceeds the one
// exactly where it exceeds the other.
template <typename Real>
Real threshold_below(double threshold) {
  const Real rounded = static_cast<Real>(threshold);
  return static_cast<double>(rounded) > threshold ? std::nextafter(rounded, -std::numeric_limits<Real>::infinity())
                                                  : rounded;
}

// The first `limit` survivors, found without sorting boxes that are never looked at.
template <typename Real>
std::vector<int64_t> first_survivors(
    const Real* boxes, std::vector<Candidate<Real>> candidates, const ClassNumbers& classes, Real threshold,
    int64_t limit) {
  std::vector<BoxList<Real>> kept(static_cast<size_t>(classes.count()));
  std::vector<int64_t> survivors;
  auto begin = candidates.begin();
  for (int64_t chunk = std::max<int64_t>(1024, 4 * limit); begin != candidates.end(); chunk *= 4) {
    const auto end = candidates.end() - begin > chunk ? begin + chunk : candidates.end();
    if (end != candidates.end()) {
      std::nth_element(begin, end, candidates.end());
    }
    std::sort(begin, end);
    for (; begin != end; ++begin) {
      if (static_cast<int64_t>(survivors.size()) == limit) {
        return survivors;
      }
      const Box<Real> box = box_at(boxes, begin->index);
      BoxList<Real>& of_class = kept[classes.of(begin->index)];
      if (!of_class.overlap(box, threshold)) {
        of_class.add(box);
        survivors.push_back(begin->index);
      }
    }
  }
  return survivors;
}

// All survivors of one class; `candidates` are in order.
template <typename Real>
std::vector<Candidate<Real>> survivors_of_class(
    const Real* boxes, const Candidate<Real>* begin, const Candidate<Real>* end, Real threshold) {
  BoxList<Real> kept;
  std::vector<Candidate<Real>> survivors;
  for (const auto* candidate = begin; candidate != end; ++candidate) {
    const Box<Real> box = box_at(boxes, candidate->index);
    if (!kept.overlap(box, threshold)) {
      kept.add(box);
      survivors.push_back(*candidate);
    }
  }
  return survivors;
}

template <typename Real, typename For>
std::vector<int64_t> all_survivors(
    const Real* boxes, const std::vector<Candidate<Real>>& candidates, const ClassNumbers& classes, Real threshold,
    const For& for_ranges) {
  std::vector<int64_t> begins(static_cast<size_t>(classes.count()) + 1, 0);
  for (const auto& candidate : candidates) {
    ++begins[classes.of(candidate.index) + 1];
  }
  for (size_t i = 1; i < begins.size(); ++i) {
    begins[i] += begins[i - 1];
  }
  std::vector<Candidate<Real>> by_class(candidates.size());
  std::vector<int64_t> next(begins.begin(), begins.end() - 1);
  for (const auto& candidate : candidates) {
    by_class[next[classes.of(candidate.index)]++] = candidate;
  }
  std::vector<std::vector<Candidate<Real>>> survivors(static_cast<size_t>(classes.count()));
  for_ranges(0, classes.count(), 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) {
      auto* begin = by_class.data() + begins[c];
      auto* end = by_class.data() + begins[c + 1];
      std::sort(begin, end);
      survivors[c] = survivors_of_class(boxes, begin, end, threshold);
    }
  });
  std::vector<Candidate<Real>> together;
  for (const auto& of_class : survivors) {
    together.insert(together.end(), of_class.begin(), of_class.end());
  }
  if (classes.count() > 1) {
    std::sort(together.begin(), together.end());
  }
  std::vector<int64_t> indices(together.size());
  std::transform(together.begin(), together.end(), indices.begin(), [](const auto& c) { return c.index; });
  return indices;
}

// Indices of the boxes that overlap no better box of their class by more than the threshold, best
// first, at most `limit` unless it is negative. `classes` may be null: all boxes compete.
template <typename Real, typename For>
std::vector<int64_t> nms(
    const Real* boxes, const Real* scores, const int64_t* classes, int64_t count, double iou_threshold, int64_t limit,
    const For& for_ranges) {
  std::vector<Candidate<Real>> candidates = candidates_of(scores, count);
  const ClassNumbers numbers(classes, count);
  const Real threshold = threshold_below<Real>(iou_threshold);
  if (limit >= 0 && limit < static_cast<int64_t>(candidates.size())) {
    return first_survivors(boxes, std::move(candidates), numbers, threshold, limit);
  }
  return all_survivors(boxes, candidates, numbers, threshold, for_ranges);
}

}  // namespace regionclip

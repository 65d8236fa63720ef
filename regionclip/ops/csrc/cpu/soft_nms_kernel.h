// Soft-NMS on plain memory: no torch in here, so that fuzz targets build it alone.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "box_list.h"
#include "nms_kernel.h"

namespace regionclip {

enum class Decay : int64_t { hard = 0, linear = 1, gaussian = 2 };

template <typename Real>
struct SoftNMSRule {
  Decay decay;
  Real sigma, iou_threshold, prune_threshold;
};

template <typename Real>
struct Emission {
  std::vector<int64_t> indices;
  std::vector<Real> scores;
};

// exp of `count` values in place, as the C library rounds it.
struct StandardExponential {
  template <typename Real>
  void operator()(Real* values, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) {
      values[i] = std::exp(values[i]);
    }
  }
};

// Replaces IoUs by the factors that they put on a score.
template <typename Real, typename Exponential>
void decay_factors(std::vector<Real>& values, const SoftNMSRule<Real>& rule, const Exponential& exponential) {
  switch (rule.decay) {
    case Decay::hard:
      for (Real& value : values) {
        value = value < rule.iou_threshold ? Real(1) : Real(0);
      }
      return;
    case Decay::linear:
      for (Real& value : values) {
        value = value > rule.iou_threshold ? Real(1) - value : Real(1);
      }
      return;
    case Decay::gaussian:
      // exp(-0) is 1: boxes that do not touch need no exponential.
      values.erase(std::remove(values.begin(), values.end(), Real(0)), values.end());
      for (Real& value : values) {
        value = -(value * value) / rule.sigma;
      }
      exponential(values.data(), static_cast<int64_t>(values.size()));
  }
}

// Boxes by descending decayed score. Scores only fall, so the score that a box had when it was last
// looked at bounds it from above: a box is decayed by the emitted boxes of its class only when it
// comes to the top of the heap, in the order in which they were emitted. The result is that of the
// loop over all boxes, bit for bit.
template <typename Real, typename Exponential>
Emission<Real> soft_nms(
    const Real* boxes, const Real* scores, const int64_t* classes, int64_t count, const SoftNMSRule<Real>& rule,
    int64_t limit, const Exponential& exponential) {
  std::vector<Candidate<Real>> heap = candidates_of(scores, count);
  const ClassNumbers numbers(classes, count);
  const auto worse = [](const Candidate<Real>& a, const Candidate<Real>& b) { return b < a; };
  std::make_heap(heap.begin(), heap.end(), worse);
  std::vector<BoxList<Real>> emitted(static_cast<size_t>(numbers.count()));
  std::vector<int64_t> applied(static_cast<size_t>(count), 0);
  std::vector<Real> factors;
  Emission<Real> result;
  while (!heap.empty() && (limit < 0 || static_cast<int64_t>(result.indices.size()) < limit)) {
    std::pop_heap(heap.begin(), heap.end(), worse);
    Candidate<Real> best = heap.back();
    if (!result.indices.empty() && !(best.score > rule.prune_threshold)) {
      break;  // the bounds of all others are no higher
    }
    heap.pop_back();
    const Box<Real> box = box_at(boxes, best.index);
    BoxList<Real>& before = emitted[numbers.of(best.index)];
    int64_t& seen = applied[best.index];
    if (seen == before.size()) {
      result.indices.push_back(best.index);
      result.scores.push_back(best.score);
      before.add(box);
      continue;
    }
    factors.clear();
    for (; seen < before.size(); ++seen) {
      factors.push_back(before.iou(seen, box));
    }
    decay_factors(factors, rule, exponential);
    bool stays = true;
    for (const Real factor : factors) {
      best.score *= factor;
      stays = stays && best.score > rule.prune_threshold;
    }
    if (stays) {
      heap.push_back(best);
      std::push_heap(heap.begin(), heap.end(), worse);
    }
  }
  return result;
}

}  // namespace regionclip

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
  for (Real& value : values) {
    switch (rule.decay) {
      case Decay::hard:
        value = value < rule.iou_threshold ? Real(1) : Real(0);
        break;
      case Decay::linear:
        value = value > rule.iou_threshold ? Real(1) - value : Real(1);
        break;
      case Decay::gaussian:
        value = -(value * value) / rule.sigma;
    }
  }
  if (rule.decay == Decay::gaussian) {
    exponential(values.data(), static_cast<int64_t>(values.size()));
  }
}

// Boxes by descending decayed score. Scores only fall, so the score that a box had when it was last
// looked at bounds it from above: a box is decayed by the emitted boxes of its class only when it
// comes to the top of the heap, in the order in which they were emitted. The result is that of the
// loop over all boxes, bit for bit.
template <typename Real, typename Exponential>
class SoftNMS {
 public:
  SoftNMS(const Real* boxes, const Real* scores, const int64_t* classes, int64_t count, const SoftNMSRule<Real>& rule,
          const Exponential& exponential)
      : boxes_(boxes),
        rule_(rule),
        exponential_(exponential),
        heap_(candidates_of(scores, count)),
        numbers_(classes, count),
        emitted_(static_cast<size_t>(numbers_.count())),
        seen_(static_cast<size_t>(count), 0) {
    std::make_heap(heap_.begin(), heap_.end(), is_worse);
  }

  Emission<Real> run(int64_t limit) {
    Emission<Real> result;
    while (!heap_.empty() && (limit < 0 || static_cast<int64_t>(result.indices.size()) < limit)) {
      const Candidate<Real> best = heap_.front();
      if (!result.indices.empty() && !(best.score > rule_.prune_threshold)) {
        break;  // the bounds of all others are no higher
      }
      if (is_stale(best)) {
        decay_top();
      } else {
        pop();
        result.indices.push_back(best.index);
        result.scores.push_back(best.score);
        emitted_[numbers_.of(best.index)].add(box_at(boxes_, best.index));
      }
    }
    return result;
  }

 private:
  static constexpr size_t at_once = 16;

  static bool is_worse(const Candidate<Real>& a, const Candidate<Real>& b) { return b < a; }

  bool is_stale(const Candidate<Real>& candidate) const {
    return seen_[candidate.index] < emitted_[numbers_.of(candidate.index)].size();
  }

  void pop() {
    std::pop_heap(heap_.begin(), heap_.end(), is_worse);
    heap_.pop_back();
  }

  // Brings the first few boxes up to date together: a call for exponentials costs more than one of them.
  void decay_top() {
    stale_.clear(), ends_.clear(), factors_.clear();
    while (!heap_.empty() && stale_.size() < at_once && is_stale(heap_.front())) {
      const Candidate<Real> candidate = heap_.front();
      pop();
      const BoxList<Real>& before = emitted_[numbers_.of(candidate.index)];
      const Box<Real> box = box_at(boxes_, candidate.index);
      int64_t& seen = seen_[candidate.index];
      const size_t begin = factors_.size();
      factors_.resize(begin + static_cast<size_t>(before.size() - seen));
      before.ious(seen, box, factors_.data() + begin);
      seen = before.size();
      if (rule_.decay == Decay::gaussian) {  // leaves boxes apart as they are
        factors_.erase(std::remove(factors_.begin() + begin, factors_.end(), Real(0)), factors_.end());
      }
      stale_.push_back(candidate);
      ends_.push_back(factors_.size());
    }
    decay_factors(factors_, rule_, exponential_);
    size_t next = 0;
    for (size_t k = 0; k < stale_.size(); ++k) {
      bool stays = true;
      for (; next < ends_[k]; ++next) {
        stale_[k].score *= factors_[next];
        stays = stays && stale_[k].score > rule_.prune_threshold;
      }
      if (stays) {
        heap_.push_back(stale_[k]);
        std::push_heap(heap_.begin(), heap_.end(), is_worse);
      }
    }
  }

  const Real* boxes_;
  SoftNMSRule<Real> rule_;
  Exponential exponential_;
  std::vector<Candidate<Real>> heap_;
  ClassNumbers numbers_;
  std::vector<BoxList<Real>> emitted_;  // of each class
  std::vector<int64_t> seen_;           // how many emitted boxes of its class each box was decayed by
  std::vector<Candidate<Real>> stale_;
  std::vector<size_t> ends_;
  std::vector<Real> factors_;
};

}  // namespace regionclip

// Candidates of any bits for the fuzz targets of NMS and soft-NMS.
#pragma once

#include <fuzzer/FuzzedDataProvider.h>

#include <cstdint>
#include <vector>

template <typename Real>
struct Boxes {
  explicit Boxes(FuzzedDataProvider& data) : count(data.ConsumeIntegralInRange<int64_t>(0, 60)) {
    for (int64_t i = 0; i < count; ++i) {
      for (int j = 0; j < 5; ++j) {
        Real value = 0;
        if (data.ConsumeBool()) {
          value = static_cast<Real>(data.ConsumeIntegralInRange<int>(0, 15));
        } else {
          data.ConsumeData(&value, sizeof(value));
        }
        (j < 4 ? boxes : scores).push_back(value);
      }
      classes.push_back(data.ConsumeBool() ? data.ConsumeIntegralInRange<int64_t>(0, 2) : data.ConsumeIntegral<int64_t>());
    }
  }

  int64_t count;
  std::vector<Real> boxes, scores;
  std::vector<int64_t> classes;
};

inline void require(bool condition) {
  if (!condition) {
    __builtin_trap();
  }
}

// Different boxes, each with a score that is a number.
template <typename Real>
void require_candidates(const Boxes<Real>& candidates, const std::vector<int64_t>& indices) {
  std::vector<bool> seen(static_cast<size_t>(candidates.count));
  for (const int64_t i : indices) {
    require(i >= 0 && i < candidates.count && !seen[i] && candidates.scores[i] == candidates.scores[i]);
    seen[i] = true;
  }
}

// Boxes in columns, so that one box is compared with many at once.
#pragma once

#include <cstdint>
#include <vector>

namespace regionclip {

template <typename Real>
struct Box {
  Real x1, y1, x2, y2;
  Real area() const { return (x2 - x1) * (y2 - y1); }
};

template <typename Real>
Box<Real> box_at(const Real* boxes, int64_t i) {
  return {boxes[4 * i], boxes[4 * i + 1], boxes[4 * i + 2], boxes[4 * i + 3]};
}

template <typename Real>
struct BoxColumns {
  const Real *x1, *y1, *x2, *y2, *area;
};

template <typename Real>
struct BoxLoops {
  // Whether the IoU of a box with any of so many boxes exceeds a threshold; one that is not a number does not.
  bool (*overlaps_any)(const BoxColumns<Real>&, int64_t, const Box<Real>&, Real);
  // IoUs of a box with boxes [begin, end), 0 where they are not a number.
  void (*ious)(const BoxColumns<Real>&, int64_t, int64_t, const Box<Real>&, Real*);
};

// The loops for this processor, defined in box_list.cpp.
template <typename Real>
const BoxLoops<Real>& box_loops_for_processor();

template <typename Real>
class BoxList {
 public:
  void add(const Box<Real>& box) {
    x1_.push_back(box.x1), y1_.push_back(box.y1), x2_.push_back(box.x2), y2_.push_back(box.y2);
    area_.push_back(box.area());
  }
  int64_t size() const { return static_cast<int64_t>(x1_.size()); }

  bool overlap(const Box<Real>& box, Real threshold) const {
    return loops_.overlaps_any(columns(), size(), box, threshold);
  }

  // IoUs of `box` with the boxes from `begin` on, 0 where they are not a number.
  void ious(int64_t begin, const Box<Real>& box, Real* results) const {
    loops_.ious(columns(), begin, size(), box, results);
  }

 private:
  BoxColumns<Real> columns() const { return {x1_.data(), y1_.data(), x2_.data(), y2_.data(), area_.data()}; }

  BoxLoops<Real> loops_ = box_loops_for_processor<Real>();
  std::vector<Real> x1_, y1_, x2_, y2_, area_;
};

}  // namespace regionclip

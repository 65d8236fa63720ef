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

// The comparison for this processor, defined in box_list.cpp: whether the IoU of `box` with any of
// `count` boxes exceeds the threshold. An IoU that is not a number does not.
template <typename Real>
bool overlaps_any(const BoxColumns<Real>& boxes, int64_t count, const Box<Real>& box, Real threshold);

template <typename Real>
class BoxList {
 public:
  void add(const Box<Real>& box) {
    x1_.push_back(box.x1), y1_.push_back(box.y1), x2_.push_back(box.x2), y2_.push_back(box.y2);
    area_.push_back(box.area());
  }
  int64_t size() const { return static_cast<int64_t>(x1_.size()); }

  bool overlap(const Box<Real>& box, Real threshold) const {
    return overlaps_any<Real>(
        {x1_.data(), y1_.data(), x2_.data(), y2_.data(), area_.data()}, size(), box, threshold);
  }

  // IoU of `box` with box i of the list; 0 where it is not a number.
  Real iou(int64_t i, const Box<Real>& box) const {
    const Real width = smaller(x2_[i], box.x2) - larger(x1_[i], box.x1);
    const Real height = smaller(y2_[i], box.y2) - larger(y1_[i], box.y1);
    const Real shared = larger(Real(0), width) * larger(Real(0), height);
    const Real iou = shared / (area_[i] + box.area() - shared);
    return iou == iou ? iou : Real(0);
  }

 private:
  static Real smaller(Real a, Real b) { return b < a ? b : a; }
  static Real larger(Real a, Real b) { return a < b ? b : a; }

  std::vector<Real> x1_, y1_, x2_, y2_, area_;
};

}  // namespace regionclip

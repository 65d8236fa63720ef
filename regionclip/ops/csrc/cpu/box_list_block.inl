// The comparison of one box with many; included once for each instruction set (REGIONCLIP_ISA), none
// with fused multiplication and addition, which would round an IoU differently.

namespace regionclip {
namespace REGIONCLIP_ISA {

// Not a number where the union is none.
template <typename Real>
inline __attribute__((always_inline)) Real iou_with(
    const BoxColumns<Real>& boxes, int64_t j, const Box<Real>& box, Real area) {
  const Real left = boxes.x1[j] < box.x1 ? box.x1 : boxes.x1[j], right = box.x2 < boxes.x2[j] ? box.x2 : boxes.x2[j];
  const Real top = boxes.y1[j] < box.y1 ? box.y1 : boxes.y1[j], bottom = box.y2 < boxes.y2[j] ? box.y2 : boxes.y2[j];
  const Real width = Real(0) < right - left ? right - left : Real(0);
  const Real height = Real(0) < bottom - top ? bottom - top : Real(0);
  const Real shared = width * height;
  return shared / (boxes.area[j] + area - shared);
}

template <typename Real>
bool overlaps_any(const BoxColumns<Real>& boxes, int64_t count, const Box<Real>& box, Real threshold) {
  constexpr int64_t step = 32;
  const Real area = box.area();
  const auto compare = [&](int64_t j) -> int { return iou_with(boxes, j, box, area) > threshold ? 1 : 0; };
  int64_t begin = 0;
  for (; begin + step <= count; begin += step) {
    int found = 0;
    for (int64_t j = 0; j < step; ++j) {
      found |= compare(begin + j);
    }
    if (found) {
      return true;
    }
  }
  for (; begin < count; ++begin) {
    if (compare(begin)) {
      return true;
    }
  }
  return false;
}

template <typename Real>
void ious(const BoxColumns<Real>& boxes, int64_t begin, int64_t end, const Box<Real>& box, Real* results) {
  const Real area = box.area();
  for (int64_t j = begin; j < end; ++j) {
    const Real iou = iou_with(boxes, j, box, area);
    results[j - begin] = iou == iou ? iou : Real(0);
  }
}

template <typename Real>
constexpr BoxLoops<Real> box_loops() {
  return {overlaps_any<Real>, ious<Real>};
}

}  // namespace REGIONCLIP_ISA
}  // namespace regionclip

// The comparison of one box with many for each instruction set, chosen when the library is loaded.
#include "box_list.h"

#define REGIONCLIP_ISA baseline
#include "box_list_block.h"
#undef REGIONCLIP_ISA

#if defined(__x86_64__) && defined(__GNUC__)
#define REGIONCLIP_HAS_X86_TARGETS
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
#define REGIONCLIP_ISA avx2
#include "box_list_block.h"
#undef REGIONCLIP_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace regionclip {

template <typename Real>
bool overlaps_any(const BoxColumns<Real>& boxes, int64_t count, const Box<Real>& box, Real threshold) {
#ifdef REGIONCLIP_HAS_X86_TARGETS
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (has_avx2) {
    return avx2::overlaps_any(boxes, count, box, threshold);
  }
#endif
  return baseline::overlaps_any(boxes, count, box, threshold);
}

template bool overlaps_any<float>(const BoxColumns<float>&, int64_t, const Box<float>&, float);
template bool overlaps_any<double>(const BoxColumns<double>&, int64_t, const Box<double>&, double);

}  // namespace regionclip

// The comparisons of one box with many for each instruction set, chosen when they first run. Its own list of sets:
// those with fused multiplication and addition would change the bits of an IoU.
#include "box_list.h"

#include "instruction_set.h"

#define REGIONCLIP_ISA baseline
#include "box_list_block.inl"
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
#include "box_list_block.inl"
#undef REGIONCLIP_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace regionclip {

template <typename Real>
const BoxLoops<Real>& box_loops_for_processor() {
#ifdef REGIONCLIP_HAS_X86_TARGETS
  static const BoxLoops<Real> loops =
      instruction_set() == InstructionSet::baseline ? baseline::box_loops<Real>() : avx2::box_loops<Real>();
#else
  static const BoxLoops<Real> loops = baseline::box_loops<Real>();
#endif
  return loops;
}

template const BoxLoops<float>& box_loops_for_processor<float>();
template const BoxLoops<double>& box_loops_for_processor<double>();

}  // namespace regionclip

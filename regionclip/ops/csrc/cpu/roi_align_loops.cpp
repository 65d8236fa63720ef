// The inner loops of RoIAlign for each instruction set, chosen when the library is loaded.
#include "roi_align_kernel.h"

#define REGIONCLIP_ISA baseline
#include "roi_align_block.h"
#undef REGIONCLIP_ISA

#if defined(__x86_64__) && defined(__GNUC__)
#define REGIONCLIP_HAS_X86_TARGETS

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REGIONCLIP_ISA avx2
#include "roi_align_block.h"
#undef REGIONCLIP_ISA
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,fma,prefer-vector-width=512")
#endif
#define REGIONCLIP_ISA avx512
#include "roi_align_block.h"
#undef REGIONCLIP_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

namespace regionclip {

template <typename Real, int Block>
BlockLoops<Real> best_loops() {
#ifdef REGIONCLIP_HAS_X86_TARGETS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl")) {
    return avx512::block_loops<Real, Block>();
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2::block_loops<Real, Block>();
  }
#endif
  return baseline::block_loops<Real, Block>();
}

template <typename Real>
BlockLoops<Real> loops_for_processor(int64_t block) {
  static const BlockLoops<Real> narrow = best_loops<Real, 16>(), wide = best_loops<Real, 64>();
  return block == 16 ? narrow : wide;
}

template BlockLoops<float> loops_for_processor<float>(int64_t);
template BlockLoops<double> loops_for_processor<double>(int64_t);

}  // namespace regionclip

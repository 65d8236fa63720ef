// The inner loops of RoIAlign for each instruction set, chosen when they first run.
#include <utility>

#include "roi_align_kernel.h"

#define REGIONCLIP_BLOCK "roi_align_block.inl"
#include "each_instruction_set.inl"

namespace regionclip {

template <typename Real>
BlockLoops<Real> loops_for_processor(int64_t block) {
  static const BlockLoops<Real> narrow = REGIONCLIP_BEST(block_loops<Real, 16>());
  static const BlockLoops<Real> wide = REGIONCLIP_BEST(block_loops<Real, 64>());
  return block == 16 ? narrow : wide;
}

template BlockLoops<float> loops_for_processor<float>(int64_t);
template BlockLoops<double> loops_for_processor<double>(int64_t);

}  // namespace regionclip

// Winograd's transforms for each instruction set, chosen when they run.
#include "winograd_loops.h"

#define REGIONCLIP_BLOCK "winograd_block.inl"
#include "each_instruction_set.inl"

namespace regionclip {

template <typename Cell, typename Component>
WinogradLoops<Cell, Component> winograd_loops(int64_t tile) {
  return REGIONCLIP_BEST(winograd_block_loops<Cell, Component>(tile));
}

template WinogradLoops<float, float> winograd_loops(int64_t);
template WinogradLoops<uint16_t, float> winograd_loops(int64_t);
template WinogradLoops<uint16_t, uint16_t> winograd_loops(int64_t);

}  // namespace regionclip

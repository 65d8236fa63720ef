// Winograd's transforms of tiles of a channels-last map, for the instruction set of the processor.
#pragma once

#include <cstdint>

namespace regionclip {

// Channels have to be a multiple of it: the floats of the widest vector.
constexpr int64_t winograd_lanes = 16;

// A map [N, H, W, C] in tiles of 2x2 or 4x4 cells. A convolution of 3x3 computes one from a window of two cells more
// on each axis, whose transform has as many components as the window has cells.
struct WinogradMap {
  int64_t images, height, width, channels, tile;
  int64_t components() const { return (tile + 2) * (tile + 2); }
  int64_t rows() const { return (height + tile - 1) / tile; }
  int64_t columns() const { return (width + tile - 1) / tile; }
  int64_t tiles() const { return images * rows() * columns(); }
};

// Which part of the components [n * n, T, C] is meant: of the tiles from `begin` to `end`, where row 0 is tile `first`
// and components are `stride` numbers apart.
struct WinogradTiles {
  int64_t first, begin, end, stride;
};

// What happens to the sums of a cell before they are written.
struct WinogradFinish {
  const float* bias;  // [C], added; can be null
  bool relu;          // after the sum
};

// `Cell` is the type of the map, `Component` that of what is multiplied: float or bfloat16 (as its bits).
template <typename Cell, typename Component>
struct WinogradLoops {
  void (*transform_windows)(
      const Cell* map, const WinogradMap& shape, const WinogradTiles& tiles, Component* windows);
  void (*assemble_tiles)(
      const Component* products, const WinogradTiles& tiles, const WinogradFinish& finish, const WinogradMap& shape,
      Cell* map);
};

template <typename Cell, typename Component>
WinogradLoops<Cell, Component> winograd_loops(int64_t tile);

}  // namespace regionclip

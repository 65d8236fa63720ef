// The inner loops of RoIAlign on one block of channels. Bilinear sampling and averaging act on the
// two axes apart, so a bin is the sum over its rows of the sums over its columns. Included once for
// each instruction set, in a namespace of its own (REGIONCLIP_ISA).

namespace regionclip {
namespace REGIONCLIP_ISA {

template <typename Real>
struct Lanes {
  typedef Real Vector __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES), aligned(REGIONCLIP_VECTOR_BYTES)));
  static constexpr int count = REGIONCLIP_VECTOR_BYTES / sizeof(Real);
};

// target[:] = sum over the cells of a bin of weight * source[cell - lowest, :], for a block of channels; `stride` is the
// distance of cells. Eight vectors at a time: sums, a weight and what is loaded stay in sixteen registers.
template <typename Real, int Block>
inline void weighted_sum(
    const Real* source, int64_t stride, const BinWeights<Real>& bins, int64_t bin, int64_t lowest, Real* target) {
  using Vector = typename Lanes<Real>::Vector;
  constexpr int all = Block / Lanes<Real>::count, vectors = all < 8 ? all : 8;
  for (int part = 0; part < Block; part += vectors * Lanes<Real>::count) {
    Vector sum[vectors] = {};
    for (int64_t i = bins.first[bin]; i < bins.first[bin + 1]; ++i) {
      const Real weight = bins.weights[i];
      const auto* cell = reinterpret_cast<const Vector*>(source + (bins.cells[i] - lowest) * stride + part);
      for (int v = 0; v < vectors; ++v) {
        sum[v] += weight * cell[v];
      }
    }
    for (int v = 0; v < vectors; ++v) {
      reinterpret_cast<Vector*>(target + part)[v] = sum[v];
    }
  }
}

// tile[bin_y, bin_x, :] = sum over cells of y_weight * x_weight * map[y, x, :]; `row` is scratch for
// the columns of a row of bins.
template <typename Real, int Block>
void pool_block(
    const Real* map, int64_t map_width, const BinWeights<Real>& ys, const BinWeights<Real>& xs, Real* row, Real* tile) {
  for (int64_t bin_y = 0; bin_y < ys.bins; ++bin_y) {
    for (int64_t x = xs.lowest; x <= xs.highest; ++x) {
      weighted_sum<Real, Block>(map + x * Block, map_width * Block, ys, bin_y, 0, row + (x - xs.lowest) * Block);
    }
    for (int64_t bin_x = 0; bin_x < xs.bins; ++bin_x) {
      weighted_sum<Real, Block>(row, Block, xs, bin_x, xs.lowest, tile + (bin_y * xs.bins + bin_x) * Block);
    }
  }
}

// The adjoint: map[y, x, :] += sum over bins of y_weight * x_weight * tile[bin_y, bin_x, :].
template <typename Real, int Block>
void spread_block(
    const Real* tile, const BinWeights<Real>& ys, const BinWeights<Real>& xs, Real* row, Real* map, int64_t map_width) {
  using Vector = typename Lanes<Real>::Vector;
  constexpr int vectors = Block / Lanes<Real>::count;
  const int64_t columns = xs.highest - xs.lowest + 1;
  for (int64_t bin_y = 0; bin_y < ys.bins; ++bin_y) {
    if (ys.first[bin_y] == ys.first[bin_y + 1]) {
      continue;
    }
    auto* sums = reinterpret_cast<Vector*>(row);
    for (int64_t i = 0; i < columns * vectors; ++i) {
      sums[i] = Vector{};
    }
    for (int64_t bin_x = 0; bin_x < xs.bins; ++bin_x) {
      const auto* gradient = reinterpret_cast<const Vector*>(tile + (bin_y * xs.bins + bin_x) * Block);
      for (int64_t i = xs.first[bin_x]; i < xs.first[bin_x + 1]; ++i) {
        const Real weight = xs.weights[i];
        auto* column = sums + (xs.cells[i] - xs.lowest) * vectors;
        for (int v = 0; v < vectors; ++v) {
          column[v] += weight * gradient[v];
        }
      }
    }
    for (int64_t i = ys.first[bin_y]; i < ys.first[bin_y + 1]; ++i) {
      const Real weight = ys.weights[i];
      auto* cells = reinterpret_cast<Vector*>(map + (ys.cells[i] * map_width + xs.lowest) * Block);
      for (int64_t j = 0; j < columns * vectors; ++j) {
        cells[j] += weight * sums[j];
      }
    }
  }
}

template <typename Real>
void transpose_small(const Real* source, int64_t source_stride, int64_t rows, int64_t columns, Real* target,
                     int64_t target_stride) {
  for (int64_t column = 0; column < columns; ++column) {
    for (int64_t row = 0; row < rows; ++row) {
      target[column * target_stride + row] = source[row * source_stride + column];
    }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define REGIONCLIP_HAS_SHUFFLE
#endif
#endif

#ifdef REGIONCLIP_HAS_SHUFFLE
// Floats of a vector: the side of the squares that are transposed.
constexpr int square = REGIONCLIP_VECTOR_BYTES / sizeof(float);
typedef float Row __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES)));
typedef float LooseRow __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES), aligned(4), may_alias));

// Interleaves two rows into twice as many numbers: the first half of them, and the second.
template <int... I>
inline void interleave(Row a, Row b, Row* first, Row* second, std::integer_sequence<int, I...>) {
  *first = __builtin_shufflevector(a, b, (I / 2 + I % 2 * square)...);
  *second = __builtin_shufflevector(a, b, (square / 2 + I / 2 + I % 2 * square)...);
}

// A square by perfect shuffles of its rows, as many as its side has binary digits.
inline void transpose_square(const float* source, int64_t source_stride, float* target, int64_t target_stride) {
  Row rows[square], next[square];
  for (int i = 0; i < square; ++i) {
    rows[i] = *reinterpret_cast<const LooseRow*>(source + i * source_stride);
  }
  for (int step = 1; step < square; step *= 2) {
    for (int i = 0; i < square / 2; ++i) {
      interleave(
          rows[i], rows[i + square / 2], &next[2 * i], &next[2 * i + 1], std::make_integer_sequence<int, square>());
    }
    for (int i = 0; i < square; ++i) {
      rows[i] = next[i];
    }
  }
  for (int i = 0; i < square; ++i) {
    *reinterpret_cast<LooseRow*>(target + i * target_stride) = rows[i];
  }
}
#endif

// target[column, row] = source[row, column].
template <typename Real>
void transpose(const Real* source, int64_t source_stride, int64_t rows, int64_t columns, Real* target,
               int64_t target_stride) {
#ifdef REGIONCLIP_HAS_SHUFFLE
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (rows >= square && columns >= square) {
      // The last square of a row or column overlaps the one before instead of being smaller.
      for (int64_t column = 0; column < columns; column += square) {
        const int64_t left = column + square <= columns ? column : columns - square;
        for (int64_t row = 0; row < rows; row += square) {
          const int64_t top = row + square <= rows ? row : rows - square;
          transpose_square(
              source + top * source_stride + left, source_stride, target + left * target_stride + top, target_stride);
        }
      }
      return;
    }
  }
#endif
  transpose_small(source, source_stride, rows, columns, target, target_stride);
}

template <typename Real, int Block>
constexpr BlockLoops<Real> block_loops() {
  return {pool_block<Real, Block>, spread_block<Real, Block>, transpose<Real>};
}

}  // namespace REGIONCLIP_ISA
}  // namespace regionclip

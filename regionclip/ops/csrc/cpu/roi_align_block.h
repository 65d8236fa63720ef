// The inner loops of RoIAlign on one block of channels. Bilinear sampling and averaging act on the
// two axes apart, so a bin is the sum over its rows of the sums over its columns. Included once for
// each instruction set, in a namespace of its own (REGIONCLIP_ISA).

namespace regionclip {
namespace REGIONCLIP_ISA {

template <typename Real>
struct Lanes {
  typedef Real Vector __attribute__((vector_size(64), aligned(64)));
  static constexpr int count = 64 / sizeof(Real);
};

// tile[bin_y, bin_x, :] = sum over cells of y_weight * x_weight * map[y, x, :]; `row` is scratch for
// the columns of a row of bins.
template <typename Real, int Block>
void pool_block(
    const Real* map, int64_t map_width, const BinWeights<Real>& ys, const BinWeights<Real>& xs, Real* row, Real* tile) {
  using Vector = typename Lanes<Real>::Vector;
  constexpr int vectors = Block / Lanes<Real>::count;
  for (int64_t bin_y = 0; bin_y < ys.bins; ++bin_y) {
    for (int64_t x = xs.lowest; x <= xs.highest; ++x) {
      Vector sum[vectors] = {};
      for (int64_t i = ys.first[bin_y]; i < ys.first[bin_y + 1]; ++i) {
        const Real weight = ys.weights[i];
        const auto* cell = reinterpret_cast<const Vector*>(map + (ys.cells[i] * map_width + x) * Block);
        for (int v = 0; v < vectors; ++v) {
          sum[v] += weight * cell[v];
        }
      }
      auto* target = reinterpret_cast<Vector*>(row + (x - xs.lowest) * Block);
      for (int v = 0; v < vectors; ++v) {
        target[v] = sum[v];
      }
    }
    for (int64_t bin_x = 0; bin_x < xs.bins; ++bin_x) {
      Vector sum[vectors] = {};
      for (int64_t i = xs.first[bin_x]; i < xs.first[bin_x + 1]; ++i) {
        const Real weight = xs.weights[i];
        const auto* column = reinterpret_cast<const Vector*>(row + (xs.cells[i] - xs.lowest) * Block);
        for (int v = 0; v < vectors; ++v) {
          sum[v] += weight * column[v];
        }
      }
      auto* target = reinterpret_cast<Vector*>(tile + (bin_y * xs.bins + bin_x) * Block);
      for (int v = 0; v < vectors; ++v) {
        target[v] = sum[v];
      }
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
// 16 x 16 by four perfect shuffles of the rows.
inline void transpose_square(const float* source, int64_t source_stride, float* target, int64_t target_stride) {
  typedef float Row __attribute__((vector_size(64), aligned(4), may_alias));
  typedef float Vector __attribute__((vector_size(64)));
  Vector rows[16], next[16];
  for (int i = 0; i < 16; ++i) {
    rows[i] = *reinterpret_cast<const Row*>(source + i * source_stride);
  }
  for (int stage = 0; stage < 4; ++stage) {
    for (int i = 0; i < 8; ++i) {
      next[2 * i] = __builtin_shufflevector(
          rows[i], rows[i + 8], 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      next[2 * i + 1] = __builtin_shufflevector(
          rows[i], rows[i + 8], 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
    }
    for (int i = 0; i < 16; ++i) {
      rows[i] = next[i];
    }
  }
  for (int i = 0; i < 16; ++i) {
    *reinterpret_cast<Row*>(target + i * target_stride) = rows[i];
  }
}
#endif

// target[column, row] = source[row, column].
template <typename Real>
void transpose(const Real* source, int64_t source_stride, int64_t rows, int64_t columns, Real* target,
               int64_t target_stride) {
#ifdef REGIONCLIP_HAS_SHUFFLE
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (rows >= 16 && columns >= 16) {
      // The last square of a row or column overlaps the one before instead of being smaller.
      for (int64_t column = 0; column < columns; column += 16) {
        const int64_t left = column + 16 <= columns ? column : columns - 16;
        for (int64_t row = 0; row < rows; row += 16) {
          const int64_t top = row + 16 <= rows ? row : rows - 16;
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

// Winograd's transforms on a vector of channels at a time. Included once for each instruction set, in a
// namespace of its own (REGIONCLIP_ISA).
//
// The polynomials are evaluated at 0, +-1 and infinity for tiles of 2, at 0, +-a, +-b and infinity for
// tiles of 4 (regionclip/ops/winograd.py transforms the weights with the same points). With a = 3/4
// and b = 3/2 the error is a third of that with the usual 1 and 2, and all constants are exact.

namespace regionclip {
namespace REGIONCLIP_ISA {

typedef float Floats __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES)));
typedef float LooseFloats __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES), aligned(4)));
typedef int32_t Bits __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES)));
typedef uint16_t HalfBits __attribute__((vector_size(REGIONCLIP_VECTOR_BYTES / 2), aligned(2)));
constexpr int64_t lanes = REGIONCLIP_VECTOR_BYTES / sizeof(float);
static_assert(winograd_lanes % lanes == 0, "every instruction set takes the same numbers of channels");

inline Floats load(const float* from) { return *reinterpret_cast<const LooseFloats*>(from); }
inline void store(Floats value, float* to) { *reinterpret_cast<LooseFloats*>(to) = value; }

inline Floats load(const uint16_t* from) {
  return reinterpret_cast<Floats>(__builtin_convertvector(*reinterpret_cast<const HalfBits*>(from), Bits) << 16);
}

// Rounds to the nearest bfloat16, to even ones between two; NaN stays NaN.
inline void store(Floats value, uint16_t* to) {
  const Bits bits = reinterpret_cast<Bits>(value);
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  *reinterpret_cast<HalfBits*>(to) = __builtin_convertvector(value == value ? rounded : Bits{} + 0x7fc0, HalfBits);
}

template <int64_t Tile>
struct Axis;

template <>
struct Axis<2> {
  static constexpr int64_t window = 4;

  // Four cells become four values.
  static void transform(const Floats* in, int64_t step, Floats* out) {
    const Floats d0 = in[0], d1 = in[step], d2 = in[2 * step], d3 = in[3 * step];
    out[0] = d2 - d0;
    out[step] = d2 + d1;
    out[2 * step] = d2 - d1;
    out[3 * step] = d3 - d1;
  }

  // Four values become two cells.
  static void assemble(const Floats* in, int64_t step, Floats* out) {
    out[0] = in[0] + in[step] + in[2 * step];
    out[step] = in[step] - in[2 * step] + in[3 * step];
  }
};

template <>
struct Axis<4> {
  static constexpr int64_t window = 6;
  static constexpr float a = 0.75f, b = 1.5f, a2 = a * a, b2 = b * b, a3 = a2 * a, b3 = b2 * b;

  // Six cells become six values.
  static void transform(const Floats* in, int64_t step, Floats* out) {
    const Floats d0 = in[0], d1 = in[step], d2 = in[2 * step];
    const Floats d3 = in[3 * step], d4 = in[4 * step], d5 = in[5 * step];
    const Floats even_a = d4 - b2 * d2, odd_a = a * (d3 - b2 * d1);
    const Floats even_b = d4 - a2 * d2, odd_b = b * (d3 - a2 * d1);
    out[0] = a2 * b2 * d0 - (a2 + b2) * d2 + d4;
    out[step] = even_a + odd_a;
    out[2 * step] = even_a - odd_a;
    out[3 * step] = even_b + odd_b;
    out[4 * step] = even_b - odd_b;
    out[5 * step] = a2 * b2 * d1 - (a2 + b2) * d3 + d5;
  }

  // Six values become four cells.
  static void assemble(const Floats* in, int64_t step, Floats* out) {
    const Floats sum_a = in[step] + in[2 * step], difference_a = in[step] - in[2 * step];
    const Floats sum_b = in[3 * step] + in[4 * step], difference_b = in[3 * step] - in[4 * step];
    out[0] = in[0] + sum_a + sum_b;
    out[step] = a * difference_a + b * difference_b;
    out[2 * step] = a2 * sum_a + b2 * sum_b;
    out[3 * step] = a3 * difference_a + b3 * difference_b + in[5 * step];
  }
};

template <int64_t Tile, typename Cell, typename Component>
void transform_windows(const Cell* map, const WinogradMap& shape, const WinogradTiles& tiles, Component* windows) {
  constexpr int64_t n = Axis<Tile>::window;
  const int64_t channels = shape.channels, columns = shape.columns(), per_image = shape.rows() * columns;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t place = tile % per_image;
    const int64_t top = place / columns * Tile - 1, left = place % columns * Tile - 1;
    const Cell* image = map + tile / per_image * shape.height * shape.width * channels;
    Component* row = windows + (tile - tiles.first) * channels;
    for (int64_t channel = 0; channel < channels; channel += lanes) {
      Floats cells[n * n] = {}, along_x[n * n], components[n * n];
      for (int64_t y = 0; y < n; ++y) {
        for (int64_t x = 0; x < n; ++x) {
          if (top + y >= 0 && top + y < shape.height && left + x >= 0 && left + x < shape.width) {
            cells[y * n + x] = load(image + ((top + y) * shape.width + left + x) * channels + channel);
          }
        }
        Axis<Tile>::transform(cells + y * n, 1, along_x + y * n);
      }
      for (int64_t x = 0; x < n; ++x) {
        Axis<Tile>::transform(along_x + x, n, components + x);
      }
      for (int64_t i = 0; i < n * n; ++i) {
        store(components[i], row + i * tiles.stride + channel);
      }
    }
  }
}

template <int64_t Tile, typename Cell, typename Component>
void assemble_tiles(
    const Component* products, const WinogradTiles& tiles, const WinogradFinish& finish, const WinogradMap& shape,
    Cell* map) {
  constexpr int64_t n = Axis<Tile>::window;
  const int64_t channels = shape.channels, columns = shape.columns(), per_image = shape.rows() * columns;
  for (int64_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const int64_t place = tile % per_image;
    const int64_t top = place / columns * Tile, left = place % columns * Tile;
    Cell* image = map + tile / per_image * shape.height * shape.width * channels;
    const Component* row = products + (tile - tiles.first) * channels;
    for (int64_t channel = 0; channel < channels; channel += lanes) {
      Floats components[n * n], along_y[Tile * n], cells[Tile * Tile];
      for (int64_t i = 0; i < n * n; ++i) {
        components[i] = load(row + i * tiles.stride + channel);
      }
      for (int64_t x = 0; x < n; ++x) {
        Axis<Tile>::assemble(components + x, n, along_y + x);
      }
      const Floats offset = finish.bias ? load(finish.bias + channel) : Floats{};
      for (int64_t y = 0; y < Tile && top + y < shape.height; ++y) {
        Axis<Tile>::assemble(along_y + y * n, 1, cells + y * Tile);
        for (int64_t x = 0; x < Tile && left + x < shape.width; ++x) {
          const Floats sum = cells[y * Tile + x] + offset;
          const Floats value = finish.relu ? (sum < 0 ? Floats{} : sum) : sum;  // NaN stays
          store(value, image + ((top + y) * shape.width + left + x) * channels + channel);
        }
      }
    }
  }
}

template <typename Cell, typename Component>
WinogradLoops<Cell, Component> winograd_block_loops(int64_t tile) {
  if (tile == 2) {
    return {transform_windows<2, Cell, Component>, assemble_tiles<2, Cell, Component>};
  }
  return {transform_windows<4, Cell, Component>, assemble_tiles<4, Cell, Component>};
}

}  // namespace REGIONCLIP_ISA
}  // namespace regionclip

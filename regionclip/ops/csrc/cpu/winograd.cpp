// The transforms of Winograd's convolution on the CPU; the products between them are torch's.
#include "../common.h"
#include "torch_parallel.h"
#include "winograd_loops.h"

namespace regionclip {
namespace {

// Checks that `map` [N, C, H, W] is dense and channels-last, and has the tiles of `components` [n * n, T, C] from
// number `first` on.
WinogradMap checked_shape(const Tensor& map, const Tensor& components, int64_t first) {
  STD_TORCH_CHECK(map.dim() == 4 && components.dim() == 3, "winograd: expected a map [N, C, H, W] and [n * n, T, C]");
  const int64_t count = components.size(0);
  STD_TORCH_CHECK(count == 16 || count == 36, "winograd: expected 16 or 36 components, got ", count);
  const WinogradMap shape{map.size(0), map.size(2), map.size(3), map.size(1), count == 16 ? 2 : 4};
  STD_TORCH_CHECK(
      shape.channels % winograd_lanes == 0, "winograd: expected a multiple of ", winograd_lanes, " channels, got ",
      shape.channels);
  // Of a dimension of size 1 the stride says nothing.
  STD_TORCH_CHECK(
      map.stride(1) == 1 && (shape.width == 1 || map.stride(3) == shape.channels) &&
          (shape.height == 1 || map.stride(2) == shape.width * shape.channels) &&
          (shape.images == 1 || map.stride(0) == shape.height * shape.width * shape.channels),
      "winograd: expected a channels-last map");
  STD_TORCH_CHECK(
      components.size(2) == shape.channels && components.stride(2) == 1 && components.stride(1) == shape.channels,
      "winograd: expected components [", count, ", T, ", shape.channels, "] with dense rows");
  STD_TORCH_CHECK(
      first >= 0 && first + components.size(1) <= shape.tiles(), "winograd: expected tiles from 0 to ", shape.tiles(),
      ", got ", first, " to ", first + components.size(1));
  return shape;
}

// Calls `body` with zeros of the C++ types behind those of map and components.
template <typename Body>
void for_types(ScalarType cell, ScalarType component, const Body& body) {
  if (cell == ScalarType::Float && component == ScalarType::Float) {
    return body(float(0), float(0));
  }
  if (cell == ScalarType::BFloat16 && component == ScalarType::Float) {
    return body(uint16_t(0), float(0));
  }
  STD_TORCH_CHECK(
      cell == ScalarType::BFloat16 && component == ScalarType::BFloat16,
      "winograd: expected float32 or bfloat16, and components of the map's type or float32");
  return body(uint16_t(0), uint16_t(0));
}

constexpr int64_t tiles_at_least = 4;  // for each thread

void winograd_windows_cpu(const Tensor& map, int64_t first, Tensor windows) {
  const WinogradMap shape = checked_shape(map, windows, first);
  const int64_t end = first + windows.size(1), stride = windows.stride(0);
  for_types(map.scalar_type(), windows.scalar_type(), [&](auto cell, auto component) {
    const auto* source = data_of<decltype(cell)>(map);
    auto* target = mutable_data_of<decltype(component)>(windows);
    const auto loops = winograd_loops<decltype(cell), decltype(component)>(shape.tile);
    TorchFor()(first, end, tiles_at_least, [&](int64_t from, int64_t to) {
      loops.transform_windows(source, shape, {first, from, to, stride}, target);
    });
  });
}

void winograd_assemble_cpu(
    const Tensor& products, const std::optional<Tensor>& bias, bool relu, int64_t first, Tensor map) {
  const WinogradMap shape = checked_shape(map, products, first);
  if (bias.has_value()) {
    STD_TORCH_CHECK(
        bias->dim() == 1 && bias->size(0) == shape.channels && bias->scalar_type() == ScalarType::Float &&
            bias->is_contiguous(),
        "winograd: expected a dense float32 bias [", shape.channels, "]");
  }
  const int64_t end = first + products.size(1), stride = products.stride(0);
  const WinogradFinish finish{bias.has_value() ? data_of<float>(*bias) : nullptr, relu};
  for_types(map.scalar_type(), products.scalar_type(), [&](auto cell, auto component) {
    const auto* source = data_of<decltype(component)>(products);
    auto* target = mutable_data_of<decltype(cell)>(map);
    const auto loops = winograd_loops<decltype(cell), decltype(component)>(shape.tile);
    TorchFor()(first, end, tiles_at_least, [&](int64_t from, int64_t to) {
      loops.assemble_tiles(source, {first, from, to, stride}, finish, shape, target);
    });
  });
}

}  // namespace
}  // namespace regionclip

STABLE_TORCH_LIBRARY_IMPL(regionclip, CPU, library) {
  library.impl("winograd_windows", TORCH_BOX(&regionclip::winograd_windows_cpu));
  library.impl("winograd_assemble", TORCH_BOX(&regionclip::winograd_assemble_cpu));
}

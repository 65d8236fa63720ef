// Stores that go past the caches, for results that are larger than them: the line that is overwritten
// is not read first.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace regionclip {

constexpr int64_t streaming_threshold = 32 << 20;  // bytes; about the share of a last-level cache

inline void stream(const void* source, int64_t bytes, void* target) {
#if defined(__SSE2__)
  if (bytes % 16 == 0 && reinterpret_cast<uintptr_t>(target) % 16 == 0) {
    const auto* from = static_cast<const __m128i*>(source);
    auto* to = static_cast<__m128i*>(target);
    for (int64_t i = 0; i < bytes / 16; ++i) {
      _mm_stream_si128(to + i, _mm_loadu_si128(from + i));
    }
    return;
  }
#endif
  std::memcpy(target, source, static_cast<size_t>(bytes));
}

// To be called by each thread after its last `stream`, before another reads the memory.
inline void finish_streams() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace regionclip

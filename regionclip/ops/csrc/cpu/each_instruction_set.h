// Includes REGIONCLIP_BLOCK, the name of a header, once for each instruction set, in the namespaces `baseline`, `avx2`
// and `avx512`, which the header opens as REGIONCLIP_ISA. REGIONCLIP_BEST(expression) is the expression in the best
// namespace that the processor runs.

#define REGIONCLIP_ISA baseline
#include REGIONCLIP_BLOCK
#undef REGIONCLIP_ISA

#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REGIONCLIP_ISA avx2
#include REGIONCLIP_BLOCK
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
#include REGIONCLIP_BLOCK
#undef REGIONCLIP_ISA
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define REGIONCLIP_BEST(...)                                                                    \
  (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? avx512::__VA_ARGS__ \
   : __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")       ? avx2::__VA_ARGS__   \
                                                                           : baseline::__VA_ARGS__)
#else
#define REGIONCLIP_BEST(...) baseline::__VA_ARGS__
#endif

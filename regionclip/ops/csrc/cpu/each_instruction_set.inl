// Includes REGIONCLIP_BLOCK, the name of a header, once for each instruction set, in the namespaces `baseline`, `avx2`
// and `avx512`, which the header opens as REGIONCLIP_ISA. There REGIONCLIP_VECTOR_BYTES is the size of a register:
// vectors larger than one are kept in memory by compilers. REGIONCLIP_BEST(expression) is the expression in the
// namespace of `instruction_set()`.
#include "instruction_set.h"

#define REGIONCLIP_ISA baseline
#define REGIONCLIP_VECTOR_BYTES 16
#include REGIONCLIP_BLOCK
#undef REGIONCLIP_ISA
#undef REGIONCLIP_VECTOR_BYTES

#if defined(__x86_64__) && defined(__GNUC__)

#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#define REGIONCLIP_ISA avx2
#define REGIONCLIP_VECTOR_BYTES 32
#include REGIONCLIP_BLOCK
#undef REGIONCLIP_ISA
#undef REGIONCLIP_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx512f,avx512vl,fma"))), apply_to = function)
#else
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,fma,prefer-vector-width=512")
#endif
#define REGIONCLIP_ISA avx512
#define REGIONCLIP_VECTOR_BYTES 64
#include REGIONCLIP_BLOCK
#undef REGIONCLIP_ISA
#undef REGIONCLIP_VECTOR_BYTES
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#define REGIONCLIP_BEST(...)                                                              \
  (::regionclip::instruction_set() == ::regionclip::InstructionSet::avx512 ? avx512::__VA_ARGS__ \
   : ::regionclip::instruction_set() == ::regionclip::InstructionSet::avx2 ? avx2::__VA_ARGS__   \
                                                                           : baseline::__VA_ARGS__)
#else
#define REGIONCLIP_BEST(...) baseline::__VA_ARGS__
#endif

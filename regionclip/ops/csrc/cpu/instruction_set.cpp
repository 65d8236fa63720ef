#include "instruction_set.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

namespace regionclip {
namespace {

constexpr const char* names[] = {"baseline", "avx2", "avx512"};

InstructionSet best_of_processor() {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl");
    return has_avx512 ? InstructionSet::avx512 : InstructionSet::avx2;
  }
#endif
  return InstructionSet::baseline;
}

InstructionSet choose() {
  const int best = static_cast<int>(best_of_processor());
  const char* wanted = std::getenv("REGIONCLIP_ISA");
  if (wanted == nullptr || *wanted == '\0') {
    return static_cast<InstructionSet>(best);
  }
  std::string expected;
  for (int i = 0; i <= best; ++i) {
    if (std::strcmp(wanted, names[i]) == 0) {
      return static_cast<InstructionSet>(i);
    }
    expected += (i ? ", " : "") + std::string(names[i]);
  }
  throw std::runtime_error(
      "REGIONCLIP_ISA: expected one of " + expected + ", which this processor has, got '" + wanted + "'");
}

}  // namespace

InstructionSet instruction_set() {
  static const InstructionSet chosen = choose();
  return chosen;
}

}  // namespace regionclip

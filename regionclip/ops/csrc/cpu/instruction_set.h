// Which instruction set the loops use: the best that the processor has, or a lesser one that the environment variable
// REGIONCLIP_ISA names.
#pragma once

namespace regionclip {

enum class InstructionSet { baseline, avx2, avx512 };

// Read once; throws std::runtime_error where REGIONCLIP_ISA names none that the processor has.
InstructionSet instruction_set();

}  // namespace regionclip

// Runs a fuzz target on random bytes, where libFuzzer does not run: on another processor under emulation.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* bytes, size_t size);

int main(int argc, char** argv) {
  const int count = argc > 1 ? std::atoi(argv[1]) : 1000;
  std::mt19937 generator(1);
  std::uniform_int_distribution<int> byte(0, 255), length(1, 4096);
  for (int i = 0; i < count; ++i) {
    std::vector<uint8_t> input(static_cast<size_t>(length(generator)));
    for (uint8_t& value : input) {
      value = static_cast<uint8_t>(byte(generator));
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%d inputs\n", count);
  return 0;
}

// How the kernels ask for threads: any `for_ranges(begin, end, grain, body)` will do, so that they
// run without torch in fuzz targets.
#pragma once

#include <cstdint>

namespace regionclip {

struct SerialFor {
  template <typename Body>
  void operator()(int64_t begin, int64_t end, int64_t /*grain*/, const Body& body) const {
    if (begin < end) {
      body(begin, end);
    }
  }
  int64_t threads() const { return 1; }
};

}  // namespace regionclip

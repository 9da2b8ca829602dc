// For fuzz targets only.
#ifndef RB_TESTS_FUZZ_CHECK_H_
#define RB_TESTS_FUZZ_CHECK_H_

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/string_view.h"

// Ends the run, so that libFuzzer keeps the input.
#define RB_FUZZ_CHECK(condition)                                                     \
  do {                                                                               \
    if (!(condition)) {                                                              \
      std::fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition); \
      std::abort();                                                                  \
    }                                                                                \
  } while (false)

namespace rb::fuzz {

inline absl::string_view AsText(const uint8_t* data, size_t size) {
  return size == 0 ? absl::string_view() : absl::string_view(reinterpret_cast<const char*>(data), size);
}

}  // namespace rb::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

#endif  // RB_TESTS_FUZZ_CHECK_H_

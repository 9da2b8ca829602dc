// Where files are cut: within the limits, and by the bytes around the cut alone. The input stands where cuts begin to
// be looked for; what lies before it cannot matter.
#include "agent/core/engine/chunker.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "tests/fuzz/check.h"

namespace rb::agent {
namespace {

constexpr size_t kInputBytes = 8 << 10;
// Looked at before the first place for a cut: fewer bytes than the rolling hash holds.
constexpr size_t kBefore = kLeastChunkBytes - 64;

void Check(absl::string_view input) {
  static std::string* const zeros = new std::string(kBefore + kInputBytes, '\0');
  static std::string* const ones = new std::string(kBefore + kInputBytes, '\x01');
  input = input.substr(0, kInputBytes);
  std::memcpy(zeros->data() + kBefore, input.data(), input.size());
  std::memcpy(ones->data() + kBefore, input.data(), input.size());
  const absl::string_view data = absl::string_view(*zeros).substr(0, kBefore + input.size());
  const size_t length = FirstChunkLength(data);
  RB_FUZZ_CHECK(length <= data.size() && length <= kMostChunkBytes);
  RB_FUZZ_CHECK(length == data.size() || length > kLeastChunkBytes);
  RB_FUZZ_CHECK(FirstChunkLength(absl::string_view(*ones).substr(0, kBefore + input.size())) == length);
  // Bytes behind a cut do not move it.
  if (length < data.size()) RB_FUZZ_CHECK(FirstChunkLength(data.substr(0, length)) == length);
}

}  // namespace
}  // namespace rb::agent

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size > 0) rb::agent::Check(rb::fuzz::AsText(data, size));
  return 0;
}

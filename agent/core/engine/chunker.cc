#include "agent/core/engine/chunker.h"

#include <algorithm>
#include <array>

namespace rb::agent {
namespace {

// Any fixed table of well mixed numbers does (splitmix64); changing it would end deduplication against older releases.
constexpr std::array<uint64_t, 256> MakeGear() {
  std::array<uint64_t, 256> gear{};
  uint64_t state = 0x7262636866756E6Bull;
  for (uint64_t& value : gear) {
    state += 0x9E3779B97F4A7C15ull;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    value = z ^ (z >> 31);
  }
  return gear;
}

// 18 bits: one cut in 256 KiB. The high bits depend on the last 64 bytes.
constexpr uint64_t kMask = 0xFFFFC00000000000ull;

}  // namespace

size_t FirstChunkLength(absl::string_view data) {
  static constexpr std::array<uint64_t, 256> kGear = MakeGear();
  if (data.size() <= kLeastChunkBytes) return data.size();
  const size_t end = std::min(data.size(), kMostChunkBytes);
  uint64_t hash = 0;
  for (size_t i = kLeastChunkBytes - 64; i < end; ++i) {
    hash = (hash << 1) + kGear[static_cast<uint8_t>(data[i])];
    if (i >= kLeastChunkBytes && (hash & kMask) == 0) return i + 1;
  }
  return end;
}

}  // namespace rb::agent

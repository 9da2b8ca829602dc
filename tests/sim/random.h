// All chance in a simulated world comes from one of these, so that its seed gives the same world again everywhere:
// the standard library's distributions may differ from one release to the next.
#ifndef RB_TESTS_SIM_RANDOM_H_
#define RB_TESTS_SIM_RANDOM_H_

#include <cstdint>

namespace rb::sim {

// xoshiro256**, seeded through splitmix64.
class Random {
 public:
  explicit Random(uint64_t seed) {
    for (uint64_t& word : words_) {
      seed += 0x9e3779b97f4a7c15;
      uint64_t mixed = seed;
      mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9;
      mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111eb;
      word = mixed ^ (mixed >> 31);
    }
  }

  uint64_t Next() {
    const uint64_t result = RotateLeft(words_[1] * 5, 7) * 9;
    const uint64_t shifted = words_[1] << 17;
    words_[2] ^= words_[0];
    words_[3] ^= words_[1];
    words_[1] ^= words_[2];
    words_[0] ^= words_[3];
    words_[2] ^= shifted;
    words_[3] = RotateLeft(words_[3], 45);
    return result;
  }
  // Below `limit`, which is not 0.
  uint64_t Below(uint64_t limit) { return Next() % limit; }
  // From `low` to `high`, both among them.
  int64_t Between(int64_t low, int64_t high) {
    return low + static_cast<int64_t>(Below(static_cast<uint64_t>(high - low) + 1));
  }
  // Draws nothing when it cannot be true.
  bool PerMille(int64_t chance) { return chance > 0 && Below(1000) < static_cast<uint64_t>(chance); }
  bool Percent(int64_t chance) { return PerMille(chance * 10); }

 private:
  static uint64_t RotateLeft(uint64_t word, int bits) { return (word << bits) | (word >> (64 - bits)); }
  uint64_t words_[4];
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_RANDOM_H_

#ifndef RB_COMMON_DIGEST_H_
#define RB_COMMON_DIGEST_H_

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

#include "absl/strings/string_view.h"

struct evp_md_ctx_st;

namespace rb {

// A SHA-256. Comparable, hashable by Abseil, zero when default.
struct Digest {
  std::array<uint8_t, 32> bytes{};

  friend bool operator==(const Digest&, const Digest&) = default;
  friend auto operator<=>(const Digest&, const Digest&) = default;
  template <typename H>
  friend H AbslHashValue(H state, const Digest& digest) {
    return H::combine(std::move(state), digest.bytes);
  }
  // 64 lower-case hexadecimal digits.
  std::string ToHex() const;
  // False when `hex` is not 64 hexadecimal digits.
  static bool FromHex(absl::string_view hex, Digest* digest);
};

// SHA-256 through OpenSSL: about 1.5 GB/s on one core with SHA extensions. Not thread-safe; reusable after Finish.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void Update(const void* data, size_t size);
  // Gives the digest and starts anew.
  Digest Finish();

 private:
  evp_md_ctx_st* context_;
};

Digest Sha256Of(absl::string_view data);

// CRC-32C (Castagnoli), for framing: finds torn and damaged records, is no protection against intent.
uint32_t Crc32c(absl::string_view data);

}  // namespace rb

#endif  // RB_COMMON_DIGEST_H_

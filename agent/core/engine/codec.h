// A small, total binary codec for what the engine keeps on disk. Readers take any bytes and never read past the end.
#ifndef RB_AGENT_CORE_ENGINE_CODEC_H_
#define RB_AGENT_CORE_ENGINE_CODEC_H_

#include <cstdint>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "common/digest.h"

namespace rb::agent {

class Encoder {
 public:
  void Number(uint64_t value) {
    if (value < 0x80) {
      out_.push_back(static_cast<char>(value));
      return;
    }
    char bytes[10];
    size_t size = 0;
    while (value >= 0x80) {
      bytes[size++] = static_cast<char>(value | 0x80);
      value >>= 7;
    }
    bytes[size++] = static_cast<char>(value);
    out_.append(bytes, size);
  }
  void Signed(int64_t value) { Number((static_cast<uint64_t>(value) << 1) ^ static_cast<uint64_t>(value >> 63)); }
  void Text(absl::string_view text) {
    Number(text.size());
    out_.append(text.data(), text.size());
  }
  // As it is, without its length.
  void Literal(absl::string_view text) { out_.append(text.data(), text.size()); }
  void Raw(const Digest& digest) { out_.append(reinterpret_cast<const char*>(digest.bytes.data()), 32); }
  // Room for so many bytes: growing costs as much as filling.
  void Reserve(size_t bytes) { out_.reserve(bytes); }
  std::string Take() { return std::move(out_); }
  const std::string& bytes() const { return out_; }

 private:
  std::string out_;
};

// After the first failure every read gives zero values and ok() is false.
class Decoder {
 public:
  explicit Decoder(absl::string_view data) : data_(data) {}
  uint64_t Number() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      if (data_.empty()) break;
      const auto byte = static_cast<uint8_t>(data_[0]);
      data_.remove_prefix(1);
      if (shift == 63 && byte > 1) break;  // more than 64 bits
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    return Fail();
  }
  // What does not fit is refused: a cut-off number may be another user's.
  uint32_t Number32() {
    const uint64_t value = Number();
    return static_cast<uint32_t>(value <= UINT32_MAX ? value : Fail());
  }
  int64_t Signed() {
    const uint64_t value = Number();
    return static_cast<int64_t>(value >> 1) ^ -static_cast<int64_t>(value & 1);
  }
  std::string Text() { return std::string(View()); }
  // A part of what is being decoded.
  absl::string_view View() {
    const uint64_t size = Number();
    if (size > data_.size()) {
      Fail();
      return absl::string_view();
    }
    const absl::string_view text = data_.substr(0, size);
    data_.remove_prefix(size);
    return text;
  }
  // For what is handed to the kernel as a C string: a NUL would cut it short.
  std::string TextWithoutNul() {
    std::string text = Text();
    if (text.find('\0') != std::string::npos) {
      Fail();
      text.clear();
    }
    return text;
  }
  Digest Raw() {
    Digest digest;
    if (data_.size() < digest.bytes.size()) {
      Fail();
      return digest;
    }
    std::memcpy(digest.bytes.data(), data_.data(), digest.bytes.size());
    data_.remove_prefix(digest.bytes.size());
    return digest;
  }
  // A count of things that take at least `least_bytes` each: what cannot fit is refused before memory is taken.
  uint64_t Count(uint64_t least_bytes) {
    const uint64_t count = Number();
    return count <= data_.size() / least_bytes ? count : Fail();
  }
  bool ok() const { return ok_; }
  bool at_end() const { return data_.empty(); }

 private:
  uint64_t Fail() {
    ok_ = false;
    data_ = absl::string_view();
    return 0;
  }
  absl::string_view data_;
  bool ok_ = true;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_CODEC_H_

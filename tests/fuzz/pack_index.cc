// Indexes of packs. A seal that no fuzzer can guess is put on what comes after the first byte, unless that byte is 0.
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "agent/core/engine/object_store.h"
#include "common/digest.h"
#include "tests/fuzz/check.h"

namespace rb::agent {
namespace {

void Check(absl::string_view bytes) {
  const absl::StatusOr<std::vector<PackedObject>> objects = DecodePackIndex(bytes);
  if (!objects.ok()) {
    RB_FUZZ_CHECK(absl::IsDataLoss(objects.status()));
    return;
  }
  for (const PackedObject& object : *objects) {
    // What pread is asked for.
    RB_FUZZ_CHECK(object.offset + object.stored_bytes <= static_cast<uint64_t>(INT64_MAX));
    RB_FUZZ_CHECK(object.offset + object.stored_bytes >= object.offset);
  }
  const absl::StatusOr<std::vector<PackedObject>> again = DecodePackIndex(EncodePackIndex(*objects));
  RB_FUZZ_CHECK(again.ok() && *again == *objects);
}

}  // namespace
}  // namespace rb::agent

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  std::string bytes(rb::fuzz::AsText(data + 1, size - 1));
  if (data[0] != 0) {
    bytes = absl::StrCat("rbindex1\n", bytes);
    const rb::Digest seal = rb::Sha256Of(bytes);
    bytes.append(reinterpret_cast<const char*>(seal.bytes.data()), seal.bytes.size());
  }
  rb::agent::Check(bytes);
  return 0;
}

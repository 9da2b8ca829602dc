// Journals: as any bytes, and as records that are then cut off, damaged or written over at one place. What is read back
// is always the first records as they were written.
#include "common/record_journal.h"

#include <fuzzer/FuzzedDataProvider.h>

#include <algorithm>
#include <string>
#include <vector>

#include "tests/fuzz/check.h"

namespace rb {
namespace {

void CheckAnyBytes(absl::string_view data) {
  size_t valid_bytes = 0;
  const std::vector<std::string> records = ParseRecords(data, &valid_bytes);
  RB_FUZZ_CHECK(valid_bytes <= data.size());
  std::string again;
  for (const std::string& record : records) AppendRecord(record, &again);
  RB_FUZZ_CHECK(data.substr(0, valid_bytes) == again);
  if (valid_bytes < data.size()) IsTornTail(data, valid_bytes);
}

void CheckDamaged(FuzzedDataProvider* input) {
  std::vector<std::string> written;
  std::vector<size_t> ends;
  std::string data;
  for (size_t count = input->ConsumeIntegralInRange<size_t>(1, 6); count > 0; --count) {
    written.push_back(input->ConsumeRandomLengthString(64));
    AppendRecord(written.back(), &data);
    ends.push_back(data.size());
  }
  const size_t at = input->ConsumeIntegralInRange<size_t>(0, data.size() - 1);
  if (input->ConsumeBool()) {
    data.resize(at);
  } else {
    const auto flipped = input->ConsumeIntegralInRange<uint8_t>(1, 255);  // 8 bits: within what a CRC always finds
    data[at] = static_cast<char>(static_cast<uint8_t>(data[at]) ^ flipped);
  }
  const auto whole = static_cast<size_t>(std::upper_bound(ends.begin(), ends.end(), at) - ends.begin());
  size_t valid_bytes = 0;
  const std::vector<std::string> records = ParseRecords(data, &valid_bytes);
  RB_FUZZ_CHECK(records == std::vector<std::string>(written.begin(), written.begin() + static_cast<int>(whole)));
  RB_FUZZ_CHECK(valid_bytes == (whole == 0 ? 0 : ends[whole - 1]));
  // Damage with a record behind it is never taken for a torn write.
  if (valid_bytes == data.size()) return;
  const bool another_follows =
      data.size() == ends.back() && std::any_of(written.begin() + static_cast<int>(whole) + 1, written.end(),
                                                [](const std::string& record) { return !record.empty(); });
  if (another_follows) RB_FUZZ_CHECK(!IsTornTail(data, valid_bytes));
}

}  // namespace
}  // namespace rb

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  if (data[0] < 0x40) {
    rb::CheckAnyBytes(rb::fuzz::AsText(data + 1, size - 1));
  } else {
    FuzzedDataProvider input(data + 1, size - 1);
    rb::CheckDamaged(&input);
  }
  return 0;
}

#include "common/ids.h"

#include <sys/random.h>

#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace rb {

std::string RandomHex(size_t count) {
  std::string bytes(count, '\0');
  size_t filled = 0;
  while (filled < count) {
    const ssize_t got = getrandom(bytes.data() + filled, count - filled, 0);
    // getrandom fails only for bad arguments or a signal before the pool is ready; an id must never be guessable.
    if (got > 0) filled += static_cast<size_t>(got);
  }
  return absl::BytesToHexString(bytes);
}

std::string NewOperationId(absl::Time now) {
  return absl::StrCat("op-", absl::FormatTime("%Y%m%dT%H%M%SZ", now, absl::UTCTimeZone()), "-", RandomHex(3));
}

bool IsValidName(absl::string_view name) {
  if (name.empty() || name.size() > 63) return false;
  for (size_t i = 0; i < name.size(); ++i) {
    const auto c = static_cast<unsigned char>(name[i]);
    const bool alphanumeric = absl::ascii_islower(c) || absl::ascii_isdigit(c);
    if (!alphanumeric && (i == 0 || (c != '-' && c != '_' && c != '.'))) return false;
  }
  return true;
}

}  // namespace rb

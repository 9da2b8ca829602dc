#ifndef RB_COMMON_IDS_H_
#define RB_COMMON_IDS_H_

#include <cstddef>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb {

// `count` random bytes from the kernel, as 2 * count hexadecimal digits. For ids and secrets.
std::string RandomHex(size_t count);

// "op-20261123T031407Z-4f2a9c": sorts by time, 24 random bits keep two in one second apart.
std::string NewOperationId(absl::Time now);

// Names of hosts, environments, services and operators: 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter
// or digit. They become file names, metric labels and certificate names.
bool IsValidName(absl::string_view name);

}  // namespace rb

#endif  // RB_COMMON_IDS_H_

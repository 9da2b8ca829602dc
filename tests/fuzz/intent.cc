// The record that a tree transaction is recovered from: no name in it leads out of the tree or of staging.
#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/core/engine/transaction.h"
#include "agent/core/ports/database_hooks.h"
#include "tests/fuzz/check.h"

namespace rb::agent {
namespace {

bool StaysInside(absl::string_view path) {
  const std::string slashed = absl::StrCat("/", path, "/");
  return path.empty() || (!absl::StrContains(slashed, "//") && !absl::StrContains(slashed, "/./") &&
                          !absl::StrContains(slashed, "/../") && path.find('\0') == absl::string_view::npos);
}

void Check(absl::string_view bytes) {
  const absl::StatusOr<Intent> intent = DecodeIntent(bytes);
  if (!intent.ok()) {
    RB_FUZZ_CHECK(absl::IsDataLoss(intent.status()));
    return;
  }
  RB_FUZZ_CHECK(StaysInside(intent->staging_name) && !absl::StrContains(intent->staging_name, "/"));
  for (const PlannedRename& rename : intent->renames) {
    RB_FUZZ_CHECK(StaysInside(rename.path));
    RB_FUZZ_CHECK(StaysInside(rename.staged_name) && !absl::StrContains(rename.staged_name, "/"));
  }
  for (const std::string& name : intent->databases) RB_FUZZ_CHECK(IsDatabaseName(name));
  const std::string encoded = EncodeIntent(*intent);
  const absl::StatusOr<Intent> again = DecodeIntent(encoded);
  RB_FUZZ_CHECK(again.ok() && EncodeIntent(*again) == encoded);
}

}  // namespace
}  // namespace rb::agent

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rb::agent::Check(rb::fuzz::AsText(data, size));
  return 0;
}

// Manifests: whatever is taken for one can be restored from without leaving the tree, and is written back alike.
#include "agent/core/engine/manifest.h"

#include "absl/status/statusor.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "agent/core/ports/database_hooks.h"
#include "tests/fuzz/check.h"

namespace rb::agent {
namespace {

// Put differently from the decoder on purpose.
bool StaysInside(absl::string_view path) {
  const std::string slashed = absl::StrCat("/", path, "/");
  return path.empty() || (!absl::StrContains(slashed, "//") && !absl::StrContains(slashed, "/./") &&
                          !absl::StrContains(slashed, "/../") && path.find('\0') == absl::string_view::npos);
}

void Check(absl::string_view bytes) {
  const absl::StatusOr<Manifest> manifest = DecodeManifest(bytes);
  if (!manifest.ok()) {
    RB_FUZZ_CHECK(absl::IsDataLoss(manifest.status()));
    return;
  }
  absl::string_view previous;
  for (size_t i = 0; i < manifest->entries.size(); ++i) {
    const Entry& entry = manifest->entries[i];
    RB_FUZZ_CHECK(StaysInside(entry.path));
    RB_FUZZ_CHECK((entry.attributes.mode & ~07777u) == 0);
    RB_FUZZ_CHECK(entry.link_target->find('\0') == std::string::npos);
    for (const auto& [name, value] : *entry.attributes.xattrs) RB_FUZZ_CHECK(name.find('\0') == std::string::npos);
    // In order, and a folder right before what lies below it.
    if (i > 0) {
      RB_FUZZ_CHECK(PathLess(previous, entry.path) && !PathLess(entry.path, previous));
      RB_FUZZ_CHECK(!IsBelow(previous, entry.path));
    }
    previous = entry.path;
  }
  for (size_t i = 0; i < manifest->dumps.size(); ++i) {
    RB_FUZZ_CHECK(IsDatabaseName(manifest->dumps[i].name));
    RB_FUZZ_CHECK(i == 0 || manifest->dumps[i - 1].name < manifest->dumps[i].name);
  }
  const std::string encoded = EncodeManifest(*manifest);
  const absl::StatusOr<Manifest> again = DecodeManifest(encoded);
  RB_FUZZ_CHECK(again.ok());
  RB_FUZZ_CHECK(again->entries.size() == manifest->entries.size());
  for (size_t i = 0; i < manifest->entries.size(); ++i) {
    const Entry& a = manifest->entries[i];
    const Entry& b = again->entries[i];
    RB_FUZZ_CHECK(a.path == b.path && a.SameContent(b) && a.attributes == b.attributes);
    RB_FUZZ_CHECK(a.sparse == b.sparse && a.hard_link_group == b.hard_link_group);
  }
  RB_FUZZ_CHECK(again->dumps == manifest->dumps);
  RB_FUZZ_CHECK(EncodeManifest(*again) == encoded);
}

}  // namespace
}  // namespace rb::agent

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rb::agent::Check(rb::fuzz::AsText(data, size));
  return 0;
}

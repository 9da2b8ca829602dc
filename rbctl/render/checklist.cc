#include "rbctl/render/checklist.h"

#include "absl/strings/str_cat.h"
#include "common/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {

std::vector<Check> ChecklistOf(const v1::HostProgress& host) {
  std::vector<Check> checks;
  for (const v1::ProbeResult& probe : host.probes()) {
    checks.push_back({probe.name(), probe.passed(), probe.external(), probe.observed(), probe.expected()});
  }
  if (host.times().has_recovery() && host.has_target()) {
    checks.push_back({"time under target", host.target_met(), false, FormatSeconds(ToDuration(host.times().recovery())),
                      absl::StrCat("at most ", FormatSeconds(ToDuration(host.target())))});
  }
  return checks;
}

std::string ResultOf(const Check& check) {
  if (check.passed) return "passed";
  return check.external ? "down (external)" : "FAILED";
}

}  // namespace rb::cli

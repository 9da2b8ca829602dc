#include "rbctl/render/checklist.h"

#include "absl/strings/str_cat.h"
#include "common/text.h"
#include "rbctl/render/words.h"

namespace rb::cli {

bool IsJudged(const v1::HostProgress& host) {
  return !host.already_there() && host.has_target() && host.times().has_recovery() &&
         ToDuration(host.times().recovery()) > absl::ZeroDuration();
}

std::vector<Check> ChecklistOf(const v1::HostProgress& host) {
  std::vector<Check> checks;
  for (const v1::ProbeResult& probe : host.probes()) {
    checks.push_back({probe.name(), probe.passed(), probe.external(), probe.observed(), probe.expected()});
  }
  if (IsJudged(host)) {
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

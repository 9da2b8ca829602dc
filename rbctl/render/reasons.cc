#include "rbctl/render/reasons.h"

#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/text.h"

namespace rb::cli {
namespace {

struct Section {
  v1::Reason::Rule rule;
  const char* title;
  const char* word;
};
// In the order in which it was decided.
constexpr Section kSections[] = {
    {v1::Reason::RULE_REFUSAL, "Refused", "refusal"},
    {v1::Reason::RULE_SCOPE, "Hosts", "scope"},
    {v1::Reason::RULE_NOT_TOUCHED, "Not touched", "not_touched"},
    {v1::Reason::RULE_METHOD, "Source", "method"},
    {v1::Reason::RULE_NOT_CHOSEN, "Not taken", "not_chosen"},
    {v1::Reason::RULE_FALLBACK, "Fallback", "fallback"},
    {v1::Reason::RULE_GATE, "Gates", "gate"},
    {v1::Reason::RULE_WAVE, "Waves", "wave"},
    {v1::Reason::RULE_VERIFICATION, "Verification", "verification"},
    {v1::Reason::RULE_EVENT, "While it ran", "event"},
};

std::string HostsOf(const v1::Reason& reason) {
  if (reason.hosts().empty()) return "";
  const int others = static_cast<int>(reason.host_count()) - reason.hosts_size();
  return absl::StrCat(" (", Printable(absl::StrJoin(reason.hosts(), ", ")),
                      others > 0 ? absl::StrCat(" and ", others, " others") : "", ")");
}

}  // namespace

std::string RenderReasons(const std::vector<const v1::Reason*>& reasons) {
  std::string text;
  for (const Section& section : kSections) {
    bool first = true;
    for (const v1::Reason* reason : reasons) {
      if (reason->rule() != section.rule) continue;
      if (first) absl::StrAppend(&text, section.title, ":\n");
      first = false;
      absl::StrAppend(&text, "  ", Printable(reason->text()), HostsOf(*reason), "\n");
    }
  }
  return text;
}

nlohmann::ordered_json ReasonsJson(const std::vector<const v1::Reason*>& reasons) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const v1::Reason* reason : reasons) {
    std::string word = "unknown";
    for (const Section& section : kSections) {
      if (section.rule == reason->rule()) word = section.word;
    }
    nlohmann::ordered_json hosts = nlohmann::ordered_json::array();
    for (const std::string& host : reason->hosts()) hosts.push_back(host);
    list.push_back({{"rule", word}, {"text", reason->text()}, {"hosts", hosts}, {"host_count", reason->host_count()}});
  }
  return list;
}

}  // namespace rb::cli

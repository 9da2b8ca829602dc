#include "rbctl/render/doctor.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "common/text.h"

namespace rb::cli {
namespace {

std::string Paint(const Style& style, v1::Severity severity, const std::string& text) {
  const char* colour = severity == v1::SEVERITY_ERROR ? "31" : severity == v1::SEVERITY_WARNING ? "33" : "1";
  return style.colour ? absl::StrCat("\x1b[", colour, "m", text, "\x1b[0m") : text;
}

std::string Counted(size_t count, const std::string& what) {
  return absl::StrCat(count, " ", what, count == 1 ? "" : "s");
}

}  // namespace

std::string Word(v1::Severity severity) {
  switch (severity) {
    case v1::SEVERITY_ERROR:
      return "error";
    case v1::SEVERITY_WARNING:
      return "warning";
    case v1::SEVERITY_INFO:
      return "info";
    default:
      return "unknown";
  }
}

bool HasErrors(const v1::DiagnoseResponse& response) {
  return std::any_of(response.findings().begin(), response.findings().end(),
                     [](const v1::Finding& finding) { return finding.severity() == v1::SEVERITY_ERROR; });
}

std::string RenderDiagnosis(const v1::DiagnoseResponse& response, const Style& style) {
  std::string text;
  size_t errors = 0;
  size_t warnings = 0;
  for (const v1::Finding& finding : response.findings()) {
    errors += finding.severity() == v1::SEVERITY_ERROR ? 1 : 0;
    warnings += finding.severity() == v1::SEVERITY_WARNING ? 1 : 0;
    absl::StrAppend(&text, Paint(style, finding.severity(), Word(finding.severity())), "  ",
                    Printable(finding.environment()), "/", Printable(finding.service()),
                    finding.host().empty() ? "" : " ", Printable(finding.host()), ": ", Printable(finding.seen()), " [",
                    Printable(finding.code()), "]\n  Mend: ", Printable(finding.mend()), "\n");
  }
  absl::StrAppend(&text, Counted(response.hosts_asked(), "service"), " on hosts asked, ", response.hosts_answered(),
                  " answered: ",
                  errors + warnings == 0 ? "nothing is in the way of a recovery"
                                         : absl::StrCat(Counted(errors, "error"), ", ", Counted(warnings, "warning")),
                  ".\n");
  return text;
}

std::string JsonDiagnosis(const v1::DiagnoseResponse& response, int exit_code) {
  using Json = nlohmann::ordered_json;
  Json findings = Json::array();
  for (const v1::Finding& finding : response.findings()) {
    findings.push_back({{"severity", Word(finding.severity())},
                        {"code", finding.code()},
                        {"environment", finding.environment()},
                        {"service", finding.service()},
                        {"host", finding.host()},
                        {"seen", finding.seen()},
                        {"mend", finding.mend()}});
  }
  const Json json = {{"findings", findings},
                     {"hosts_asked", response.hosts_asked()},
                     {"hosts_answered", response.hosts_answered()},
                     {"exit_code", exit_code}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

std::string JsonDocument(const std::string& markdown) {
  const nlohmann::ordered_json json = {{"markdown", markdown}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace rb::cli

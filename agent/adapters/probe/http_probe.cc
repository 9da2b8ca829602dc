#include <curl/curl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <mutex>
#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/adapters/probe/probes.h"
#include "common/text.h"

namespace rb::agent {
namespace {

using nlohmann::json;

constexpr size_t kLargestBodyBytes = 1 << 20;
constexpr size_t kLargestVersionFileBytes = 65536;

struct Response {
  // What went wrong before there was an answer, or "".
  std::string problem;
  long status = 0;
  std::string body;
};

size_t Collect(char* data, size_t size, size_t count, void* to) {
  auto* body = static_cast<std::string*>(to);
  if (body->size() + size * count > kLargestBodyBytes) return 0;
  body->append(data, size * count);
  return size * count;
}

// One GET: no proxy, no redirect, no other protocol, no state between calls.
Response Fetch(const std::string& url, absl::Duration timeout) {
  static std::once_flag once;
  std::call_once(once, [] { curl_global_init(CURL_GLOBAL_DEFAULT); });
  Response response;
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  if (curl == nullptr) {
    response.problem = "libcurl cannot be used";
    return response;
  }
  char error[CURL_ERROR_SIZE] = "";
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(curl.get(), CURLOPT_PROXY, "");
  curl_easy_setopt(curl.get(), CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(curl.get(), CURLOPT_FOLLOWLOCATION, 0L);
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT_MS, static_cast<long>(absl::ToInt64Milliseconds(timeout)));
  curl_easy_setopt(curl.get(), CURLOPT_USERAGENT, "rb-agent");
  curl_easy_setopt(curl.get(), CURLOPT_ERRORBUFFER, error);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, Collect);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &response.body);
  const CURLcode code = curl_easy_perform(curl.get());
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &response.status);
  if (code == CURLE_OPERATION_TIMEDOUT) {
    response.problem = absl::StrCat("no whole answer within ", FormatSeconds(timeout));
  } else if (code == CURLE_WRITE_ERROR) {
    response.problem = absl::StrCat("the answer is larger than ", FormatBytes(kLargestBodyBytes));
  } else if (long system_error = 0; code == CURLE_COULDNT_CONNECT &&
                                    curl_easy_getinfo(curl.get(), CURLINFO_OS_ERRNO, &system_error) == CURLE_OK &&
                                    system_error != 0) {
    response.problem = strerror(static_cast<int>(system_error));
  } else if (code != CURLE_OK) {
    response.problem = error[0] != '\0' ? error : curl_easy_strerror(code);
  }
  return response;
}

// A field, dots for fields of fields; null when it is not there. A field whose own name has dots is found too.
const json* Find(const json& document, const std::string& field) {
  if (document.is_object()) {
    const auto whole = document.find(field);
    if (whole != document.end()) return &*whole;
  }
  const json* at = &document;
  for (const absl::string_view part : absl::StrSplit(field, '.')) {
    if (at->is_array()) {
      size_t index = 0;
      if (!absl::SimpleAtoi(part, &index) || index >= at->size()) return nullptr;
      at = &(*at)[index];
      continue;
    }
    if (!at->is_object()) return nullptr;
    const auto next = at->find(std::string(part));
    if (next == at->end()) return nullptr;
    at = &*next;
  }
  return at;
}

std::string Show(const json& value) { return OneLine(value.dump(-1, ' ', false, json::error_handler_t::replace), 100); }

bool Equals(const json& value, const std::string& wanted) {
  if (value.is_string()) return value.get_ref<const std::string&>() == wanted;
  const json parsed = json::parse(wanted, nullptr, /*allow_exceptions=*/false);
  return !parsed.is_discarded() && parsed == value;
}

class HttpProbe final : public Probe {
 public:
  HttpProbe(HttpProbeOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = absl::StrCat("http ", OneLine(options_.url, 200));
    result.kind = "http";
    result.expected = absl::StrCat("status ", options_.status);
    for (const auto& [field, value] : options_.json) {
      absl::StrAppend(&result.expected, ", ", OneLine(field, 60), " = ", OneLine(value, 60));
    }
    if (!options_.contains.empty())
      absl::StrAppend(&result.expected, ", \"", OneLine(options_.contains, 100), "\" in it");
    result.expected = Truncate(result.expected, 1000);
    Look(&result);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void Look(ProbeResult* result) {
    const Response response = Fetch(options_.url, options_.timeout);
    if (!response.problem.empty()) {
      result->observed = OneLine(response.problem);
      return;
    }
    result->observed = absl::StrCat("status ", response.status);
    bool passed = response.status == options_.status;
    if (!options_.json.empty()) {
      const json document = json::parse(response.body, nullptr, /*allow_exceptions=*/false);
      if (document.is_discarded()) {
        passed = false;
        absl::StrAppend(&result->observed, ", no JSON: \"", OneLine(response.body, 100), "\"");
      } else {
        for (const auto& [field, wanted] : options_.json) {
          const json* value = Find(document, field);
          absl::StrAppend(&result->observed, ", ", OneLine(field, 60), value == nullptr ? " is not there" : " = ",
                          value == nullptr ? "" : Show(*value));
          passed = passed && value != nullptr && Equals(*value, wanted);
        }
      }
    }
    if (!options_.contains.empty() && !absl::StrContains(response.body, options_.contains)) {
      passed = false;
      absl::StrAppend(&result->observed, ", ", FormatBytes(response.body.size()), " without it");
    }
    result->observed = Truncate(result->observed, 1000);
    result->passed = passed;
  }

  const HttpProbeOptions options_;
  Clock& clock_;
};

class VersionProbe final : public Probe {
 public:
  VersionProbe(VersionProbeOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  ProbeResult Run(const ProbeContext& context) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = absl::StrCat("version ", OneLine(options_.file.empty() ? options_.url : options_.file, 200));
    result.kind = "version";
    Look(context, &result);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void Look(const ProbeContext& context, ProbeResult* result) {
    const bool known = !context.expected_commit.empty() || !context.expected_version.empty();
    result->expected =
        known ? OneLine(absl::StrCat(context.expected_version, context.expected_version.empty() ? "" : " or ",
                                     context.expected_commit.substr(0, 12)))
              : "not known";
    if (context.expected_commit.empty() && known) result->expected = OneLine(context.expected_version);
    std::string text;
    if (const std::string problem = FindVersion(&text); !problem.empty()) {
      result->observed = OneLine(problem);
      result->passed = false;
      return;
    }
    result->observed = absl::StrCat("\"", OneLine(text), "\"");
    if (!known) {
      result->passed = true;
      absl::StrAppend(&result->observed, " (what should run is not known: not compared)");
      return;
    }
    result->passed = IsVersion(text, context.expected_version) || IsCommit(text, context.expected_commit);
  }

  // What was in the way, or "".
  std::string FindVersion(std::string* text) const {
    std::string body;
    std::string where = "the file";
    if (options_.file.empty()) {
      Response response = Fetch(options_.url, options_.timeout);
      if (!response.problem.empty()) return response.problem;
      where = absl::StrCat("status ", response.status);
      body = std::move(response.body);
    } else {
      const UniqueFd file = OpenBeneath(options_.tree, absl::StrCat(options_.tree, "/", options_.file));
      if (!file.valid()) return absl::StrCat("cannot read it: ", strerror(errno));
      body.resize(kLargestVersionFileBytes);
      const ssize_t n = pread(file.get(), body.data(), body.size(), 0);
      if (n < 0) return absl::StrCat("cannot read it: ", strerror(errno));
      body.resize(static_cast<size_t>(n));
    }
    if (options_.json.empty()) {
      *text = std::string(absl::StripAsciiWhitespace(body.substr(0, body.find('\n'))));
      return text->empty() ? "its first line is empty" : "";
    }
    const json document = json::parse(body, nullptr, /*allow_exceptions=*/false);
    const json* value = document.is_discarded() ? nullptr : Find(document, options_.json);
    if (value == nullptr) return absl::StrCat(where, ", ", OneLine(options_.json, 60), " is not there");
    *text = value->is_string() ? value->get<std::string>() : Show(*value);
    return "";
  }

  static bool IsVersion(const std::string& text, const std::string& wanted) {
    return !wanted.empty() && absl::StripPrefix(text, "v") == absl::StripPrefix(wanted, "v");
  }
  static bool IsCommit(const std::string& text, const std::string& wanted) {
    return text.size() >= 7 && absl::StartsWith(wanted, absl::AsciiStrToLower(text));
  }

  const VersionProbeOptions options_;
  Clock& clock_;
};

class MetricsProbe final : public Probe {
 public:
  MetricsProbe(MetricsProbeOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = absl::StrCat("metrics ", OneLine(options_.url, 200));
    result.kind = "metrics";
    result.expected = "status 200, Prometheus text";
    for (const std::string& name : options_.require) absl::StrAppend(&result.expected, ", ", OneLine(name, 100));
    result.expected = Truncate(result.expected, 1000);
    Look(&result);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void Look(ProbeResult* result) {
    const Response response = Fetch(options_.url, options_.timeout);
    if (!response.problem.empty()) {
      result->observed = OneLine(response.problem);
      return;
    }
    result->observed = absl::StrCat("status ", response.status);
    if (response.status != 200) return;
    const absl::StatusOr<std::map<std::string, size_t>> metrics = ParsePrometheusText(response.body);
    if (!metrics.ok()) {
      absl::StrAppend(&result->observed, ", ", OneLine(metrics.status().message()));
      return;
    }
    size_t samples = 0;
    for (const auto& [name, count] : *metrics) samples += count;
    absl::StrAppend(&result->observed, ", ", samples, " samples");
    result->passed = samples > 0;
    for (const std::string& name : options_.require) {
      if (metrics->count(name) != 0) continue;
      result->passed = false;
      absl::StrAppend(&result->observed, ", none of ", OneLine(name, 100));
    }
    result->observed = Truncate(result->observed, 1000);
  }

  const MetricsProbeOptions options_;
  Clock& clock_;
};

}  // namespace

std::unique_ptr<Probe> MakeMetricsProbe(MetricsProbeOptions options, Clock& clock) {
  return std::make_unique<MetricsProbe>(std::move(options), clock);
}
std::unique_ptr<Probe> MakeHttpProbe(HttpProbeOptions options, Clock& clock) {
  return std::make_unique<HttpProbe>(std::move(options), clock);
}
std::unique_ptr<Probe> MakeVersionProbe(VersionProbeOptions options, Clock& clock) {
  return std::make_unique<VersionProbe>(std::move(options), clock);
}

}  // namespace rb::agent

#include "controller/adapters/ci/webhook_ci.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/ci/command_ci.h"
#include "controller/adapters/http/http_client.h"
#include "nlohmann/json.hpp"

namespace rb::controller {
namespace {

using Json = nlohmann::json;

constexpr absl::Duration kRetry = absl::Seconds(2);
constexpr size_t kLongestRunId = 200;

std::string TextOf(const Json& json, const char* key) {
  if (!json.is_object()) return "";
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

class WebhookCi final : public CiProvider {
 public:
  explicit WebhookCi(const v1::WebhookCiConfig& config) : config_(config) {}

  // The key is sent with it: who receives it twice answers with the same run.
  bool IsIdempotent() const override { return true; }
  // Nothing can be asked that changes nothing.
  absl::Status Check() override {
    return config_.token_file().empty() ? absl::OkStatus() : ReadSecret(config_.token_file()).status();
  }
  absl::StatusOr<std::optional<CiRunHandle>> Find(const CiRequest&) override { return std::nullopt; }
  absl::StatusOr<std::optional<CiRunHandle>> Dispatch(const CiRequest& request) override {
    const Json body = {{"key", request.key},       {"service", request.service}, {"environment", request.environment},
                       {"commit", request.commit}, {"version", request.version}, {"reason", request.reason}};
    RB_ASSIGN_OR_RETURN(const Json answer, Call("POST", config_.dispatch_url(), body, request));
    CiRunHandle handle{TextOf(answer, "run"), Truncate(Printable(TextOf(answer, "url")), 500), ""};
    if (handle.id.empty() || handle.id.size() > kLongestRunId || Printable(handle.id) != handle.id) {
      return absl::FailedPreconditionError("the webhook's answer names no \"run\"");
    }
    return handle;
  }
  absl::StatusOr<CiRunStatus> Look(const CiRequest& request, const CiRunHandle& run) override {
    RB_ASSIGN_OR_RETURN(const Json answer, Call("GET", WithRun(config_.status_url(), run), Json(), request));
    const absl::StatusOr<CiRunStatus::State> state = ParseCiState(TextOf(answer, "state"));
    if (!state.ok()) return absl::UnavailableError(absl::StrCat("the webhook's state ", state.status().message()));
    CiRunStatus status;
    status.state = *state;
    status.text = absl::StrCat("run ", run.id, " ", TextOf(answer, "state"), " ",
                               Truncate(Printable(TextOf(answer, "text")), 200));
    return status;
  }
  absl::Status Cancel(const CiRequest& request, const CiRunHandle& run) override {
    return Call("POST", WithRun(config_.cancel_url(), run), Json{{"key", request.key}}, request).status();
  }

 private:
  static std::string WithRun(const std::string& url, const CiRunHandle& run) {
    return absl::StrReplaceAll(url, {{"{run}", UrlEscape(run.id)}});
  }

  absl::StatusOr<Json> Call(const std::string& method, const std::string& url, const Json& body,
                            const CiRequest& asked) const {
    HttpRequest request;
    request.method = method;
    request.url = url;
    request.name = "the webhook";
    request.headers = {"Accept: application/json", absl::StrCat("Idempotency-Key: ", asked.key)};
    if (!config_.token_file().empty()) {
      RB_ASSIGN_OR_RETURN(const std::string token, ReadSecret(config_.token_file()));
      request.headers.push_back(absl::StrCat("Authorization: Bearer ", token));
    }
    if (!body.is_null()) {
      request.headers.emplace_back("Content-Type: application/json");
      request.body = body.dump(-1, ' ', false, Json::error_handler_t::replace);
    }
    const absl::StatusOr<HttpResponse> response = Fetch(request);
    if (!response.ok()) return WithRetryAfter(response.status(), kRetry);
    const std::string what = absl::StrCat("the webhook answered ", response->status);
    if (response->status >= 500 || response->status == 429) {
      return WithRetryAfter(absl::UnavailableError(what), kRetry);
    }
    if (response->status < 200 || response->status > 299) return absl::FailedPreconditionError(what);
    if (response->body.empty()) return Json();
    Json json = Json::parse(response->body, nullptr, false);
    if (json.is_discarded()) return absl::FailedPreconditionError("the webhook's answer is no JSON");
    return json;
  }

  const v1::WebhookCiConfig config_;
};

}  // namespace

std::unique_ptr<CiProvider> MakeWebhookCi(const v1::WebhookCiConfig& config) {
  return std::make_unique<WebhookCi>(config);
}

}  // namespace rb::controller

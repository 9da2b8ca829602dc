#include "controller/adapters/notify/sender.h"

#include <curl/curl.h>

#include <algorithm>
#include <memory>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/edit_distance.h"
#include "common/status.h"
#include "common/text.h"
#include "controller/adapters/http/http_client.h"
#include "nlohmann/json.hpp"

namespace rb::controller {
namespace {

using Json = nlohmann::json;

// A silence that nobody lifts ends by itself.
constexpr absl::Duration kLongestSilence = absl::Hours(6);
constexpr long kMailSeconds = 30;
constexpr size_t kMostSilences = 1000;

bool IsHttp(const std::string& url) { return absl::StartsWith(url, "https://") || absl::StartsWith(url, "http://"); }

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

std::string TextOf(const Json& json, const char* key) {
  if (!json.is_object()) return "";
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : "";
}

absl::Status Judge(const std::string& name, int status) {
  if (status >= 200 && status <= 299) return absl::OkStatus();
  const std::string text = absl::StrCat(name, " answered ", status);
  if (status == 429 || status >= 500 || status == 408) return absl::UnavailableError(text);
  return absl::FailedPreconditionError(text);
}

absl::Status Post(const std::string& name, const v1::HttpReceiverConfig& config, const Json& body,
                  const std::string& key) {
  HttpRequest request;
  request.method = "POST";
  request.name = name;
  request.url = config.url();
  if (!config.url_file().empty()) {
    RB_ASSIGN_OR_RETURN(request.url, ReadSecret(config.url_file()));
  }
  request.headers = {"Content-Type: application/json", absl::StrCat("Idempotency-Key: ", key)};
  if (!config.token_file().empty()) {
    RB_ASSIGN_OR_RETURN(const std::string token, ReadSecret(config.token_file()));
    request.headers.push_back(absl::StrCat("Authorization: Bearer ", token));
  }
  request.body = Dump(body);
  RB_ASSIGN_OR_RETURN(const HttpResponse response, Fetch(request));
  return Judge(name, response.status);
}

struct Mail {
  std::string text;
  size_t sent = 0;
};

size_t GiveMail(char* to, size_t size, size_t count, void* from) {
  auto* mail = static_cast<Mail*>(from);
  const size_t take = std::min(size * count, mail->text.size() - mail->sent);
  mail->text.copy(to, take, mail->sent);
  mail->sent += take;
  return take;
}

absl::Status SendMail(const std::string& name, const v1::EmailReceiverConfig& config, const Notification& notification,
                      absl::Time now) {
  std::string password;
  if (!config.password_file().empty()) {
    RB_ASSIGN_OR_RETURN(password, ReadSecret(config.password_file()));
  }
  // Header lines hold names that were checked, and no text that people wrote.
  Mail mail;
  mail.text = absl::StrCat(
      "From: ", config.from(), "\r\nTo: ", absl::StrJoin(config.to(), ", "),
      "\r\nDate: ", absl::FormatTime("%a, %d %b %Y %H:%M:%S +0000", now, absl::UTCTimeZone()), "\r\nMessage-ID: <",
      absl::StrReplaceAll(notification.key, {{"/", "."}, {" ", "-"}}), "@rbctl>\r\nSubject: [rbctl] ",
      notification.environment, "/", notification.service, " ", notification.event,
      "\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
      notification.text, "\r\n");
  const std::unique_ptr<CURL, void (*)(CURL*)> curl(curl_easy_init(), curl_easy_cleanup);
  if (curl == nullptr) return absl::UnavailableError("no memory for a mail");
  curl_slist* list = nullptr;
  for (const std::string& to : config.to()) list = curl_slist_append(list, absl::StrCat("<", to, ">").c_str());
  const std::unique_ptr<curl_slist, void (*)(curl_slist*)> recipients(list, curl_slist_free_all);
  CURL* const c = curl.get();
  curl_easy_setopt(c, CURLOPT_URL, config.server().c_str());
  curl_easy_setopt(c, CURLOPT_PROTOCOLS_STR, "smtp,smtps");
  curl_easy_setopt(c, CURLOPT_USE_SSL, static_cast<long>(config.plaintext() ? CURLUSESSL_NONE : CURLUSESSL_ALL));
  if (!config.user().empty()) {
    curl_easy_setopt(c, CURLOPT_USERNAME, config.user().c_str());
    curl_easy_setopt(c, CURLOPT_PASSWORD, password.c_str());
  }
  curl_easy_setopt(c, CURLOPT_MAIL_FROM, absl::StrCat("<", config.from(), ">").c_str());
  curl_easy_setopt(c, CURLOPT_MAIL_RCPT, recipients.get());
  curl_easy_setopt(c, CURLOPT_UPLOAD, 1L);
  curl_easy_setopt(c, CURLOPT_READFUNCTION, GiveMail);
  curl_easy_setopt(c, CURLOPT_READDATA, &mail);
  curl_easy_setopt(c, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(c, CURLOPT_TIMEOUT, kMailSeconds);
  const CURLcode code = curl_easy_perform(c);
  if (code == CURLE_OK) return absl::OkStatus();
  const std::string text = absl::StrCat(name, ": ", curl_easy_strerror(code));
  return code == CURLE_LOGIN_DENIED ? absl::PermissionDeniedError(text) : absl::UnavailableError(text);
}

// The API of Alertmanager, version 2. Silences of ours are known by the operation's id in their comment.
class Alertmanager {
 public:
  explicit Alertmanager(const v1::AlertmanagerConfig& config) : config_(config) {}

  absl::Status Silence(const Notification& notification, absl::Time now) {
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> there, Ours(notification));
    if (!there.empty()) return absl::OkStatus();
    std::vector<std::string> hosts;
    for (const std::string& host : notification.hosts) hosts.push_back(absl::StrReplaceAll(host, {{".", "\\."}}));
    const Json body = {
        {"matchers", Json::array({{{"name", config_.host_label().empty() ? "host" : config_.host_label()},
                                   {"value", absl::StrCat("^(", absl::StrJoin(hosts, "|"), ")$")},
                                   {"isRegex", true},
                                   {"isEqual", true}}})},
        {"startsAt", absl::FormatTime(absl::RFC3339_sec, now, absl::UTCTimeZone())},
        {"endsAt", absl::FormatTime(absl::RFC3339_sec, now + kLongestSilence, absl::UTCTimeZone())},
        {"createdBy", "rbctl"},
        {"comment", notification.text}};
    return Call("POST", "/api/v2/silences", body).status();
  }

  absl::Status Lift(const Notification& notification) {
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> there, Ours(notification));
    for (const std::string& id : there) {
      RB_RETURN_IF_ERROR(Call("DELETE", absl::StrCat("/api/v2/silence/", UrlEscape(id)), Json()).status());
    }
    return absl::OkStatus();
  }

 private:
  absl::StatusOr<std::vector<std::string>> Ours(const Notification& notification) {
    RB_ASSIGN_OR_RETURN(const Json answer, Call("GET", "/api/v2/silences", Json()));
    std::vector<std::string> ids;
    if (!answer.is_array()) return absl::UnavailableError("Alertmanager gave an answer that was not understood");
    for (const Json& one : answer) {
      if (!one.is_object()) continue;
      const auto status = one.find("status");
      if (TextOf(one, "createdBy") != "rbctl") continue;
      if (status != one.end() && TextOf(*status, "state") == "expired") continue;
      if (!absl::StartsWith(TextOf(one, "comment"), absl::StrCat(notification.operation_id, ":"))) continue;
      if (ids.size() < kMostSilences) ids.push_back(TextOf(one, "id"));
    }
    return ids;
  }

  absl::StatusOr<Json> Call(const std::string& method, const std::string& path, const Json& body) {
    HttpRequest request;
    request.method = method;
    request.url = std::string(absl::StripSuffix(config_.url(), "/")) + path;
    request.name = "Alertmanager";
    request.headers = {"Accept: application/json"};
    if (!config_.token_file().empty()) {
      RB_ASSIGN_OR_RETURN(const std::string token, ReadSecret(config_.token_file()));
      request.headers.push_back(absl::StrCat("Authorization: Bearer ", token));
    }
    if (!body.is_null()) {
      request.headers.emplace_back("Content-Type: application/json");
      request.body = Dump(body);
    }
    RB_ASSIGN_OR_RETURN(const HttpResponse response, Fetch(request));
    RB_RETURN_IF_ERROR(Judge("Alertmanager", response.status));
    if (response.body.empty()) return Json();
    Json json = Json::parse(response.body, nullptr, false);
    if (json.is_discarded()) return absl::UnavailableError("Alertmanager gave an answer that was not understood");
    return json;
  }

  const v1::AlertmanagerConfig& config_;
};

}  // namespace

std::vector<std::pair<std::string, std::string>> CheckNotifications(const v1::NotificationsConfig& config,
                                                                    const std::vector<std::string>& environments) {
  std::vector<std::pair<std::string, std::string>> problems;
  std::set<std::string> names;
  const std::vector<std::string> events(std::begin(kNotificationEvents), std::end(kNotificationEvents));
  const auto nearest = [](const std::string& word, const std::vector<std::string>& of) {
    const std::string found = NearestSpelling(word, of);
    return found.empty() ? absl::StrCat("; there are: ", absl::StrJoin(of, ", "))
                         : absl::StrCat("; did you mean ", found, "?");
  };
  for (int i = 0; i < config.rules_size(); ++i) {
    const v1::NotificationRuleConfig& rule = config.rules(i);
    const std::string at = absl::StrCat(".rules[", i, "]");
    if (rule.name().empty()) problems.emplace_back(at, "`name` is missing");
    if (!names.insert(rule.name()).second) problems.emplace_back(at + ".name", "is the name of another rule");
    if (rule.name() == kSilence || absl::StrContains(rule.name(), "/")) {
      problems.emplace_back(at + ".name", "cannot be used");
    }
    for (const std::string& one : rule.environments()) {
      if (std::find(environments.begin(), environments.end(), one) != environments.end()) continue;
      problems.emplace_back(at + ".environments",
                            absl::StrCat("there is no environment '", one, "'", nearest(one, environments)));
    }
    for (const std::string& one : rule.events()) {
      if (std::find(events.begin(), events.end(), one) != events.end()) continue;
      problems.emplace_back(at + ".events", absl::StrCat("there is no event '", one, "'", nearest(one, events)));
    }
    for (const std::string& one : UnknownPlaceholders(rule.template_())) {
      problems.emplace_back(at + ".template", absl::StrCat("there is no {", one, "}"));
    }
    const int receivers = (rule.has_webhook() ? 1 : 0) + (rule.has_slack() ? 1 : 0) + (rule.has_discord() ? 1 : 0) +
                          (rule.has_email() ? 1 : 0);
    if (receivers != 1) problems.emplace_back(at, "names exactly one of: webhook, slack, discord, email");
    for (const auto& [key, receiver] : {std::pair{".webhook", rule.has_webhook() ? &rule.webhook() : nullptr},
                                        std::pair{".slack", rule.has_slack() ? &rule.slack() : nullptr},
                                        std::pair{".discord", rule.has_discord() ? &rule.discord() : nullptr}}) {
      if (receiver == nullptr) continue;
      if (receiver->url().empty() == receiver->url_file().empty()) {
        problems.emplace_back(at + key, "names `url_file` (a file with the address), or `url` where that is no secret");
      } else if (!receiver->url().empty() && !IsHttp(receiver->url())) {
        problems.emplace_back(at + key + ".url", "begins with https://");
      }
    }
    if (rule.has_email()) {
      const v1::EmailReceiverConfig& email = rule.email();
      if (!absl::StartsWith(email.server(), "smtp://") && !absl::StartsWith(email.server(), "smtps://")) {
        problems.emplace_back(at + ".email.server", "begins with smtp:// or smtps://");
      }
      std::vector<std::string> addresses(email.to().begin(), email.to().end());
      if (addresses.empty()) problems.emplace_back(at + ".email", "`to` is missing");
      addresses.push_back(email.from());
      for (const std::string& address : addresses) {
        if (!absl::StrContains(address, "@") || address.find_first_of(" \t\r\n<>,") != std::string::npos) {
          problems.emplace_back(at + ".email", absl::StrCat("'", address, "' is no address"));
        }
      }
    }
  }
  if (config.has_alertmanager() && !IsHttp(config.alertmanager().url())) {
    problems.emplace_back(".alertmanager.url", "begins with https:// or http://");
  }
  return problems;
}

std::vector<NotificationRule> RulesOf(const v1::NotificationsConfig& config) {
  std::vector<NotificationRule> rules;
  for (const v1::NotificationRuleConfig& rule : config.rules()) {
    NotificationRule made;
    made.name = rule.name();
    made.environments.assign(rule.environments().begin(), rule.environments().end());
    made.events.assign(rule.events().begin(), rule.events().end());
    made.text = rule.template_();
    rules.push_back(std::move(made));
  }
  return rules;
}

absl::Status Send(const v1::NotificationsConfig& config, const Notification& notification, absl::Time now) {
  if (notification.rule == kSilence) {
    if (!config.has_alertmanager()) return absl::OkStatus();
    Alertmanager alertmanager(config.alertmanager());
    return notification.event == kEventLift ? alertmanager.Lift(notification) : alertmanager.Silence(notification, now);
  }
  for (const v1::NotificationRuleConfig& rule : config.rules()) {
    if (rule.name() != notification.rule) continue;
    if (rule.has_email()) return SendMail(rule.name(), rule.email(), notification, now);
    if (rule.has_slack()) return Post(rule.name(), rule.slack(), {{"text", notification.text}}, notification.key);
    if (rule.has_discord()) {
      return Post(rule.name(), rule.discord(),
                  {{"content", notification.text}, {"allowed_mentions", {{"parse", Json::array()}}}}, notification.key);
    }
    return Post(rule.name(), rule.webhook(),
                {{"key", notification.key},
                 {"event", notification.event},
                 {"operation", notification.operation_id},
                 {"environment", notification.environment},
                 {"service", notification.service},
                 {"hosts", notification.hosts},
                 {"text", notification.text}},
                notification.key);
  }
  // The rule was taken out of the file meanwhile: nobody is to be told.
  return absl::OkStatus();
}

}  // namespace rb::controller

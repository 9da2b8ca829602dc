#include "controller/core/intent.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "common/clock.h"
#include "common/text.h"

namespace rb::controller {
namespace {

using Ended = OperationEnd::Host::Ended;

Refusal Refuse(Refusal::Code code, const std::string& message, const std::string& next) {
  Refusal refusal;
  refusal.code = code;
  refusal.message = absl::StrCat(message, ". Nothing was changed");
  refusal.next_command = next;
  return refusal;
}

}  // namespace

void LearnEnd(const OperationEnd& end, Intents* intents) {
  const bool any_new = std::any_of(end.hosts.begin(), end.hosts.end(),
                                   [](const OperationEnd::Host& host) { return host.ended == Ended::kOnTarget; });
  for (const OperationEnd::Host& host : end.hosts) {
    const std::pair<std::string, std::string> key(end.service, host.name);
    if (host.ended == Ended::kOnTarget || host.ended == Ended::kOnOld) {
      intents->erase(key);
      continue;
    }
    // Nobody moved, so nothing was missed; an older intent stands.
    if (host.ended == Ended::kMissed && !any_new) continue;
    Intent intent;
    intent.operation_id = end.id;
    intent.environment = host.environment;
    intent.service = end.service;
    intent.host = host.name;
    intent.commit = any_new ? end.to_commit : host.from_commit;
    if (any_new) intent.version = end.to_version;
    intent.expires_at = end.at + kIntentLife;
    if (!intent.commit.empty()) (*intents)[key] = std::move(intent);
  }
}

void LearnReport(const std::string& service, const std::string& host, const std::string& commit, bool drifted,
                 Intents* intents) {
  const auto found = intents->find({service, host});
  if (found != intents->end() && !drifted && found->second.commit == commit) intents->erase(found);
}

Refusal ResolveRepair(const Intents& intents, absl::Time now, OperationSpec* spec) {
  if (spec->hosts.size() != 1) {
    return Refuse(Refusal::Code::kBadRequest, "a repair is of one host", "rbctl repair HOST");
  }
  const std::string host = Printable(spec->hosts[0]);
  std::vector<const Intent*> of_host;
  for (const auto& [key, intent] : intents) {
    if (key.second == spec->hosts[0] && (spec->service.empty() || spec->service == key.first)) {
      of_host.push_back(&intent);
    }
  }
  if (of_host.empty()) {
    return Refuse(Refusal::Code::kNoCandidate, absl::StrCat(host, " has missed nothing that is known of"),
                  "rbctl status");
  }
  if (of_host.size() > 1) {
    const std::string services = absl::StrJoin(
        of_host, ", ", [](std::string* out, const Intent* intent) { absl::StrAppend(out, intent->service); });
    return Refuse(Refusal::Code::kUnknownService, absl::StrCat("say which service of ", host, ": ", services),
                  absl::StrCat("rbctl repair ", host, " ", of_host[0]->service));
  }
  const Intent& intent = *of_host[0];
  if (now >= intent.expires_at) {
    return Refuse(
        Refusal::Code::kNoCandidate,
        absl::StrCat("what ", host, " missed (", intent.operation_id, ") expired at ", FormatUtc(intent.expires_at),
                     ": say where it is to go"),
        absl::StrCat("rbctl rollback ", intent.environment, " --host ", host, " --to ", intent.commit.substr(0, 7)));
  }
  spec->environment = intent.environment;
  spec->service = intent.service;
  spec->target.kind = TargetReference::Kind::kNamed;
  spec->target.name = intent.commit;
  // The others run it already.
  spec->target.force = true;
  return Refusal();
}

}  // namespace rb::controller

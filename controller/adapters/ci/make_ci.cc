#include "controller/adapters/ci/make_ci.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/adapters/proto_time.h"
#include "controller/adapters/ci/command_ci.h"
#include "controller/adapters/ci/forge_ci.h"
#include "controller/adapters/ci/webhook_ci.h"

namespace rb::controller {

std::map<std::string, CiService> MakeCiServices(const v1::FleetConfig& fleet, const std::string& folder) {
  std::map<std::string, CiService> services;
  for (const auto& [name, config] : fleet.services()) {
    if (!config.has_ci()) continue;
    CiService service;
    if (config.ci().has_poll()) service.poll = FromProto(config.ci().poll());
    if (config.ci().has_command()) service.provider = MakeCommandCi(config.ci().command());
    if (config.ci().has_github() || config.ci().has_gitea()) {
      const Forge forge = config.ci().has_github() ? Forge::kGithub : Forge::kGitea;
      const v1::GithubCiConfig& of = config.ci().has_github() ? config.ci().github() : config.ci().gitea();
      service.provider = config.ci().how() == "revert"
                             ? MakeRevertCi(forge, of, config.ci().revert(), absl::StrCat(folder, "/ci/", name, ".git"))
                             : MakeForgeCi(forge, of);
    }
    if (config.ci().has_webhook()) service.provider = MakeWebhookCi(config.ci().webhook());
    if (service.provider != nullptr) services.emplace(name, std::move(service));
  }
  return services;
}

}  // namespace rb::controller

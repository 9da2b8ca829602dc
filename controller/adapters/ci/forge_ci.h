// GitHub Actions (also Enterprise), and Gitea or Forgejo Actions, whose API is made after GitHub's.
#ifndef RB_CONTROLLER_ADAPTERS_CI_FORGE_CI_H_
#define RB_CONTROLLER_ADAPTERS_CI_FORGE_CI_H_

#include <memory>
#include <string>

#include "controller/core/ports/ci.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

enum class Forge { kGithub, kGitea };

// Dispatches the deploy workflow of a repository. Of its run it is known by the id that the dispatch gave; else by the
// key in its name; else, where the workflow takes no key, by being the only run of that workflow and branch that a
// dispatch made since it was asked for. `config` has passed CheckCi.
std::unique_ptr<CiProvider> MakeForgeCi(Forge forge, const v1::GithubCiConfig& config);

// Pushes a commit with the good one's files in place of that (RevertPusher), and follows the run that the push, or the
// merge of the pull request, begins. `folder`: for a bare repository of its own.
std::unique_ptr<CiProvider> MakeRevertCi(Forge forge, const v1::GithubCiConfig& config, const v1::RevertConfig& revert,
                                         const std::string& folder);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_FORGE_CI_H_

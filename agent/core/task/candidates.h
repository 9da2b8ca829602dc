#ifndef RB_AGENT_CORE_TASK_CANDIDATES_H_
#define RB_AGENT_CORE_TASK_CANDIDATES_H_

#include <string>
#include <vector>

#include "agent/core/engine/engine.h"
#include "agent/core/release.h"
#include "agent/core/task/task.h"

namespace rb::agent {

// What a reference means among a host's releases (newest first), best candidate first. A named reference matches a
// release's name (with or without the service), its version, or the beginning (4 digits or more) of its commit or
// manifest digest; more than one commit in the answer means that it is ambiguous. A candidate that must not be used
// without force says why. Empty when nothing matches. Where code is not among `components`, the last good release may
// be of the commit that runs now.
std::vector<Candidate> ChooseReleases(const TargetReference& target, const std::vector<Release>& releases,
                                      const Current& current, const Components& components);

// "is bad: REASON" when this host has rolled back from that commit, or reverted it, and no release of it is good; else
// "". A commit is no better from git than from a backup.
std::string WhyCommitIsBad(const std::vector<Release>& releases, const std::string& commit);

// What there is, when nothing matches: the newest 10, each refused because it is not what was asked for.
std::vector<Candidate> ListInstead(const TargetReference& target, const std::vector<Release>& releases);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_TASK_CANDIDATES_H_

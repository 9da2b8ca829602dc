// Which releases a host's store keeps. Pure.
#ifndef RB_AGENT_CORE_ENGINE_RETENTION_H_
#define RB_AGENT_CORE_ENGINE_RETENTION_H_

#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "agent/core/release.h"

namespace rb::agent {

// The names of those that go, in the order of `newest_first`. Kept are:
//  - what `referred` names: the current release, and what an open transaction goes to or came from;
//  - pinned ones;
//  - the newest proved one that is not bad;
//  - the newest `keep_good` good ones that are whole. Others are not counted with them: they push no good one out,
//    however many bad or damaged ones there are;
//  - of the others, which people look for when something went wrong, as many again: the newest, and none that is older
//    than the oldest good one that is kept by its number (where there are fewer good ones than that: of any age).
std::vector<std::string> ReleasesToRemove(const std::vector<Release>& newest_first, uint32_t keep_good,
                                          const std::set<std::string>& referred);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_RETENTION_H_

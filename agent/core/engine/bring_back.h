// What a deploy by other means has removed and should not have: pure.
#ifndef RB_AGENT_CORE_ENGINE_BRING_BACK_H_
#define RB_AGENT_CORE_ENGINE_BRING_BACK_H_

#include <functional>
#include <string>

#include "agent/core/engine/manifest.h"
#include "agent/core/engine/walk.h"
#include "agent/core/service.h"

namespace rb::agent {

// The live tree, and with it what `release` has, the live tree lacks, and `wanted` says yes to; folders that lead there
// come along. Nothing that is live is replaced: where something else stands in the way, that stays. A database that
// comes back takes the place of journal files that were left beside it: those are not in the result.
Manifest MergeMissing(const LiveTree& live, const Manifest& release, const ServiceTree& tree,
                      const std::function<bool(const std::string& path)>& wanted);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_BRING_BACK_H_

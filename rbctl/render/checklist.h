// The recovery checklist: what has to hold for a host to be recovered, each on its own, with what was seen. Pure.
#ifndef RB_RBCTL_RENDER_CHECKLIST_H_
#define RB_RBCTL_RENDER_CHECKLIST_H_

#include <string>
#include <vector>

#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

struct Check {
  std::string name;
  bool passed = false;
  // Of something that the service depends on: it is not the release's fault.
  bool external = false;
  std::string seen;
  std::string expected;
};

// Whether its recovery was measured: not of a host that was there already, nor of one that has not recovered.
bool IsJudged(const v1::HostProgress& host);
// Every probe, in the agent's order, then the time against its target where one was measured. Empty when nobody has
// looked.
std::vector<Check> ChecklistOf(const v1::HostProgress& host);
// "passed", "FAILED", or "down (external)".
std::string ResultOf(const Check& check);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_CHECKLIST_H_

// Documents in Markdown, from what the controller knows. Pure. Everything that came over the wire is made safe for a
// terminal, and cannot become markup.
#ifndef RB_RBCTL_RENDER_DOCUMENTS_H_
#define RB_RBCTL_RENDER_DOCUMENTS_H_

#include <string>

#include "rb/v1/doctor_service.pb.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::cli {

// What to type when it is broken: with the real hosts, units, folders and releases, and what to do when the controller,
// or all of ours, does not run.
std::string RenderRunbook(const v1::GetRunbookResponse& runbook);

// What happened: detection, impact, timeline, what was rolled back, each host's evidence, what is to be done.
std::string RenderIncident(const v1::GetOperationResponse& response);

// What worked and what needs improvement, as far as figures say.
std::string RenderNotes(const v1::GetOperationResponse& response);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_DOCUMENTS_H_

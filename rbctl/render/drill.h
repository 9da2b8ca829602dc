// Drills and schedules → text for people, JSON documents and one HTML page. Pure.
#ifndef RB_RBCTL_RENDER_DRILL_H_
#define RB_RBCTL_RENDER_DRILL_H_

#include <string>

#include "rb/v1/drill_service.pb.h"

namespace rb::cli {

std::string Word(v1::FaultKind fault);
std::string Word(v1::DrillState state);
bool HasEnded(v1::DrillState state);
int ExitCodeFor(const v1::Drill& drill);

std::string RenderDrills(const v1::ListDrillsResponse& response);
std::string RenderDrill(const v1::GetDrillResponse& response);
std::string RenderDrillEvent(const v1::DrillEvent& event);
std::string RenderDrillEnd(const v1::Drill& drill);
std::string RenderSchedules(const v1::ListSchedulesResponse& response);
// A line for each that is overdue; empty when none is.
std::string RenderOverdue(const v1::ListSchedulesResponse& response);

// The same figures as RenderDrillReport.
std::string JsonDrillReport(const v1::ListDrillsResponse& response);
std::string JsonDrills(const v1::ListDrillsResponse& response);
std::string JsonDrill(const v1::GetDrillResponse& response, int exit_code);
std::string JsonSchedules(const v1::ListSchedulesResponse& response);

// The report over many drills: how often what passed, times against targets, and who was trained when.
std::string RenderDrillReport(const v1::ListDrillsResponse& response);
// One page that needs nothing from outside: no scripts, no fonts, no links to follow.
std::string HtmlDrillReport(const v1::ListDrillsResponse& response);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_DRILL_H_

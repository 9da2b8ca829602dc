// What `rbctl doctor` says. Pure.
#ifndef RB_RBCTL_RENDER_DOCTOR_H_
#define RB_RBCTL_RENDER_DOCTOR_H_

#include <string>

#include "rb/v1/doctor_service.pb.h"
#include "rbctl/render/text.h"

namespace rb::cli {

std::string Word(v1::Severity severity);
// Whether something would be in the way of a recovery.
bool HasErrors(const v1::DiagnoseResponse& response);
std::string RenderDiagnosis(const v1::DiagnoseResponse& response, const Style& style);
std::string JsonDiagnosis(const v1::DiagnoseResponse& response, int exit_code);

// A whole document as one value: {"markdown": …}.
std::string JsonDocument(const std::string& markdown);

}  // namespace rb::cli

#endif  // RB_RBCTL_RENDER_DOCTOR_H_

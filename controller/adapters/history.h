// What is kept of operations that are over, and what plans make of it.
#ifndef RB_CONTROLLER_ADAPTERS_HISTORY_H_
#define RB_CONTROLLER_ADAPTERS_HISTORY_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "controller/adapters/store.h"
#include "controller/core/operation.h"
#include "controller/core/plan.h"
#include "rb/v1/fleet_service.pb.h"

namespace rb::controller {

// For a list, of any length: without the plan, and of the hosts only what the first one went to.
v1::Operation Brief(v1::Operation operation);

// Writes a rb.v1.ListOperationsResponse as it is sent. What is stored of an operation goes into it as it stands: a list
// of thousands is looked through, and never built as messages.
class ListWriter {
 public:
  // rb.v1.Operation. False, with nothing added, when it is damaged.
  [[nodiscard]] bool AddStored(absl::string_view stored);
  void Add(const v1::Operation& brief);
  // What has been added, and where the next page begins (empty: nowhere).
  std::string Take(const std::string& next_page_token) &&;

 private:
  void Append(absl::string_view operation);

  std::string wire_;
};

// What its hosts took; none unless it has succeeded. At most kMostTimeSamples.
std::vector<StoredTime> TimesOf(const Operation& operation);
void LearnTimes(const std::vector<StoredTime>& stored, PlanningHistory* history);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_HISTORY_H_

// Which rules shaped an operation, and how long the like of it has taken before. Pure.
#ifndef RB_CONTROLLER_CORE_EXPLAIN_H_
#define RB_CONTROLLER_CORE_EXPLAIN_H_

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::controller {

// As rb.v1.Reason.Rule, one lower.
enum class Rule {
  kScope,
  kMethod,
  kNotChosen,
  kFallback,
  kWave,
  kGate,
  kNotTouched,
  kVerification,
  kRefusal,
  kEvent,
};

struct Reason {
  Rule rule = Rule::kScope;
  std::string text;
  // At most kMostNamed of them; empty: it is about all.
  std::vector<std::string> hosts;
  uint32_t host_count = 0;
};

// Bounded: the same text for several hosts is one reason.
class Reasons {
 public:
  static constexpr size_t kMost = 200;

  // `host` may be empty.
  void Add(Rule rule, absl::string_view text, const std::string& host = "");
  void Add(Reason reason) {
    if (list_.size() < kMost) list_.push_back(std::move(reason));
  }
  const std::vector<Reason>& list() const { return list_; }

 private:
  std::vector<Reason> list_;
};

// What one host took in an operation that succeeded.
struct TimeSample {
  absl::Duration prepare;
  // From stop to healthy.
  absl::Duration downtime;
};
// For each service, environment and method.
inline constexpr size_t kMostTimeSamples = 200;

struct Prediction {
  absl::Duration p50;
  absl::Duration p95;
  // 0: nothing is known.
  uint32_t samples = 0;
  std::string basis;
};

// One host's own work.
Prediction PredictHost(const std::vector<TimeSample>& samples);

// Hosts of one method that are prepared together, and committed in these waves (hosts in each).
struct PredictedGroup {
  const std::vector<TimeSample>* samples = nullptr;
  // Wave, from 1, → hosts of the group in it.
  std::vector<uint32_t> hosts_in_wave;
};
// Of the whole operation: the slowest host prepares, then each wave lasts as long as its slowest host, and `soak`.
// With n hosts drawn from what was measured, the slowest stays under x with the n-th power of the chance of one. None
// when nothing is known for a group.
Prediction PredictOperation(const std::vector<PredictedGroup>& groups, absl::Duration soak);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_EXPLAIN_H_

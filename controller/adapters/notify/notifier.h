// The durable outbox, and the thread that empties it. Nothing here ever blocks the loop or an operation: what cannot be
// sent waits, and what can be sent no more is given up, on the record.
#ifndef RB_CONTROLLER_ADAPTERS_NOTIFY_NOTIFIER_H_
#define RB_CONTROLLER_ADAPTERS_NOTIFY_NOTIFIER_H_

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "common/adapters/metrics/metric_set.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "common/record_journal.h"
#include "controller/adapters/driver_observer.h"
#include "controller/core/notify.h"

namespace rb::controller {

// Thread-safe.
class Notifier final : public DriverObserver {
 public:
  using SendFunction = std::function<absl::Status(const Notification& notification)>;

  struct Options {
    // The outbox; made when missing.
    std::string path;
    std::vector<NotificationRule> rules;
    bool silences = false;
  };

  // `clock` is not owned.
  static absl::StatusOr<std::unique_ptr<Notifier>> Open(Options options, Clock& clock, SendFunction send);
  ~Notifier() override;

  // What was put into the outbox before is not put there again. `now`: nothing is owed for what ended before
  // this outbox was made.
  void OnState(const Operation& operation) override;
  void OnDrill(const Drill& drill);
  // Operations and drills whose hosts were silenced, and for which nobody has asked to lift it yet.
  std::vector<std::string> Silenced() const;

  size_t waiting() const;
  // As it is now.
  void Measure(MetricSamples* samples) const;

 private:
  struct Waiting {
    Notification notification;
    uint32_t attempts = 0;
    absl::Duration next;
    // Monotonic: when it was put there, or this program began.
    absl::Duration since;
  };

  Notifier(Options options, Clock& clock, SendFunction send);
  void Run();
  void PutNew(std::vector<Notification> notifications) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Both: durable when OK.
  absl::Status Put(Notification notification) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Done(const std::string& key) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::vector<std::string> Records() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of one operation and rule, in the order in which they came: a silence is made before it is lifted.
  bool IsBehind(const Waiting& waiting) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Options options_;
  Clock& clock_;
  const SendFunction send_;
  mutable Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  std::unique_ptr<RecordJournal> journal_ ABSL_GUARDED_BY(mutex_);
  // UTC.
  absl::Time made_at_ ABSL_GUARDED_BY(mutex_);
  std::deque<Waiting> waiting_ ABSL_GUARDED_BY(mutex_);
  // Keys that were put there, oldest first; bounded.
  std::deque<std::string> known_order_ ABSL_GUARDED_BY(mutex_);
  std::set<std::string> known_ ABSL_GUARDED_BY(mutex_);
  // Since the start.
  uint64_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t given_up_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t not_recorded_ ABSL_GUARDED_BY(mutex_) = 0;
  std::thread thread_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_NOTIFY_NOTIFIER_H_

// Has CI deploy, and follows its runs, on threads of its own: one for each run, and one for looking whether CI could be
// asked at all. Tells the loop.
#ifndef RB_CONTROLLER_ADAPTERS_CI_CI_RUNNER_H_
#define RB_CONTROLLER_ADAPTERS_CI_CI_RUNNER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/time/time.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "common/mutex.h"
#include "controller/core/operation.h"
#include "controller/core/ports/ci.h"

namespace rb::controller {

struct CiService {
  std::unique_ptr<CiProvider> provider;
  absl::Duration poll = absl::Seconds(5);
};

// Ask, Cancel, Check and WhyUnavailable are called on the loop.
class CiRunner {
 public:
  using Happened = std::variant<CiStarted, CiProgress, CiEnded>;
  // Called on the loop. False: it could not be recorded, and is told again in a moment.
  using Sink = std::function<bool(const std::string& operation_id, const Happened& happened)>;

  struct Patience {
    // With a provider that cannot be reached.
    absl::Duration to_ask = absl::Minutes(5);
    // For a run that was begun to be seen.
    absl::Duration to_find = absl::Minutes(2);
    // For a run that was asked to stop to have stopped.
    absl::Duration to_cancel = absl::Minutes(2);
    // When an earlier controller may have asked already: so long it is looked for before it is asked for again.
    absl::Duration before_asking_again = absl::Seconds(15);
  };

  // `loop` and `clock` are not owned. `services`: by name, those that have CI.
  CiRunner(EventLoop& loop, Clock& clock, std::map<std::string, CiService> services, Patience patience);
  ~CiRunner();
  CiRunner(const CiRunner&) = delete;
  CiRunner& operator=(const CiRunner&) = delete;

  void SetSink(Sink sink) { sink_ = std::move(sink); }
  // Once for each key; again for the same is nothing.
  void Ask(const std::string& operation_id, const AskCi& ask);
  void Cancel(const CancelCi& cancel);
  // What the last check has found, "" when it can be asked or is not known; and begins a new check.
  std::string WhyUnavailable(const std::string& service);
  // `done` is called on the loop, with the same.
  void Check(const std::string& service, std::function<void(std::string)> done);
  bool Has(const std::string& service) const { return services_.count(service) != 0; }

 private:
  enum class Wish { kFollow, kCancel, kLeave };
  struct Run {
    std::string operation_id;
    AskCi ask;
    CiService* service = nullptr;
    Wish wish = Wish::kFollow;  // under mutex_
    std::thread thread;
  };

  void Follow(Run* run);
  // Asks until there is a run. False: there is none, and it was told.
  bool Begin(Run* run, const CiRequest& request, CiRunHandle* handle);
  void Watch(Run* run, const CiRequest& request, const CiRunHandle& handle);
  // False when it is to end at once; returns early when the wish changes.
  bool Sleep(Run* run, Wish seen, absl::Duration time);
  Wish WishOf(Run* run);
  void Tell(Run* run, Happened happened);
  void TellOnLoop(const std::string& operation_id, const std::string& key, const Happened& happened);
  void Forget(const std::string& key);

  EventLoop& loop_;
  Clock& clock_;
  const Patience patience_;
  std::map<std::string, CiService> services_;
  Sink sink_;
  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  // By key. On the loop.
  std::map<std::string, std::unique_ptr<Run>> runs_;
  struct Checking {
    std::thread thread;
    std::vector<std::function<void(std::string)>> waiting;
    std::string last;
  };
  std::map<std::string, Checking> checks_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_CI_RUNNER_H_

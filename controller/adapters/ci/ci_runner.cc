#include "controller/adapters/ci/ci_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/text.h"

namespace rb::controller {
namespace {

constexpr absl::Duration kFirstWait = absl::Seconds(1);
constexpr absl::Duration kLongestWaitBetween = absl::Seconds(60);
constexpr absl::Duration kTellAgain = absl::Seconds(2);
// Each is an event of the operation's journal.
constexpr int kMostProgress = 30;
constexpr size_t kLongestText = 300;

std::string Text(absl::string_view text) { return Truncate(Printable(std::string(text)), kLongestText); }

absl::Duration NextWait(const absl::Status& status, absl::Duration* backoff) {
  const absl::Duration wait = std::max(RetryAfter(status), *backoff);
  *backoff = std::min(*backoff * 2, kLongestWaitBetween);
  return wait;
}

}  // namespace

CiRunner::CiRunner(EventLoop& loop, Clock& clock, std::map<std::string, CiService> services, Patience patience)
    : loop_(loop), clock_(clock), patience_(patience), services_(std::move(services)) {}

CiRunner::~CiRunner() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  for (auto& [key, run] : runs_) {
    if (run->thread.joinable()) run->thread.join();
  }
  for (auto& [service, check] : checks_) {
    if (check.thread.joinable()) check.thread.join();
  }
}

void CiRunner::Ask(const std::string& operation_id, const AskCi& ask) {
  if (runs_.count(ask.key) != 0) return;
  const auto service = services_.find(ask.service);
  if (service == services_.end()) {
    // The fleet file was changed since it was planned.
    loop_.PostResult([this, operation_id, key = ask.key] {
      TellOnLoop(operation_id, key,
                 CiEnded{key, CiEnded::Outcome::kLost, "the fleet file no longer names a CI for it"});
    });
    return;
  }
  auto run = std::make_unique<Run>();
  run->operation_id = operation_id;
  run->ask = ask;
  run->service = &service->second;
  Run* const raw = run.get();
  runs_[ask.key] = std::move(run);
  raw->thread = std::thread([this, raw] { Follow(raw); });
}

void CiRunner::Cancel(const CancelCi& cancel) {
  const auto found = runs_.find(cancel.key);
  if (found == runs_.end()) return;
  const MutexLock lock(mutex_);
  found->second->wish = cancel.leave ? Wish::kLeave : Wish::kCancel;
  changed_.NotifyAll();
}

CiRunner::Wish CiRunner::WishOf(Run* run) {
  const MutexLock lock(mutex_);
  return stopping_ ? Wish::kLeave : run->wish;
}

bool CiRunner::Sleep(Run* run, Wish seen, absl::Duration time) {
  const MutexLock lock(mutex_);
  const absl::Duration until = clock_.Monotonic() + time;
  while (!stopping_ && run->wish == seen) {
    const absl::Duration left = until - clock_.Monotonic();
    if (left <= absl::ZeroDuration()) break;
    changed_.WaitFor(mutex_, left);
  }
  return !stopping_ && run->wish != Wish::kLeave;
}

void CiRunner::Tell(Run* run, Happened happened) {
  loop_.PostResult([this, operation_id = run->operation_id, key = run->ask.key, happened = std::move(happened)] {
    TellOnLoop(operation_id, key, happened);
  });
}

void CiRunner::TellOnLoop(const std::string& operation_id, const std::string& key, const Happened& happened) {
  if (!sink_(operation_id, happened)) {
    // What is for people alone may be lost.
    if (std::holds_alternative<CiProgress>(happened)) return;
    loop_.PostAt(clock_.Monotonic() + kTellAgain,
                 [this, operation_id, key, happened] { TellOnLoop(operation_id, key, happened); });
    return;
  }
  if (std::holds_alternative<CiEnded>(happened)) Forget(key);
}

// Its thread has told the last it has to tell.
void CiRunner::Forget(const std::string& key) {
  const auto found = runs_.find(key);
  if (found == runs_.end()) return;
  if (found->second->thread.joinable()) found->second->thread.join();
  runs_.erase(found);
}

void CiRunner::Follow(Run* run) {
  CiRequest request;
  request.key = run->ask.key;
  request.service = run->ask.service;
  request.environment = run->ask.environment;
  request.commit = run->ask.commit;
  request.version = run->ask.version;
  request.reason = run->ask.reason;
  request.asked_at = run->ask.asked_at;
  CiRunHandle handle;
  handle.id = run->ask.run;
  handle.url = run->ask.url;
  handle.deployed_commit = run->ask.deployed_commit;
  if (handle.id.empty() && !Begin(run, request, &handle)) return;
  Watch(run, request, handle);
}

bool CiRunner::Begin(Run* run, const CiRequest& request, CiRunHandle* handle) {
  CiProvider& provider = *run->service->provider;
  const absl::Duration began = clock_.Monotonic();
  // Once it was asked for, it is looked for only: two runs would be worse than none.
  absl::Duration asked = absl::InfiniteDuration();
  absl::Duration backoff = kFirstWait;
  const auto end = [&](CiEnded::Outcome outcome, absl::string_view why) {
    Tell(run, CiEnded{request.key, outcome, Text(why)});
    return false;
  };
  while (true) {
    const Wish wish = WishOf(run);
    const bool was_asked = asked != absl::InfiniteDuration();
    const absl::Duration now = clock_.Monotonic();
    absl::StatusOr<std::optional<CiRunHandle>> found = provider.Find(request);
    if (!found.ok() || !found->has_value()) {
      const bool wait_for_earlier =
          run->ask.again && !provider.IsIdempotent() && now - began < patience_.before_asking_again;
      if (found.ok() && !was_asked && !wait_for_earlier) {
        if (wish == Wish::kCancel) return end(CiEnded::Outcome::kNeverRan, "cancelled before CI was asked");
        if (wish == Wish::kLeave) return false;
        asked = now;
        found = provider.Dispatch(request);
        // It may have been begun all the same where no answer came.
        if (!found.ok() && !absl::IsUnavailable(found.status())) {
          return end(CiEnded::Outcome::kNeverRan, found.status().message());
        }
        if (!found.ok() && (provider.IsIdempotent() || RetryAfter(found.status()) > absl::ZeroDuration())) {
          asked = absl::InfiniteDuration();
        }
      } else if (!found.ok() && !absl::IsUnavailable(found.status())) {
        return end(was_asked ? CiEnded::Outcome::kLost : CiEnded::Outcome::kNeverRan, found.status().message());
      }
    }
    if (found.ok() && found->has_value()) {
      *handle = **found;
      Tell(run, CiStarted{request.key, handle->id, handle->url, handle->deployed_commit});
      return true;
    }
    const absl::Duration spent = clock_.Monotonic() - (was_asked ? asked : began);
    if (spent >= (was_asked ? patience_.to_find : patience_.to_ask)) {
      const std::string why = found.ok() ? "no run of it was seen" : std::string(found.status().message());
      return end(was_asked || run->ask.again ? CiEnded::Outcome::kLost : CiEnded::Outcome::kNeverRan,
                 absl::StrCat("CI could not be asked: ", why));
    }
    if (!found.ok()) LogWarning("ci", request.key, ": ", found.status().message(), "; trying again");
    if (!Sleep(run, wish, found.ok() ? std::min(run->service->poll, kFirstWait) : NextWait(found.status(), &backoff))) {
      return false;
    }
  }
}

void CiRunner::Watch(Run* run, const CiRequest& request, const CiRunHandle& handle) {
  CiProvider& provider = *run->service->provider;
  std::string told;
  int progress = 0;
  absl::Duration backoff = kFirstWait;
  absl::Duration cancelled = absl::InfiniteDuration();
  while (true) {
    const Wish wish = WishOf(run);
    if (wish == Wish::kLeave) {
      Tell(run, CiEnded{request.key, CiEnded::Outcome::kSucceeded, "no longer followed"});
      return;
    }
    const bool was_cancelled = cancelled != absl::InfiniteDuration();
    absl::Status problem;
    if (wish == Wish::kCancel && !was_cancelled) {
      problem = provider.Cancel(request, handle);
      if (problem.ok() || !absl::IsUnavailable(problem)) cancelled = clock_.Monotonic();
      if (!problem.ok()) LogWarning("ci", request.key, ": ", problem.message());
    }
    const absl::StatusOr<CiRunStatus> status = provider.Look(request, handle);
    if (status.ok() && status->ended()) {
      const CiEnded::Outcome outcome = status->state == CiRunStatus::State::kSucceeded ? CiEnded::Outcome::kSucceeded
                                       : status->state == CiRunStatus::State::kFailed  ? CiEnded::Outcome::kFailed
                                                                                       : CiEnded::Outcome::kCancelled;
      Tell(run, CiEnded{request.key, outcome, Text(status->text)});
      return;
    }
    if (!status.ok()) problem = status.status();
    if (was_cancelled && clock_.Monotonic() - cancelled >= patience_.to_cancel) {
      Tell(run, CiEnded{request.key, CiEnded::Outcome::kLost, "it was asked to stop, and did not say that it has"});
      return;
    }
    std::string text = Text(problem.ok() ? status->text : problem.message());
    if (text != told && !text.empty() && progress < kMostProgress) {
      ++progress;
      Tell(run, CiProgress{request.key, text});
      told = std::move(text);
    }
    if (problem.ok()) backoff = kFirstWait;
    Sleep(run, wish, problem.ok() ? run->service->poll : NextWait(problem, &backoff));
  }
}

std::string CiRunner::WhyUnavailable(const std::string& service) {
  Check(service, nullptr);
  return checks_[service].last;
}

void CiRunner::Check(const std::string& service, std::function<void(std::string)> done) {
  const auto found = services_.find(service);
  if (found == services_.end()) {
    if (done) done("");
    return;
  }
  Checking& checking = checks_[service];
  if (done) checking.waiting.push_back(std::move(done));
  if (checking.thread.joinable()) return;
  checking.thread = std::thread([this, service, provider = found->second.provider.get()] {
    const absl::Status checked = provider->Check();
    loop_.PostResult([this, service, why = checked.ok() ? "" : Text(checked.message())] {
      Checking& of = checks_[service];
      of.thread.join();
      of.last = why;
      for (const auto& waiting : std::exchange(of.waiting, {})) waiting(why);
    });
  });
}

}  // namespace rb::controller

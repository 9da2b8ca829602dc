#include "controller/adapters/notify/notifier.h"

#include <algorithm>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/failpoint.h"
#include "common/log.h"
#include "common/status.h"
#include "nlohmann/json.hpp"

namespace rb::controller {
namespace {

using Json = nlohmann::json;

constexpr size_t kMostKnown = 5000;
constexpr size_t kMostWaiting = 1000;
constexpr uint64_t kCompactBytes = 4 << 20;
constexpr absl::Duration kIdle = absl::Seconds(60);

std::string Dump(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

Json ToJson(const Notification& one) {
  return {{"key", one.key},
          {"rule", one.rule},
          {"event", one.event},
          {"operation", one.operation_id},
          {"environment", one.environment},
          {"service", one.service},
          {"text", one.text},
          {"hosts", one.hosts}};
}

Notification FromJson(const Json& json) {
  Notification one;
  one.key = json.value("key", "");
  one.rule = json.value("rule", "");
  one.event = json.value("event", "");
  one.operation_id = json.value("operation", "");
  one.environment = json.value("environment", "");
  one.service = json.value("service", "");
  one.text = json.value("text", "");
  one.hosts = json.value("hosts", std::vector<std::string>());
  return one;
}

}  // namespace

Notifier::Notifier(Options options, Clock& clock, SendFunction send)
    : options_(std::move(options)), clock_(clock), send_(std::move(send)) {}

absl::StatusOr<std::unique_ptr<Notifier>> Notifier::Open(Options options, Clock& clock, SendFunction send) {
  std::unique_ptr<Notifier> notifier(new Notifier(std::move(options), clock, std::move(send)));
  {
    const MutexLock lock(notifier->mutex_);
    std::vector<std::string> records;
    RB_ASSIGN_OR_RETURN(notifier->journal_, RecordJournal::Open(notifier->options_.path, &records));
    notifier->made_at_ = clock.Now();
    for (const std::string& record : records) {
      const Json json = Json::parse(record, nullptr, false);
      if (!json.is_object()) return absl::DataLossError("the outbox of notifications is damaged");
      if (json.contains("made_at")) notifier->made_at_ = absl::FromUnixMicros(json.value("made_at", int64_t{0}));
      if (json.contains("known")) {
        for (const auto& key : json.value("known", std::vector<std::string>())) {
          if (notifier->known_.insert(key).second) notifier->known_order_.push_back(key);
        }
      }
      if (json.contains("put")) {
        Waiting waiting;
        waiting.notification = FromJson(json["put"]);
        waiting.since = clock.Monotonic();
        if (notifier->known_.insert(waiting.notification.key).second) {
          notifier->known_order_.push_back(waiting.notification.key);
        }
        notifier->waiting_.push_back(std::move(waiting));
      }
      if (json.contains("done")) {
        std::deque<Waiting>& all = notifier->waiting_;
        all.erase(std::remove_if(all.begin(), all.end(),
                                 [&](const Waiting& one) { return one.notification.key == json.value("done", ""); }),
                  all.end());
      }
    }
    RB_RETURN_IF_ERROR(notifier->journal_->Rewrite(notifier->Records()));
  }
  notifier->thread_ = std::thread([raw = notifier.get()] { raw->Run(); });
  return notifier;
}

Notifier::~Notifier() {
  {
    const MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  if (thread_.joinable()) thread_.join();
}

std::vector<std::string> Notifier::Records() const {
  std::vector<std::string> records = {
      Dump({{"made_at", absl::ToUnixMicros(made_at_)}}),
      Dump({{"known", std::vector<std::string>(known_order_.begin(), known_order_.end())}})};
  for (const Waiting& one : waiting_) records.push_back(Dump({{"put", ToJson(one.notification)}}));
  return records;
}

size_t Notifier::waiting() const {
  const MutexLock lock(mutex_);
  return waiting_.size();
}

void Notifier::Measure(MetricSamples* samples) const {
  const MutexLock lock(mutex_);
  absl::Duration oldest;
  for (const Waiting& one : waiting_) oldest = std::max(oldest, clock_.Monotonic() - one.since);
  samples->Set(Metric::kNotificationsWaiting, {}, static_cast<double>(waiting_.size()));
  samples->Set(Metric::kNotificationsOldestWait, {}, absl::ToDoubleSeconds(oldest));
  samples->Set(Metric::kNotifications, {"sent"}, static_cast<double>(sent_));
  samples->Set(Metric::kNotifications, {"given_up"}, static_cast<double>(given_up_));
  samples->Set(Metric::kNotifications, {"not_recorded"}, static_cast<double>(not_recorded_));
}

void Notifier::OnState(const Operation& operation) {
  const MutexLock lock(mutex_);
  if (IsFinal(operation.state) && operation.ended_at < made_at_) return;
  PutNew(NotificationsFor(operation, options_.rules, options_.silences));
}

void Notifier::OnDrill(const Drill& drill) {
  const MutexLock lock(mutex_);
  if (IsFinal(drill.state) && drill.ended_at < made_at_) return;
  PutNew(NotificationsFor(drill, options_.rules, options_.silences));
}

std::vector<std::string> Notifier::Silenced() const {
  const std::string silenced = absl::StrCat("/", kEventSilence, "/", kSilence);
  const MutexLock lock(mutex_);
  std::vector<std::string> ids;
  for (const std::string& key : known_order_) {
    if (!absl::EndsWith(key, silenced)) continue;
    std::string id = key.substr(0, key.size() - silenced.size());
    if (known_.count(absl::StrCat(id, "/", kEventLift, "/", kSilence)) == 0) ids.push_back(std::move(id));
  }
  return ids;
}

void Notifier::PutNew(std::vector<Notification> notifications) {
  for (Notification& notification : notifications) {
    if (known_.count(notification.key) != 0) continue;
    const std::string key = notification.key;
    if (const absl::Status put = Put(std::move(notification)); !put.ok()) {
      // It is put there again when the controller starts.
      ++not_recorded_;
      LogError("notify", key, " could not be recorded: ", put.message());
    }
  }
}

absl::Status Notifier::Put(Notification notification) {
  if (waiting_.size() >= kMostWaiting) return absl::ResourceExhaustedError("too many notifications wait to be sent");
  if (journal_->size_bytes() > kCompactBytes) {
    RB_RETURN_IF_ERROR(journal_->Rewrite(Records()));
  }
  RB_RETURN_IF_ERROR(journal_->Append(Dump({{"put", ToJson(notification)}})));
  known_.insert(notification.key);
  known_order_.push_back(notification.key);
  while (known_order_.size() > kMostKnown) {
    known_.erase(known_order_.front());
    known_order_.pop_front();
  }
  Waiting waiting;
  waiting.notification = std::move(notification);
  waiting.next = waiting.since = clock_.Monotonic();
  waiting_.push_back(std::move(waiting));
  changed_.NotifyAll();
  return absl::OkStatus();
}

void Notifier::Done(const std::string& key) {
  waiting_.erase(
      std::remove_if(waiting_.begin(), waiting_.end(), [&](const Waiting& one) { return one.notification.key == key; }),
      waiting_.end());
  if (const absl::Status done = journal_->Append(Dump({{"done", key}})); !done.ok()) {
    LogError("notify", key, " was sent, which could not be recorded: ", done.message());
  }
}

bool Notifier::IsBehind(const Waiting& waiting) const {
  for (const Waiting& other : waiting_) {
    if (&other == &waiting) return false;
    if (other.notification.operation_id == waiting.notification.operation_id &&
        other.notification.rule == waiting.notification.rule) {
      return true;
    }
  }
  return false;
}

void Notifier::Run() {
  while (true) {
    Notification notification;
    uint32_t attempts = 0;
    {
      const MutexLock lock(mutex_);
      while (true) {
        if (stopping_) return;
        const absl::Duration now = clock_.Monotonic();
        absl::Duration next = now + kIdle;
        const auto due = std::find_if(waiting_.begin(), waiting_.end(),
                                      [&](const Waiting& one) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
                                        if (IsBehind(one)) return false;
                                        next = std::min(next, one.next);
                                        return one.next <= now;
                                      });
        if (due != waiting_.end()) {
          notification = due->notification;
          attempts = due->attempts;
          break;
        }
        changed_.WaitFor(mutex_, std::max(next - now, absl::Milliseconds(10)));
      }
    }
    const absl::Status sent = send_(notification);
    if (sent.ok()) RB_FAILPOINT("controller.notify.after-send");
    const MutexLock lock(mutex_);
    ++attempts;
    if (sent.ok()) {
      ++sent_;
      Done(notification.key);
      continue;
    }
    // What is wrong may be mended: a token, an address. But not for ever.
    if (attempts >= kMostAttempts) {
      ++given_up_;
      LogError("notify", notification.key, " is given up after ", attempts, " attempts: ", sent.message());
      Done(notification.key);
      continue;
    }
    LogWarning("notify", notification.key, ": ", sent.message(), "; trying again");
    for (Waiting& one : waiting_) {
      if (one.notification.key != notification.key) continue;
      one.attempts = attempts;
      one.next = clock_.Monotonic() + WaitBeforeAttempt(attempts - 1);
    }
  }
}

}  // namespace rb::controller

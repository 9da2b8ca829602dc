// For tests: databases that are strings, and hooks that fail on demand.
#ifndef RB_AGENT_CORE_PORTS_FAKE_DATABASE_HOOKS_H_
#define RB_AGENT_CORE_PORTS_FAKE_DATABASE_HOOKS_H_

#include <algorithm>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "agent/core/ports/database_hooks.h"
#include "common/status.h"

namespace rb::agent {

// Behaves as the port says. Not thread-safe.
class FakeDatabaseHooks final : public DatabaseHooks {
 public:
  // Name → what the database holds. A test reads and writes it as the service would.
  std::map<std::string, std::string> databases;
  // Calls, in order: "dump main", "restore main".
  std::vector<std::string> calls;

  // These calls ("dump main") give the status until it is set to OK. A restore that fails has left half of the dump in
  // the database.
  void Fail(const std::string& call, absl::Status status) { failures_[call] = std::move(status); }
  // Called before each call takes effect, with its name.
  void OnCall(std::function<void(const std::string& call)> hook) { on_call_ = std::move(hook); }

  std::vector<std::string> Names() const override {
    std::vector<std::string> names;
    for (const auto& [name, content] : databases) names.push_back(name);
    return names;
  }

  absl::Status Dump(const std::string& name, const Sink& sink) override {
    RB_RETURN_IF_ERROR(Begin("dump", name));
    const std::string content = databases.at(name);
    const absl::Status failure = failures_[absl::StrCat("dump ", name)];
    const size_t end = failure.ok() ? content.size() : content.size() / 2;
    for (size_t at = 0; at < end; at += kPieceBytes) {
      RB_RETURN_IF_ERROR(sink(absl::string_view(content).substr(at, std::min(kPieceBytes, end - at))));
    }
    return failure;
  }

  absl::Status Restore(const std::string& name, const Source& source) override {
    RB_RETURN_IF_ERROR(Begin("restore", name));
    std::string content;
    while (true) {
      RB_ASSIGN_OR_RETURN(const std::string piece, source());
      if (piece.empty()) break;
      content.append(piece);
      databases[name] = content.substr(0, content.size() / 2);
    }
    RB_RETURN_IF_ERROR(failures_[absl::StrCat("restore ", name)]);
    databases[name] = std::move(content);
    return absl::OkStatus();
  }

 private:
  static constexpr size_t kPieceBytes = 1000;

  absl::Status Begin(const std::string& verb, const std::string& name) {
    const std::string call = absl::StrCat(verb, " ", name);
    if (databases.count(name) == 0) return absl::NotFoundError(absl::StrCat("there is no hook for database ", name));
    calls.push_back(call);
    if (on_call_) on_call_(call);
    return absl::OkStatus();
  }

  std::map<std::string, absl::Status> failures_;
  std::function<void(const std::string& call)> on_call_;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_FAKE_DATABASE_HOOKS_H_

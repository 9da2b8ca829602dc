#include "agent/adapters/probe/probes.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/adapters/database/sqlite_copier.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

class UnitProbe final : public Probe {
 public:
  UnitProbe(UnitProbeOptions options, Supervisor& supervisor, Clock& clock, AgeOf age_of, MemoryOf memory_of)
      : options_(options),
        supervisor_(supervisor),
        clock_(clock),
        age_of_(std::move(age_of)),
        memory_of_(std::move(memory_of)) {}

  ProbeResult Run(const ProbeContext& context) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = "unit";
    result.kind = "unit";
    result.expected = options_.stable_for > absl::ZeroDuration() && !context.quick
                          ? absl::StrCat("active, the same process for ", FormatSeconds(options_.stable_for))
                          : "active";
    if (options_.memory_below_bytes > 0) {
      absl::StrAppend(&result.expected, ", less than ", FormatBytes(options_.memory_below_bytes), " of memory");
    }
    Look(context, &result);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void Look(const ProbeContext& context, ProbeResult* result) {
    const absl::StatusOr<UnitState> state = supervisor_.GetState();
    if (!state.ok()) {
      result->observed = OneLine(state.status().message());
      return;
    }
    const std::string failure = state->last_failure.empty() ? "" : absl::StrCat("; last: ", state->last_failure);
    const std::string restarts = state->restarts == 0 ? "" : absl::StrCat(", restarted ", state->restarts, "×");
    if (state->activity != UnitState::Activity::kActive) {
      result->observed = OneLine(absl::StrCat(Name(state->activity), restarts, failure));
      return;
    }
    const absl::Duration age = Age(*state);
    absl::Duration wanted = context.quick ? absl::ZeroDuration() : options_.stable_for;
    if (state->restarts > 0) wanted = std::max(wanted, kSettlesAfter);
    result->passed = age >= wanted;
    result->observed = OneLine(absl::StrCat("active, process ", state->main_pid, " for ", FormatSeconds(age), restarts,
                                            result->passed ? "" : absl::StrCat(" (wants ", FormatSeconds(wanted), ")"),
                                            LookAtMemory(state->main_pid, result), failure));
  }

  // Says how much it takes, where there is a bound, and fails the result when that is too much.
  std::string LookAtMemory(int64_t pid, ProbeResult* result) {
    if (options_.memory_below_bytes == 0) return "";
    const absl::StatusOr<uint64_t> taken = memory_of_(pid);
    result->passed = result->passed && taken.ok() && *taken < options_.memory_below_bytes;
    return taken.ok() ? absl::StrCat(", ", FormatBytes(*taken)) : ", its memory is not known";
  }

  // Of this run of the service: as the kernel says, or since we first saw it.
  absl::Duration Age(const UnitState& state) {
    const absl::Duration now = clock_.Monotonic();
    if (state.main_pid != seen_pid_ || state.invocation != seen_invocation_) {
      seen_pid_ = state.main_pid;
      seen_invocation_ = state.invocation;
      seen_at_ = now;
    }
    const absl::StatusOr<absl::Duration> age = age_of_(state.main_pid);
    return std::max(age.value_or(absl::ZeroDuration()), now - seen_at_);
  }

  static const char* Name(UnitState::Activity activity) {
    switch (activity) {
      case UnitState::Activity::kInactive:
        return "inactive";
      case UnitState::Activity::kActivating:
        return "not running, being started again";
      case UnitState::Activity::kActive:
        return "active";
      case UnitState::Activity::kDeactivating:
        return "stopping";
      case UnitState::Activity::kFailed:
        return "failed";
    }
    return "";
  }

  const UnitProbeOptions options_;
  Supervisor& supervisor_;
  Clock& clock_;
  const AgeOf age_of_;
  const MemoryOf memory_of_;
  int64_t seen_pid_ = -1;
  std::string seen_invocation_;
  absl::Duration seen_at_;
};

class SqliteProbe final : public Probe {
 public:
  SqliteProbe(std::string path, std::string name, Clock& clock)
      : path_(std::move(path)), name_(std::move(name)), clock_(clock), checker_(absl::Seconds(5)) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    const absl::Status status = checker_.Check(path_);
    ProbeResult result;
    result.name = absl::StrCat("sqlite ", name_);
    result.kind = "sqlite";
    result.expected = "integrity_check says ok";
    result.passed = status.ok();
    result.observed = status.ok() ? "ok" : OneLine(status.message());
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  const std::string path_;
  const std::string name_;
  Clock& clock_;
  SqliteCopier checker_;
};

class DiskProbe final : public Probe {
 public:
  DiskProbe(DiskProbeOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = "disk";
    result.kind = "disk";
    result.passed = true;
    result.expected = options_.free_bytes > 0 ? absl::StrCat(FormatBytes(options_.free_bytes), " free") : "3 % free";
    result.observed = "its folders are not there";
    bool is_first = true;
    for (const std::string& folder : options_.folders) {
      struct statvfs info;
      if (statvfs(folder.c_str(), &info) != 0) continue;
      const uint64_t free_bytes = uint64_t{info.f_bavail} * info.f_frsize;
      const uint64_t total = uint64_t{info.f_blocks} * info.f_frsize;
      const bool has_room = free_bytes >= (options_.free_bytes > 0 ? options_.free_bytes : total / 100 * 3);
      if (!is_first && (has_room || !result.passed)) continue;
      is_first = false;
      result.passed = has_room;
      result.observed = OneLine(absl::StrCat(FormatBytes(free_bytes), " of ", FormatBytes(total), " free at ", folder));
    }
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  const DiskProbeOptions options_;
  Clock& clock_;
};

class TcpProbe final : public Probe {
 public:
  TcpProbe(std::string address, absl::Duration timeout, Clock& clock)
      : address_(std::move(address)), timeout_(timeout), clock_(clock) {}

  ProbeResult Run(const ProbeContext&) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.name = absl::StrCat("tcp ", address_);
    result.kind = "tcp";
    result.expected = "accepts connections";
    const std::string problem = Connect(begun + timeout_);
    result.passed = problem.empty();
    result.observed = problem.empty() ? "accepted" : OneLine(problem);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  // What went wrong, or "".
  std::string Connect(absl::Duration deadline) {
    const size_t colon = address_.rfind(':');
    std::string host = address_.substr(0, colon);
    if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.c_str(), address_.substr(colon + 1).c_str(), &hints, &found);
    if (error != 0) return gai_strerror(error);
    std::string problem = "no address";
    for (const addrinfo* each = found; each != nullptr && !problem.empty(); each = each->ai_next) {
      problem = ConnectTo(*each, deadline);
    }
    freeaddrinfo(found);
    return problem;
  }
  std::string ConnectTo(const addrinfo& address, absl::Duration deadline) {
    const UniqueFd fd(socket(address.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd.valid()) return strerror(errno);
    if (connect(fd.get(), address.ai_addr, address.ai_addrlen) == 0) return "";
    if (errno != EINPROGRESS) return strerror(errno);
    for (;;) {
      const absl::Duration left = deadline - clock_.Monotonic();
      if (left <= absl::ZeroDuration()) return absl::StrCat("no answer within ", FormatSeconds(timeout_));
      pollfd polled = {fd.get(), POLLOUT, 0};
      if (poll(&polled, 1, static_cast<int>(absl::ToInt64Milliseconds(left) + 1)) > 0) break;
    }
    int socket_error = 0;
    socklen_t size = sizeof socket_error;
    getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &socket_error, &size);
    return socket_error == 0 ? "" : strerror(socket_error);
  }

  const std::string address_;
  const absl::Duration timeout_;
  Clock& clock_;
};

class ExternalProbe final : public Probe {
 public:
  explicit ExternalProbe(std::unique_ptr<Probe> inner) : inner_(std::move(inner)) {}
  ProbeResult Run(const ProbeContext& context) override {
    ProbeResult result = inner_->Run(context);
    result.external = true;
    return result;
  }
  void BeforeStart() override { inner_->BeforeStart(); }

 private:
  const std::unique_ptr<Probe> inner_;
};

}  // namespace

std::string OneLine(absl::string_view text, size_t limit) {
  std::string line(absl::StripAsciiWhitespace(text));
  std::replace(line.begin(), line.end(), '\n', ' ');
  return Truncate(Printable(Truncate(line, limit)), limit);
}

UniqueFd OpenBeneath(const std::string& tree, const std::string& file) {
  // Not blocking, in case somebody put a pipe there.
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY;
  absl::string_view below = file;
  UniqueFd fd;
  if (!tree.empty() && absl::ConsumePrefix(&below, tree + "/")) {
    const UniqueFd folder(open(tree.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
    open_how how = {};
    how.flags = kFlags;
    how.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS;
    fd.Reset(static_cast<int>(syscall(SYS_openat2, folder.get(), std::string(below).c_str(), &how, sizeof how)));
  } else {
    fd.Reset(open(file.c_str(), kFlags));
  }
  struct stat status;
  if (fd.valid() && (fstat(fd.get(), &status) != 0 || !S_ISREG(status.st_mode))) fd.Reset();
  return fd;
}

std::unique_ptr<Probe> MakeUnitProbe(UnitProbeOptions options, Supervisor& supervisor, Clock& clock, AgeOf age_of,
                                     MemoryOf memory_of) {
  return std::make_unique<UnitProbe>(options, supervisor, clock, std::move(age_of), std::move(memory_of));
}
std::unique_ptr<Probe> MakeExternalProbe(std::unique_ptr<Probe> inner) {
  return std::make_unique<ExternalProbe>(std::move(inner));
}
std::unique_ptr<Probe> MakeSqliteProbe(std::string path, std::string name, Clock& clock) {
  return std::make_unique<SqliteProbe>(std::move(path), std::move(name), clock);
}
std::unique_ptr<Probe> MakeDiskProbe(DiskProbeOptions options, Clock& clock) {
  return std::make_unique<DiskProbe>(std::move(options), clock);
}
std::unique_ptr<Probe> MakeTcpProbe(std::string address, absl::Duration timeout, Clock& clock) {
  return std::make_unique<TcpProbe>(std::move(address), timeout, clock);
}

}  // namespace rb::agent

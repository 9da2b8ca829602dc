#include "agent/adapters/doctor/host_examiner.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <netdb.h>
#include <pwd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/adapters/git/git_mirror.h"
#include "agent/adapters/probe/probes.h"
#include "common/mutex.h"
#include "common/text.h"
#include "common/unique_fd.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr size_t kMostSamples = 10;
constexpr size_t kMostProblems = 20;
constexpr int kDeepest = 64;

DiskFacts DiskOf(const std::string& path) {
  DiskFacts facts;
  struct statvfs info;
  if (statvfs(path.c_str(), &info) != 0) return facts;
  facts.free_bytes = uint64_t{info.f_bavail} * info.f_frsize;
  facts.total_bytes = uint64_t{info.f_blocks} * info.f_frsize;
  facts.free_inodes = info.f_favail;
  facts.total_inodes = info.f_files;
  return facts;
}

std::string GroupName(gid_t gid) {
  std::vector<char> buffer(65536);
  struct group entry;
  struct group* found = nullptr;
  return getgrgid_r(gid, &entry, buffer.data(), buffer.size(), &found) == 0 && found != nullptr ? entry.gr_name
                                                                                                : absl::StrCat(gid);
}
std::string OwnerName(uid_t uid, gid_t gid) { return absl::StrCat(LookUpUid(uid, gid).name, ":", GroupName(gid)); }

// "host" of "http://user@host:port/path", "ssh://host/x" or "host:port"; empty when there is none.
std::string HostOf(absl::string_view address) {
  if (const size_t scheme = address.find("://"); scheme != absl::string_view::npos) address.remove_prefix(scheme + 3);
  address = address.substr(0, address.find_first_of("/?#"));
  if (const size_t at = address.rfind('@'); at != absl::string_view::npos) address.remove_prefix(at + 1);
  if (absl::ConsumePrefix(&address, "[")) return std::string(address.substr(0, address.find(']')));
  return std::string(address.substr(0, address.rfind(':')));
}

// What needs the network, and may hang: done on a thread that is left behind when it does.
struct NetworkLook {
  Mutex mutex;
  bool done ABSL_GUARDED_BY(mutex) = false;
  std::string git_problem ABSL_GUARDED_BY(mutex);
  std::vector<std::string> unresolved ABSL_GUARDED_BY(mutex);
};

void LookAtNetwork(const std::shared_ptr<NetworkLook>& look, const std::set<std::string>& hosts,
                   const std::string& remote) {
  std::vector<std::string> unresolved;
  for (const std::string& host : hosts) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    addrinfo* found = nullptr;
    const int error = getaddrinfo(host.c_str(), nullptr, &hints, &found);
    if (error == 0) {
      freeaddrinfo(found);
    } else if (error == EAI_NONAME) {
      unresolved.push_back(host);
    }
  }
  std::string git_problem;
  if (!remote.empty()) {
    if (const absl::Status reached = GitMirror::Reach(remote); !reached.ok()) {
      git_problem = std::string(reached.message());
    }
  }
  MutexLock lock(look->mutex);
  look->done = true;
  look->git_problem = std::move(git_problem);
  look->unresolved = std::move(unresolved);
}

class HostExaminerImpl final : public HostExaminer {
 public:
  HostExaminerImpl(const v1::AgentServiceConfig& config, HostExaminerOptions options, Clock& clock)
      : config_(config), options_(std::move(options)), clock_(clock) {}
  ~HostExaminerImpl() override { LetGo(); }

  HostFacts Examine(const std::atomic<bool>& hurry) override {
    BeginNetwork();
    HostFacts facts;
    facts.clock_at = clock_.Now();
    facts.tree_disk = DiskOf(config_.tree());
    facts.state_disk = DiskOf(options_.state_folder);
    LookAtOwners(hurry, &facts);
    LookAtFolders(&facts);
    LookAtUnit(&facts);
    LookAtConfig(&facts);
    LookAtProbes(&facts);
    facts.has_git = !config_.git().remote().empty();
    if (facts.has_git) facts.git_fetched_at = GitMirror::FetchedAt(options_.state_folder, options_.service);
    EndNetwork(hurry, &facts);
    return facts;
  }

 private:
  void LookAtOwners(const std::atomic<bool>& hurry, HostFacts* facts) {
    const UniqueFd root(open(config_.tree().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat info;
    if (!root.valid() || fstat(root.get(), &info) != 0) return;
    facts->tree_owner = OwnerName(info.st_uid, info.st_gid);
    Scan scan{facts, hurry, info.st_uid, info.st_dev, clock_.Monotonic() + options_.scan_timeout, 0, {}};
    if (!config_.owner().empty()) {
      if (const absl::StatusOr<UserAndGroup> owner = LookUpUser(config_.owner()); owner.ok()) {
        facts->expected_owner = OwnerName(owner->uid, owner->gid);
        scan.uid = owner->uid;
      }
    }
    if (const absl::StatusOr<ServiceTree> tree = ToServiceTree(options_.service, config_); tree.ok()) scan.tree = *tree;
    facts->looked_at_all = ScanFolder(root.get(), "", 0, &scan);
  }

  struct Scan {
    HostFacts* facts;
    const std::atomic<bool>& hurry;
    uid_t uid;
    dev_t device;
    absl::Duration until;
    size_t seen;
    ServiceTree tree;
  };
  // False when not all of it was looked at. Never through a link or into another filesystem.
  bool ScanFolder(int folder, const std::string& path, int depth, Scan* scan) {
    if (depth > kDeepest) return false;
    const int copy = openat(folder, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* listing = copy < 0 ? nullptr : fdopendir(copy);
    if (listing == nullptr) {
      if (copy >= 0) close(copy);
      return false;
    }
    const std::unique_ptr<DIR, int (*)(DIR*)> closer(listing, closedir);
    bool all = true;
    while (const dirent* entry = readdir(listing)) {
      const std::string name = entry->d_name;
      if (name == "." || name == "..") continue;
      const std::string below = path.empty() ? name : absl::StrCat(path, "/", name);
      if (IsIgnored(scan->tree, below)) continue;
      if (++scan->seen > options_.most_entries || clock_.Monotonic() > scan->until || scan->hurry) return false;
      struct stat info;
      if (fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0 || info.st_dev != scan->device) continue;
      if (info.st_uid != scan->uid) {
        ++scan->facts->foreign_entries;
        if (scan->facts->foreign_samples.size() < kMostSamples) {
          scan->facts->foreign_samples.push_back(
              absl::StrCat(Printable(below), " (", LookUpUid(info.st_uid, info.st_gid).name, ")"));
        }
      }
      if (!S_ISDIR(info.st_mode)) continue;
      const UniqueFd next(openat(folder, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
      if (next.valid()) all = ScanFolder(next.get(), below, depth + 1, scan) && all;
    }
    return all;
  }

  void LookAtFolders(HostFacts* facts) {
    const std::string& tree = config_.tree();
    const std::string parent = tree.substr(0, tree.rfind('/'));
    const auto look = [&](const std::string& path, mode_t forbidden) {
      struct stat info;
      if (lstat(path.c_str(), &info) != 0) return;
      if (S_ISDIR(info.st_mode) && info.st_uid == geteuid() && (info.st_mode & forbidden) == 0) return;
      facts->exposed_folders.push_back(absl::StrCat(
          path, " (", OwnerName(info.st_uid, info.st_gid), " ", absl::StrCat(absl::Hex(info.st_mode >> 6 & 7)),
          absl::StrCat(absl::Hex(info.st_mode >> 3 & 7)), absl::StrCat(absl::Hex(info.st_mode & 7)), ")"));
    };
    // Whoever could write the agent's folder could bring anything back as a release; staging and keys are root's alone.
    look(options_.state_folder, 022);
    look(options_.state_folder + "/identity", 077);
    look(absl::StrCat(parent, "/.rb-staging-", options_.service), 077);
    look(tree + "/.rb-staging", 077);
  }

  void LookAtUnit(HostFacts* facts) {
    if (options_.supervisor == nullptr) return;
    const absl::StatusOr<UnitState> state = options_.supervisor->GetState();
    if (!state.ok()) {
      facts->unit_problem = std::string(state.status().message());
    } else {
      facts->unit_needs_reload = state->needs_reload;
    }
  }

  void LookAtConfig(HostFacts* facts) {
    if (options_.config_path.empty()) return;
    for (const YamlProblem& problem : CheckAgentConfig(options_.config_path)) {
      if (facts->config_problems.size() >= kMostProblems) return;
      std::string text = FormatProblems(options_.config_path, {problem});
      facts->config_problems.emplace_back(absl::StripSuffix(text, "\n"));
    }
  }

  void LookAtProbes(HostFacts* facts) {
    const auto in_tree = [&](const std::string& path) {
      return path[0] == '/' ? path : absl::StrCat(config_.tree(), "/", path);
    };
    const auto want_file = [&](const std::string& probe, const std::string& path) {
      if (OpenBeneath(config_.tree(), path).valid() || facts->probe_problems.size() >= kMostProblems) return;
      facts->probe_problems.push_back(absl::StrCat(probe, ": ", path, " is not there, or is no file that can be read"));
    };
    for (const v1::ProbeConfig& probe : config_.probes()) {
      if (probe.has_log() && !probe.log().file().empty()) want_file("log", in_tree(probe.log().file()));
      if (probe.has_sqlite()) want_file("sqlite", in_tree(probe.sqlite().path()));
      if (probe.has_version() && !probe.version().file().empty()) want_file("version", in_tree(probe.version().file()));
    }
  }

  std::set<std::string> HostsOfProbes() const {
    std::set<std::string> hosts;
    for (const v1::ProbeConfig& probe : config_.probes()) {
      if (probe.has_http()) hosts.insert(HostOf(probe.http().url()));
      if (probe.has_metrics()) hosts.insert(HostOf(probe.metrics().url()));
      if (probe.has_version()) hosts.insert(HostOf(probe.version().url()));
      if (probe.has_tcp()) hosts.insert(HostOf(probe.tcp().address()));
    }
    hosts.erase("");
    return hosts;
  }

  void BeginNetwork() {
    if (look_ != nullptr) {
      MutexLock lock(look_->mutex);
      if (!look_->done) return;  // still at it: one is enough
    }
    LetGo();
    look_ = std::make_shared<NetworkLook>();
    thread_ = std::thread(LookAtNetwork, look_, HostsOfProbes(), config_.git().remote());
  }
  void EndNetwork(const std::atomic<bool>& hurry, HostFacts* facts) {
    const absl::Duration until = clock_.Monotonic() + options_.network_timeout;
    for (;;) {
      {
        MutexLock lock(look_->mutex);
        if (look_->done) {
          facts->git_problem = look_->git_problem;
          for (const std::string& host : look_->unresolved) {
            facts->probe_problems.push_back(absl::StrCat("the host ", Printable(host), " of a probe has no address"));
          }
          return;
        }
      }
      if (hurry) return;
      if (clock_.Monotonic() > until) break;
      clock_.Sleep(absl::Milliseconds(10));
    }
    if (facts->has_git) {
      facts->git_problem =
          absl::StrCat(config_.git().remote(), " did not answer within ", FormatSeconds(options_.network_timeout));
    }
  }
  void LetGo() {
    if (!thread_.joinable()) return;
    bool done = false;
    {
      MutexLock lock(look_->mutex);
      done = look_->done;
    }
    // A remote that does not answer is not waited for: the thread has all that it needs for itself.
    done ? thread_.join() : thread_.detach();
  }

  const v1::AgentServiceConfig config_;
  const HostExaminerOptions options_;
  Clock& clock_;
  std::shared_ptr<NetworkLook> look_;
  std::thread thread_;
};

}  // namespace

std::unique_ptr<HostExaminer> MakeHostExaminer(const v1::AgentServiceConfig& config, HostExaminerOptions options,
                                               Clock& clock) {
  return std::make_unique<HostExaminerImpl>(config, std::move(options), clock);
}

}  // namespace rb::agent

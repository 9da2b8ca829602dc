#include "agent/adapters/restore/after_restore.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/tree_files.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr size_t kMostProblems = 10;
constexpr int kDeepest = 128;

// Whether it, or something that it lies in, is data.
bool LiesInData(const ServiceTree& tree, absl::string_view path) {
  for (size_t slash = path.find('/');; slash = path.find('/', slash + 1)) {
    if (ComponentOf(tree, path.substr(0, slash)) == Component::kData) return true;
    if (slash == absl::string_view::npos) return false;
  }
}

// A glob may clear data when it says so itself: "data/cache" does, "**/cache" does not.
bool NamesData(const ServiceTree& tree, absl::string_view glob) {
  glob = absl::StripSuffix(glob, "/");
  const size_t wildcard = glob.find_first_of("*?[");
  if (wildcard == absl::string_view::npos) return LiesInData(tree, glob);
  const size_t slash = glob.substr(0, wildcard).rfind('/');
  return slash != absl::string_view::npos && LiesInData(tree, glob.substr(0, slash));
}

class AfterRestoreImpl final : public AfterRestore {
 public:
  AfterRestoreImpl(AfterRestoreOptions options, Clock& clock) : options_(std::move(options)), clock_(clock) {}

  std::vector<std::string> BeforeStart() override {
    problems_.clear();
    said_ = false;
    if (options_.clear.empty()) return {};
    until_ = clock_.Monotonic() + options_.clear_timeout;
    const UniqueFd root(open(options_.tree.tree.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    struct stat info;
    if (!root.valid() || fstat(root.get(), &info) != 0) {
      Problem(options_.tree.tree, strerror(errno));
    } else {
      device_ = info.st_dev;
      Search(root.get(), "", 0);
    }
    return std::move(problems_);
  }

  std::vector<std::string> AfterStart() override {
    std::vector<std::string> problems;
    for (const std::string& unit : options_.restart) {
      const std::unique_ptr<Supervisor> supervisor = options_.supervisor_of(unit);
      const absl::StatusOr<UnitState> state = supervisor->GetState();
      absl::Status status = state.status();
      if (state.ok()) {
        // What somebody has stopped stays so.
        if (state->activity == UnitState::Activity::kInactive) continue;
        status = supervisor->Stop(options_.restart_timeout);
        if (status.ok()) status = supervisor->Start(options_.restart_timeout);
      }
      if (!status.ok()) {
        problems.push_back(absl::StrCat("after_restore: ", unit, " could not be restarted: ", status.message(),
                                        ". On this host: systemctl restart ", unit));
      }
    }
    return problems;
  }

 private:
  void Problem(const std::string& path, const std::string& what) {
    if (problems_.size() >= kMostProblems) return;
    problems_.push_back(absl::StrCat("after_restore: ", Printable(path), " could not be cleared: ", what));
  }

  bool TimeIsUp(const std::string& path) {
    if (clock_.Monotonic() < until_) return false;
    if (!said_) Problem(path, absl::StrCat("it took longer than ", FormatSeconds(options_.clear_timeout)));
    said_ = true;
    return true;
  }

  // Whether a folder is to be cleared, and whether the glob that says so names data.
  bool IsToBeCleared(const std::string& path, bool* names_data) const {
    bool found = false;
    *names_data = false;
    for (const std::string& glob : options_.clear) {
      if (!GlobMatches(glob, path)) continue;
      found = true;
      *names_data = *names_data || NamesData(options_.tree, glob);
    }
    return found;
  }

  // A folder beneath an open one, never through a link or onto another filesystem. Not valid for anything else.
  UniqueFd OpenFolder(int parent, const std::string& name) const {
    UniqueFd folder(openat(parent, name.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
    struct stat info;
    if (folder.valid() && (fstat(folder.get(), &info) != 0 || info.st_dev != device_)) folder.Reset();
    return folder;
  }

  void Search(int folder, const std::string& path, int depth) {
    if (depth > kDeepest) return;
    const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
    if (!names.ok()) return Problem(path, std::string(names.status().message()));
    for (const std::string& name : *names) {
      const std::string below = path.empty() ? name : absl::StrCat(path, "/", name);
      if (below == ".rb-staging") continue;
      if (TimeIsUp(below)) return;
      const UniqueFd child = OpenFolder(folder, name);
      if (!child.valid()) continue;
      bool names_data = false;
      if (IsToBeCleared(below, &names_data) && (names_data || !LiesInData(options_.tree, below))) {
        Clear(child.get(), below, names_data, depth + 1);
      } else {
        Search(child.get(), below, depth + 1);
      }
    }
  }

  // Removes what the folder holds; folders that still hold data stay.
  void Clear(int folder, const std::string& path, bool with_data, int depth) {
    if (depth > kDeepest) return Problem(path, "its folders are too deep");
    const absl::StatusOr<std::vector<std::string>> names = ListFolder(folder);
    if (!names.ok()) return Problem(path, std::string(names.status().message()));
    for (const std::string& name : *names) {
      const std::string below = absl::StrCat(path, "/", name);
      if (!with_data && LiesInData(options_.tree, below)) continue;
      if (TimeIsUp(below)) return;
      struct stat info;
      if (fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
      if (!S_ISDIR(info.st_mode)) {
        if (unlinkat(folder, name.c_str(), 0) != 0 && errno != ENOENT) Problem(below, strerror(errno));
        continue;
      }
      const UniqueFd child = OpenFolder(folder, name);
      if (!child.valid()) {
        Problem(below, "it is another filesystem, or cannot be opened");
        continue;
      }
      Clear(child.get(), below, with_data, depth + 1);
      if (unlinkat(folder, name.c_str(), AT_REMOVEDIR) != 0 && errno != ENOENT && errno != ENOTEMPTY) {
        Problem(below, strerror(errno));
      }
    }
  }

  const AfterRestoreOptions options_;
  Clock& clock_;
  absl::Duration until_;
  bool said_ = false;
  dev_t device_ = 0;
  std::vector<std::string> problems_;
};

}  // namespace

std::unique_ptr<AfterRestore> MakeAfterRestore(AfterRestoreOptions options, Clock& clock) {
  return std::make_unique<AfterRestoreImpl>(std::move(options), clock);
}

}  // namespace rb::agent

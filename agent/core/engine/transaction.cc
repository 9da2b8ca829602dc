#include "agent/core/engine/transaction.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/tree_files.h"
#include "agent/core/ports/database_hooks.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr absl::string_view kMagic = "rbintent1\n";

void PutAttributes(const std::optional<Attributes>& attributes, Encoder* out) {
  out->Number(attributes.has_value() ? 1 : 0);
  if (!attributes.has_value()) return;
  out->Number(attributes->mode);
  out->Number(attributes->uid);
  out->Number(attributes->gid);
  out->Signed(attributes->mtime_ns);
  PutXattrs(*attributes->xattrs, out);
}

std::optional<Attributes> TakeAttributes(Decoder* in) {
  if (in->Number() == 0) return std::nullopt;
  Attributes attributes;
  attributes.mode = in->Number32() & 07777;
  attributes.uid = in->Number32();
  attributes.gid = in->Number32();
  attributes.mtime_ns = in->Signed();
  attributes.xattrs = TakeXattrs(in);
  return attributes;
}

// One element, or none.
bool IsPlainName(absl::string_view name) { return IsSafePath(name) && name.find('/') == absl::string_view::npos; }

uint64_t InodeAt(int folder, const std::string& name) {
  struct stat info {};
  return fstatat(folder, name.c_str(), &info, AT_SYMLINK_NOFOLLOW) == 0 ? info.st_ino : 0;
}

absl::Status Confused(const PlannedRename& rename) {
  return absl::FailedPreconditionError(
      absl::StrCat(Printable(rename.path), " is neither what it was before the swap nor what it should be after it"));
}

// Where a rename takes place in the tree.
struct Spot {
  int parent = -1;
  std::string name;
};

absl::StatusOr<Spot> SpotOf(const PlannedRename& rename, TransactionFolders& folders) {
  Spot spot;
  RB_ASSIGN_OR_RETURN(spot.parent, folders.OpenBeneath(ParentPath(rename.path)));
  spot.name = std::string(BaseName(rename.path));
  return spot;
}

absl::Status MoveIn(const PlannedRename& rename, const TransactionFolders& folders, const Spot& spot, bool exchange) {
  return RenameBeneath(folders.staging(), rename.staged_name, spot.parent, spot.name, exchange, rename.path);
}

absl::Status MoveOut(const PlannedRename& rename, const TransactionFolders& folders, const Spot& spot) {
  return RenameBeneath(spot.parent, spot.name, folders.staging(), rename.staged_name, false, rename.path);
}

// Carries one rename out. Looks first: it may be done already.
absl::Status CarryForward(const PlannedRename& rename, TransactionFolders& folders) {
  RB_ASSIGN_OR_RETURN(const Spot spot, SpotOf(rename, folders));
  const uint64_t here = InodeAt(spot.parent, spot.name);
  if (here != rename.old_inode) {
    // A rename is atomic, so that one side tells. The other is looked at where this one is not as expected.
    const bool is_done = here == rename.new_inode && InodeAt(folders.staging(), rename.staged_name) == rename.old_inode;
    return is_done ? absl::OkStatus() : Confused(rename);
  }
  if (rename.kind == Change::Kind::kRemove) return MoveOut(rename, folders, spot);
  return MoveIn(rename, folders, spot, rename.kind == Change::Kind::kExchange);
}

// Takes one rename back. What the service has meanwhile put in the place of what we put there makes way as well: the
// old state is what counts.
absl::Status CarryBackward(const PlannedRename& rename, TransactionFolders& folders) {
  const absl::StatusOr<Spot> spot = SpotOf(rename, folders);
  const uint64_t staged = InodeAt(folders.staging(), rename.staged_name);
  if (rename.kind == Change::Kind::kAdd) {
    if (staged == rename.new_inode || absl::IsNotFound(spot.status())) return absl::OkStatus();
    RB_RETURN_IF_ERROR(spot.status());
    if (InodeAt(spot->parent, spot->name) == 0) return absl::OkStatus();
    return MoveOut(rename, folders, *spot);
  }
  RB_RETURN_IF_ERROR(spot.status());
  const uint64_t here = InodeAt(spot->parent, spot->name);
  if (here == rename.old_inode) return absl::OkStatus();
  if (staged != rename.old_inode) return Confused(rename);
  return MoveIn(rename, folders, *spot, here != 0);
}

absl::Status CarryAttributes(const PlannedRename& rename, TransactionFolders& folders, bool forward) {
  const std::optional<Attributes>& wanted = forward ? rename.new_attributes : rename.old_attributes;
  if (!wanted.has_value()) return absl::OkStatus();
  if (rename.kind == Change::Kind::kExchange || rename.old_attributes->EqualsButForTime(*rename.new_attributes)) {
    // As nearly always: moving names in and out has changed its time, and nothing else.
    RB_ASSIGN_OR_RETURN(const int folder, folders.OpenBeneath(rename.path));
    return SetTime(folder, wanted->mtime_ns, rename.path);
  }
  if (rename.path.empty()) {
    return ApplyAttributes(folders.tree(), ".", EntryType::kFolder, *wanted, "the tree's root");
  }
  RB_ASSIGN_OR_RETURN(const Spot spot, SpotOf(rename, folders));
  return ApplyAttributes(spot.parent, spot.name, EntryType::kFolder, *wanted, Printable(rename.path));
}

// Every pass over the renames goes through the same folders in the same order: where not all of them fit, none is still
// open when its turn comes again. Half of the descriptors is left to the rest of the process.
size_t MostFoldersOpen() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return 256;
  return std::clamp<size_t>(limit.rlim_cur / 2, 16, 8192);
}

// An entry that takes the place of another may be a folder, whose handle is then no longer that of its path.
bool MovesFolders(const Intent& intent) {
  return std::any_of(intent.renames.begin(), intent.renames.end(), [](const PlannedRename& rename) {
    return rename.kind == Change::Kind::kExchange && (rename.old_attributes || rename.new_attributes);
  });
}

// From this many folders on, one syncfs costs less than a flush of each; the service is stopped meanwhile.
constexpr size_t kManyFolders = 32;

// Of so many folders, when the first flush begins beside the renames: it is worth its thread then.
constexpr size_t kRenamesBeforeFlush = 64;

// The folders that a swap changes; of many, only so many that it is seen.
std::set<std::string> TouchedFolders(const Intent& intent, bool forward) {
  std::set<std::string> touched;
  for (const PlannedRename& rename : intent.renames) {
    if (rename.kind != Change::Kind::kAttributes) touched.emplace(ParentPath(rename.path));
    if ((forward ? rename.new_attributes : rename.old_attributes).has_value()) touched.insert(rename.path);
    if (touched.size() > kManyFolders) break;
  }
  return touched;
}

// Flushes a filesystem again and again while it is changed, so that the flush after the last change has less to wait
// for. Not thread-safe.
class FlushMeanwhile {
 public:
  FlushMeanwhile() = default;
  FlushMeanwhile(const FlushMeanwhile&) = delete;
  FlushMeanwhile& operator=(const FlushMeanwhile&) = delete;
  ~FlushMeanwhile() { Finish().IgnoreError(); }

  // `fd` stays open until Finish.
  void Begin(int fd) {
    thread_ = std::thread([this, fd] {
      do {
        status_ = SyncFilesystem(fd, "the tree");
      } while (status_.ok() && !is_over_);
    });
  }
  // The kernel tells of a failed write once: an error here is one that no later flush repeats.
  absl::Status Finish() {
    is_over_ = true;
    if (thread_.joinable()) thread_.join();
    return status_;
  }

 private:
  std::atomic<bool> is_over_{false};
  absl::Status status_;
  std::thread thread_;
};

absl::Status SyncTouched(const std::set<std::string>& touched, TransactionFolders& folders) {
  if (RB_PLANTED_BUG("no-fsync-of-folders")) return absl::OkStatus();
  if (touched.size() > kManyFolders) return SyncFilesystem(folders.tree(), "the tree");
  for (const std::string& path : touched) {
    const absl::StatusOr<int> folder = folders.OpenBeneath(path);
    if (absl::IsNotFound(folder.status())) continue;  // moved away whole; its parent is flushed
    RB_RETURN_IF_ERROR(folder.status());
    RB_RETURN_IF_ERROR(SyncFd(*folder, Printable(path)));
  }
  return SyncFd(folders.staging(), "staging folder");
}

}  // namespace

void MakeRoomForFolders() {
  const UniqueFd lowest(open("/", O_PATH | O_CLOEXEC));
  if (!lowest.valid()) return;
  UniqueFd(fcntl(lowest.get(), F_DUPFD_CLOEXEC, static_cast<int>(MostFoldersOpen()))).Reset();
}

TransactionFolders::TransactionFolders(int tree, int staging)
    : tree_(tree), staging_(staging), most_open_(MostFoldersOpen()) {}

absl::StatusOr<int> TransactionFolders::OpenBeneath(absl::string_view path) {
  if (path.empty()) return tree_;
  if (const auto found = open_.find(path); found != open_.end()) return found->second.get();
  if (open_.size() == most_open_) open_.clear();
  absl::StatusOr<UniqueFd> folder = OpenFolderBeneath(tree_, path);
  if (absl::IsInternal(folder.status())) {
    return absl::FailedPreconditionError(
        absl::StrCat("the tree's folder ", Printable(path), " is not a folder any more (", folder.status().message(),
                     "): put it back where it was, then type: rb-agent local recover"));
  }
  RB_RETURN_IF_ERROR(folder.status());
  return open_.emplace(std::string(path), *std::move(folder)).first->second.get();
}

std::string EncodeIntent(const Intent& intent) {
  Encoder out;
  for (const std::string* text :
       {&intent.operation_id, &intent.target_release, &intent.target_commit, &intent.target_version,
        &intent.replaced_release, &intent.reason, &intent.target_manifest_file, &intent.staging_name}) {
    out.Text(*text);
  }
  out.Number(intent.renames.size());
  for (const PlannedRename& rename : intent.renames) {
    out.Number(static_cast<uint64_t>(rename.kind));
    out.Text(rename.path);
    out.Text(rename.staged_name);
    out.Number(rename.old_inode);
    out.Signed(rename.old_ctime_ns);
    out.Number(rename.new_inode);
    PutAttributes(rename.old_attributes, &out);
    PutAttributes(rename.new_attributes, &out);
  }
  if (!intent.databases.empty()) {
    out.Number(intent.databases.size());
    for (const std::string& name : intent.databases) out.Text(name);
  }
  return absl::StrCat(kMagic, out.bytes());
}

bool IsIntent(absl::string_view record) { return record.substr(0, kMagic.size()) == kMagic; }

absl::StatusOr<Intent> DecodeIntent(absl::string_view bytes) {
  if (!IsIntent(bytes)) return absl::DataLossError("these bytes are not an intent");
  Decoder in(bytes.substr(kMagic.size()));
  Intent intent;
  for (std::string* text :
       {&intent.operation_id, &intent.target_release, &intent.target_commit, &intent.target_version,
        &intent.replaced_release, &intent.reason, &intent.target_manifest_file, &intent.staging_name}) {
    *text = in.Text();
  }
  if (!IsPlainName(intent.staging_name)) return absl::DataLossError("an intent's staging folder has no plain name");
  const uint64_t count = in.Count(8);
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    PlannedRename rename;
    const uint64_t kind = in.Number();
    if (kind < 1 || kind > 4) return absl::DataLossError("an intent has an unknown kind of change");
    rename.kind = static_cast<Change::Kind>(kind);
    rename.path = in.Text();
    rename.staged_name = in.Text();
    if (!IsSafePath(rename.path) || !IsPlainName(rename.staged_name)) {
      return absl::DataLossError("an intent's paths are not safe");
    }
    rename.old_inode = in.Number();
    rename.old_ctime_ns = in.Signed();
    rename.new_inode = in.Number();
    rename.old_attributes = TakeAttributes(&in);
    rename.new_attributes = TakeAttributes(&in);
    if (rename.kind == Change::Kind::kAttributes && (!rename.old_attributes || !rename.new_attributes)) {
      return absl::DataLossError("an intent lacks attributes");
    }
    intent.renames.push_back(std::move(rename));
  }
  if (in.ok() && !in.at_end()) {
    const uint64_t database_count = in.Count(2);
    if (database_count == 0) return absl::DataLossError("an intent has bytes behind its end");
    for (uint64_t i = 0; i < database_count && in.ok(); ++i) {
      intent.databases.push_back(in.Text());
      if (!IsDatabaseName(intent.databases.back())) {
        return absl::DataLossError("an intent names a database that is none");
      }
    }
  }
  if (!in.ok() || !in.at_end()) return absl::DataLossError("an intent is cut short");
  return intent;
}

absl::StatusOr<bool> NoteChangedData(absl::FunctionRef<bool(absl::string_view path)> is_data,
                                     const std::vector<std::string>& databases, TransactionFolders& folders,
                                     Intent* intent) {
  bool changed = false;
  const auto look = [&](const std::string& path, struct stat* now) -> absl::StatusOr<bool> {
    const absl::StatusOr<int> parent = folders.OpenBeneath(ParentPath(path));
    if (absl::IsNotFound(parent.status())) return false;
    RB_RETURN_IF_ERROR(parent.status());
    return fstatat(*parent, std::string(BaseName(path)).c_str(), now, AT_SYMLINK_NOFOLLOW) == 0;
  };
  std::set<std::string> planned;
  std::vector<PlannedRename> renames;
  renames.reserve(intent->renames.size());
  for (PlannedRename& rename : intent->renames) {
    if (!databases.empty()) planned.insert(rename.path);
    if (rename.kind != Change::Kind::kAttributes && !rename.old_attributes && !rename.new_attributes &&
        is_data(rename.path)) {
      struct stat now {};
      RB_ASSIGN_OR_RETURN(const bool exists, look(rename.path, &now));
      const uint64_t inode = exists ? now.st_ino : 0;
      const int64_t ctime_ns = exists ? now.st_ctim.tv_sec * 1000000000 + now.st_ctim.tv_nsec : 0;
      // What is no file any more is for CheckUnchanged to refuse.
      if ((!exists || S_ISREG(now.st_mode)) && (inode != rename.old_inode || ctime_ns != rename.old_ctime_ns)) {
        changed = true;
        rename.old_inode = inode;
        rename.old_ctime_ns = ctime_ns;
        if (rename.kind == Change::Kind::kRemove && !exists) continue;  // gone by itself
        if (rename.kind != Change::Kind::kRemove) {
          rename.kind = exists ? Change::Kind::kExchange : Change::Kind::kAdd;
        }
      }
    }
    renames.push_back(std::move(rename));
  }
  for (const std::string& database : databases) {
    if (!planned.contains(database)) continue;
    for (const char* suffix : {"-wal", "-shm", "-journal"}) {
      const std::string path = database + suffix;
      struct stat now {};
      if (planned.contains(path)) continue;
      RB_ASSIGN_OR_RETURN(const bool exists, look(path, &now));
      if (!exists) continue;
      changed = true;
      PlannedRename rename;
      rename.kind = Change::Kind::kRemove;
      rename.path = path;
      rename.staged_name = absl::StrCat("e", renames.size(), suffix);
      rename.old_inode = now.st_ino;
      rename.old_ctime_ns = now.st_ctim.tv_sec * 1000000000 + now.st_ctim.tv_nsec;
      renames.push_back(std::move(rename));
    }
  }
  intent->renames = std::move(renames);
  return changed;
}

absl::Status CheckUnchanged(const Intent& intent, TransactionFolders& folders) {
  for (const PlannedRename& rename : intent.renames) {
    if (rename.kind == Change::Kind::kAttributes) continue;
    const absl::StatusOr<Spot> spot = SpotOf(rename, folders);
    if (!spot.ok() && !absl::IsNotFound(spot.status())) return spot.status();
    struct stat now {};
    const bool exists = spot.ok() && fstatat(spot->parent, spot->name.c_str(), &now, AT_SYMLINK_NOFOLLOW) == 0;
    const bool as_it_was = rename.kind == Change::Kind::kAdd
                               ? !exists
                               : exists && now.st_ino == rename.old_inode &&
                                     now.st_ctim.tv_sec * 1000000000 + now.st_ctim.tv_nsec == rename.old_ctime_ns;
    if (!as_it_was) {
      return absl::AbortedError(absl::StrCat(Printable(rename.path),
                                             " was changed by someone else since the operation "
                                             "was prepared. Nothing was swapped; prepare it again"));
    }
  }
  return absl::OkStatus();
}

absl::Status ApplyForward(const Intent& intent, TransactionFolders& folders) {
  const std::set<std::string> touched = TouchedFolders(intent, true);
  const bool is_large = touched.size() > kManyFolders && !RB_PLANTED_BUG("no-fsync-of-folders");
  FlushMeanwhile flush;
  size_t done = 0;
  for (const PlannedRename& rename : intent.renames) {
    if (rename.kind == Change::Kind::kAttributes) continue;
    RB_RETURN_IF_ERROR(CarryForward(rename, folders));
    if (++done == 1) RB_FAILPOINT("engine.commit.after-first-rename");
    if (done == kRenamesBeforeFlush && is_large) flush.Begin(folders.tree());
  }
  if (MovesFolders(intent)) folders.Forget();
  RB_FAILPOINT("engine.commit.before-attributes");
  for (const PlannedRename& rename : intent.renames) {
    RB_RETURN_IF_ERROR(CarryAttributes(rename, folders, true));
  }
  RB_RETURN_IF_ERROR(flush.Finish());
  return SyncTouched(touched, folders);
}

absl::Status ApplyBackward(const Intent& intent, TransactionFolders& folders) {
  // Nothing else can bring the old state back, so one failure does not stop the rest, and is tried again.
  static constexpr int kPasses = 3;
  absl::Status failure;
  for (int pass = 0; pass < kPasses; ++pass) {
    failure = absl::OkStatus();
    size_t done = 0;
    for (auto rename = intent.renames.rbegin(); rename != intent.renames.rend(); ++rename) {
      if (rename->kind == Change::Kind::kAttributes) continue;
      if (const absl::Status carried = CarryBackward(*rename, folders); !carried.ok()) failure = carried;
      if (++done == 1) RB_FAILPOINT("engine.undo.after-first-rename");
    }
    if (MovesFolders(intent)) folders.Forget();
    for (const PlannedRename& rename : intent.renames) {
      if (const absl::Status carried = CarryAttributes(rename, folders, false); !carried.ok()) failure = carried;
    }
    if (failure.ok()) break;
  }
  RB_RETURN_IF_ERROR(failure);
  return SyncTouched(TouchedFolders(intent, false), folders);
}

}  // namespace rb::agent

#include "tests/sim/disk.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace rb::sim {
namespace {

absl::Time CapturedAt(int version) { return absl::UnixEpoch() + absl::Hours(version); }

class SimSnapshot final : public agent::SnapshotSource {
 public:
  absl::Status ForEach(const std::function<absl::Status(const Entry&)>& /*visit*/) override { return absl::OkStatus(); }
  absl::Status Read(const std::string& /*content_id*/, std::string* /*content*/) override { return absl::OkStatus(); }
  absl::Time ModificationTime() override { return absl::UnixEpoch(); }
};

}  // namespace

std::string CommitOf(int version) { return absl::StrCat("c000000", version); }
std::string ReleaseOf(const std::string& service, int version) { return absl::StrCat(service, "/r", version); }

int Disk::Version() const {
  for (const int file : tree) {
    if (file != tree[0]) return 0;
  }
  return tree[0];
}

void Disk::CutPower(Random& random) {
  for (size_t i = 0; i < tree.size(); ++i) {
    if (tree[i] != flushed[i] && random.Percent(50)) tree[i] = flushed[i];
    flushed[i] = tree[i];
  }
}

// ---- engine

Disk::StoredRelease* SimEngine::Find(const std::string& name) {
  for (Disk::StoredRelease& stored : disk_.releases) {
    if (stored.release.name == name) return &stored;
  }
  return nullptr;
}

Disk::StoredRelease& SimEngine::Record(agent::Cause cause, const std::string& operation_id) {
  const int version = disk_.tree[0];
  for (Disk::StoredRelease& stored : disk_.releases) {
    if (stored.version == version) return stored;
  }
  Disk::StoredRelease stored;
  stored.version = version;
  stored.release.name = ReleaseOf(service_, version);
  stored.release.manifest_digest = absl::StrCat("d", version);
  stored.release.service = service_;
  stored.release.commit = CommitOf(version);
  stored.release.version = absl::StrCat("v", version);
  stored.release.cause = cause;
  stored.release.captured_at = CapturedAt(version);
  stored.release.durability = agent::Durability::kDurable;
  stored.release.entry_count = kFiles + 1;
  stored.release.operation_id = operation_id;
  disk_.releases.push_back(std::move(stored));
  return disk_.releases.back();
}

absl::StatusOr<int> SimEngine::VersionOf(const agent::EngineTarget& target) {
  if (target.snapshot != nullptr) return target.commit.back() - '0';
  const Disk::StoredRelease* stored = Find(target.release_name);
  if (stored == nullptr) return absl::NotFoundError(absl::StrCat("there is no release ", target.release_name));
  if (stored->damaged) return absl::DataLossError(absl::StrCat(target.release_name, " is damaged"));
  return stored->version;
}

std::string SimEngine::KeptAs(const std::string& operation_id) const {
  for (const auto& [operation, release] : disk_.kept) {
    if (operation == operation_id) return release;
  }
  return "";
}

absl::StatusOr<agent::Release> SimEngine::Capture(const agent::CaptureRequest& request) {
  host_.Work(300 * kMillisecond);
  if (host_.DiskIsFull() || host_.Fails("capture")) return absl::ResourceExhaustedError("no space left");
  if (host_.IsCancelled()) return absl::CancelledError("stopped as asked");
  Disk::StoredRelease& stored = Record(request.cause, request.operation_id);
  stored.release.pinned = stored.release.pinned || request.pinned;
  return stored.release;
}

absl::StatusOr<std::vector<agent::Release>> SimEngine::Releases() {
  std::vector<agent::Release> releases;
  releases.reserve(disk_.releases.size());
  for (const Disk::StoredRelease& stored : disk_.releases) releases.push_back(stored.release);
  std::sort(releases.begin(), releases.end(),
            [](const agent::Release& one, const agent::Release& other) { return one.captured_at > other.captured_at; });
  return releases;
}

absl::StatusOr<agent::Current> SimEngine::CheckDrift() {
  host_.Work(20 * kMillisecond);
  disk_.current.drifted = disk_.current.commit != CommitOf(disk_.tree[0]);
  return disk_.current;
}

absl::StatusOr<agent::OpenTransaction> SimEngine::GetOpenTransaction() {
  agent::OpenTransaction open;
  const Disk::Transaction& transaction = disk_.transaction;
  if (!transaction.open) return open;
  open.phase = transaction.commit_done ? agent::TransactionPhase::kCommitted : agent::TransactionPhase::kPrepared;
  open.is_torn = transaction.undo_begun || (transaction.commit_begun && !transaction.commit_done);
  open.operation_id = transaction.operation_id;
  open.target_commit = CommitOf(transaction.target);
  open.target_version = absl::StrCat("v", transaction.target);
  open.target_release = transaction.target_release;
  open.replaced_release = ReleaseOf(service_, transaction.replaced);
  return open;
}

std::vector<std::string> SimEngine::Problems(const std::optional<agent::Delta>& /*delta*/) {
  if (host_.DiskIsFull()) return {"too little space"};
  return {};
}

absl::StatusOr<agent::Delta> SimEngine::Compare(const agent::EngineTarget& target,
                                                const agent::Components& /*components*/) {
  host_.Work(50 * kMillisecond);
  const absl::StatusOr<int> version = VersionOf(target);
  if (!version.ok()) return version.status();
  agent::Delta delta;
  delta.files_changed = *version == disk_.tree[0] ? 0 : kFiles;
  return delta;
}

absl::StatusOr<agent::PreparedTransaction> SimEngine::Prepare(const std::string& operation_id,
                                                              const agent::EngineTarget& target,
                                                              const agent::Components& /*components*/,
                                                              const std::string& reason) {
  Disk::Transaction& transaction = disk_.transaction;
  if (transaction.open && transaction.operation_id != operation_id) {
    return absl::FailedPreconditionError(
        absl::StrCat("operation ", transaction.operation_id, " is open on ", service_, ". Nothing was changed"));
  }
  if (transaction.open) {
    if (transaction.commit_begun) return absl::FailedPreconditionError("this operation has begun to commit");
    transaction = Disk::Transaction();
  }
  if (host_.DiskIsFull()) return absl::FailedPreconditionError("too little space");
  const absl::StatusOr<int> version = VersionOf(target);
  if (!version.ok()) return version.status();
  host_.Work(500 * kMillisecond);
  if (host_.IsCancelled()) return absl::CancelledError("stopped as asked");
  if (host_.DiskIsFull() || host_.Fails("prepare")) return absl::ResourceExhaustedError("no space left");
  agent::PreparedTransaction prepared;
  prepared.replaced = Record(agent::Cause::kReplaced, operation_id).release;
  prepared.replaced.reason = reason;
  prepared.delta.files_changed = *version == disk_.tree[0] ? 0 : kFiles;
  host_.Work(500 * kMillisecond);
  if (host_.IsCancelled()) return absl::CancelledError("stopped as asked");
  if (host_.DiskIsFull()) return absl::ResourceExhaustedError("no space left");
  transaction = Disk::Transaction();
  transaction.open = true;
  transaction.operation_id = operation_id;
  transaction.target_release = target.release_name;
  transaction.target = *version;
  transaction.replaced = disk_.tree[0];
  host_.OnPrepared(operation_id);
  host_.Work(kMillisecond);
  return prepared;
}

absl::StatusOr<std::string> SimEngine::ReadPrepared(const std::string& /*operation_id*/, const std::string& path) {
  return absl::NotFoundError(path);
}

absl::StatusOr<std::vector<std::string>> SimEngine::ListPrepared(const std::string& /*operation_id*/,
                                                                 absl::string_view /*glob*/) {
  return std::vector<std::string>();
}

absl::Status SimEngine::Swap(int version, bool may_fail) {
  for (size_t i = 0; i < disk_.tree.size(); ++i) {
    if (disk_.tree[i] == version) continue;
    host_.Work(kMillisecond);
    if (may_fail && host_.Fails("rename")) return absl::InternalError("a rename failed");
    disk_.tree[i] = version;
  }
  host_.Work(2 * kMillisecond);
  disk_.flushed = disk_.tree;
  return absl::OkStatus();
}

absl::Status SimEngine::UndoSwap() {
  disk_.transaction.undo_begun = true;
  if (absl::Status swapped = Swap(disk_.transaction.replaced, true); !swapped.ok()) return swapped;
  disk_.transaction = Disk::Transaction();
  return absl::OkStatus();
}

absl::StatusOr<agent::EngineTimes> SimEngine::Commit(const std::string& operation_id) {
  Disk::Transaction& transaction = disk_.transaction;
  if (!transaction.open || transaction.operation_id != operation_id) {
    return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is not prepared"));
  }
  if (transaction.commit_done) return agent::EngineTimes();
  host_.OnSwapBegins(operation_id);
  transaction.commit_begun = true;
  if (const absl::Status swapped = Swap(transaction.target, true); !swapped.ok()) {
    const absl::Status undone = UndoSwap();
    return absl::InternalError(
        absl::StrCat(swapped.message(), undone.ok() ? "; the swap was taken back" : "; recovery is needed"));
  }
  transaction.commit_done = true;
  host_.Work(kMillisecond);
  return agent::EngineTimes();
}

absl::Status SimEngine::Undo(const std::string& operation_id) {
  Disk::Transaction& transaction = disk_.transaction;
  if (!transaction.open || transaction.operation_id != operation_id) return absl::OkStatus();
  host_.OnUndoBegins(operation_id);
  if (!transaction.commit_begun) {
    host_.Work(10 * kMillisecond);
    transaction = Disk::Transaction();
    return absl::OkStatus();
  }
  return UndoSwap();
}

absl::StatusOr<agent::Release> SimEngine::Keep(const std::string& operation_id, agent::Cause cause, bool good,
                                               bool replaced_is_bad, const std::string& reason) {
  Disk::Transaction& transaction = disk_.transaction;
  const bool is_open = transaction.open && transaction.operation_id == operation_id;
  if (const std::string kept = KeptAs(operation_id); !kept.empty()) {
    if (is_open) transaction = Disk::Transaction();
    return Find(kept)->release;
  }
  if (!is_open || !transaction.commit_done) {
    return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is not committed"));
  }
  if (transaction.undo_begun) {
    return absl::FailedPreconditionError(absl::StrCat("operation ", operation_id, " is being undone"));
  }
  host_.Work(20 * kMillisecond);
  if (host_.DiskIsFull() || host_.Fails("keep")) return absl::ResourceExhaustedError("no space left");
  if (transaction.target_release.empty()) Record(cause, operation_id);
  const std::string name = ReleaseOf(service_, transaction.target);
  if (good) Find(name)->release.standing = agent::Standing::kGood;
  if (replaced_is_bad && transaction.replaced != transaction.target) {
    Disk::StoredRelease* replaced = Find(ReleaseOf(service_, transaction.replaced));
    replaced->release.standing = agent::Standing::kBad;
    replaced->release.reason = reason;
  }
  disk_.current.release_name = name;
  disk_.current.commit = CommitOf(transaction.target);
  disk_.current.version = absl::StrCat("v", transaction.target);
  disk_.current.drifted = false;
  disk_.kept.emplace_back(operation_id, name);
  host_.OnKept(operation_id);
  host_.Work(5 * kMillisecond);
  transaction = Disk::Transaction();
  return Find(name)->release;
}

absl::StatusOr<std::string> SimEngine::Recover() {
  Disk::Transaction& transaction = disk_.transaction;
  host_.Work(5 * kMillisecond);
  if (!transaction.open) return std::string();
  if (!KeptAs(transaction.operation_id).empty()) {
    transaction = Disk::Transaction();
    return std::string("finished keeping");
  }
  if (transaction.undo_begun) {
    if (absl::Status undone = UndoSwap(); !undone.ok()) return undone;
    return std::string("finished undoing");
  }
  if (transaction.commit_begun && !transaction.commit_done) {
    if (Swap(transaction.target, true).ok()) {
      transaction.commit_done = true;
      return std::string("completed the swap");
    }
    if (absl::Status undone = UndoSwap(); !undone.ok()) return undone;
    return std::string("took back the swap");
  }
  return std::string();
}

absl::StatusOr<agent::ProofReport> SimEngine::Prove(const std::string& /*release_name*/) {
  return agent::ProofReport();
}

absl::Status SimEngine::SetStanding(const std::string& release_name, agent::Standing standing,
                                    const std::string& reason) {
  Disk::StoredRelease* stored = Find(release_name);
  if (stored == nullptr) return absl::NotFoundError(release_name);
  stored->release.standing = standing;
  stored->release.reason = reason;
  return absl::OkStatus();
}

absl::Status SimEngine::SetPinned(const std::string& release_name, bool pinned) {
  Disk::StoredRelease* stored = Find(release_name);
  if (stored == nullptr) return absl::NotFoundError(release_name);
  stored->release.pinned = pinned;
  return absl::OkStatus();
}

absl::StatusOr<agent::PruneReport> SimEngine::Prune(uint32_t /*keep_good*/,
                                                    const std::vector<std::string>& /*also_keep*/) {
  return agent::PruneReport();
}

// ---- what runs

absl::Status SimSupervisor::Stop(absl::Duration timeout) {
  host_.Work(100 * kMillisecond);
  if (host_.Fails("stop")) {
    host_.Work(absl::ToInt64Nanoseconds(timeout) / 2);
    return absl::DeadlineExceededError("the service did not stop");
  }
  unit_.runs = false;
  return absl::OkStatus();
}

absl::Status SimSupervisor::Start(absl::Duration /*timeout*/) {
  host_.Work(50 * kMillisecond);
  if (host_.Fails("start")) return absl::InternalError("the service did not start");
  host_.OnServiceStarts();
  if (!unit_.runs) unit_.started_at = host_.Now();
  unit_.runs = true;
  return absl::OkStatus();
}

absl::StatusOr<agent::UnitState> SimSupervisor::GetState() {
  agent::UnitState state;
  state.activity = unit_.runs ? agent::UnitState::Activity::kActive : agent::UnitState::Activity::kInactive;
  return state;
}

agent::ProbeResult SimProbe::Run(const agent::ProbeContext& context) {
  host_.Work(2 * kMillisecond);
  agent::ProbeResult result;
  result.name = "health";
  result.kind = "http";
  result.expected = "healthy";
  if (!unit_.runs) {
    result.observed = "it does not run";
  } else if (!context.expected_commit.empty() && context.expected_commit != CommitOf(disk_.tree[0])) {
    result.observed = "another version";
  } else if (!host_.IsHealthy(disk_.tree[0]) || host_.Now() - unit_.started_at < 200 * kMillisecond) {
    result.observed = "unhealthy";
  } else {
    result.observed = "healthy";
    result.passed = true;
  }
  return result;
}

absl::Status SimCommits::Fetch() {
  host_.Work(400 * kMillisecond);
  return host_.Fails("fetch") ? absl::UnavailableError("the git server does not answer") : absl::OkStatus();
}

absl::StatusOr<agent::Commit> SimCommits::Resolve(absl::string_view reference) {
  for (int version = 1; version <= kVersions; ++version) {
    if (reference != CommitOf(version) && reference != absl::StrCat("v", version)) continue;
    agent::Commit commit;
    commit.id = CommitOf(version);
    commit.version = absl::StrCat("v", version);
    return commit;
  }
  return absl::NotFoundError("no such commit");
}

absl::StatusOr<std::vector<agent::Commit>> SimCommits::Recent(size_t /*limit*/) { return std::vector<agent::Commit>(); }

absl::StatusOr<std::unique_ptr<agent::SnapshotSource>> SimCommits::Open(const std::string& /*commit_id*/) {
  return std::unique_ptr<agent::SnapshotSource>(new SimSnapshot);
}

}  // namespace rb::sim

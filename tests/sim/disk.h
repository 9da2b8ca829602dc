// A server's disk and what runs from it, behind the ports that the agent's steps use: small, but with the same promises
// and the same ways to fail as the real ones.
#ifndef RB_TESTS_SIM_DISK_H_
#define RB_TESTS_SIM_DISK_H_

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "agent/core/engine/engine.h"
#include "agent/core/ports/commit_source.h"
#include "agent/core/ports/probe.h"
#include "agent/core/ports/supervisor.h"
#include "tests/sim/random.h"

namespace rb::sim {

using Nanos = int64_t;
inline constexpr Nanos kMillisecond = 1'000'000;
inline constexpr Nanos kSecond = 1000 * kMillisecond;
inline constexpr Nanos kMinute = 60 * kSecond;
inline constexpr Nanos kHour = 60 * kMinute;
inline constexpr Nanos kDay = 24 * kHour;

// Files of a tree. Each holds the number of the version that it belongs to: version n has n in all of them.
inline constexpr int kFiles = 3;
// What there is to go to; 0 is no version.
inline constexpr int kVersions = 4;
// What runs when a world begins.
inline constexpr int kFirstVersion = 3;

std::string CommitOf(int version);
std::string ReleaseOf(const std::string& service, int version);

// What a restart leaves.
struct Disk {
  struct StoredRelease {
    agent::Release release;
    int version = 0;
    bool damaged = false;
  };
  // The engine's journal of one operation.
  struct Transaction {
    bool open = false;
    bool commit_begun = false;
    bool commit_done = false;
    bool undo_begun = false;
    std::string operation_id;
    std::string target_release;
    int target = 0;
    int replaced = 0;
  };

  std::array<int, kFiles> tree{};
  // What a power cut leaves at least of the tree: renames that were not flushed may be lost, each by itself.
  std::array<int, kFiles> flushed{};
  Transaction transaction;
  std::vector<StoredRelease> releases;
  agent::Current current;
  // Operation → release.
  std::vector<std::pair<std::string, std::string>> kept;

  // 0 when it is mixed.
  int Version() const;
  void CutPower(Random& random);
};

// What the steps of one service need of their host.
class HostPort {
 public:
  virtual ~HostPort() = default;
  // Time passes, and anything may happen meanwhile. May never return: the host dies.
  virtual void Work(Nanos typical) = 0;
  virtual Nanos Now() = 0;
  // A fault that was drawn for this moment.
  virtual bool Fails(absl::string_view what) = 0;
  virtual bool DiskIsFull() = 0;
  virtual bool IsCancelled() = 0;
  virtual bool IsHealthy(int version) = 0;

  // What really happens, for whoever watches.
  virtual void OnPrepared(const std::string& operation_id) = 0;
  virtual void OnSwapBegins(const std::string& operation_id) = 0;
  virtual void OnUndoBegins(const std::string& operation_id) = 0;
  virtual void OnKept(const std::string& operation_id) = 0;
  virtual void OnServiceStarts() = 0;
};

struct Unit {
  bool runs = false;
  Nanos started_at = 0;
};

// Nothing below owns what it is given.
class SimEngine final : public agent::Engine {
 public:
  SimEngine(std::string service, Disk& disk, HostPort& host) : service_(std::move(service)), disk_(disk), host_(host) {}

  absl::StatusOr<agent::Release> Capture(const agent::CaptureRequest& request) override;
  absl::StatusOr<std::vector<agent::Release>> Releases() override;
  absl::StatusOr<agent::Current> GetCurrent() override { return disk_.current; }
  absl::StatusOr<agent::Current> CheckDrift() override;
  absl::StatusOr<agent::OpenTransaction> GetOpenTransaction() override;
  std::vector<std::string> Problems(const std::optional<agent::Delta>& delta) override;
  absl::StatusOr<agent::Delta> Compare(const agent::EngineTarget& target, const agent::Components& components) override;
  absl::StatusOr<agent::PreparedTransaction> Prepare(const std::string& operation_id, const agent::EngineTarget& target,
                                                     const agent::Components& components,
                                                     const std::string& reason) override;
  absl::StatusOr<std::string> ReadPrepared(const std::string& operation_id, const std::string& path) override;
  absl::StatusOr<std::vector<std::string>> ListPrepared(const std::string& operation_id,
                                                        absl::string_view glob) override;
  absl::StatusOr<agent::EngineTimes> Commit(const std::string& operation_id) override;
  absl::Status Undo(const std::string& operation_id) override;
  absl::StatusOr<agent::Release> Keep(const std::string& operation_id, agent::Cause cause, bool good,
                                      bool replaced_is_bad, const std::string& reason) override;
  absl::StatusOr<std::string> Recover() override;
  absl::StatusOr<agent::ProofReport> Prove(const std::string& release_name) override;
  absl::Status SetStanding(const std::string& release_name, agent::Standing standing,
                           const std::string& reason) override;
  absl::Status SetPinned(const std::string& release_name, bool pinned) override;
  absl::StatusOr<agent::PruneReport> Prune(uint32_t keep_good, const std::vector<std::string>& also_keep) override;

 private:
  Disk::StoredRelease* Find(const std::string& name);
  // What is live, as a release; a new one where there is none.
  Disk::StoredRelease& Record(agent::Cause cause, const std::string& operation_id);
  absl::StatusOr<int> VersionOf(const agent::EngineTarget& target);
  std::string KeptAs(const std::string& operation_id) const;
  // Brings the files to `version`, one rename at a time, and flushes.
  absl::Status Swap(int version, bool may_fail);
  absl::Status UndoSwap();

  const std::string service_;
  Disk& disk_;
  HostPort& host_;
};

class SimSupervisor final : public agent::Supervisor {
 public:
  SimSupervisor(Unit& unit, HostPort& host) : unit_(unit), host_(host) {}
  absl::Status Stop(absl::Duration timeout) override;
  absl::Status Start(absl::Duration timeout) override;
  absl::StatusOr<agent::UnitState> GetState() override;

 private:
  Unit& unit_;
  HostPort& host_;
};

class SimProbe final : public agent::Probe {
 public:
  SimProbe(const Disk& disk, const Unit& unit, HostPort& host) : disk_(disk), unit_(unit), host_(host) {}
  agent::ProbeResult Run(const agent::ProbeContext& context) override;

 private:
  const Disk& disk_;
  const Unit& unit_;
  HostPort& host_;
};

// A mirror that has every version.
class SimCommits final : public agent::CommitSource {
 public:
  explicit SimCommits(HostPort& host) : host_(host) {}
  absl::Status Fetch() override;
  absl::StatusOr<agent::Commit> Resolve(absl::string_view reference) override;
  absl::StatusOr<std::vector<agent::Commit>> Recent(size_t limit) override;
  absl::StatusOr<std::unique_ptr<agent::SnapshotSource>> Open(const std::string& commit_id) override;

 private:
  HostPort& host_;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_DISK_H_

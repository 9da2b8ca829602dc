// What the controller keeps: one SQLite file. Everything is durable when a call returns OK.
#ifndef RB_CONTROLLER_ADAPTERS_STORE_H_
#define RB_CONTROLLER_ADAPTERS_STORE_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "controller/core/access.h"
#include "controller/core/audit.h"
#include "controller/core/quarantine.h"

struct sqlite3;

namespace rb::controller {

class Statement;

struct Principal {
  std::string name;
  Role role = Role::kNone;
};

struct StoredOperation {
  std::string id;
  std::string environment;
  std::string service;
  bool ended = false;
  // rb.v1.Operation: as it was accepted, then as it ended. In between the events say how it stands.
  std::string snapshot;
  // The same in short, for listing; left out: the snapshot.
  std::string brief;
};

// One of a list, in brief.
struct ListedOperation {
  std::string id;
  bool ended = false;
  // rb.v1.Operation.
  std::string brief;
};

// One event of one operation.
struct StoredEvent {
  // Event 1 makes the operation; of later ones only the id is read.
  StoredOperation operation;
  uint64_t sequence = 0;
  std::string event;
  // With event 1; may be empty.
  std::string idempotency_key;
  // With event 1, of an operation that has ended with it.
  std::vector<QuarantineChange> changes = {};
};

struct StoredTime {
  std::string environment;
  std::string service;
  std::string method;
  int64_t prepare_us = 0;
  int64_t downtime_us = 0;
};

// Thread-safe. Other processes (`rb-controller token`) may use the file at the same time.
class Store {
 public:
  enum class Mode {
    // Makes the file when it is missing.
    kMake,
    // NOT_FOUND when it is missing.
    kExisting,
    // The same, and nothing in it is changed.
    kReadOnly,
  };
  // FAILED_PRECONDITION, with nothing touched, when a newer version wrote it.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path, Mode mode = Mode::kMake);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // Keeps some room on the disk for what is under way: when the disk is full, that room is given up so that events, and
  // how operations end, can still be written. RESOURCE_EXHAUSTED when there is none to keep: nothing new is to begin.
  absl::Status KeepReserve();

  // Operators and agents. Whoever is not here is denied, whatever certificate they hold.
  absl::Status PutPrincipal(const Principal& principal);
  absl::Status RemovePrincipal(const std::string& name, bool is_agent);
  absl::StatusOr<Role> RoleOf(const std::string& name, bool is_agent);
  absl::StatusOr<std::vector<Principal>> Principals();

  // Tokens are kept as SHA-256 of the secret.
  absl::Status AddToken(const std::string& agent_name, const std::string& secret_sha256_hex, absl::Time expires_at);
  // Uses the token up and makes the agent a principal, in one transaction. PERMISSION_DENIED when there is no such
  // token for that name, or it is used up or expired; which of these is not told.
  absl::Status UseToken(const std::string& agent_name, const std::string& secret_sha256_hex, absl::Time now);
  // The same answer, without using it up.
  absl::Status CheckToken(const std::string& agent_name, const std::string& secret_sha256_hex, absl::Time now);

  // A number higher than any before it.
  absl::StatusOr<uint64_t> NextFencingNumber();
  // Appends an event and replaces the snapshot. The first event makes the operation; ALREADY_EXISTS when its
  // idempotency key was used before.
  absl::Status AppendEvent(const StoredOperation& operation, uint64_t sequence, absl::string_view event,
                           const std::string& idempotency_key);
  // All of them or none, with one flush to the disk.
  absl::Status AppendEvents(const std::vector<StoredEvent>& events);
  // Marks the operation as ended (or, `ended` false, as it is now) and keeps what its hosts took: of each service,
  // environment and method the newest `most_times`; and what its end changes of the quarantine.
  absl::Status PutSnapshot(const StoredOperation& operation, const std::vector<StoredTime>& times, size_t most_times,
                           const std::vector<QuarantineChange>& changes = {});
  // Newest first.
  absl::StatusOr<std::vector<StoredTime>> Times(const std::string& service);
  // A release by a person. ALREADY_EXISTS when the number was used before.
  absl::Status AppendQuarantine(const QuarantineChange& change);
  // All of them, in the order of their numbers.
  absl::StatusOr<std::vector<QuarantineChange>> QuarantineChanges();
  absl::StatusOr<std::vector<std::string>> Events(const std::string& operation_id);
  // By id or unambiguous prefix. NOT_FOUND, INVALID_ARGUMENT.
  absl::StatusOr<StoredOperation> Find(const std::string& id_or_prefix);
  // Empty when the key is not known.
  absl::StatusOr<std::string> OperationOfKey(const std::string& idempotency_key);
  // Newest first, in the order in which they were accepted; `before_id`: older than that one (empty: from the newest).
  absl::StatusOr<std::vector<ListedOperation>> List(const std::string& environment, const std::string& service,
                                                    const std::string& before_id, size_t limit);
  // The same, one after the other; what is shown lasts until `each` returns. Ends with the first status of it that is
  // not OK. `each` does not call the store.
  using EachListed = std::function<absl::Status(absl::string_view id, bool ended, absl::string_view brief)>;
  absl::Status ForEachListed(const std::string& environment, const std::string& service, const std::string& before_id,
                             size_t limit, const EachListed& each);
  absl::StatusOr<std::vector<std::string>> Unfinished();

  // FAILED_PRECONDITION, with the holder's id as message, when another operation has it. Taking it twice is fine.
  absl::Status TakeLock(const std::string& service, const std::string& environment, const std::string& operation_id);
  absl::Status ReleaseLock(const std::string& operation_id);
  // Gives back locks whose operation was never recorded, or has ended: a controller that was killed in between left
  // them.
  absl::Status ReleaseStaleLocks();
  // Puts the record at the end of the audit log, with its number and hash. `durable` false: a power cut may take it
  // away again, which is enough for what only reads.
  absl::Status AppendAudit(AuditRecord record, bool durable);
  // Records with number > `after`, oldest first. 0: all there are, also those with a number that was never given.
  absl::StatusOr<std::vector<AuditRecord>> AuditAfter(uint64_t after, size_t limit);
  // Records with number < `before` (0: all), newest first.
  absl::StatusOr<std::vector<AuditRecord>> AuditBefore(uint64_t before, size_t limit);

  absl::StatusOr<std::string> LockHolder(const std::string& service, const std::string& environment);

 private:
  Store(sqlite3* database, std::string path) : database_(database), reserve_path_(std::move(path)) {}
  absl::Status PutBrief(const StoredOperation& operation) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status InsertOperation(const StoredEvent& event) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  static absl::StatusOr<std::vector<AuditRecord>> ReadAudit(Statement* statement);
  absl::Status Insert(const QuarantineChange& change) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Execute(const char* sql) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Commits when `status` is OK, else rolls back; returns the first error.
  absl::Status End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Runs `work` in a transaction; once more, with the reserve given up, when the disk is full.
  absl::Status InTransaction(const std::function<absl::Status()>& work) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Setup(Mode mode) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  // Has no lock of its own: not without mutex_, statements included.
  sqlite3* const database_ ABSL_PT_GUARDED_BY(mutex_);
  const std::string reserve_path_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_STORE_H_

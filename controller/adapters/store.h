// What the controller keeps: one SQLite file. Everything is durable when a call returns OK.
#ifndef RB_CONTROLLER_ADAPTERS_STORE_H_
#define RB_CONTROLLER_ADAPTERS_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/mutex.h"
#include "controller/core/access.h"
#include "controller/core/audit.h"

struct sqlite3;

namespace rb::controller {

struct Principal {
  std::string name;
  Role role = Role::kNone;
};

struct StoredOperation {
  std::string id;
  std::string environment;
  std::string service;
  bool ended = false;
  // rb.v1.Operation, as it is after the last event.
  std::string snapshot;
};

// Thread-safe. Other processes (`rb-controller token`) may use the file at the same time.
class Store {
 public:
  // Makes the file when it is missing. FAILED_PRECONDITION, with nothing touched, when a newer version wrote it.
  static absl::StatusOr<std::unique_ptr<Store>> Open(const std::string& path);
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

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

  // A number higher than any before it.
  absl::StatusOr<uint64_t> NextFencingNumber();
  // Appends an event and replaces the snapshot, in one transaction. The first event makes the operation;
  // ALREADY_EXISTS when its idempotency key was used before.
  absl::Status AppendEvent(const StoredOperation& operation, uint64_t sequence, absl::string_view event,
                           const std::string& idempotency_key);
  absl::StatusOr<std::vector<std::string>> Events(const std::string& operation_id);
  // By id or unambiguous prefix. NOT_FOUND, INVALID_ARGUMENT.
  absl::StatusOr<StoredOperation> Find(const std::string& id_or_prefix);
  // Empty when the key is not known.
  absl::StatusOr<std::string> OperationOfKey(const std::string& idempotency_key);
  // Newest first, in the order in which they were accepted; `before_id`: older than that one (empty: from the newest).
  absl::StatusOr<std::vector<StoredOperation>> List(const std::string& environment, const std::string& service,
                                                    const std::string& before_id, size_t limit);
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
  // Records with number > `after`, oldest first.
  absl::StatusOr<std::vector<AuditRecord>> AuditAfter(uint64_t after, size_t limit);
  // Records with number < `before` (0: all), newest first.
  absl::StatusOr<std::vector<AuditRecord>> AuditBefore(uint64_t before, size_t limit);

  absl::StatusOr<std::string> LockHolder(const std::string& service, const std::string& environment);

 private:
  explicit Store(sqlite3* database) : database_(database) {}
  class Statement;
  static absl::StatusOr<std::vector<AuditRecord>> ReadAudit(Statement* statement);
  absl::Status Execute(const char* sql) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Commits when `status` is OK, else rolls back; returns the first error.
  absl::Status End(const absl::Status& status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status Setup() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Mutex mutex_;
  sqlite3* const database_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_STORE_H_

// Who asked for what, from where, and was it allowed: records that hang together by their hashes. Whoever changes,
// removes or moves one of them breaks the chain there. Whoever can write the whole log anew can make another chain:
// against that, a hash that was noted elsewhere has to be in it.
#ifndef RB_CONTROLLER_CORE_AUDIT_H_
#define RB_CONTROLLER_CORE_AUDIT_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/time/time.h"
#include "common/digest.h"

namespace rb::controller {

struct AuditRecord {
  // From 1, without gaps.
  uint64_t number = 0;
  // UTC, to the microsecond.
  absl::Time at;
  // Name in the certificate; empty without one of ours. "local" for who works on the controller's own host.
  std::string who;
  std::string role;
  // The other end's address.
  std::string from;
  // Name of the call, for example "StartOperation".
  std::string request;
  // What it is about: kind, environment, service, hosts, operation. Never a secret.
  std::string subject;
  // What the person gave as reason.
  std::string reason;
  bool allowed = false;
  // Why not.
  std::string refusal;
  Digest hash;
};

// Longest text of a field, in bytes; what is longer is cut before it is hashed.
inline constexpr size_t kLongestAuditField = 500;

// Of all fields but `hash`, and of the record before it (zero for the first). SHA-256 over lengths and bytes, so that
// no two records give the same input.
Digest AuditHash(const Digest& before, const AuditRecord& record);

// Bounds how fast the log grows. What changes something is always on record. Reads of one caller by one call are on
// record once in kReadWindow, and refusals of one caller and call kRefusalsInWindow times: a dashboard, or a script
// gone wild, would fill the disk otherwise. The next record says how many were left out.
class AuditThrottle {
 public:
  enum class What { kChange, kRead, kRefusal };
  static constexpr absl::Duration kReadWindow = absl::Minutes(10);
  static constexpr uint32_t kRefusalsInWindow = 60;

  // Whether it goes on record; then `left_out` gets how many like it did not, since the last one that did.
  bool Take(What what, const std::string& who, const std::string& request, absl::Time now, uint64_t* left_out);

 private:
  struct Seen {
    absl::Time since;
    uint32_t recorded = 0;
    uint64_t left_out = 0;
  };
  // Callers without a certificate of ours have no name, so that there are few.
  std::map<std::string, Seen> seen_;
};

// Takes a log from its first record to its last.
class AuditCheck {
 public:
  // `expected`: a hash that was noted earlier, for example an earlier head.
  explicit AuditCheck(std::optional<Digest> expected) : expected_(expected) {}

  // False at the first record that does not fit: problem() says which and how. Takes none after that.
  bool Take(const AuditRecord& record);
  // After the last one: also false when the expected hash was not among them.
  bool Finish();

  uint64_t count() const { return count_; }
  const Digest& head() const { return head_; }
  // Of the first bad record; 0 if none is known.
  uint64_t bad_number() const { return bad_number_; }
  const std::string& problem() const { return problem_; }

 private:
  const std::optional<Digest> expected_;
  bool seen_ = false;
  uint64_t count_ = 0;
  Digest head_;
  uint64_t bad_number_ = 0;
  std::string problem_;
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_CORE_AUDIT_H_

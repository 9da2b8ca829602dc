// FleetService over mutual TLS. Errors are absl::Status; a refusal by the controller travels inside, see RefusalOf.
#ifndef RB_RBCTL_CLIENT_FLEET_CLIENT_H_
#define RB_RBCTL_CLIENT_FLEET_CLIENT_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "rb/v1/fleet_service.pb.h"
#include "rbctl/client/identity.h"

namespace grpc {
class Channel;
class Status;
}  // namespace grpc

namespace google::protobuf {
class Arena;
}  // namespace google::protobuf

namespace rb::cli {

// With the refusal inside, if there is one.
absl::Status FromGrpc(const grpc::Status& status);
std::optional<v1::Refusal> RefusalOf(const absl::Status& status);
// Nothing reached the controller: whatever was asked for did not happen.
bool WasNotSent(const absl::Status& status);

struct ClientLimits {
  // Until the first connection stands.
  absl::Duration connect = absl::Seconds(5);
  // One call. Planning asks every host, so it is long.
  absl::Duration call = absl::Seconds(120);
  // How long a lost controller is waited for, from when it was last heard.
  absl::Duration lost = absl::Seconds(60);
  absl::Duration first_backoff = absl::Milliseconds(200);
  absl::Duration longest_backoff = absl::Seconds(2);
  // A stream that has been silent this long is opened again: the network may have died without a word.
  absl::Duration stream = absl::Seconds(60);
};

// Thread-compatible, but Detach may be called from any thread.
class FleetClient {
 public:
  FleetClient(const Identity& identity, const ClientLimits& limits);
  ~FleetClient();
  FleetClient(const FleetClient&) = delete;
  FleetClient& operator=(const FleetClient&) = delete;

  absl::StatusOr<v1::Plan> Plan(const v1::OperationSpec& spec);
  // Repeated with the same key while the controller is lost, so that it is started once or not at all. UNAVAILABLE
  // without WasNotSent: nobody knows whether it was accepted.
  absl::StatusOr<v1::Operation> Start(const v1::OperationSpec& spec);
  absl::StatusOr<v1::GetOperationResponse> Get(const std::string& operation_id);
  // Newest first; pages until `limit`. Lives in `arena`, as long as it: thousands of operations are hundreds of
  // thousands of allocations otherwise.
  absl::StatusOr<const v1::ListOperationsResponse*> List(const std::string& environment, const std::string& service,
                                                         uint32_t limit, google::protobuf::Arena* arena);
  absl::StatusOr<v1::Operation> Abort(const std::string& operation_id, const std::string& reason);
  absl::StatusOr<v1::Operation> Pause(const std::string& operation_id, const std::string& reason);
  // `reason` is not used: a resumption has none.
  absl::StatusOr<v1::Operation> Resume(const std::string& operation_id, const std::string& reason);
  absl::StatusOr<v1::Operation> Approve(const std::string& operation_id, const std::string& reason);
  absl::StatusOr<v1::ListAuditRecordsResponse> AuditRecords(uint32_t limit, uint64_t before_number = 0);
  absl::StatusOr<v1::VerifyAuditResponse> VerifyAudit(const std::string& expected_hash);
  absl::StatusOr<v1::ListReleasesResponse> Releases(const std::string& environment, const std::string& service);
  absl::StatusOr<v1::ListAgentsResponse> Agents();
  absl::StatusOr<v1::GetStatusResponse> Status(const std::string& environment, const std::string& service);

  // Gives every event once and in order (null when only the operation moved on), until the operation has ended; returns
  // how it ended. A broken stream is resumed. UNAVAILABLE when the controller stays lost, CANCELLED after Detach.
  using OnUpdate = std::function<void(const v1::OperationEvent* event, const v1::Operation& operation)>;
  absl::StatusOr<v1::Operation> Watch(const std::string& operation_id, const OnUpdate& on_update);

  // For stubs of other services, see area_call.h: the channel once it stands, or why it does not.
  absl::StatusOr<std::shared_ptr<grpc::Channel>> Connected();
  const ClientLimits& limits() const;

  // Ends Watch soon, now and from now on.
  void Detach();

 private:
  struct Channel;
  std::unique_ptr<Channel> channel_;
};

}  // namespace rb::cli

#endif  // RB_RBCTL_CLIENT_FLEET_CLIENT_H_

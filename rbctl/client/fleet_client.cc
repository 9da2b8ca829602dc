#include "rbctl/client/fleet_client.h"

#include <google/protobuf/any.pb.h>
#include <google/protobuf/empty.pb.h>
#include <google/protobuf/unknown_field_set.h>
#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/ids.h"
#include "common/mutex.h"
#include "common/status.h"
#include "common/text.h"
#include "rb/v1/fleet_service.grpc.pb.h"
#include "rbctl/render/words.h"

namespace rb::cli {
namespace {

constexpr char kRefusalPayload[] = "rb.v1.Refusal";
constexpr char kNotSentPayload[] = "rbctl/not-sent";

// A Refusal as it is, or inside a google.rpc.Status (field 3, repeated Any), which is what many libraries write.
std::optional<v1::Refusal> ParseRefusal(const std::string& details) {
  v1::Refusal refusal;
  google::protobuf::Empty wrapper;
  if (details.empty() || !wrapper.ParseFromString(details)) {
    return std::nullopt;
  }
  const google::protobuf::UnknownFieldSet& fields = wrapper.GetReflection()->GetUnknownFields(wrapper);
  for (int i = 0; i < fields.field_count(); ++i) {
    google::protobuf::Any any;
    if (fields.field(i).number() == 3 &&
        fields.field(i).type() == google::protobuf::UnknownField::TYPE_LENGTH_DELIMITED &&
        any.ParseFromString(fields.field(i).length_delimited()) && any.UnpackTo(&refusal)) {
      return refusal;
    }
  }
  if (refusal.ParseFromString(details) && !refusal.message().empty()) {
    return refusal;
  }
  return std::nullopt;
}

void SetDeadline(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(timeout));
}

bool IsLost(const absl::Status& status) {
  return !RefusalOf(status) && (absl::IsUnavailable(status) || absl::IsDeadlineExceeded(status));
}

// Into what is known of an operation: an update that is not whole has the hosts that have changed.
void Merge(const v1::WatchOperationResponse& update, v1::Operation* known) {
  if (!update.has_operation()) return;
  v1::Operation now = update.operation();
  if (!update.is_whole() && now.id() == known->id()) {
    std::map<std::string, const v1::HostProgress*> changed;
    for (const v1::HostProgress& host : update.operation().hosts()) changed[host.host()] = &host;
    now.mutable_hosts()->Swap(known->mutable_hosts());
    now.mutable_plan()->Swap(known->mutable_plan());
    for (v1::HostProgress& host : *now.mutable_hosts()) {
      if (const auto found = changed.find(host.host()); found != changed.end()) host = *found->second;
    }
  }
  *known = std::move(now);
}

}  // namespace

absl::Status FromGrpc(const grpc::Status& status) {
  if (status.ok()) {
    return absl::OkStatus();
  }
  absl::Status converted(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
  std::optional<v1::Refusal> refusal = ParseRefusal(status.error_details());
  if (!refusal && (status.error_code() == grpc::StatusCode::PERMISSION_DENIED ||
                   status.error_code() == grpc::StatusCode::UNAUTHENTICATED)) {
    refusal.emplace();
    refusal->set_code(v1::Refusal::CODE_PERMISSION);
    refusal->set_message(absl::StrCat(status.error_message(), "\nNothing was changed."));
  }
  if (refusal) {
    converted.SetPayload(kRefusalPayload, absl::Cord(refusal->SerializeAsString()));
  }
  return converted;
}

std::optional<v1::Refusal> RefusalOf(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRefusalPayload);
  v1::Refusal refusal;
  if (!payload || !refusal.ParseFromString(std::string(*payload))) {
    return std::nullopt;
  }
  return refusal;
}

bool WasNotSent(const absl::Status& status) { return status.GetPayload(kNotSentPayload).has_value(); }

struct FleetClient::Channel {
  ClientLimits limits;
  std::string address;
  grpc::SslCredentialsOptions tls;
  std::shared_ptr<grpc::Channel> channel;
  std::unique_ptr<v1::FleetService::Stub> stub;
  Mutex mutex;
  CondVar changed;
  bool detached ABSL_GUARDED_BY(mutex) = false;
  grpc::ClientContext* watching ABSL_GUARDED_BY(mutex) = nullptr;

  // Dials anew: a channel whose controller was killed goes on failing fast long after another one serves the same
  // address, so what is left of it is not kept.
  void Open() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 200);
    arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 1000);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2000);
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    // A proxy of the workstation is for the web: the controller is dialled directly.
    arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    arguments.SetMaxReceiveMessageSize(64 << 20);
    channel = grpc::CreateCustomChannel(address, grpc::SslCredentials(tls), arguments);
    stub = v1::FleetService::NewStub(channel);
  }

  absl::Status Connect() {
    if (channel->WaitForConnected(std::chrono::system_clock::now() + absl::ToChronoMilliseconds(limits.connect))) {
      return absl::OkStatus();
    }
    // A read-only call, only for the reason in its error.
    grpc::ClientContext context;
    SetDeadline(&context, absl::Seconds(1));
    v1::ListAgentsResponse ignored;
    const grpc::Status why = stub->ListAgents(&context, {}, &ignored);
    if (why.ok()) {
      return absl::OkStatus();
    }
    absl::Status status = absl::UnavailableError(absl::StrCat(address, ": ", why.error_message()));
    status.SetPayload(kNotSentPayload, absl::Cord("1"));
    return status;
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Once(grpc::Status (v1::FleetService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                               Response*),
                                const Request& request, absl::Duration timeout) {
    Response response;
    RB_RETURN_IF_ERROR(OnceInto(method, request, timeout, &response));
    return response;
  }

  template <typename Request, typename Response>
  absl::Status OnceInto(grpc::Status (v1::FleetService::Stub::*method)(grpc::ClientContext*, const Request&, Response*),
                        const Request& request, absl::Duration timeout, Response* response) {
    grpc::ClientContext context;
    SetDeadline(&context, timeout);
    return FromGrpc((stub.get()->*method)(&context, request, response));
  }

  template <typename Request, typename Response>
  absl::StatusOr<Response> Call(grpc::Status (v1::FleetService::Stub::*method)(grpc::ClientContext*, const Request&,
                                                                               Response*),
                                const Request& request) {
    RB_RETURN_IF_ERROR(Connect());
    return Once(method, request, limits.call);
  }

  bool IsDetached() {
    MutexLock lock(mutex);
    return detached;
  }

  // False when detached meanwhile.
  bool Pause(absl::Duration duration) {
    const absl::Duration until = SystemClock().Monotonic() + duration;
    MutexLock lock(mutex);
    while (!detached) {
      const absl::Duration left = until - SystemClock().Monotonic();
      if (left <= absl::ZeroDuration()) {
        break;
      }
      changed.WaitFor(mutex, left);
    }
    return !detached;
  }
};

FleetClient::FleetClient(const Identity& identity, const ClientLimits& limits) : channel_(new Channel) {
  channel_->limits = limits;
  channel_->address = identity.controller;
  channel_->tls.pem_root_certs = identity.authority_pem;
  channel_->tls.pem_private_key = identity.key_pem;
  channel_->tls.pem_cert_chain = identity.certificate_pem;
  channel_->Open();
}

FleetClient::~FleetClient() = default;

absl::StatusOr<std::shared_ptr<grpc::Channel>> FleetClient::Connected() {
  RB_RETURN_IF_ERROR(channel_->Connect());
  return channel_->channel;
}

const ClientLimits& FleetClient::limits() const { return channel_->limits; }

absl::StatusOr<v1::Plan> FleetClient::Plan(const v1::OperationSpec& spec) {
  v1::PlanOperationRequest request;
  *request.mutable_spec() = spec;
  RB_ASSIGN_OR_RETURN(const v1::PlanOperationResponse response,
                      channel_->Call(&v1::FleetService::Stub::PlanOperation, request));
  return response.plan();
}

absl::StatusOr<v1::Operation> FleetClient::Start(const v1::OperationSpec& spec) {
  RB_RETURN_IF_ERROR(channel_->Connect());
  v1::StartOperationRequest request;
  *request.mutable_spec() = spec;
  request.set_idempotency_key(RandomHex(16));
  const absl::Duration give_up = SystemClock().Monotonic() + channel_->limits.lost;
  absl::Duration backoff = channel_->limits.first_backoff;
  while (true) {
    absl::StatusOr<v1::StartOperationResponse> response = channel_->Once(
        &v1::FleetService::Stub::StartOperation, request, channel_->limits.call + ToDuration(spec.wait_for_lock()));
    if (response.ok()) {
      return response->operation();
    }
    if (!IsLost(response.status()) || SystemClock().Monotonic() + backoff > give_up) {
      return response.status();
    }
    channel_->Pause(backoff);
    backoff = std::min(backoff * 2, channel_->limits.longest_backoff);
  }
}

absl::StatusOr<v1::GetOperationResponse> FleetClient::Get(const std::string& operation_id) {
  v1::GetOperationRequest request;
  request.set_operation_id(operation_id);
  return channel_->Call(&v1::FleetService::Stub::GetOperation, request);
}

absl::StatusOr<const v1::ListOperationsResponse*> FleetClient::List(const std::string& environment,
                                                                    const std::string& service, uint32_t limit,
                                                                    google::protobuf::Arena* arena) {
  using google::protobuf::Arena;
  RB_RETURN_IF_ERROR(channel_->Connect());
  auto* const all = Arena::CreateMessage<v1::ListOperationsResponse>(arena);
  v1::ListOperationsRequest request;
  request.set_environment(environment);
  request.set_service(service);
  // Each page brings at least one, so this ends.
  while (static_cast<uint32_t>(all->operations_size()) < limit) {
    request.set_page_size(limit - static_cast<uint32_t>(all->operations_size()));
    auto* const page = Arena::CreateMessage<v1::ListOperationsResponse>(arena);
    RB_RETURN_IF_ERROR(
        channel_->OnceInto(&v1::FleetService::Stub::ListOperations, request, channel_->limits.call, page));
    for (v1::Operation& operation : *page->mutable_operations()) {
      if (static_cast<uint32_t>(all->operations_size()) < limit) {
        // All of it is the arena's: nothing is copied.
        all->mutable_operations()->UnsafeArenaAddAllocated(&operation);
      }
    }
    if (page->next_page_token().empty() || page->operations().empty()) {
      break;
    }
    request.set_page_token(page->next_page_token());
  }
  return all;
}

absl::StatusOr<v1::Operation> FleetClient::Abort(const std::string& operation_id, const std::string& reason) {
  v1::AbortOperationRequest request;
  request.set_operation_id(operation_id);
  request.set_reason(reason);
  RB_ASSIGN_OR_RETURN(const v1::AbortOperationResponse response,
                      channel_->Call(&v1::FleetService::Stub::AbortOperation, request));
  return response.operation();
}

absl::StatusOr<v1::Operation> FleetClient::Pause(const std::string& operation_id, const std::string& reason) {
  v1::PauseOperationRequest request;
  request.set_operation_id(operation_id);
  request.set_reason(reason);
  RB_ASSIGN_OR_RETURN(const v1::PauseOperationResponse response,
                      channel_->Call(&v1::FleetService::Stub::PauseOperation, request));
  return response.operation();
}

absl::StatusOr<v1::Operation> FleetClient::Resume(const std::string& operation_id, const std::string& /*reason*/) {
  v1::ResumeOperationRequest request;
  request.set_operation_id(operation_id);
  RB_ASSIGN_OR_RETURN(const v1::ResumeOperationResponse response,
                      channel_->Call(&v1::FleetService::Stub::ResumeOperation, request));
  return response.operation();
}

absl::StatusOr<v1::Operation> FleetClient::Approve(const std::string& operation_id, const std::string& reason) {
  v1::ApproveOperationRequest request;
  request.set_operation_id(operation_id);
  request.set_reason(reason);
  RB_ASSIGN_OR_RETURN(const v1::ApproveOperationResponse response,
                      channel_->Call(&v1::FleetService::Stub::ApproveOperation, request));
  return response.operation();
}

absl::StatusOr<v1::ListAuditRecordsResponse> FleetClient::AuditRecords(uint32_t limit, uint64_t before_number) {
  v1::ListAuditRecordsRequest request;
  request.set_page_size(limit);
  request.set_before_number(before_number);
  return channel_->Call(&v1::FleetService::Stub::ListAuditRecords, request);
}

absl::StatusOr<v1::VerifyAuditResponse> FleetClient::VerifyAudit(const std::string& expected_hash) {
  v1::VerifyAuditRequest request;
  request.set_expected_hash(expected_hash);
  return channel_->Call(&v1::FleetService::Stub::VerifyAudit, request);
}

absl::StatusOr<v1::ListReleasesResponse> FleetClient::Releases(const std::string& environment,
                                                               const std::string& service) {
  v1::ListReleasesRequest request;
  request.set_environment(environment);
  request.set_service(service);
  return channel_->Call(&v1::FleetService::Stub::ListReleases, request);
}

absl::StatusOr<v1::ListAgentsResponse> FleetClient::Agents() {
  return channel_->Call(&v1::FleetService::Stub::ListAgents, v1::ListAgentsRequest());
}

absl::StatusOr<v1::GetStatusResponse> FleetClient::Status(const std::string& environment, const std::string& service) {
  v1::GetStatusRequest request;
  request.set_environment(environment);
  request.set_service(service);
  return channel_->Call(&v1::FleetService::Stub::GetStatus, request);
}

absl::StatusOr<v1::Operation> FleetClient::Watch(const std::string& operation_id, const OnUpdate& on_update) {
  uint64_t seen = 0;
  absl::Duration heard = SystemClock().Monotonic();
  absl::Duration backoff = channel_->limits.first_backoff;
  while (true) {
    grpc::ClientContext context;
    SetDeadline(&context, channel_->limits.stream);
    {
      MutexLock lock(channel_->mutex);
      if (channel_->detached) {
        return absl::CancelledError("no longer watched");
      }
      channel_->watching = &context;
    }
    v1::WatchOperationRequest request;
    request.set_operation_id(operation_id);
    request.set_after_sequence(seen);
    auto stream = channel_->stub->WatchOperation(&context, request);
    v1::WatchOperationResponse response;
    v1::Operation operation;
    std::optional<v1::Operation> end;
    while (stream->Read(&response)) {
      heard = SystemClock().Monotonic();
      backoff = channel_->limits.first_backoff;
      Merge(response, &operation);
      bool any = false;
      const auto take = [&](const v1::OperationEvent& event) {
        if (event.sequence() <= seen) return;
        seen = event.sequence();
        any = true;
        on_update(&event, operation);
      };
      if (response.has_event()) take(response.event());
      for (const v1::OperationEvent& event : response.events()) take(event);
      if (!any) on_update(nullptr, operation);
      // While the past is told, the operation may be given as it is today: then more events are to come.
      if (HasEnded(operation.state()) && operation.last_sequence() <= seen) {
        end = operation;
      }
    }
    const absl::Status status = FromGrpc(stream->Finish());
    {
      MutexLock lock(channel_->mutex);
      channel_->watching = nullptr;
      if (channel_->detached && !end) {
        return absl::CancelledError("no longer watched");
      }
    }
    if (end) {
      return *std::move(end);
    }
    if (!status.ok() && !IsLost(status) && !absl::IsCancelled(status) && !absl::IsInternal(status) &&
        !absl::IsUnknown(status) && !absl::IsAborted(status) && !absl::IsResourceExhausted(status)) {
      return status;
    }
    // The stream broke, or it was silent for long. Is the controller there, and is it over?
    if (!status.ok()) {
      channel_->Open();
      channel_->channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(2));
    }
    v1::GetOperationRequest get;
    get.set_operation_id(operation_id);
    const absl::StatusOr<v1::GetOperationResponse> now =
        channel_->Once(&v1::FleetService::Stub::GetOperation, get, absl::Seconds(10));
    if (now.ok()) {
      heard = SystemClock().Monotonic();
      if (HasEnded(now->operation().state())) {
        for (const v1::OperationEvent& event : now->events()) {
          if (event.sequence() > seen) {
            seen = event.sequence();
            on_update(&event, now->operation());
          }
        }
        return now->operation();
      }
    } else if (!IsLost(now.status()) || SystemClock().Monotonic() - heard + backoff > channel_->limits.lost) {
      return now.status();
    }
    if (!channel_->Pause(backoff)) {
      return absl::CancelledError("no longer watched");
    }
    backoff = std::min(backoff * 2, channel_->limits.longest_backoff);
  }
}

void FleetClient::Detach() {
  MutexLock lock(channel_->mutex);
  channel_->detached = true;
  if (channel_->watching != nullptr) {
    channel_->watching->TryCancel();
  }
  channel_->changed.NotifyAll();
}

}  // namespace rb::cli

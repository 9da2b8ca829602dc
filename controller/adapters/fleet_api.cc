#include "controller/adapters/fleet_api.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "common/adapters/proto_time.h"
#include "common/digest.h"
#include "common/mutex.h"
#include "controller/adapters/wire.h"
#include "rb/v1/fleet_service.grpc.pb.h"

namespace rb::controller {
namespace {

constexpr size_t kMostUpdatesQueued = 3;
// Checked in one go; between two of these the loop does other work.
constexpr size_t kAuditSlice = 1000;

// What requests are about, for the audit log.
AuditSubject SubjectOf(const v1::OperationSpec& spec) {
  AuditSubject about;
  about.subject =
      absl::StrCat(absl::AsciiStrToLower(absl::StripPrefix(v1::OperationKind_Name(spec.kind()), "OPERATION_KIND_")),
                   " ", spec.through().empty() ? spec.environment() : absl::StrJoin(spec.through(), ","));
  const auto add = [&about](absl::string_view name, const std::string& value) {
    if (!value.empty()) absl::StrAppend(&about.subject, " ", name, value);
  };
  add("service ", spec.service());
  add("host ", absl::StrJoin(spec.hosts(), ","));
  add("to ", spec.target().name());
  add("of ", spec.undo_operation_id());
  add("skipping gates ", absl::StrJoin(spec.override_gates(), ","));
  if (spec.emergency()) add("", "emergency");
  if (spec.force()) add("", "forced");
  about.reason = spec.reason();
  return about;
}
AuditSubject SubjectOf(const v1::PlanOperationRequest& request) { return SubjectOf(request.spec()); }
AuditSubject SubjectOf(const v1::StartOperationRequest& request) { return SubjectOf(request.spec()); }
AuditSubject SubjectOf(const v1::GetOperationRequest& request) { return {request.operation_id(), ""}; }
AuditSubject SubjectOf(const v1::WatchOperationRequest& request) { return {request.operation_id(), ""}; }
AuditSubject SubjectOf(const v1::AbortOperationRequest& request) { return {request.operation_id(), request.reason()}; }
AuditSubject SubjectOf(const v1::PauseOperationRequest& request) { return {request.operation_id(), request.reason()}; }
AuditSubject SubjectOf(const v1::ResumeOperationRequest& request) { return {request.operation_id(), ""}; }
AuditSubject SubjectOf(const v1::ApproveOperationRequest& request) {
  return {request.operation_id(), request.reason()};
}
AuditSubject SubjectOf(const v1::ListOperationsRequest& request) { return {request.environment(), ""}; }
AuditSubject SubjectOf(const v1::ListReleasesRequest& request) { return {request.environment(), ""}; }
AuditSubject SubjectOf(const v1::GetStatusRequest& request) { return {request.environment(), ""}; }
AuditSubject SubjectOf(const v1::ListAgentsRequest& /*request*/) { return {}; }
AuditSubject SubjectOf(const v1::ListAuditRecordsRequest& /*request*/) { return {}; }
AuditSubject SubjectOf(const v1::VerifyAuditRequest& /*request*/) { return {}; }

v1::AuditRecord ToWire(const AuditRecord& record) {
  v1::AuditRecord wire;
  wire.set_number(record.number);
  *wire.mutable_at() = ToProto(record.at);
  wire.set_who(record.who);
  wire.set_role(record.role);
  wire.set_from(record.from);
  wire.set_request(record.request);
  wire.set_subject(record.subject);
  wire.set_reason(record.reason);
  wire.set_allowed(record.allowed);
  wire.set_refusal(record.refusal);
  wire.set_hash(record.hash.ToHex());
  return wire;
}

// Keeps what it was created with until gRPC is done.
class WatchStream final : public grpc::ServerWriteReactor<v1::WatchOperationResponse> {
 public:
  WatchStream(EventLoop& loop, Driver& driver, std::function<void(WatchStream*)> on_done)
      : loop_(loop), driver_(driver), on_done_(std::move(on_done)) {}

  void Begin(const std::shared_ptr<WatchStream>& self, const v1::WatchOperationRequest& request) {
    self_ = self;
    const bool posted = loop_.Post([this, self, request] {
      const absl::StatusOr<uint64_t> number = driver_.Watch(
          request.operation_id(), request.after_sequence(),
          [this, self](v1::WatchOperationResponse&& update, bool is_last) { return Push(std::move(update), is_last); });
      if (!number.ok()) {
        End(ToGrpc(number.status()));
      } else {
        number_ = *number;
      }
    });
    if (!posted) End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the controller is busy; try again"));
  }

  void End(const grpc::Status& status) {
    {
      MutexLock lock(mutex_);
      if (finished_) return;
      finished_ = true;
    }
    Finish(status);
  }

  void OnWriteDone(bool ok) override {
    bool finish = false;
    {
      MutexLock lock(mutex_);
      queue_.pop_front();
      if (finished_) return;
      if (ok && !queue_.empty()) {
        StartWrite(&queue_.front());
        return;
      }
      finish = !ok || last_queued_;
    }
    if (finish) End(grpc::Status::OK);
  }
  void OnCancel() override { End(grpc::Status::CANCELLED); }
  void OnDone() override {
    loop_.PostResult([this, self = self_] { driver_.Unwatch(number_); });
    on_done_(this);
    self_.reset();
  }

 private:
  Watchers::Taken Push(v1::WatchOperationResponse&& update, bool is_last) {
    MutexLock lock(mutex_);
    if (finished_) return Watchers::Taken::kGone;
    // What happens until it has been sent is told in one.
    if (queue_.size() >= kMostUpdatesQueued) return Watchers::Taken::kBusy;
    queue_.push_back(std::move(update));
    last_queued_ = last_queued_ || is_last;
    if (queue_.size() == 1) StartWrite(&queue_.front());
    return Watchers::Taken::kYes;
  }

  EventLoop& loop_;
  Driver& driver_;
  const std::function<void(WatchStream*)> on_done_;
  std::shared_ptr<WatchStream> self_;
  uint64_t number_ = 0;  // on the loop
  Mutex mutex_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  bool last_queued_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<v1::WatchOperationResponse> queue_ ABSL_GUARDED_BY(mutex_);
};

class RefusedWatch final : public grpc::ServerWriteReactor<v1::WatchOperationResponse> {
 public:
  explicit RefusedWatch(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

// Without a copy.
grpc::ByteBuffer BufferOf(std::string bytes) {
  auto* const kept = new std::string(std::move(bytes));
  const grpc::Slice slice(
      kept->data(), kept->size(), [](void* owned) { delete static_cast<std::string*>(owned); }, kept);
  return grpc::ByteBuffer(&slice, 1);
}

class FleetApiImpl final
    : public FleetApi,
      public v1::FleetService::WithRawCallbackMethod_ListOperations<v1::FleetService::CallbackService> {
 public:
  FleetApiImpl(ApiGate& gate, EventLoop& loop, Driver& driver, Store& store)
      : gate_(gate), loop_(loop), driver_(driver), store_(store) {}

  grpc::Service* service() override { return this; }

  grpc::ServerUnaryReactor* PlanOperation(grpc::CallbackServerContext* context, const v1::PlanOperationRequest* request,
                                          v1::PlanOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/PlanOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::StatusOr<OperationSpec> spec = FromWire(request->spec());
                    if (!spec.ok()) return reactor->Finish(ToGrpc(spec.status()));
                    driver_.Plan(*spec, [reactor, response](const absl::Status& status, v1::Plan plan) {
                      *response->mutable_plan() = std::move(plan);
                      reactor->Finish(ToGrpc(status));
                    });
                  });
  }

  grpc::ServerUnaryReactor* StartOperation(grpc::CallbackServerContext* context,
                                           const v1::StartOperationRequest* request,
                                           v1::StartOperationResponse* response) override {
    return OnLoop(
        context, "/rb.v1.FleetService/StartOperation", request,
        [this, context, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
          absl::StatusOr<OperationSpec> spec = FromWire(request->spec());
          if (!spec.ok()) return reactor->Finish(ToGrpc(spec.status()));
          driver_.Start(
              *spec, peer.name, request->idempotency_key(), [context] { return context->IsCancelled(); },
              [this, reactor, peer, request, response](Driver::Started started) {
                if (!started.status.ok() || started.refusal.refused()) {
                  const grpc::Status refused = started.status.ok() ? ToGrpc(started.refusal) : ToGrpc(started.status);
                  gate_.RecordRefusal(peer, "/rb.v1.FleetService/StartOperation", SubjectOf(*request), refused);
                  return reactor->Finish(refused);
                }
                *response->mutable_operation() = std::move(started.operation);
                reactor->Finish(grpc::Status::OK);
              });
        });
  }

  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context, const v1::GetOperationRequest* request,
                                         v1::GetOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/GetOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    std::vector<v1::OperationEvent> events;
                    absl::StatusOr<v1::Operation> operation = driver_.Get(request->operation_id(), &events);
                    if (!operation.ok()) return reactor->Finish(ToGrpc(operation.status()));
                    *response->mutable_operation() = *std::move(operation);
                    for (v1::OperationEvent& event : events) *response->add_events() = std::move(event);
                    reactor->Finish(grpc::Status::OK);
                  });
  }

  // Raw: the driver writes the answer as it is sent.
  grpc::ServerUnaryReactor* ListOperations(grpc::CallbackServerContext* context, const grpc::ByteBuffer* raw,
                                           grpc::ByteBuffer* response) override {
    // gRPC's own way to read messages leaves the buffer empty.
    grpc::ByteBuffer received = *raw;
    v1::ListOperationsRequest request;
    const grpc::Status read = grpc::SerializationTraits<v1::ListOperationsRequest>::Deserialize(&received, &request);
    return OnLoop(context, "/rb.v1.FleetService/ListOperations", &request,
                  [this, read, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    if (!read.ok()) return reactor->Finish(read);
                    absl::StatusOr<std::string> listed = driver_.List(request);
                    const grpc::Status status = ToGrpc(listed.status());
                    if (listed.ok()) *response = BufferOf(*std::move(listed));
                    reactor->Finish(status);
                  });
  }

  grpc::ServerWriteReactor<v1::WatchOperationResponse>* WatchOperation(
      grpc::CallbackServerContext* context, const v1::WatchOperationRequest* request) override {
    const grpc::Status allowed = gate_.Admit(context, "/rb.v1.FleetService/WatchOperation", SubjectOf(*request));
    if (!allowed.ok()) return new RefusedWatch(allowed);
    auto stream = std::make_shared<WatchStream>(loop_, driver_, [this](WatchStream* done) {
      MutexLock lock(mutex_);
      watches_.erase(done);
    });
    {
      MutexLock lock(mutex_);
      if (ending_) return new RefusedWatch(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the controller is stopping"));
      watches_.insert(stream.get());
    }
    WatchStream* const raw = stream.get();
    raw->Begin(stream, *request);
    return raw;
  }

  grpc::ServerUnaryReactor* AbortOperation(grpc::CallbackServerContext* context,
                                           const v1::AbortOperationRequest* request,
                                           v1::AbortOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/AbortOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask("/rb.v1.FleetService/AbortOperation", *request, AbortRequested{peer.name, request->reason()},
                        peer, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* PauseOperation(grpc::CallbackServerContext* context,
                                           const v1::PauseOperationRequest* request,
                                           v1::PauseOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/PauseOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask("/rb.v1.FleetService/PauseOperation", *request, PauseRequested{peer.name, request->reason()},
                        peer, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* ResumeOperation(grpc::CallbackServerContext* context,
                                            const v1::ResumeOperationRequest* request,
                                            v1::ResumeOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ResumeOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask("/rb.v1.FleetService/ResumeOperation", *request, ResumeRequested{peer.name}, peer, response,
                        reactor);
                  });
  }

  grpc::ServerUnaryReactor* ApproveOperation(grpc::CallbackServerContext* context,
                                             const v1::ApproveOperationRequest* request,
                                             v1::ApproveOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ApproveOperation", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask("/rb.v1.FleetService/ApproveOperation", *request, Approved{peer.name, request->reason()}, peer,
                        response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* ListReleases(grpc::CallbackServerContext* context, const v1::ListReleasesRequest* request,
                                         v1::ListReleasesResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListReleases", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::Status status;
                    *response = driver_.Releases(*request, &status);
                    reactor->Finish(ToGrpc(status));
                  });
  }

  grpc::ServerUnaryReactor* ListAgents(grpc::CallbackServerContext* context, const v1::ListAgentsRequest* request,
                                       v1::ListAgentsResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListAgents", request,
                  [this, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    *response = driver_.Agents();
                    reactor->Finish(grpc::Status::OK);
                  });
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/GetStatus", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::Status status;
                    *response = driver_.Status(*request, &status);
                    reactor->Finish(ToGrpc(status));
                  });
  }

  grpc::ServerUnaryReactor* ListAuditRecords(grpc::CallbackServerContext* context,
                                             const v1::ListAuditRecordsRequest* request,
                                             v1::ListAuditRecordsResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListAuditRecords", request,
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    const size_t limit = request->page_size() == 0 ? 50 : std::min<size_t>(request->page_size(), 1000);
                    const absl::StatusOr<std::vector<AuditRecord>> records =
                        store_.AuditBefore(request->before_number(), limit);
                    if (!records.ok()) return reactor->Finish(ToGrpc(records.status()));
                    for (const AuditRecord& record : *records) *response->add_records() = ToWire(record);
                    reactor->Finish(grpc::Status::OK);
                  });
  }

  grpc::ServerUnaryReactor* VerifyAudit(grpc::CallbackServerContext* context, const v1::VerifyAuditRequest* request,
                                        v1::VerifyAuditResponse* response) override {
    return OnLoop(
        context, "/rb.v1.FleetService/VerifyAudit", request,
        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
          std::optional<Digest> expected;
          if (!request->expected_hash().empty() && !Digest::FromHex(request->expected_hash(), &expected.emplace())) {
            return reactor->Finish(grpc::Status(grpc::StatusCode::INVALID_ARGUMENT,
                                                "a hash is 64 hexadecimal digits. Nothing was changed"));
          }
          VerifyNext(std::make_shared<AuditCheck>(expected), response, reactor);
        });
  }

  void EndWatches() override {
    MutexLock lock(mutex_);
    ending_ = true;
    for (WatchStream* watch : watches_) {
      watch->End(
          grpc::Status(grpc::StatusCode::UNAVAILABLE, "the controller is stopping; operations go on when it is back"));
    }
  }

 private:
  template <typename Request, typename Response>
  void Ask(const char* call, const Request& asked, const OperatorRequest& request, const Peer& peer, Response* response,
           grpc::ServerUnaryReactor* reactor) {
    absl::StatusOr<v1::Operation> operation = driver_.Ask(asked.operation_id(), request);
    const grpc::Status status = ToGrpc(operation.status());
    // On record as allowed by the role, and then as refused by what the operation has come to.
    if (!status.ok()) gate_.RecordRefusal(peer, call, SubjectOf(asked), status);
    if (operation.ok()) *response->mutable_operation() = *std::move(operation);
    reactor->Finish(status);
  }

  template <typename Request, typename Work>
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, const char* method, const Request* request,
                                   Work work) {
    return gate_.OnLoop(context, method, SubjectOf(*request), std::move(work));
  }

  void VerifyNext(const std::shared_ptr<AuditCheck>& check, v1::VerifyAuditResponse* response,
                  grpc::ServerUnaryReactor* reactor) {
    const absl::StatusOr<std::vector<AuditRecord>> records = store_.AuditAfter(check->count(), kAuditSlice);
    if (!records.ok()) return reactor->Finish(ToGrpc(records.status()));
    bool intact = true;
    for (const AuditRecord& record : *records) intact = intact && check->Take(record);
    if (intact && records->size() == kAuditSlice) {
      loop_.PostResult([this, check, response, reactor] { VerifyNext(check, response, reactor); });
      return;
    }
    response->set_intact(check->Finish());
    response->set_count(check->count());
    response->set_head(check->head().ToHex());
    response->set_bad_number(check->bad_number());
    response->set_problem(check->problem());
    reactor->Finish(grpc::Status::OK);
  }

  ApiGate& gate_;
  EventLoop& loop_;
  Driver& driver_;
  Store& store_;
  Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<WatchStream*> watches_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<FleetApi> FleetApi::Create(ApiGate& gate, EventLoop& loop, Driver& driver, Store& store) {
  return std::make_unique<FleetApiImpl>(gate, loop, driver, store);
}

}  // namespace rb::controller

#include "controller/adapters/fleet_api.h"

#include <deque>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/mutex.h"
#include "controller/adapters/wire.h"
#include "rb/v1/enrollment.grpc.pb.h"
#include "rb/v1/fleet_service.grpc.pb.h"

namespace rb::controller {
namespace {

constexpr size_t kMostUpdatesQueued = 5000;

grpc::Status ToGrpc(const absl::Status& status) {
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()), std::string(status.message()));
}

grpc::Status ToGrpc(const Refusal& refusal) {
  return grpc::Status(grpc::StatusCode::FAILED_PRECONDITION, refusal.message, ToWire(refusal).SerializeAsString());
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
          [this, self](const v1::WatchOperationResponse& update, bool is_last) { return Push(update, is_last); });
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
  bool Push(const v1::WatchOperationResponse& update, bool is_last) {
    bool too_slow = false;
    {
      MutexLock lock(mutex_);
      if (finished_) return false;
      too_slow = queue_.size() >= kMostUpdatesQueued;
      if (!too_slow) {
        queue_.push_back(update);
        last_queued_ = last_queued_ || is_last;
        if (queue_.size() == 1) StartWrite(&queue_.front());
      }
    }
    if (too_slow) {
      End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "this watcher reads too slowly; watch again"));
      return false;
    }
    return true;
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

class FleetApiImpl final : public FleetApi, public v1::FleetService::CallbackService {
 public:
  FleetApiImpl(Authorizer& authorizer, EventLoop& loop, Driver& driver)
      : authorizer_(authorizer), loop_(loop), driver_(driver) {}

  grpc::Service* service() override { return this; }

  grpc::ServerUnaryReactor* PlanOperation(grpc::CallbackServerContext* context, const v1::PlanOperationRequest* request,
                                          v1::PlanOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/PlanOperation",
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
    return OnLoop(context, "/rb.v1.FleetService/StartOperation",
                  [this, context, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    absl::StatusOr<OperationSpec> spec = FromWire(request->spec());
                    if (!spec.ok()) return reactor->Finish(ToGrpc(spec.status()));
                    driver_.Start(
                        *spec, peer.name, request->idempotency_key(), [context] { return context->IsCancelled(); },
                        [reactor, response](Driver::Started started) {
                          if (!started.status.ok()) return reactor->Finish(ToGrpc(started.status));
                          if (started.refusal.refused()) return reactor->Finish(ToGrpc(started.refusal));
                          *response->mutable_operation() = std::move(started.operation);
                          reactor->Finish(grpc::Status::OK);
                        });
                  });
  }

  grpc::ServerUnaryReactor* GetOperation(grpc::CallbackServerContext* context, const v1::GetOperationRequest* request,
                                         v1::GetOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/GetOperation",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    std::vector<v1::OperationEvent> events;
                    absl::StatusOr<v1::Operation> operation = driver_.Get(request->operation_id(), &events);
                    if (!operation.ok()) return reactor->Finish(ToGrpc(operation.status()));
                    *response->mutable_operation() = *std::move(operation);
                    for (v1::OperationEvent& event : events) *response->add_events() = std::move(event);
                    reactor->Finish(grpc::Status::OK);
                  });
  }

  grpc::ServerUnaryReactor* ListOperations(grpc::CallbackServerContext* context,
                                           const v1::ListOperationsRequest* request,
                                           v1::ListOperationsResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListOperations",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::StatusOr<v1::ListOperationsResponse> listed = driver_.List(*request);
                    const grpc::Status status = ToGrpc(listed.status());
                    if (listed.ok()) *response = *std::move(listed);
                    reactor->Finish(status);
                  });
  }

  grpc::ServerWriteReactor<v1::WatchOperationResponse>* WatchOperation(
      grpc::CallbackServerContext* context, const v1::WatchOperationRequest* request) override {
    Peer peer;
    const grpc::Status allowed = authorizer_.Authorize(*context, "/rb.v1.FleetService/WatchOperation", &peer);
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
    return OnLoop(context, "/rb.v1.FleetService/AbortOperation",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask(request->operation_id(), AbortRequested{peer.name, request->reason()}, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* PauseOperation(grpc::CallbackServerContext* context,
                                           const v1::PauseOperationRequest* request,
                                           v1::PauseOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/PauseOperation",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask(request->operation_id(), PauseRequested{peer.name, request->reason()}, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* ResumeOperation(grpc::CallbackServerContext* context,
                                            const v1::ResumeOperationRequest* request,
                                            v1::ResumeOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ResumeOperation",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask(request->operation_id(), ResumeRequested{peer.name}, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* ApproveOperation(grpc::CallbackServerContext* context,
                                             const v1::ApproveOperationRequest* request,
                                             v1::ApproveOperationResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ApproveOperation",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                    Ask(request->operation_id(), Approved{peer.name, request->reason()}, response, reactor);
                  });
  }

  grpc::ServerUnaryReactor* ListReleases(grpc::CallbackServerContext* context, const v1::ListReleasesRequest* request,
                                         v1::ListReleasesResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListReleases",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::Status status;
                    *response = driver_.Releases(*request, &status);
                    reactor->Finish(ToGrpc(status));
                  });
  }

  grpc::ServerUnaryReactor* ListAgents(grpc::CallbackServerContext* context, const v1::ListAgentsRequest*,
                                       v1::ListAgentsResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/ListAgents",
                  [this, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    *response = driver_.Agents();
                    reactor->Finish(grpc::Status::OK);
                  });
  }

  grpc::ServerUnaryReactor* GetStatus(grpc::CallbackServerContext* context, const v1::GetStatusRequest* request,
                                      v1::GetStatusResponse* response) override {
    return OnLoop(context, "/rb.v1.FleetService/GetStatus",
                  [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                    absl::Status status;
                    *response = driver_.Status(*request, &status);
                    reactor->Finish(ToGrpc(status));
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
  template <typename Response>
  void Ask(const std::string& operation_id, const OperatorRequest& request, Response* response,
           grpc::ServerUnaryReactor* reactor) {
    absl::StatusOr<v1::Operation> operation = driver_.Ask(operation_id, request);
    const grpc::Status status = ToGrpc(operation.status());
    if (operation.ok()) *response->mutable_operation() = *std::move(operation);
    reactor->Finish(status);
  }

  // Authorizes, then runs `work` on the loop; it finishes the reactor exactly once, then or later.
  template <typename Work>
  grpc::ServerUnaryReactor* OnLoop(grpc::CallbackServerContext* context, const char* method, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    Peer peer;
    const grpc::Status allowed = authorizer_.Authorize(*context, method, &peer);
    if (!allowed.ok()) {
      reactor->Finish(allowed);
      return reactor;
    }
    if (!loop_.Post([reactor, peer, work = std::move(work)] { work(reactor, peer); })) {
      reactor->Finish(
          grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the controller is busy; nothing was changed"));
    }
    return reactor;
  }

  Authorizer& authorizer_;
  EventLoop& loop_;
  Driver& driver_;
  Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::set<WatchStream*> watches_ ABSL_GUARDED_BY(mutex_);
};

class Enrollment final : public v1::Enrollment::CallbackService {
 public:
  Enrollment(Store& store, const KeyAndCertificate& authority, Clock& clock)
      : store_(store), authority_(authority), clock_(clock) {}

  grpc::ServerUnaryReactor* Join(grpc::CallbackServerContext* context, const v1::JoinRequest* request,
                                 v1::JoinResponse* response) override {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpc(Take(*request, response)));
    return reactor;
  }

 private:
  absl::Status Take(const v1::JoinRequest& request, v1::JoinResponse* response) {
    if (!IsValidName(request.agent_name()) || request.secret().size() != 64) {
      return absl::PermissionDeniedError("the token is not valid for this name: wrong, used up or expired");
    }
    // The certificate is made before the token is used up: a bad request does not cost the token.
    absl::StatusOr<std::string> certificate = SignClientRequest(
        authority_, request.certificate_request_pem(), absl::StrCat("rb://agent/", request.agent_name()), clock_.Now());
    if (!certificate.ok()) return certificate.status();
    const absl::Status used = store_.UseToken(request.agent_name(), Sha256Of(request.secret()).ToHex(), clock_.Now());
    if (!used.ok()) {
      LogWarning("controller", "a join as ", request.agent_name(), " was refused");
      return used;
    }
    LogInfo("controller", request.agent_name(), " has joined");
    response->set_certificate_pem(*std::move(certificate));
    return absl::OkStatus();
  }

  Store& store_;
  const KeyAndCertificate authority_;
  Clock& clock_;
};

}  // namespace

std::unique_ptr<FleetApi> FleetApi::Create(Authorizer& authorizer, EventLoop& loop, Driver& driver) {
  return std::make_unique<FleetApiImpl>(authorizer, loop, driver);
}

std::unique_ptr<grpc::Service> MakeEnrollment(Store& store, const KeyAndCertificate& authority, Clock& clock) {
  return std::make_unique<Enrollment>(store, authority, clock);
}

}  // namespace rb::controller

#include "controller/adapters/agent_link.h"

#include <deque>
#include <utility>
#include <vector>

#include "common/log.h"

namespace rb::controller {
namespace {

constexpr size_t kMostQueued = 1000;
constexpr char kConnectMethod[] = "/rb.v1.AgentLink/Connect";

class RefusedStream final : public grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
 public:
  explicit RefusedStream(const grpc::Status& status) { Finish(status); }
  void OnDone() override { delete this; }
};

}  // namespace

// One stream. gRPC uses it until OnDone; it holds itself until then.
class AgentSession final : public grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse>,
                           public std::enable_shared_from_this<AgentSession> {
 public:
  AgentSession(AgentLinkService* service, Peer peer) : service_(service), peer_(std::move(peer)) {}

  void Begin(std::shared_ptr<AgentSession> self) {
    self_ = std::move(self);
    StartRead(&incoming_);
  }

  bool Send(v1::ConnectResponse message) {
    MutexLock lock(mutex_);
    if (finished_ || queue_.size() >= kMostQueued) return false;
    queue_.push_back(std::move(message));
    // With more than one, OnWriteDone goes on with it.
    if (queue_.size() == 1) service_->writer_.PostResult([session = shared_from_this()] { session->Write(); });
    return true;
  }

  // Exactly once, whoever comes first.
  void End(const grpc::Status& status) {
    {
      MutexLock lock(mutex_);
      if (finished_) return;
      finished_ = true;
    }
    Finish(status);
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      End(grpc::Status::OK);
      return;
    }
    // Shared, since what is posted has to be copyable, and what is in it is handed on.
    auto message = std::make_shared<v1::ConnectRequest>(std::move(incoming_));
    incoming_ = v1::ConnectRequest();
    if (!service_->loop_.Post([session = self_, message = std::move(message)] { session->Take(*message); })) {
      // The loop is full: the agent connects again, and repeats what was not acknowledged.
      End(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "the controller is busy"));
      return;
    }
    StartRead(&incoming_);
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    queue_.pop_front();
    if (ok && !finished_ && !queue_.empty()) StartWrite(&queue_.front());
  }

  void OnCancel() override { End(grpc::Status(grpc::StatusCode::CANCELLED, "the stream broke")); }

  void OnDone() override {
    service_->loop_.PostResult([session = self_] { session->Gone(); });
    MutexLock lock(service_->mutex_);
    service_->alive_.erase(this);
    self_.reset();
  }

 private:
  // On the writer.
  void Write() {
    MutexLock lock(mutex_);
    if (!finished_) StartWrite(&queue_.front());
  }

  // On the loop.
  void Take(v1::ConnectRequest& message) {
    Driver* driver = service_->driver_;
    if (message.has_hello()) {
      if (message.hello().protocol_version() != 1) {
        End(grpc::Status(grpc::StatusCode::FAILED_PRECONDITION,
                         "this controller speaks version 1 of the protocol; install the agent that fits it"));
        return;
      }
      std::shared_ptr<AgentSession>& current = service_->sessions_[peer_.name];
      if (current != nullptr && current.get() != this) {
        current->End(grpc::Status(grpc::StatusCode::ABORTED, "a newer connection of this agent took over"));
      }
      current = shared_from_this();
      v1::ConnectResponse welcome;
      welcome.mutable_welcome()->set_program_version(RB_VERSION);
      welcome.mutable_welcome()->set_protocol_version(1);
      driver->FillPolicies(peer_.name, welcome.mutable_welcome());
      Send(std::move(welcome));
      LogInfo("controller", "agent ", peer_.name, " is connected");
      // An agent is not sent away for a full disk here: what it does is in the operations' journal.
      service_->audit_.Record(peer_, kConnectMethod, {}, grpc::Status::OK).IgnoreError();
      v1::Hello hello = message.hello();
      hello.set_metrics_address(ReachableMetrics(hello.metrics_address(), peer_.from, peer_.name));
      driver->OnAgentConnected(peer_.name, hello, peer_.certificate_expires_at);
      return;
    }
    const auto current = service_->sessions_.find(peer_.name);
    if (current == service_->sessions_.end() || current->second.get() != this) return;
    if (message.has_service_report()) driver->OnReport(peer_.name, message.service_report());
    if (message.has_task_progress()) driver->OnProgress(peer_.name, message.task_progress());
    if (message.has_task_result()) driver->OnResult(peer_.name, std::move(*message.mutable_task_result()));
    if (message.has_host_record()) driver->OnHostRecord(peer_.name, message.host_record());
  }

  void Gone() {
    const auto current = service_->sessions_.find(peer_.name);
    if (current == service_->sessions_.end() || current->second.get() != this) return;
    service_->sessions_.erase(current);
    LogWarning("controller", "agent ", peer_.name, " is gone");
    service_->driver_->OnAgentLost(peer_.name);
  }

  AgentLinkService* const service_;
  const Peer peer_;
  std::shared_ptr<AgentSession> self_;
  v1::ConnectRequest incoming_;
  Mutex mutex_;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
  std::deque<v1::ConnectResponse> queue_ ABSL_GUARDED_BY(mutex_);
};

AgentLinkService::AgentLinkService(Authorizer& authorizer, EventLoop& loop, AuditLog& audit)
    // It is given results only, which need no room.
    : authorizer_(authorizer), loop_(loop), audit_(audit), writer_(SystemClock(), 0) {
  writer_.Start();
}

grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse>* AgentLinkService::Connect(
    grpc::CallbackServerContext* context) {
  Peer peer;
  const grpc::Status allowed = authorizer_.Authorize(*context, kConnectMethod, &peer);
  if (!allowed.ok()) {
    if (!loop_.Post([this, peer, allowed] { audit_.Record(peer, kConnectMethod, {}, allowed).IgnoreError(); })) {
      LogWarning("controller", "too busy to put on record that ", peer.from, " was refused");
    }
    return new RefusedStream(allowed);
  }
  auto session = std::make_shared<AgentSession>(this, std::move(peer));
  {
    MutexLock lock(mutex_);
    if (ending_) return new RefusedStream(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the controller is stopping"));
    alive_[session.get()] = session;
  }
  AgentSession* const raw = session.get();
  raw->Begin(std::move(session));
  return raw;
}

bool AgentLinkService::Send(const std::string& agent, v1::ConnectResponse message) {
  const auto session = sessions_.find(agent);
  return session != sessions_.end() && session->second != nullptr && session->second->Send(std::move(message));
}

void AgentLinkService::EndAll() {
  std::vector<std::shared_ptr<AgentSession>> sessions;
  {
    MutexLock lock(mutex_);
    ending_ = true;
    for (const auto& [raw, weak] : alive_) {
      if (std::shared_ptr<AgentSession> session = weak.lock(); session != nullptr)
        sessions.push_back(std::move(session));
    }
  }
  for (const auto& session : sessions) {
    session->End(grpc::Status(grpc::StatusCode::UNAVAILABLE, "the controller is stopping"));
  }
}

}  // namespace rb::controller

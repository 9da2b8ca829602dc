// The controller's end of the agents' streams.
#ifndef RB_CONTROLLER_ADAPTERS_AGENT_LINK_H_
#define RB_CONTROLLER_ADAPTERS_AGENT_LINK_H_

#include <grpcpp/grpcpp.h>

#include <map>
#include <memory>
#include <string>

#include "common/event_loop.h"
#include "common/mutex.h"
#include "controller/adapters/audit_log.h"
#include "controller/adapters/driver.h"
#include "controller/adapters/peer.h"
#include "rb/v1/agent_link.grpc.pb.h"

namespace rb::controller {

class AgentSession;

// Connect runs on gRPC's threads and only posts; Send and the driver's calls are on the loop. What is sent is encrypted
// and written by a thread of its own: the loop takes the answers to a wave meanwhile, instead of after it. A newer
// connection of the same agent takes the place of the older one.
class AgentLinkService final : public v1::AgentLink::CallbackService, public AgentSender {
 public:
  // Nothing is owned. SetDriver comes before the first connection.
  AgentLinkService(Authorizer& authorizer, EventLoop& loop, AuditLog& audit);
  void SetDriver(Driver* driver) { driver_ = driver; }

  grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse>* Connect(
      grpc::CallbackServerContext* context) override;
  bool Send(const std::string& agent, v1::ConnectResponse message) override;
  // Ends all streams, so that the server can be shut down. From any thread.
  void EndAll();

 private:
  friend class AgentSession;
  Authorizer& authorizer_;
  EventLoop& loop_;
  AuditLog& audit_;
  // At most one task for each stream: what else it is to be sent follows without it.
  EventLoop writer_;
  Driver* driver_ = nullptr;
  // On the loop.
  std::map<std::string, std::shared_ptr<AgentSession>> sessions_;
  Mutex mutex_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::map<AgentSession*, std::weak_ptr<AgentSession>> alive_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_AGENT_LINK_H_

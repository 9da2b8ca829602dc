// The agent's end of the one stream: dials, says hello, dials again when it breaks.
#ifndef RB_AGENT_ADAPTERS_LINK_AGENT_LINK_H_
#define RB_AGENT_ADAPTERS_LINK_AGENT_LINK_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "common/event_loop.h"
#include "rb/v1/agent_link.pb.h"

namespace rb::agent {

// All methods are called on the loop, and all handlers run on it.
class AgentLinkClient {
 public:
  struct Handlers {
    std::function<void(const v1::Welcome&)> on_open;
    std::function<void()> on_close;
    std::function<void(const v1::ConnectResponse&)> on_message;
  };
  // Reads agent.key, agent.crt, ca.crt and controller (host:port) from `identity_folder`. `loop` and `clock` are not
  // owned. FAILED_PRECONDITION, saying how to join, when they are not there.
  static absl::StatusOr<std::unique_ptr<AgentLinkClient>> Create(const std::string& identity_folder, EventLoop& loop,
                                                                 Clock& clock, v1::Hello hello, Handlers handlers);
  virtual ~AgentLinkClient() = default;
  // Dials, again and again: at once, then with growing waits of at most 5 s.
  virtual void Start() = 0;
  // Ends the stream for good and waits for gRPC to let go. From any thread but the loop's, once the loop has stopped.
  virtual void Stop() = 0;
  // Queues a message. False when there is no stream, or its queue is full: what matters is sent again after on_open.
  virtual bool Send(v1::ConnectRequest message) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_ADAPTERS_LINK_AGENT_LINK_H_

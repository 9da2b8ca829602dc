#ifndef RB_AGENT_CORE_PORTS_SERVICE_LOG_H_
#define RB_AGENT_CORE_PORTS_SERVICE_LOG_H_

#include <cstddef>
#include <string>
#include <vector>

namespace rb::agent {

// What the service has written, for the people who look into it afterwards.
class ServiceLog {
 public:
  virtual ~ServiceLog() = default;
  // What comes later counts.
  virtual void Mark() = 0;
  // The last lines since then, oldest first: at most `most`, each cut to what a person reads. Verbatim otherwise. Empty
  // when there are none, or they cannot be read.
  virtual std::vector<std::string> Last(size_t most) = 0;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_PORTS_SERVICE_LOG_H_

// Serves metrics over HTTP on loopback, and over HTTPS with a password elsewhere.
#ifndef RB_COMMON_ADAPTERS_METRICS_METRICS_SERVER_H_
#define RB_COMMON_ADAPTERS_METRICS_METRICS_SERVER_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace rb {

struct MetricsServerOptions {
  // "host:port", "[v6]:port"; port 0: any free one.
  std::string address;
  // PEM files. With both it speaks TLS alone, 1.2 or newer.
  std::string certificate;
  std::string key;
  // One line, "user:password": asked for when given.
  std::string password_file;
};

// "127.0.0.0/8", "localhost" and "[::1]", with a port.
bool IsLoopbackAddress(absl::string_view address);

class MetricsServer {
 public:
  // GET /metrics gives `text()`, called on the server's threads; nothing else is served. The real address is written to
  // <state_folder>/metrics.address. INVALID_ARGUMENT: an address that is not loopback without TLS and password, or a
  // key or password file that others may read (the message never holds what is in them). UNAVAILABLE: the port is
  // taken.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const MetricsServerOptions& options,
                                                              const std::string& state_folder,
                                                              std::function<std::string()> text);
  virtual ~MetricsServer() = default;
  // "127.0.0.1:PORT".
  virtual const std::string& address() const = 0;
};

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_METRICS_METRICS_SERVER_H_

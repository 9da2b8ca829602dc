#include "common/adapters/metrics/metrics_server.h"

#include <openssl/crypto.h>
#include <openssl/ssl.h>
#include <sys/stat.h>
#include <unistd.h>

// Debian's libcpp-httplib is built with these.
#define CPPHTTPLIB_OPENSSL_SUPPORT
#define CPPHTTPLIB_ZLIB_SUPPORT
#define CPPHTTPLIB_BROTLI_SUPPORT
#include <httplib.h>

#include <algorithm>
#include <atomic>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"

namespace rb {
namespace {

// One scraper or two; more would only be more to keep.
constexpr size_t kThreads = 3;
constexpr time_t kPatienceSeconds = 5;
constexpr size_t kLongestPassword = 4096;

// A file with a secret: for its owner alone, who is root or ourselves.
absl::StatusOr<std::string> ReadSecret(const std::string& path, size_t limit) {
  struct stat found = {};
  if (stat(path.c_str(), &found) != 0) {
    return absl::InvalidArgumentError(absl::StrCat(Printable(path), " cannot be read"));
  }
  if ((found.st_mode & 077) != 0 || (found.st_uid != 0 && found.st_uid != geteuid())) {
    return absl::InvalidArgumentError(absl::StrCat(
        Printable(path), " can be read by others; make it its owner's alone: chmod 600 ", Printable(path)));
  }
  return ReadFile(path, limit);
}

// In a time that does not depend on how much of it is right.
bool IsSame(const std::string& a, const Digest& expected) {
  const std::string digest = Sha256Of(a).ToHex();
  const std::string wanted = expected.ToHex();
  return CRYPTO_memcmp(digest.data(), wanted.data(), wanted.size()) == 0;
}

class MetricsServerImpl final : public MetricsServer {
 public:
  MetricsServerImpl(std::unique_ptr<httplib::Server> server, std::string address)
      : server_(std::move(server)), address_(std::move(address)), thread_([this] {
          server_->listen_after_bind();
          ended_ = true;
        }) {}
  ~MetricsServerImpl() override {
    // Before its thread has come so far it would not hear the stop.
    while (!ended_ && !server_->is_running()) std::this_thread::yield();
    server_->stop();
    thread_.join();
  }
  const std::string& address() const override { return address_; }

 private:
  const std::unique_ptr<httplib::Server> server_;
  const std::string address_;
  std::atomic<bool> ended_{false};
  std::thread thread_;
};

}  // namespace

bool IsLoopbackAddress(absl::string_view address) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos) return false;
  const absl::string_view host = address.substr(0, colon);
  if (host == "localhost" || host == "[::1]") return true;
  absl::string_view rest = host;
  if (!absl::ConsumePrefix(&rest, "127.")) return false;
  return std::count(rest.begin(), rest.end(), '.') == 2 &&
         rest.find_first_not_of("0123456789.") == absl::string_view::npos;
}

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const MetricsServerOptions& options,
                                                                    const std::string& state_folder,
                                                                    std::function<std::string()> text) {
  const std::string shown = Printable(options.address);
  const size_t colon = options.address.rfind(':');
  int port = -1;
  if (colon == std::string::npos || colon == 0 || !absl::SimpleAtoi(options.address.substr(colon + 1), &port) ||
      port < 0 || port > 65535) {
    return absl::InvalidArgumentError(absl::StrCat("'", shown, "' is not an address and port, such as 127.0.0.1:9400"));
  }
  const bool tls = !options.certificate.empty() && !options.key.empty();
  if (!IsLoopbackAddress(options.address) && (!tls || options.password_file.empty())) {
    return absl::InvalidArgumentError(absl::StrCat(
        "metrics on ", shown,
        ", which is not a loopback address, take a certificate, its key and a password: set `certificate`, "
        "`key` and `password_file` under `metrics`, or serve them on 127.0.0.1"));
  }
  if (options.certificate.empty() != options.key.empty()) {
    return absl::InvalidArgumentError("metrics: `certificate` and `key` come together");
  }
  std::string host = options.address.substr(0, colon);
  const std::string written_host = host == "localhost" ? "127.0.0.1" : host;
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  if (host == "localhost") host = "127.0.0.1";

  Digest password;
  if (!options.password_file.empty()) {
    RB_ASSIGN_OR_RETURN(const std::string line, ReadSecret(options.password_file, kLongestPassword));
    const std::string both(absl::StripAsciiWhitespace(line));
    if (both.find(':') == std::string::npos || both.front() == ':' || both.back() == ':' ||
        both.find('\n') != std::string::npos) {
      return absl::InvalidArgumentError(
          absl::StrCat(Printable(options.password_file), " does not hold one line, \"user:password\""));
    }
    password = Sha256Of(both);
  }
  std::unique_ptr<httplib::Server> server;
  if (tls) {
    RB_RETURN_IF_ERROR(ReadSecret(options.key, 1 << 20).status());
    auto secure = std::make_unique<httplib::SSLServer>(options.certificate.c_str(), options.key.c_str());
    if (!secure->is_valid()) {
      return absl::InvalidArgumentError(absl::StrCat("metrics: ", Printable(options.certificate), " and ",
                                                     Printable(options.key),
                                                     " are not a certificate and its key, in PEM"));
    }
    SSL_CTX_set_min_proto_version(secure->ssl_context(), TLS1_2_VERSION);
    server = std::move(secure);
  } else {
    server = std::make_unique<httplib::Server>();
  }
  server->new_task_queue = [] { return new httplib::ThreadPool(kThreads); };
  server->set_read_timeout(kPatienceSeconds);
  server->set_write_timeout(kPatienceSeconds);
  server->set_keep_alive_timeout(kPatienceSeconds);
  server->set_payload_max_length(0);
  const bool asks = !options.password_file.empty();
  server->Get("/metrics",
              [asks, password, text = std::move(text)](const httplib::Request& request, httplib::Response& response) {
                if (asks) {
                  std::string given;
                  const std::string header = request.get_header_value("Authorization");
                  absl::string_view rest = header;
                  const bool basic = absl::ConsumePrefix(&rest, "Basic ") && absl::Base64Unescape(rest, &given);
                  if (!basic || !IsSame(given, password)) {
                    response.status = 401;
                    response.set_header("WWW-Authenticate", "Basic realm=\"rbctl metrics\"");
                    response.set_content("a user and password are wanted\n", "text/plain");
                    return;
                  }
                }
                response.set_content(text(), "text/plain; version=0.0.4; charset=utf-8");
              });
  // Not shared with another process: an address that is taken is to be said.
  server->set_socket_options([](socket_t fd) {
    const int yes = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  });
  const int real_port = port == 0 ? server->bind_to_any_port(host) : (server->bind_to_port(host, port) ? port : -1);
  if (real_port <= 0) {
    return absl::UnavailableError(
        absl::StrCat("metrics cannot be served on ", shown, ": is the port taken, or the address another host's?"));
  }
  const std::string real = absl::StrCat(written_host, ":", real_port);
  RB_RETURN_IF_ERROR(WriteFileDurably(state_folder + "/metrics.address", real + "\n", 0644));
  return std::unique_ptr<MetricsServer>(std::make_unique<MetricsServerImpl>(std::move(server), real));
}

}  // namespace rb

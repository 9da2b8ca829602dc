// Requests to other people's HTTP servers: bounded in time and size, no redirects, TLS verified.
#ifndef RB_CONTROLLER_ADAPTERS_HTTP_HTTP_CLIENT_H_
#define RB_CONTROLLER_ADAPTERS_HTTP_HTTP_CLIENT_H_

#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace rb::controller {

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  // "Name: value". May hold secrets: they are in no error.
  std::vector<std::string> headers;
  std::string body;
  absl::Duration timeout = absl::Seconds(20);
  // What errors call it; the URL itself is never in one.
  std::string name;
};

struct HttpResponse {
  int status = 0;
  // Names in lower case.
  std::map<std::string, std::string> headers;
  std::string body;

  std::string header(const std::string& name) const {
    const auto found = headers.find(name);
    return found == headers.end() ? "" : found->second;
  }
};

// UNAVAILABLE when no answer came; any answer is OK. Thread-safe. `not_sent` (may be null) is set when the server was
// not reached at all.
absl::StatusOr<HttpResponse> Fetch(const HttpRequest& request, bool* not_sent = nullptr);

// One secret: the file's text without surrounding white space. Refused when others than its owner may read it, or when
// it is empty or larger than 64 KiB.
absl::StatusOr<std::string> ReadSecret(const std::string& path);

// For one URL path segment or query value.
std::string UrlEscape(absl::string_view text);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_HTTP_HTTP_CLIENT_H_

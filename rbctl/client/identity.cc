#include "rbctl/client/identity.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::cli {
namespace {

// No file of an identity is near this.
constexpr size_t kLimit = 1 << 20;

absl::StatusOr<std::string> Read(const std::string& path, bool is_secret) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) {
    return ErrnoStatus(errno, path);
  }
  absl::Status problem;
  std::string text;
  struct stat info = {};
  if (fstat(fd, &info) != 0) {
    problem = ErrnoStatus(errno, path);
  } else if (!S_ISREG(info.st_mode)) {
    problem = absl::FailedPreconditionError(path + " is not a file");
  } else if (is_secret && (info.st_mode & 077) != 0) {
    problem = absl::FailedPreconditionError(
        absl::StrCat(path, " can be read by others: it is not used.\nNext: chmod 600 '", path, "'"));
  }
  char buffer[4096];
  while (problem.ok()) {
    const ssize_t count = read(fd, buffer, sizeof(buffer));
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count <= 0) {
      problem = count < 0 ? ErrnoStatus(errno, path) : absl::OkStatus();
      break;
    }
    text.append(buffer, static_cast<size_t>(count));
    if (text.size() > kLimit) {
      problem = absl::FailedPreconditionError(path + " is too long for what it should be");
    }
  }
  close(fd);
  if (!problem.ok()) {
    return problem;
  }
  return text;
}

}  // namespace

absl::StatusOr<Identity> LoadIdentity(const std::string& folder, const std::string& controller) {
  std::string from = folder;
  if (from.empty()) {
    const char* home = std::getenv("HOME");
    if (home == nullptr || *home == '\0') {
      return absl::NotFoundError("HOME is not set.\nNext: rbctl --identity DIR …");
    }
    from = absl::StrCat(home, "/.config/rbctl");
  }
  const auto missing = [&from](const absl::Status& status) {
    if (!absl::IsNotFound(status)) {
      return status;
    }
    return absl::NotFoundError(absl::StrCat(status.message(), "\nNext: export RBCTL_IDENTITY=DIR, the folder that ",
                                            "`rb-controller init` or `rb-controller operator` wrote (now ", from, ")"));
  };
  Identity identity;
  const auto take = [&](const char* name, bool is_secret, std::string* into) {
    absl::StatusOr<std::string> text = Read(absl::StrCat(from, "/", name), is_secret);
    if (!text.ok()) {
      return missing(text.status());
    }
    *into = *std::move(text);
    return absl::OkStatus();
  };
  RB_RETURN_IF_ERROR(take("operator.key", true, &identity.key_pem));
  RB_RETURN_IF_ERROR(take("operator.crt", false, &identity.certificate_pem));
  RB_RETURN_IF_ERROR(take("ca.crt", false, &identity.authority_pem));
  identity.controller = controller;
  if (controller.empty()) {
    RB_RETURN_IF_ERROR(take("controller", false, &identity.controller));
    identity.controller = std::string(absl::StripAsciiWhitespace(identity.controller));
  }
  const size_t colon = identity.controller.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == identity.controller.size() ||
      identity.controller.find_first_of(" \n/") != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("the controller's address \"", Printable(identity.controller),
                                                   "\" is not host:port.\nNext: rbctl --controller HOST:PORT …"));
  }
  return identity;
}

}  // namespace rb::cli

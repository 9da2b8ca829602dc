#include "agent/adapters/config/agent_config.h"

#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <regex>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "agent/core/ports/database_hooks.h"
#include "common/durable_file.h"
#include "common/edit_distance.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

constexpr size_t kMostGroups = 1024;
constexpr int64_t kMostHookSeconds = 86400;
constexpr int kMostDependants = 8;

// Calls getpwnam_r and its like with a buffer that is large enough.
template <typename Entry, typename Call>
bool LookUp(Entry* entry, std::vector<char>* buffer, Call call) {
  for (size_t size = 1024; size <= (1u << 20); size *= 4) {
    buffer->resize(size);
    Entry* found = nullptr;
    const int error = call(entry, buffer->data(), buffer->size(), &found);
    if (error == ERANGE) continue;
    return error == 0 && found != nullptr;
  }
  return false;
}

void FillGroups(const std::string& name, UserAndGroup* user) {
  int count = static_cast<int>(kMostGroups);
  user->groups.resize(kMostGroups);
  if (getgrouplist(name.c_str(), user->gid, user->groups.data(), &count) < 0) count = 0;
  user->groups.resize(static_cast<size_t>(count));
  if (user->groups.empty()) user->groups.push_back(user->gid);
}

// What is wrong with an absolute path, or "".
std::string AbsolutePathProblem(absl::string_view path) {
  if (!absl::StartsWith(path, "/")) return "wants an absolute path";
  if (path == "/") return "must not be the root folder";
  if (absl::EndsWith(path, "/")) return "must not end with a slash";
  if (path.size() >= 4096) return "is too long";
  for (const absl::string_view element : absl::StrSplit(path.substr(1), '/')) {
    if (element.empty() || element == "." || element == "..") return "must not hold empty elements, \".\" or \"..\"";
  }
  return "";
}
std::string RelativePathProblem(absl::string_view path) {
  if (path.empty()) return "is empty";
  if (absl::StartsWith(path, "/")) return "is relative to the tree: must not begin with a slash";
  return AbsolutePathProblem(absl::StrCat("/", path));
}
std::string GlobProblem(absl::string_view glob) {
  const std::string path(absl::StripSuffix(glob, "/"));
  const std::string problem = RelativePathProblem(path);
  if (!problem.empty()) return problem;
  for (size_t i = 0; i < glob.size(); ++i) {
    if (glob[i] == '[' && glob.find(']', i + 2) == absl::string_view::npos) return "has a \"[\" without \"]\"";
  }
  return "";
}
std::string RegexProblem(const std::string& pattern) {
  if (pattern.size() > 4096) return "is too long";
  try {
    const std::regex compiled(pattern, std::regex::ECMAScript);
    return "";
  } catch (const std::regex_error& e) {
    return absl::StrCat("is not a regular expression: ", e.what());
  }
}
bool IsPort(absl::string_view text, bool zero_allowed) {
  int port = 0;
  return !text.empty() && text.size() <= 5 && absl::SimpleAtoi(text, &port) && port >= (zero_allowed ? 0 : 1) &&
         port <= 65535;
}
// "host:port" or "[v6]:port".
bool IsAddress(absl::string_view address, bool zero_allowed) {
  const size_t colon = address.rfind(':');
  if (colon == absl::string_view::npos || colon == 0) return false;
  absl::string_view host = address.substr(0, colon);
  if (absl::ConsumePrefix(&host, "[")) {
    if (!absl::ConsumeSuffix(&host, "]")) return false;
  } else if (absl::StrContains(host, ":")) {
    return false;
  }
  return !host.empty() && host.find_first_of(" /@\t") == absl::string_view::npos &&
         IsPort(address.substr(colon + 1), zero_allowed);
}
std::string HttpUrlProblem(absl::string_view url) {
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "http://") && !absl::ConsumePrefix(&rest, "https://")) {
    return "wants a URL that begins with http:// or https://";
  }
  if (url.size() > 2048) return "is too long";
  for (const char c : url) {
    if (static_cast<unsigned char>(c) <= ' ') return "has a space in its URL";
  }
  const absl::string_view authority = rest.substr(0, rest.find_first_of("/?#"));
  if (authority.empty()) return "has no host";
  const bool has_port = authority.back() != ']' && absl::StrContains(authority, ":");
  if (has_port && !IsAddress(authority.substr(authority.rfind('@') + 1), false)) return "has a bad port";
  return "";
}

bool IsMetricName(absl::string_view name) {
  const auto fits = [](char c) { return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '_' || c == ':'; };
  return !name.empty() && !absl::ascii_isdigit(static_cast<unsigned char>(name[0])) &&
         std::all_of(name.begin(), name.end(), fits);
}

class Checker {
 public:
  Checker(const AgentConfigOptions& options, const YamlLines& lines, std::vector<YamlProblem>* problems)
      : options_(options), lines_(lines), problems_(problems) {}

  void Check(const v1::AgentConfig& config) {
    if (!config.metrics_address().empty() && !IsAddress(config.metrics_address(), true)) {
      Add("metrics_address", "wants a loopback address and port, such as 127.0.0.1:9400");
    }
    CheckMetrics(config);
    std::set<std::string> names;
    for (const auto& [name, service] : config.services()) names.insert(name);
    std::map<std::string, std::string> trees;
    for (const std::string& name : names) {
      const std::string path = absl::StrCat("services.", name);
      const v1::AgentServiceConfig& service = config.services().at(name);
      if (!IsValidName(name)) {
        Add(path, "a service's name is 1 to 63 of a-z, 0-9, '-', '_' and '.', beginning with a letter or digit");
      }
      CheckService(path, service);
      if (service.tree().empty()) continue;
      for (const auto& [tree, other] : trees) {
        if (tree == service.tree() || absl::StartsWith(tree, service.tree() + "/") ||
            absl::StartsWith(service.tree(), tree + "/")) {
          Add(path + ".tree", absl::StrCat("overlaps the tree of ", other, " (", tree, ")"));
        }
      }
      trees.emplace(service.tree(), name);
    }
  }

 private:
  void CheckMetrics(const v1::AgentConfig& config) {
    const v1::AgentMetricsConfig& metrics = config.metrics();
    if (!metrics.address().empty() && !IsAddress(metrics.address(), true)) {
      Add("metrics.address", "wants an address and port, such as 127.0.0.1:9400");
    }
    if (!metrics.address().empty() && !config.metrics_address().empty()) {
      Add("metrics.address", "is given twice: `metrics_address` is another word for it");
    }
    const MetricsServerOptions options = MetricsOptionsOf(config);
    const bool is_complete = !options.certificate.empty() && !options.key.empty() && !options.password_file.empty();
    if (!IsLoopbackAddress(options.address) && IsAddress(options.address, true) && !is_complete) {
      Add(metrics.address().empty() ? "metrics_address" : "metrics.address",
          "is not loopback: that takes `certificate`, `key` and `password_file` under `metrics`");
    }
    if (options.certificate.empty() != options.key.empty()) Add("metrics", "`certificate` and `key` come together");
    const std::pair<const char*, const std::string&> files[] = {{"metrics.certificate", options.certificate},
                                                                {"metrics.key", options.key},
                                                                {"metrics.password_file", options.password_file}};
    for (const auto& [path, file] : files) {
      if (!file.empty()) AddIf(path, AbsolutePathProblem(file));
    }
  }

  // Names that people chose are part of both; lines are known by what can be printed.
  void Add(const std::string& path, const std::string& text) {
    const std::string shown = Printable(path);
    problems_->push_back({LineOf(lines_, shown), 0, shown, Printable(text)});
  }
  void AddIf(const std::string& path, const std::string& text) {
    if (!text.empty()) Add(path, text);
  }
  template <typename List, typename CheckOne>
  void ForEach(const std::string& path, const List& list, CheckOne check) {
    for (int i = 0; i < list.size(); ++i) check(absl::StrCat(path, "[", i, "]"), list[i]);
  }

  void CheckService(const std::string& path, const v1::AgentServiceConfig& service) {
    if (service.tree().empty()) {
      Add(path, "tree is required: the absolute path of the folder that the service lives in");
    } else {
      const std::string problem = AbsolutePathProblem(service.tree());
      AddIf(path + ".tree", problem);
      struct stat status;
      if (problem.empty() && options_.check_paths &&
          (stat(service.tree().c_str(), &status) != 0 || !S_ISDIR(status.st_mode))) {
        Add(path + ".tree", absl::StrCat(service.tree(), " is not there, or no folder"));
      }
    }
    if (!service.unit().empty() && service.has_process()) {
      Add(path + ".process", "unit and process exclude each other: give one");
    } else if (service.unit().empty() && !service.has_process()) {
      Add(path, "one of unit (a systemd unit) and process (a command) is required");
    }
    const auto is_unit = [](const std::string& unit) {
      return absl::EndsWith(unit, ".service") && unit.size() <= 255 &&
             unit.find_first_of("/ \t\n") == std::string::npos;
    };
    if (!service.unit().empty() && !is_unit(service.unit())) {
      Add(path + ".unit", "wants the name of a unit with its suffix, such as rosey-bot.service");
    }
    ForEach(path + ".also_restart", service.also_restart(), [&](const std::string& at, const std::string& unit) {
      if (!is_unit(unit)) Add(at, "wants the name of a unit with its suffix, such as rosey-web.service");
      if (unit == service.unit()) Add(at, "is the service's own unit");
    });
    if (service.also_restart_size() > 0 && service.unit().empty()) {
      Add(path + ".also_restart", "is for services under unit: what depends on a process is started by hand");
    }
    if (service.has_process()) CheckProcess(path + ".process", service);
    if (!service.owner().empty()) CheckUser(path + ".owner", service.owner());
    const auto glob = [&](const std::string& at, const std::string& value) { AddIf(at, GlobProblem(value)); };
    ForEach(path + ".components.config", service.components().config(), glob);
    ForEach(path + ".components.data", service.components().data(), glob);
    ForEach(path + ".ignore", service.ignore(), glob);
    std::set<std::string> databases;
    ForEach(path + ".sqlite", service.sqlite(), [&](const std::string& at, const std::string& value) {
      AddIf(at, RelativePathProblem(value));
      if (value.find_first_of("*?[") != std::string::npos) Add(at, "wants one file: no globs here");
      if (!databases.insert(value).second) Add(at, "is named twice");
    });
    if (service.has_git()) CheckGit(path + ".git", service.git());
    ForEach(path + ".check_config", service.check_config(), [&](const std::string& at, const v1::CheckConfig& check) {
      check.json().empty() ? Add(at, "names no check: give json") : AddIf(at + ".json", GlobProblem(check.json()));
    });
    std::set<std::string> hooks;
    ForEach(path + ".database_hooks", service.database_hooks(),
            [&](const std::string& at, const v1::DatabaseHookConfig& hook) {
              CheckDatabaseHook(at, service, hook);
              if (!hook.name().empty() && !hooks.insert(hook.name()).second) Add(at + ".name", "is given twice");
            });
    if (service.has_after_restore()) CheckAfterRestore(path + ".after_restore", service);
    CheckDrills(path + ".drills", service.drills());
    ForEach(path + ".probes", service.probes(),
            [&](const std::string& at, const v1::ProbeConfig& probe) { CheckProbe(at, service, probe); });
  }

  void CheckAfterRestore(const std::string& path, const v1::AgentServiceConfig& service) {
    const v1::AfterRestoreConfig& after = service.after_restore();
    ForEach(path + ".clear", after.clear(),
            [&](const std::string& at, const std::string& glob) { AddIf(at, GlobProblem(glob)); });
    if (after.restart_size() > kMostDependants) {
      Add(path + ".restart", absl::StrCat("wants at most ", kMostDependants, " units"));
    }
    ForEach(path + ".restart", after.restart(), [&](const std::string& at, const std::string& unit) {
      if (unit.find('.') == std::string::npos || unit.find_first_of("/ ") != std::string::npos) {
        Add(at, "wants the name of a unit with its suffix, such as dashboard.service");
      } else if (unit == service.unit()) {
        Add(at, "is the service itself: it is started anyway");
      }
    });
    CheckTimeout(path + ".timeout", after.has_timeout(), after.timeout());
  }

  void CheckDrills(const std::string& path, const v1::AgentDrillsConfig& drills) {
    static const std::vector<std::string> kFaults = {"bad-code",       "bad-database", "bad-config",
                                                     "host-power-cut", "agent-killed", "disk-full"};
    for (const std::string& fault : drills.allow()) {
      if (std::find(kFaults.begin(), kFaults.end(), fault) != kFaults.end()) continue;
      const std::string nearest = NearestSpelling(fault, kFaults);
      Add(path + ".allow", absl::StrCat(Printable(fault), " is no fault that a server allows",
                                        nearest.empty() ? absl::StrCat(": ", absl::StrJoin(kFaults, ", "))
                                                        : absl::StrCat("; did you mean ", nearest, "?")));
    }
    const auto check = [&](absl::string_view key, const std::string& file) {
      if (!file.empty()) AddIf(absl::StrCat(path, ".", key, ".file"), RelativePathProblem(file));
    };
    check("bad_code", drills.bad_code().file());
    check("bad_config", drills.bad_config().file());
    check("bad_database", drills.bad_database().file());
    if (!drills.disk_full().folder().empty()) {
      AddIf(path + ".disk_full.folder", AbsolutePathProblem(drills.disk_full().folder()));
    }
    if (drills.host_power_cut().command_size() > 0 && !absl::StartsWith(drills.host_power_cut().command(0), "/")) {
      Add(path + ".host_power_cut.command", "wants a program by its absolute path");
    }
    if (drills.has_longest() && (drills.longest().seconds() < 1 || drills.longest().seconds() > int64_t{4} * 3600)) {
      Add(path + ".longest", "wants 1s to 4h");
    }
  }

  void CheckUser(const std::string& path, const std::string& value) {
    const absl::StatusOr<UserAndGroup> user = LookUpUser(value);
    if (!user.ok()) Add(path, std::string(user.status().message()));
  }

  void CheckProcess(const std::string& path, const v1::AgentServiceConfig& service) {
    const v1::ProcessConfig& process = service.process();
    if (process.command().empty() || process.command(0).empty()) {
      Add(path, "command is required: a list of the program and its arguments");
    } else {
      CheckProgram(path + ".command", service, process.command(0));
    }
    for (const auto& [name, value] : process.environment()) {
      if (name.find('=') != std::string::npos) {
        Add(absl::StrCat(path, ".environment.", name), "a name holds no \"=\"");
      }
    }
    if (!process.log().empty()) AddIf(path + ".log", AbsolutePathProblem(process.log()));
    if (!process.user().empty()) CheckRunsAs(path + ".user", process.user(), "a service");
  }

  void CheckRunsAs(const std::string& path, const std::string& value, absl::string_view what) {
    CheckUser(path, value);
    if (geteuid() == 0) return;
    const absl::StatusOr<UserAndGroup> user = LookUpUser(value);
    if (user.ok() && user->uid != geteuid()) Add(path, absl::StrCat("only root can run ", what, " as another user"));
  }

  void CheckDatabaseHook(const std::string& path, const v1::AgentServiceConfig& service,
                         const v1::DatabaseHookConfig& hook) {
    if (hook.name().empty()) {
      Add(path, "name is required: releases know the database by it");
    } else if (!IsDatabaseName(hook.name())) {
      Add(path + ".name", "wants 1 to 40 of a-z, 0-9 and '-'");
    }
    const bool as_root = !hook.user().empty() && [&] {
      const absl::StatusOr<UserAndGroup> user = LookUpUser(hook.user());
      return user.ok() && user->uid == 0;
    }();
    const auto check = [&](absl::string_view key, const auto& command) {
      const std::string at = absl::StrCat(path, ".", key);
      if (command.empty() || command[0].empty()) {
        return Add(path, absl::StrCat(key, " is required: a list of the program and its arguments"));
      }
      const std::string& program = command[0];
      if (!absl::StrContains(program, "/")) return;  // found on the path
      if (program[0] != '/') return Add(at, "wants a program by its absolute path, or by a name without slashes");
      if (as_root && absl::StartsWith(program, service.tree() + "/")) {
        return Add(at, "a program that lies in the tree is not run as root: the service's user may change it");
      }
      CheckProgram(at, service, program);
    };
    check("dump", hook.dump());
    check("restore", hook.restore());
    if (hook.has_timeout() && hook.timeout().seconds() == 0 && hook.timeout().nanos() == 0) {
      Add(path + ".timeout", "wants more than 0s");
    }
    if (hook.timeout().seconds() > kMostHookSeconds) Add(path + ".timeout", "wants at most 24h");
    if (!hook.user().empty()) CheckRunsAs(path + ".user", hook.user(), "a hook");
  }

  void CheckProgram(const std::string& path, const v1::AgentServiceConfig& service, const std::string& program) {
    if (!options_.check_paths || program.find('/') == std::string::npos) return;
    const std::string full = program[0] == '/' ? program : absl::StrCat(service.tree(), "/", program);
    if (access(full.c_str(), X_OK) != 0) Add(path, absl::StrCat(full, " is not there, or cannot be run"));
  }

  void CheckGit(const std::string& path, const v1::GitConfig& git) {
    if (git.remote().empty()) {
      Add(path, "remote is required");
    } else if (!absl::StartsWith(git.remote(), "file:///") && !absl::StartsWith(git.remote(), "https://") &&
               !absl::StartsWith(git.remote(), "ssh://")) {
      Add(path + ".remote", "wants file:///…, https://… or ssh://…");
    }
    if (absl::StartsWith(git.branch(), "-") || absl::StrContains(git.branch(), "..") ||
        git.branch().find_first_of(" ~^:?*[\\") != std::string::npos) {
      Add(path + ".branch", "is not the name of a branch");
    }
  }

  void CheckProbe(const std::string& path, const v1::AgentServiceConfig& service, const v1::ProbeConfig& probe) {
    switch (probe.probe_case()) {
      case v1::ProbeConfig::kUnit:
        if (!probe.unit().memory_below().empty() && !ParseByteCount(probe.unit().memory_below()).ok()) {
          Add(path + ".unit.memory_below", "wants a size, such as 300MiB or 1GiB");
        }
        return;
      case v1::ProbeConfig::kHttp:
        AddIf(path + ".http.url", HttpUrlProblem(probe.http().url()));
        if (probe.http().status() != 0 && (probe.http().status() < 100 || probe.http().status() > 599)) {
          Add(path + ".http.status", "wants a status from 100 to 599");
        }
        return CheckTimeout(path + ".http.timeout", probe.http().has_timeout(), probe.http().timeout());
      case v1::ProbeConfig::kLog:
        CheckLog(path + ".log", probe.log());
        if (probe.log().file().empty() && !service.has_process()) {
          Add(path + ".log", "file is required: only a service under process has a log of its own");
        } else if (!probe.log().file().empty()) {
          AddIf(path + ".log.file", probe.log().file()[0] == '/' ? AbsolutePathProblem(probe.log().file())
                                                                 : RelativePathProblem(probe.log().file()));
        }
        return;
      case v1::ProbeConfig::kJournal:
        CheckLog(path + ".journal", probe.journal());
        if (service.unit().empty()) Add(path + ".journal", "wants a systemd unit: for a process, use log");
        if (!probe.journal().file().empty()) Add(path + ".journal.file", "the journal is no file: use log");
        return;
      case v1::ProbeConfig::kSqlite:
        return AddIf(path + ".sqlite.path", RelativePathProblem(probe.sqlite().path()));
      case v1::ProbeConfig::kTcp:
        if (!IsAddress(probe.tcp().address(), false)) Add(path + ".tcp.address", "wants host:port");
        return CheckTimeout(path + ".tcp.timeout", probe.tcp().has_timeout(), probe.tcp().timeout());
      case v1::ProbeConfig::kCommand:
        if (probe.command().argv().empty() || probe.command().argv(0).empty()) {
          Add(path + ".command", "argv is required: a list of the program and its arguments");
        } else {
          CheckProgram(path + ".command.argv", service, probe.command().argv(0));
        }
        AddIf(path + ".command.expect", RegexProblem(probe.command().expect()));
        return CheckTimeout(path + ".command.timeout", probe.command().has_timeout(), probe.command().timeout());
      case v1::ProbeConfig::kVersion:
        if (probe.version().url().empty() == probe.version().file().empty()) {
          Add(path + ".version", "give one of url and file");
        } else if (!probe.version().file().empty()) {
          AddIf(path + ".version.file", RelativePathProblem(probe.version().file()));
        } else {
          AddIf(path + ".version.url", HttpUrlProblem(probe.version().url()));
          if (probe.version().json().empty()) Add(path + ".version", "json is required: the field to compare");
        }
        return CheckTimeout(path + ".version.timeout", probe.version().has_timeout(), probe.version().timeout());
      case v1::ProbeConfig::kMetrics:
        AddIf(path + ".metrics.url", HttpUrlProblem(probe.metrics().url()));
        ForEach(path + ".metrics.require", probe.metrics().require(),
                [&](const std::string& at, const std::string& name) {
                  if (!IsMetricName(name)) Add(at, "is not the name of a metric");
                });
        return CheckTimeout(path + ".metrics.timeout", probe.metrics().has_timeout(), probe.metrics().timeout());
      case v1::ProbeConfig::kDisk:
        if (!probe.disk().free().empty() && !ParseByteCount(probe.disk().free()).ok()) {
          Add(path + ".disk.free", "wants a size, such as 500MiB or 2GiB");
        }
        return;
      case v1::ProbeConfig::PROBE_NOT_SET:
        return Add(
            path, "names no probe: give one of unit, http, log, journal, sqlite, tcp, command, version, metrics, disk");
    }
  }

  void CheckTimeout(const std::string& path, bool given, const google::protobuf::Duration& timeout) {
    if (given && timeout.seconds() == 0 && timeout.nanos() == 0) Add(path, "wants more than 0s");
    if (timeout.seconds() > 300) Add(path, "wants at most 5m");
  }

  void CheckLog(const std::string& path, const v1::LogProbe& log) {
    if (log.expect().empty() && log.forbid().empty()) Add(path, "looks for nothing: give expect, forbid or both");
    AddIf(path + ".expect", RegexProblem(log.expect()));
    AddIf(path + ".forbid", RegexProblem(log.forbid()));
  }

  const AgentConfigOptions& options_;
  const YamlLines& lines_;
  std::vector<YamlProblem>* problems_;
};

// Who else could write to it, or "".
std::string OwnershipProblem(const std::string& path) {
  struct stat status;
  if (stat(path.c_str(), &status) != 0) return "";
  if (status.st_uid != 0) return absl::StrCat(path, " belongs to user ", status.st_uid, ", not to root");
  // A sticky folder (/tmp) does not let others replace what is root's, but nothing there is meant to be trusted.
  if ((status.st_mode & 022) != 0) return absl::StrCat(path, " can be written by others than root");
  return "";
}

absl::StatusOr<std::string> ReadTrusted(const std::string& path, const AgentConfigOptions& options) {
  if (options.check_ownership && geteuid() == 0) {
    char* resolved = realpath(path.c_str(), nullptr);
    if (resolved == nullptr) return ErrnoStatus(errno, path);
    const std::string real(resolved);
    free(resolved);
    for (const std::string& checked : {real, real.substr(0, std::max<size_t>(real.rfind('/'), 1))}) {
      const std::string problem = OwnershipProblem(checked);
      if (!problem.empty()) {
        return absl::PermissionDeniedError(
            absl::StrCat(problem, ": whoever can write it can run anything as root. Type: chown root:root ", checked,
                         " && chmod go-w ", checked));
      }
    }
  }
  return ReadFile(path, kLargestYamlBytes + 1);
}

}  // namespace

std::vector<YamlProblem> ParseAgentConfig(absl::string_view yaml, const AgentConfigOptions& options,
                                          v1::AgentConfig* config) {
  YamlLines lines;
  std::vector<YamlProblem> problems = ReadYamlMessage(yaml, config, &lines);
  // What could not be read shows up as missing below: say only what goes beyond the first problems then.
  std::vector<YamlProblem> more;
  Checker(options, lines, &more).Check(*config);
  const bool readable = problems.empty();
  std::set<int> known;
  for (const YamlProblem& problem : problems) known.insert(problem.line);
  for (YamlProblem& problem : more) {
    if (known.count(problem.line) == 0 && (readable || !absl::StrContains(problem.text, "is required"))) {
      problems.push_back(std::move(problem));
    }
  }
  std::stable_sort(problems.begin(), problems.end(),
                   [](const YamlProblem& a, const YamlProblem& b) { return a.line < b.line; });
  return problems;
}

absl::StatusOr<std::unique_ptr<v1::AgentConfig>> LoadAgentConfig(const std::string& path,
                                                                 const AgentConfigOptions& options) {
  RB_ASSIGN_OR_RETURN(const std::string text, ReadTrusted(path, options));
  auto config = std::make_unique<v1::AgentConfig>();
  const std::vector<YamlProblem> problems = ParseAgentConfig(text, options, config.get());
  if (!problems.empty()) {
    return absl::InvalidArgumentError(absl::StripSuffix(FormatProblems(path, problems), "\n"));
  }
  return config;
}

std::vector<YamlProblem> CheckAgentConfig(const std::string& path, const AgentConfigOptions& options) {
  AgentConfigOptions all = options;
  all.check_paths = true;
  std::vector<YamlProblem> problems;
  absl::StatusOr<std::string> text = ReadTrusted(path, all);
  if (absl::IsPermissionDenied(text.status())) {
    problems.push_back({0, 0, "", std::string(text.status().message())});
    all.check_ownership = false;
    text = ReadTrusted(path, all);
  }
  if (!text.ok()) {
    if (problems.empty()) problems.push_back({0, 0, "", std::string(text.status().message())});
    return problems;
  }
  v1::AgentConfig config;
  for (YamlProblem& problem : ParseAgentConfig(*text, all, &config)) problems.push_back(std::move(problem));
  return problems;
}

absl::StatusOr<uint64_t> ParseByteCount(absl::string_view text) {
  absl::string_view number = text;
  uint64_t unit = 1;
  for (const auto& [suffix, bytes] : std::initializer_list<std::pair<absl::string_view, uint64_t>>{
           {"KiB", uint64_t{1} << 10}, {"MiB", uint64_t{1} << 20}, {"GiB", uint64_t{1} << 30}}) {
    if (absl::ConsumeSuffix(&number, suffix)) unit = bytes;
  }
  uint64_t count = 0;
  if (!absl::SimpleAtoi(number, &count) || count == 0 || count > (uint64_t{1} << 50) / unit) {
    return absl::InvalidArgumentError(absl::StrCat("not a size: ", Printable(text)));
  }
  return count * unit;
}

absl::StatusOr<ServiceTree> ToServiceTree(const std::string& service, const v1::AgentServiceConfig& config) {
  ServiceTree tree;
  tree.service = service;
  tree.tree = config.tree();
  if (!config.owner().empty()) {
    RB_ASSIGN_OR_RETURN(const UserAndGroup owner, LookUpUser(config.owner()));
    tree.owner_uid = static_cast<int>(owner.uid);
    tree.owner_gid = static_cast<int>(owner.gid);
  }
  tree.config_globs.assign(config.components().config().begin(), config.components().config().end());
  tree.data_globs.assign(config.components().data().begin(), config.components().data().end());
  tree.ignore_globs.assign(config.ignore().begin(), config.ignore().end());
  tree.sqlite_paths.assign(config.sqlite().begin(), config.sqlite().end());
  return tree;
}

absl::StatusOr<UserAndGroup> LookUpUser(absl::string_view user_and_group) {
  const std::vector<std::string> parts = absl::StrSplit(user_and_group, ':');
  if (parts.size() > 2 || parts[0].empty() || (parts.size() == 2 && parts[1].empty())) {
    return absl::InvalidArgumentError(absl::StrCat("wants user or user:group, found ", Printable(user_and_group)));
  }
  UserAndGroup result;
  std::vector<char> buffer;
  struct passwd entry;
  uint32_t number = 0;
  if (LookUp(&entry, &buffer, [&](struct passwd* e, char* b, size_t size, struct passwd** found) {
        return getpwnam_r(parts[0].c_str(), e, b, size, found);
      })) {
    result = LookUpUid(entry.pw_uid, entry.pw_gid);
  } else if (absl::SimpleAtoi(parts[0], &number) && number != UINT32_MAX) {
    result = LookUpUid(number, number);
  } else {
    return absl::NotFoundError(absl::StrCat("there is no user ", Printable(parts[0]), " on this server"));
  }
  if (parts.size() == 1) return result;
  struct group group;
  if (LookUp(&group, &buffer, [&](struct group* e, char* b, size_t size, struct group** found) {
        return getgrnam_r(parts[1].c_str(), e, b, size, found);
      })) {
    result.gid = group.gr_gid;
  } else if (absl::SimpleAtoi(parts[1], &number) && number != UINT32_MAX) {
    result.gid = number;
  } else {
    return absl::NotFoundError(absl::StrCat("there is no group ", Printable(parts[1]), " on this server"));
  }
  FillGroups(result.name, &result);
  return result;
}

absl::StatusOr<UserAndGroup> UserOfCommands(const v1::AgentServiceConfig& config, const ServiceTree& tree) {
  if (geteuid() != 0) return LookUpUid(geteuid(), getegid());
  if (!config.process().user().empty()) return LookUpUser(config.process().user());
  if (tree.owner_uid >= 0) return LookUpUid(static_cast<uid_t>(tree.owner_uid), static_cast<gid_t>(tree.owner_gid));
  struct stat status;
  if (stat(tree.tree.c_str(), &status) != 0) return ErrnoStatus(errno, tree.tree);
  return LookUpUid(status.st_uid, status.st_gid);
}

UserAndGroup LookUpUid(uid_t uid, gid_t gid) {
  UserAndGroup result;
  result.uid = uid;
  result.gid = gid;
  std::vector<char> buffer;
  struct passwd entry;
  if (LookUp(&entry, &buffer, [&](struct passwd* e, char* b, size_t size, struct passwd** found) {
        return getpwuid_r(uid, e, b, size, found);
      })) {
    result.name = entry.pw_name;
    result.home = entry.pw_dir;
    FillGroups(result.name, &result);
  } else {
    result.name = absl::StrCat(uid);
    result.home = "/";
    result.groups = {gid};
  }
  return result;
}

MetricsServerOptions MetricsOptionsOf(const v1::AgentConfig& config) {
  MetricsServerOptions options;
  options.address = !config.metrics().address().empty() ? config.metrics().address()
                    : !config.metrics_address().empty() ? config.metrics_address()
                                                        : "127.0.0.1:0";
  options.certificate = config.metrics().certificate();
  options.key = config.metrics().key();
  options.password_file = config.metrics().password_file();
  return options;
}

}  // namespace rb::agent

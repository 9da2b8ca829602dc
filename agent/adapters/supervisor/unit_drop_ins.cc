#include "agent/adapters/supervisor/unit_drop_ins.h"

#include <sdbus-c++/sdbus-c++.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr char kDestination[] = "org.freedesktop.systemd1";
constexpr char kManagerPath[] = "/org/freedesktop/systemd1";
constexpr char kManager[] = "org.freedesktop.systemd1.Manager";
constexpr std::chrono::seconds kReloadTimeout{60};
constexpr std::chrono::seconds kCallTimeout{5};

// As a word of a command line in a unit file.
std::string Quoted(const std::string& word) {
  return absl::StrCat("\"", absl::StrReplaceAll(word, {{"\\", "\\\\"}, {"\"", "\\\""}, {"%", "%%"}, {"$", "$$"}}),
                      "\"");
}

absl::Status FromBus(const sdbus::Error& error, absl::string_view what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", Printable(Truncate(error.getMessage(), 300))));
}

absl::StatusOr<bool> IsLoaded(const std::string& unit, const std::string& path) {
  try {
    const auto connection = sdbus::createSystemBusConnection();
    const auto manager = sdbus::createProxy(*connection, kDestination, kManagerPath);
    sdbus::ObjectPath object;
    manager->callMethod("LoadUnit")
        .onInterface(kManager)
        .withTimeout(kCallTimeout)
        .withArguments(unit)
        .storeResultsTo(object);
    const auto proxy = sdbus::createProxy(*connection, kDestination, object);
    const std::vector<std::string> paths =
        proxy->getProperty("DropInPaths").onInterface("org.freedesktop.systemd1.Unit");
    return std::find(paths.begin(), paths.end(), path) != paths.end();
  } catch (const sdbus::Error& error) {
    return FromBus(error, absl::StrCat("asking systemd about ", unit));
  }
}

absl::Status Reload() {
  try {
    const auto connection = sdbus::createSystemBusConnection();
    const auto manager = sdbus::createProxy(*connection, kDestination, kManagerPath);
    manager->callMethod("Reload").onInterface(kManager).withTimeout(kReloadTimeout);
    return absl::OkStatus();
  } catch (const sdbus::Error& error) {
    return FromBus(error, "systemd could not be made to read its unit files again");
  }
}

}  // namespace

UnitDropIns::Options SystemdDropIns(const std::string& state_folder, const std::string& config_path) {
  UnitDropIns::Options options;
  options.state_folder = state_folder;
  options.config_path = config_path;
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof(program));
  options.program = length > 0 ? std::string(program, static_cast<size_t>(length)) : "/usr/bin/rb-agent";
  // The program was replaced by an upgrade while this one runs: the name is the same.
  if (absl::EndsWith(options.program, " (deleted)")) options.program.resize(options.program.size() - 10);
  options.is_loaded = IsLoaded;
  options.reload = Reload;
  return options;
}

std::string UnitDropIns::PathOf(const std::string& unit) const {
  return absl::StrCat(options_.units_folder, "/", unit, ".d/50-rb-agent.conf");
}

std::string UnitDropIns::TextFor(const std::string& service) const {
  return absl::StrCat(
      "# Written by rb-agent, which removes it again when the service is no longer in its file.\n"
      "# Before the service starts, a swap of its tree that was interrupted is made whole.\n"
      "[Service]\nExecStartPre=+",
      Quoted(options_.program), " recover --before-start --config ", Quoted(options_.config_path), " --state ",
      Quoted(options_.state_folder), " ", Quoted(service), "\n");
}

absl::StatusOr<std::vector<std::string>> UnitDropIns::List() const {
  const absl::StatusOr<std::string> text = ReadFile(options_.state_folder + "/units", 1 << 20);
  if (absl::IsNotFound(text.status())) return std::vector<std::string>();
  RB_RETURN_IF_ERROR(text.status());
  std::vector<std::string> units = absl::StrSplit(*text, '\n', absl::SkipEmpty());
  std::sort(units.begin(), units.end());
  return units;
}

absl::Status UnitDropIns::Set(const std::map<std::string, std::string>& services) {
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> before, List());
  std::set<std::string> units(before.begin(), before.end());
  const size_t listed = units.size();
  for (const auto& [unit, service] : services) units.insert(unit);
  const std::string list_path = options_.state_folder + "/units";
  if (units.size() != listed) {
    RB_RETURN_IF_ERROR(WriteFileDurably(list_path, absl::StrCat(absl::StrJoin(units, "\n"), "\n"), 0644));
  }
  bool changed = false;
  for (const std::string& unit : units) {
    const std::string path = PathOf(unit);
    const std::string folder = path.substr(0, path.rfind('/'));
    const absl::StatusOr<std::string> there = ReadFile(path, 1 << 20);
    const auto wanted = services.find(unit);
    if (wanted == services.end()) {
      if (there.ok()) {
        changed = true;
      } else if (!changed) {
        RB_ASSIGN_OR_RETURN(changed, options_.is_loaded(unit, path));
      }
      RB_RETURN_IF_ERROR(RemoveFileDurably(path));
      rmdir(folder.c_str());  // others' drop-ins may lie there
    } else if (const std::string text = TextFor(wanted->second); !there.ok() || *there != text) {
      changed = true;
      RB_RETURN_IF_ERROR(MakeFolders(folder, 0755));
      RB_RETURN_IF_ERROR(WriteFileDurably(path, text, 0644));
    } else if (!changed) {
      // Written by an agent that was killed before it told systemd.
      RB_ASSIGN_OR_RETURN(const bool loaded, options_.is_loaded(unit, path));
      changed = !loaded;
    }
  }
  if (changed) RB_RETURN_IF_ERROR(options_.reload());
  if (units.size() != services.size()) {
    std::string text;
    for (const auto& [unit, service] : services) absl::StrAppend(&text, unit, "\n");
    RB_RETURN_IF_ERROR(WriteFileDurably(list_path, text, 0644));
  }
  return absl::OkStatus();
}

}  // namespace rb::agent

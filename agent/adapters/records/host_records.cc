#include "agent/adapters/records/host_records.h"

#include <dirent.h>
#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "common/durable_file.h"
#include "common/ids.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kLargestFile = 4 << 20;
constexpr char kSuffix[] = ".record";

std::string OwedFolder(const std::string& state_folder) { return absl::StrCat(state_folder, "/owed"); }
std::string OwedPath(const std::string& state_folder, const std::string& id) {
  return absl::StrCat(OwedFolder(state_folder), "/", id, kSuffix);
}
std::string QuarantinePath(const std::string& state_folder) { return absl::StrCat(state_folder, "/quarantine"); }
std::string GuardPath(const std::string& state_folder, const std::string& service) {
  return absl::StrCat(state_folder, "/guard-", service);
}

// Sorted: ids begin with the time.
std::vector<std::string> OwedIds(const std::string& state_folder) {
  std::vector<std::string> ids;
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir(OwedFolder(state_folder).c_str()), &closedir);
  if (folder == nullptr) return ids;
  while (const dirent* entry = readdir(folder.get())) {  // NOLINT(concurrency-mt-unsafe): a stream of our own
    const absl::string_view name = entry->d_name;
    if (absl::EndsWith(name, kSuffix)) ids.emplace_back(name.substr(0, name.size() - (sizeof(kSuffix) - 1)));
  }
  std::sort(ids.begin(), ids.end());
  return ids;
}

}  // namespace

absl::Status OweRecord(const std::string& state_folder, v1::HostRecord record) {
  RB_RETURN_IF_ERROR(MakeFolders(OwedFolder(state_folder)));
  record.set_id(absl::StrCat(absl::ToUnixMicros(absl::Now()), "-", RandomHex(4)));
  RB_RETURN_IF_ERROR(WriteFileDurably(OwedPath(state_folder, record.id()), record.SerializeAsString()));
  const std::vector<std::string> ids = OwedIds(state_folder);
  for (size_t i = 0; i + kMostRecordsOwed < ids.size(); ++i) RB_RETURN_IF_ERROR(ForgetRecord(state_folder, ids[i]));
  return absl::OkStatus();
}

std::vector<v1::HostRecord> RecordsOwed(const std::string& state_folder) {
  std::vector<v1::HostRecord> records;
  for (const std::string& id : OwedIds(state_folder)) {
    const absl::StatusOr<std::string> content = ReadFile(OwedPath(state_folder, id), kLargestFile);
    v1::HostRecord record;
    if (content.ok() && record.ParseFromString(*content) && record.id() == id) records.push_back(std::move(record));
  }
  return records;
}

absl::Status ForgetRecord(const std::string& state_folder, const std::string& id) {
  if (id.empty() || absl::StrContains(id, '/')) return absl::InvalidArgumentError("not the id of a record");
  return RemoveFileDurably(OwedPath(state_folder, id));
}

std::vector<QuarantineEntry> FromWire(const v1::QuarantineList& list) {
  std::vector<QuarantineEntry> entries;
  for (const v1::QuarantineEntry& wire : list.entries()) {
    QuarantineEntry entry;
    entry.service = wire.service();
    entry.commit = wire.commit();
    entry.version = wire.version();
    entry.reason = Printable(wire.reason());
    entry.released = wire.released();
    entry.release_reason = Printable(wire.release_reason());
    entry.number = wire.number();
    entries.push_back(std::move(entry));
  }
  return entries;
}

std::vector<QuarantineEntry> LoadQuarantine(const std::string& state_folder) {
  const absl::StatusOr<std::string> content = ReadFile(QuarantinePath(state_folder), kLargestFile);
  v1::QuarantineList list;
  if (!content.ok() || !list.ParseFromString(*content)) return {};
  return FromWire(list);
}

absl::Status SaveQuarantine(const std::string& state_folder, const v1::QuarantineList& list) {
  return WriteFileDurably(QuarantinePath(state_folder), list.SerializeAsString());
}

std::optional<v1::HostRecord> LoadGuard(const std::string& state_folder, const std::string& service) {
  const absl::StatusOr<std::string> content = ReadFile(GuardPath(state_folder, service), kLargestFile);
  v1::HostRecord guard;
  if (!content.ok() || !guard.ParseFromString(*content)) return std::nullopt;
  return guard;
}

absl::Status SaveGuard(const std::string& state_folder, const v1::HostRecord& guard) {
  return WriteFileDurably(GuardPath(state_folder, guard.service()), guard.SerializeAsString());
}

absl::Status RemoveGuard(const std::string& state_folder, const std::string& service) {
  return RemoveFileDurably(GuardPath(state_folder, service));
}

std::string UserOfHost() {
  // NOLINTNEXTLINE(concurrency-mt-unsafe): nobody sets the environment while this runs.
  if (const char* sudo = std::getenv("SUDO_USER"); sudo != nullptr && geteuid() == 0) {
    return Printable(std::string(sudo).substr(0, 64));
  }
  passwd entry{};
  passwd* found = nullptr;
  char buffer[4096];
  if (getpwuid_r(getuid(), &entry, buffer, sizeof(buffer), &found) != 0 || found == nullptr) {
    return absl::StrCat("uid ", getuid());
  }
  return Printable(found->pw_name);
}

}  // namespace rb::agent

#include "agent/core/engine/database_dumps.h"

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "agent/core/engine/chunker.h"
#include "common/digest.h"
#include "common/failpoint.h"
#include "common/status.h"
#include "common/text.h"

namespace rb::agent {
namespace {

// Cuts a stream into chunks and stores those that are new.
class DumpWriter {
 public:
  DumpWriter(ObjectStore* store, ObjectStore::Writer* writer, DatabaseDump* dump)
      : store_(store), writer_(writer), dump_(dump) {}

  absl::Status Add(absl::string_view bytes) {
    buffer_.append(bytes.data(), bytes.size());
    size_t begin = 0;
    while (buffer_.size() - begin >= kMostChunkBytes) {
      RB_RETURN_IF_ERROR(Cut(&begin));
    }
    buffer_.erase(0, begin);
    return absl::OkStatus();
  }
  absl::Status Finish() {
    size_t begin = 0;
    while (begin < buffer_.size()) RB_RETURN_IF_ERROR(Cut(&begin));
    buffer_.clear();
    return absl::OkStatus();
  }

 private:
  absl::Status Cut(size_t* begin) {
    const absl::string_view rest = absl::string_view(buffer_).substr(*begin);
    const absl::string_view chunk = rest.substr(0, FirstChunkLength(rest));
    const Digest digest = Sha256Of(chunk);
    if (!store_->Contains(digest)) RB_RETURN_IF_ERROR(writer_->Put(digest, chunk));
    dump_->chunks.push_back(digest);
    dump_->size += chunk.size();
    *begin += chunk.size();
    return absl::OkStatus();
  }

  ObjectStore* const store_;
  ObjectStore::Writer* const writer_;
  DatabaseDump* const dump_;
  std::string buffer_;
};

absl::Status WrongSize(const DatabaseDump& dump, uint64_t size) {
  return absl::DataLossError(absl::StrCat("the dump of ", DescribeDatabases({dump.name}), " has ", size,
                                          " bytes; its release says ", dump.size));
}

}  // namespace

std::string DescribeDatabases(const std::vector<std::string>& names) {
  if (names.size() <= 1) return absl::StrCat("database ", absl::StrJoin(names, ""));
  return absl::StrCat("databases ", absl::StrJoin(names.begin(), std::prev(names.end()), ", "), " and ", names.back());
}

absl::StatusOr<std::vector<DatabaseDump>> TakeDumps(DatabaseHooks* hooks, ObjectStore* store,
                                                    ObjectStore::Writer* writer,
                                                    absl::FunctionRef<absl::Status()> check_cancelled) {
  std::vector<DatabaseDump> dumps;
  for (const std::string& name : hooks->Names()) {
    RB_RETURN_IF_ERROR(check_cancelled());
    DatabaseDump dump;
    dump.name = name;
    DumpWriter chunks(store, writer, &dump);
    const auto sink = [&](absl::string_view bytes) -> absl::Status {
      RB_RETURN_IF_ERROR(check_cancelled());
      return chunks.Add(bytes);
    };
    RB_RETURN_IF_ERROR(hooks->Dump(name, sink));
    RB_RETURN_IF_ERROR(chunks.Finish());
    dumps.push_back(std::move(dump));
  }
  return dumps;
}

absl::Status CheckDump(const DatabaseDump& dump, ObjectStore* store,
                       absl::FunctionRef<absl::Status()> check_cancelled) {
  uint64_t size = 0;
  for (const Digest& chunk : dump.chunks) {
    RB_RETURN_IF_ERROR(check_cancelled());
    const absl::StatusOr<std::string> content = store->Get(chunk);
    if (absl::IsDataLoss(content.status()) || absl::IsNotFound(content.status())) {
      return absl::DataLossError(
          absl::StrCat("the dump of ", DescribeDatabases({dump.name}), " is damaged: ", content.status().message()));
    }
    RB_RETURN_IF_ERROR(content.status());
    size += content->size();
  }
  return size == dump.size ? absl::OkStatus() : WrongSize(dump, size);
}

absl::Status RestoreDump(const DatabaseDump& dump, DatabaseHooks* hooks, ObjectStore* store) {
  size_t next = 0;
  uint64_t given = 0;
  return hooks->Restore(dump.name, [&]() -> absl::StatusOr<std::string> {
    if (next == dump.chunks.size()) {
      RB_FAILPOINT("engine.restore.before-end");
      // Before the restore sees the end: it may take that for the word to make what it has done final.
      if (given != dump.size) return WrongSize(dump, given);
      return std::string();
    }
    absl::StatusOr<std::string> content = store->Get(dump.chunks[next]);
    if (!content.ok()) {
      return Annotate(content.status(), absl::StrCat("the dump of ", DescribeDatabases({dump.name})));
    }
    ++next;
    given += content->size();
    return content;
  });
}

const DatabaseDump* FindDump(const Manifest& manifest, absl::string_view name) {
  const auto found = std::find_if(manifest.dumps.begin(), manifest.dumps.end(),
                                  [&](const DatabaseDump& dump) { return dump.name == name; });
  return found == manifest.dumps.end() ? nullptr : &*found;
}

std::string WhyDatabasesCannotGoBack(const DatabaseHooks* hooks, const std::vector<std::string>& dumped,
                                     absl::string_view target) {
  const std::vector<std::string> hooked = hooks == nullptr ? std::vector<std::string>() : hooks->Names();
  std::vector<std::string> lacking;
  std::set_difference(hooked.begin(), hooked.end(), dumped.begin(), dumped.end(), std::back_inserter(lacking));
  if (!lacking.empty()) return absl::StrCat(target, " holds no dump of ", DescribeDatabases(lacking));
  std::set_difference(dumped.begin(), dumped.end(), hooked.begin(), hooked.end(), std::back_inserter(lacking));
  if (!lacking.empty()) {
    return absl::StrCat(target, " holds a dump of ", DescribeDatabases(lacking),
                        ", for which the service has no hook in database_hooks of agent.yaml");
  }
  return "";
}

}  // namespace rb::agent

// Dumps of databases that are not files of the tree: into the object store, checked there, and back. They are streamed
// in chunks, so that memory stays bounded however large a dump is.
#ifndef RB_AGENT_CORE_ENGINE_DATABASE_DUMPS_H_
#define RB_AGENT_CORE_ENGINE_DATABASE_DUMPS_H_

#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/manifest.h"
#include "agent/core/engine/object_store.h"
#include "agent/core/ports/database_hooks.h"

namespace rb::agent {

// "database main", "databases audit and main".
std::string DescribeDatabases(const std::vector<std::string>& names);

// One dump for each hook, in the order of their names, put into `writer`. The caller holds a session of the store, and
// finishes the writer. `check_cancelled` is asked now and then; its error ends the dump.
absl::StatusOr<std::vector<DatabaseDump>> TakeDumps(DatabaseHooks* hooks, ObjectStore* store,
                                                    ObjectStore::Writer* writer,
                                                    absl::FunctionRef<absl::Status()> check_cancelled);

// Reads all of a dump and compares it with its digests and its size. DATA_LOSS, naming the database and the object.
absl::Status CheckDump(const DatabaseDump& dump, ObjectStore* store, absl::FunctionRef<absl::Status()> check_cancelled);

// Streams the dump into the database's restore hook.
absl::Status RestoreDump(const DatabaseDump& dump, DatabaseHooks* hooks, ObjectStore* store);

// Null when there is none.
const DatabaseDump* FindDump(const Manifest& manifest, absl::string_view name);

// Why the databases that the hooks name cannot go back to what `dumped` (names, sorted) holds; empty when they can:
// there is a dump for each hook, and a hook for each dump. `target` is whose dumps they are, for a person. `hooks` may
// be null.
std::string WhyDatabasesCannotGoBack(const DatabaseHooks* hooks, const std::vector<std::string>& dumped,
                                     absl::string_view target);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_DATABASE_DUMPS_H_

// What a release is made of: one entry for each path, in path order; and beside them, where no path leads, the dumps of
// databases that are not files of the tree.
#ifndef RB_AGENT_CORE_ENGINE_MANIFEST_H_
#define RB_AGENT_CORE_ENGINE_MANIFEST_H_

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/rare.h"
#include "common/digest.h"

namespace rb::agent {

enum class EntryType : uint8_t { kFile = 1, kFolder = 2, kSymlink = 3, kFifo = 4 };

// What a file, folder, link or fifo is, apart from its content.
using Xattrs = std::vector<std::pair<std::string, std::string>>;

struct Attributes {
  uint32_t mode = 0;  // permission bits with setuid, setgid, sticky
  uint32_t uid = 0;
  uint32_t gid = 0;
  int64_t mtime_ns = 0;  // since the epoch
  // Extended attributes with their names, sorted: ACLs (system.posix_acl_*) and capabilities (security.capability) too.
  Rare<Xattrs> xattrs;

  friend bool operator==(const Attributes&, const Attributes&) = default;
  bool EqualsButForTime(const Attributes& other) const {
    return mode == other.mode && uid == other.uid && gid == other.gid && xattrs == other.xattrs;
  }
};

// Nearly every file is one object: it takes no allocation of its own.
using ChunkList = absl::InlinedVector<Digest, 1>;

struct Entry {
  std::string path;  // relative to the tree; "" is the tree's root
  Attributes attributes;
  uint64_t size = 0;              // of a file
  ChunkList chunks;               // its content; objects of the store
  Rare<std::string> link_target;  // of a symlink
  uint32_t hard_link_group = 0;   // files with the same number, not 0, are one file
  EntryType type = EntryType::kFile;
  bool sparse = false;  // blocks of zeros are holes

  bool SameContent(const Entry& other) const {
    return type == other.type && size == other.size && chunks == other.chunks && link_target == other.link_target;
  }
};

// What a database held, as its dump hook wrote it. It has a name and no path: nothing that walks, compares or stages
// paths can meet it, and no file of the tree can be taken for it.
struct DatabaseDump {
  std::string name;  // IsDatabaseName (ports/database_hooks.h)
  uint64_t size = 0;
  ChunkList chunks;

  friend bool operator==(const DatabaseDump&, const DatabaseDump&) = default;
};

struct Manifest {
  std::vector<Entry> entries;  // sorted by PathLess, without repeats
  // Sorted by name, without repeats. None: none were taken.
  std::vector<DatabaseDump> dumps;

  // The objects that it needs.
  template <typename Visitor>
  void ForEachChunk(Visitor visit) const {
    for (const Entry& entry : entries) std::for_each(entry.chunks.begin(), entry.chunks.end(), visit);
    for (const DatabaseDump& dump : dumps) std::for_each(dump.chunks.begin(), dump.chunks.end(), visit);
  }
};

// Path order: a folder comes right before everything below it.
bool PathLess(absl::string_view a, absl::string_view b);
// True when `path` lies below `folder` ("" holds everything but itself).
bool IsBelow(absl::string_view path, absl::string_view folder);
absl::string_view ParentPath(absl::string_view path);
absl::string_view BaseName(absl::string_view path);
// A path that cannot lead out of the folder it is relative to: no "..", no empty elements, no NUL. "" is one.
bool IsSafePath(absl::string_view path);

// How many bytes both begin with.
size_t SharedPrefix(absl::string_view a, absl::string_view b);

// Writes a manifest entry by entry, in path order. Canonical: equal manifests have equal bytes, so that their SHA-256
// is the name of the state.
class ManifestEncoder {
 public:
  explicit ManifestEncoder(size_t entry_count);
  void Add(const Entry& entry);
  // After the last entry; sorted by name. Without any, the bytes are those of a manifest that knows of no dumps.
  void AddDumps(const std::vector<DatabaseDump>& dumps);
  std::string Take() { return out_.Take(); }

 private:
  Encoder out_;
  std::string previous_;
};
std::string EncodeManifest(const Manifest& manifest);
// DATA_LOSS for bytes that are no manifest, among them unsorted, absolute or climbing paths. Total.
absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes);

// Parts that other files on disk hold as well. The readers leave `in` not ok() when they fail.
void PutXattrs(const Xattrs& xattrs, Encoder* out);
Xattrs TakeXattrs(Decoder* in);
void PutChunks(const ChunkList& chunks, Encoder* out);
void TakeChunks(Decoder* in, ChunkList* chunks);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_MANIFEST_H_

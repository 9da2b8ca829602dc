#include "agent/core/engine/manifest.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/core/engine/codec.h"
#include "agent/core/ports/database_hooks.h"

namespace rb::agent {
namespace {

constexpr absl::string_view kMagic = "rbmanifest1\n";

}  // namespace

bool IsSafePath(absl::string_view path) {
  if (path.empty()) return true;
  if (path.find('\0') != absl::string_view::npos) return false;
  for (const absl::string_view element : absl::StrSplit(path, '/')) {
    if (element.empty() || element == "." || element == "..") return false;
  }
  return true;
}

bool PathLess(absl::string_view a, absl::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t i = 0;
  // Eight bytes at a time: neighbouring paths of a tree share long beginnings.
  for (; i + 8 <= limit; i += 8) {
    uint64_t of_a = 0;
    uint64_t of_b = 0;
    std::memcpy(&of_a, a.data() + i, 8);
    std::memcpy(&of_b, b.data() + i, 8);
    if (of_a != of_b) break;
  }
  for (; i < limit; ++i) {
    if (a[i] == b[i]) continue;
    if (a[i] == '/') return true;
    if (b[i] == '/') return false;
    return static_cast<uint8_t>(a[i]) < static_cast<uint8_t>(b[i]);
  }
  return a.size() < b.size();
}

bool IsBelow(absl::string_view path, absl::string_view folder) {
  if (folder.empty()) return !path.empty();
  return path.size() > folder.size() && path[folder.size()] == '/' && path.substr(0, folder.size()) == folder;
}

absl::string_view ParentPath(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? absl::string_view() : path.substr(0, slash);
}

absl::string_view BaseName(absl::string_view path) {
  const size_t slash = path.rfind('/');
  return slash == absl::string_view::npos ? path : path.substr(slash + 1);
}

size_t SharedPrefix(absl::string_view a, absl::string_view b) {
  const size_t limit = std::min(a.size(), b.size());
  size_t shared = 0;
  for (; shared + 8 <= limit && std::memcmp(a.data() + shared, b.data() + shared, 8) == 0; shared += 8) {
  }
  while (shared < limit && a[shared] == b[shared]) ++shared;
  return shared;
}

ManifestEncoder::ManifestEncoder(size_t entry_count) {
  static constexpr size_t kUsualEntryBytes = 100;
  out_.Reserve(entry_count * kUsualEntryBytes);
  out_.Literal(kMagic);
  out_.Number(entry_count);
}

void ManifestEncoder::Add(const Entry& entry) {
  const size_t shared = SharedPrefix(previous_, entry.path);
  out_.Number(shared);
  out_.Text(absl::string_view(entry.path).substr(shared));
  previous_ = entry.path;
  out_.Number(static_cast<uint64_t>(entry.type));
  out_.Number(entry.attributes.mode);
  out_.Number(entry.attributes.uid);
  out_.Number(entry.attributes.gid);
  out_.Signed(entry.attributes.mtime_ns);
  PutXattrs(*entry.attributes.xattrs, &out_);
  out_.Number(entry.size);
  out_.Number(entry.sparse ? 1 : 0);
  out_.Number(entry.hard_link_group);
  out_.Text(*entry.link_target);
  PutChunks(entry.chunks, &out_);
}

void ManifestEncoder::AddDumps(const std::vector<DatabaseDump>& dumps) {
  if (dumps.empty()) return;
  out_.Number(dumps.size());
  for (const DatabaseDump& dump : dumps) {
    out_.Text(dump.name);
    out_.Number(dump.size);
    PutChunks(dump.chunks, &out_);
  }
}

std::string EncodeManifest(const Manifest& manifest) {
  ManifestEncoder out(manifest.entries.size());
  for (const Entry& entry : manifest.entries) out.Add(entry);
  out.AddDumps(manifest.dumps);
  return out.Take();
}

void PutXattrs(const Xattrs& xattrs, Encoder* out) {
  out->Number(xattrs.size());
  for (const auto& [name, value] : xattrs) {
    out->Text(name);
    out->Text(value);
  }
}

Xattrs TakeXattrs(Decoder* in) {
  Xattrs xattrs;
  const uint64_t count = in->Count(2);
  for (uint64_t i = 0; i < count && in->ok(); ++i) {
    std::string name = in->TextWithoutNul();
    std::string value = in->Text();
    xattrs.emplace_back(std::move(name), std::move(value));
  }
  return xattrs;
}

void PutChunks(const ChunkList& chunks, Encoder* out) {
  out->Number(chunks.size());
  for (const Digest& chunk : chunks) out->Raw(chunk);
}

void TakeChunks(Decoder* in, ChunkList* chunks) {
  chunks->clear();
  const uint64_t count = in->Count(32);
  chunks->reserve(count);
  for (uint64_t i = 0; i < count && in->ok(); ++i) chunks->push_back(in->Raw());
}

absl::StatusOr<Manifest> DecodeManifest(absl::string_view bytes) {
  if (bytes.substr(0, kMagic.size()) != kMagic) return absl::DataLossError("these bytes are not a manifest");
  Decoder in(bytes.substr(kMagic.size()));
  Manifest manifest;
  const uint64_t count = in.Count(12);
  manifest.entries.reserve(count);
  std::string previous;
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    Entry entry;
    const uint64_t shared = in.Number();
    if (shared > previous.size()) return absl::DataLossError("a manifest's path refers past its predecessor");
    entry.path = absl::StrCat(previous.substr(0, shared), in.View());
    if (!IsSafePath(entry.path) || (i > 0 && !PathLess(previous, entry.path))) {
      return absl::DataLossError("a manifest's paths are not safe or not in order");
    }
    previous = entry.path;  // its own: what `entries` holds may move
    const uint64_t type = in.Number();
    if (type < 1 || type > 4) return absl::DataLossError("a manifest has an entry of an unknown type");
    entry.type = static_cast<EntryType>(type);
    entry.attributes.mode = in.Number32() & 07777;
    entry.attributes.uid = in.Number32();
    entry.attributes.gid = in.Number32();
    entry.attributes.mtime_ns = in.Signed();
    entry.attributes.xattrs = TakeXattrs(&in);
    entry.size = in.Number();
    entry.sparse = in.Number() != 0;
    entry.hard_link_group = in.Number32();
    entry.link_target = in.TextWithoutNul();
    TakeChunks(&in, &entry.chunks);
    manifest.entries.push_back(std::move(entry));
  }
  if (in.ok() && !in.at_end()) {
    const uint64_t dump_count = in.Count(3);
    if (dump_count == 0) return absl::DataLossError("a manifest has bytes behind its end");
    for (uint64_t i = 0; i < dump_count && in.ok(); ++i) {
      DatabaseDump dump;
      dump.name = in.Text();
      if (!IsDatabaseName(dump.name) || (i > 0 && manifest.dumps.back().name >= dump.name)) {
        return absl::DataLossError("a manifest's dumps have no plain names, or are not in order");
      }
      dump.size = in.Number();
      TakeChunks(&in, &dump.chunks);
      manifest.dumps.push_back(std::move(dump));
    }
  }
  if (!in.ok() || !in.at_end()) return absl::DataLossError("a manifest is cut short or has bytes behind its end");
  return manifest;
}

}  // namespace rb::agent

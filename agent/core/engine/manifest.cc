#include "agent/core/engine/manifest.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/core/engine/codec.h"

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
  for (size_t i = 0; i < limit; ++i) {
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

std::string EncodeManifest(const Manifest& manifest) {
  Encoder out;
  out.Number(manifest.entries.size());
  absl::string_view previous;
  for (const Entry& entry : manifest.entries) {
    size_t shared = 0;
    while (shared < previous.size() && shared < entry.path.size() && previous[shared] == entry.path[shared]) ++shared;
    out.Number(shared);
    out.Text(absl::string_view(entry.path).substr(shared));
    previous = entry.path;
    out.Number(static_cast<uint64_t>(entry.type));
    out.Number(entry.attributes.mode);
    out.Number(entry.attributes.uid);
    out.Number(entry.attributes.gid);
    out.Signed(entry.attributes.mtime_ns);
    out.Number(entry.attributes.xattrs.size());
    for (const auto& [name, value] : entry.attributes.xattrs) {
      out.Text(name);
      out.Text(value);
    }
    out.Number(entry.size);
    out.Number(entry.sparse ? 1 : 0);
    out.Number(entry.hard_link_group);
    out.Text(entry.link_target);
    out.Number(entry.chunks.size());
    for (const Digest& chunk : entry.chunks) out.Raw(chunk);
  }
  return absl::StrCat(kMagic, out.bytes());
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
    entry.path = absl::StrCat(previous.substr(0, shared), in.Text());
    if (!IsSafePath(entry.path) || (i > 0 && !PathLess(previous, entry.path))) {
      return absl::DataLossError("a manifest's paths are not safe or not in order");
    }
    previous = entry.path;
    const uint64_t type = in.Number();
    if (type < 1 || type > 4) return absl::DataLossError("a manifest has an entry of an unknown type");
    entry.type = static_cast<EntryType>(type);
    entry.attributes.mode = in.Number32() & 07777;
    entry.attributes.uid = in.Number32();
    entry.attributes.gid = in.Number32();
    entry.attributes.mtime_ns = in.Signed();
    const uint64_t xattrs = in.Count(2);
    for (uint64_t x = 0; x < xattrs && in.ok(); ++x) {
      std::string name = in.TextWithoutNul();
      std::string value = in.Text();
      entry.attributes.xattrs.emplace_back(std::move(name), std::move(value));
    }
    entry.size = in.Number();
    entry.sparse = in.Number() != 0;
    entry.hard_link_group = in.Number32();
    entry.link_target = in.TextWithoutNul();
    const uint64_t chunks = in.Count(32);
    entry.chunks.reserve(chunks);
    for (uint64_t c = 0; c < chunks && in.ok(); ++c) entry.chunks.push_back(in.Raw());
    manifest.entries.push_back(std::move(entry));
  }
  if (!in.ok() || !in.at_end()) return absl::DataLossError("a manifest is cut short or has bytes behind its end");
  return manifest;
}

}  // namespace rb::agent

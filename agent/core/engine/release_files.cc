#include "agent/core/engine/release_files.h"

#include <fcntl.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <set>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/tree_files.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr size_t kLargestFileBytes = size_t{1} << 30;

// MAGIC body SHA-256: so that damage is never taken for content.
std::string Seal(absl::string_view magic, absl::string_view body) {
  std::string content;
  content.reserve(magic.size() + body.size() + sizeof(Digest));
  absl::StrAppend(&content, magic, body);
  Encoder seal;
  seal.Raw(Sha256Of(content));
  content.append(seal.bytes());
  return content;
}

absl::Status SaveSealed(const std::string& path, absl::string_view magic, absl::string_view body) {
  return WriteFileDurably(path, Seal(magic, body));
}

absl::StatusOr<std::string> LoadSealed(const std::string& path, absl::string_view magic) {
  RB_ASSIGN_OR_RETURN(std::string content, ReadFile(path, kLargestFileBytes));
  const absl::string_view all = content;
  if (all.size() < magic.size() + 32 || all.substr(0, magic.size()) != magic) {
    return absl::DataLossError(absl::StrCat(path, " is not what it should be: damaged, or of another version"));
  }
  Decoder seal(all.substr(all.size() - 32));
  if (seal.Raw() != Sha256Of(all.substr(0, all.size() - 32))) {
    return absl::DataLossError(absl::StrCat(path, " is damaged"));
  }
  content.resize(content.size() - 32);
  content.erase(0, magic.size());
  return content;
}

std::string Compress(absl::string_view content) {
  std::string out(ZSTD_compressBound(content.size()), '\0');
  const size_t size = ZSTD_compress(out.data(), out.size(), content.data(), content.size(), 1);
  out.resize(size);
  Encoder head;
  head.Number(content.size());
  return absl::StrCat(head.bytes(), out);
}

absl::StatusOr<std::string> Decompress(absl::string_view data, const std::string& path) {
  Decoder head(data);
  const uint64_t size = head.Number();
  Encoder again;
  again.Number(size);
  if (!head.ok() || size > kLargestFileBytes) return absl::DataLossError(absl::StrCat(path, " is damaged"));
  data.remove_prefix(again.bytes().size());
  std::string content(size, '\0');
  const size_t got = ZSTD_decompress(content.data(), content.size(), data.data(), data.size());
  if (ZSTD_isError(got) != 0 || got != size) return absl::DataLossError(absl::StrCat(path, " does not decompress"));
  return content;
}

void PutTime(absl::Time time, Encoder* out) {
  out->Signed(time == absl::InfinitePast() ? INT64_MIN : absl::ToUnixNanos(time));
}
absl::Time TakeTime(Decoder* in) {
  const int64_t nanos = in->Signed();
  return nanos == INT64_MIN ? absl::InfinitePast() : absl::FromUnixNanos(nanos);
}

std::string EncodeRelease(const Release& release) {
  Encoder out;
  for (const std::string* text : {&release.name, &release.manifest_digest, &release.service, &release.commit,
                                  &release.version, &release.operation_id, &release.reason}) {
    out.Text(*text);
  }
  out.Number(static_cast<uint64_t>(release.cause));
  out.Number(static_cast<uint64_t>(release.durability));
  out.Number(static_cast<uint64_t>(release.standing));
  PutTime(release.captured_at, &out);
  PutTime(release.last_proved_at, &out);
  out.Number(release.entry_count);
  out.Number(release.content_bytes);
  out.Number(release.pinned ? 1 : 0);
  if (!release.databases.empty()) {
    out.Number(release.databases.size());
    for (const std::string& name : release.databases) out.Text(name);
  }
  return out.Take();
}

absl::StatusOr<Release> DecodeRelease(absl::string_view bytes) {
  Decoder in(bytes);
  Release release;
  for (std::string* text : {&release.name, &release.manifest_digest, &release.service, &release.commit,
                            &release.version, &release.operation_id, &release.reason}) {
    *text = in.Text();
  }
  const uint64_t cause = in.Number();
  const uint64_t durability = in.Number();
  const uint64_t standing = in.Number();
  if (cause > 3 || durability > 3 || standing > 2) return absl::DataLossError("a release has an unknown standing");
  release.cause = static_cast<Cause>(cause);
  release.durability = static_cast<Durability>(durability);
  release.standing = static_cast<Standing>(standing);
  release.captured_at = TakeTime(&in);
  release.last_proved_at = TakeTime(&in);
  release.entry_count = in.Number();
  release.content_bytes = in.Number();
  release.pinned = in.Number() != 0;
  const uint64_t database_count = in.at_end() ? 0 : in.Count(2);
  for (uint64_t i = 0; i < database_count && in.ok(); ++i) release.databases.push_back(in.Text());
  if (!in.ok() || !in.at_end()) return absl::DataLossError("a release is cut short");
  return release;
}

constexpr absl::string_view kReleaseMagic = "rbrelease1\n";
constexpr absl::string_view kManifestMagic = "rbmanifestfile1\n";
constexpr absl::string_view kCurrentMagic = "rbcurrent1\n";
constexpr absl::string_view kCacheMagic = "rbstatcache3\n";
constexpr absl::string_view kIdsMagic = "rbcontentids1\n";
constexpr absl::string_view kKeptMagic = "rbkept1\n";

bool ReadExactly(int fd, void* to, size_t size) {
  size_t filled = 0;
  while (filled < size) {
    const ssize_t got = read(fd, static_cast<char*>(to) + filled, size - filled);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return false;
    filled += static_cast<size_t>(got);
  }
  return true;
}

absl::StatusOr<std::string> LoadEncodedManifest(const std::string& path) {
  RB_ASSIGN_OR_RETURN(const std::string body, LoadSealed(path, kManifestMagic));
  return Decompress(body, path);
}

absl::StatusOr<std::vector<std::string>> NamesIn(const std::string& path, absl::string_view suffix) {
  RB_ASSIGN_OR_RETURN(std::vector<std::string> files, ListFolder(path));
  std::vector<std::string> names;
  for (absl::string_view name : files) {
    if (absl::ConsumeSuffix(&name, suffix)) names.emplace_back(name);
  }
  return names;
}

}  // namespace

absl::StatusOr<ReleaseFiles> ReleaseFiles::Open(const std::string& folder) {
  RB_RETURN_IF_ERROR(MakeFolders(absl::StrCat(folder, "/releases")));
  RB_RETURN_IF_ERROR(MakeFolders(absl::StrCat(folder, "/targets")));
  return ReleaseFiles(folder);
}

std::string ReleaseFiles::FileOf(const std::string& release_name, absl::string_view suffix) const {
  return absl::StrCat(folder_, "/releases/", release_name.substr(release_name.find('/') + 1), suffix);
}

absl::StatusOr<std::vector<Release>> ReleaseFiles::List(std::vector<std::string>* damaged) const {
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(absl::StrCat(folder_, "/releases"), ".release"));
  std::vector<Release> releases;
  for (const std::string& name : names) {
    absl::StatusOr<Release> release = Load(name);
    if (release.ok()) {
      releases.push_back(*std::move(release));
    } else if (damaged != nullptr) {
      damaged->push_back(absl::StrCat(name, ": ", release.status().message()));
    }
  }
  std::sort(releases.begin(), releases.end(), [](const Release& a, const Release& b) {
    return a.captured_at != b.captured_at ? a.captured_at > b.captured_at : a.name > b.name;
  });
  return releases;
}

absl::StatusOr<Release> ReleaseFiles::Load(const std::string& name) const {
  if (absl::StrContains(name.substr(name.find('/') + 1), '/')) {
    return absl::NotFoundError(absl::StrCat("there is no release ", name));
  }
  absl::StatusOr<std::string> body = LoadSealed(FileOf(name, ".release"), kReleaseMagic);
  if (absl::IsNotFound(body.status())) return absl::NotFoundError(absl::StrCat("there is no release ", name));
  RB_RETURN_IF_ERROR(body.status());
  return DecodeRelease(*body);
}

absl::Status ReleaseFiles::Add(const Release& release, const std::string& encoded_manifest) {
  RB_RETURN_IF_ERROR(SaveSealed(FileOf(release.name, ".manifest"), kManifestMagic, Compress(encoded_manifest)));
  return Update(release);
}

absl::Status ReleaseFiles::Update(const Release& release) {
  return SaveSealed(FileOf(release.name, ".release"), kReleaseMagic, EncodeRelease(release));
}

absl::Status ReleaseFiles::Remove(const std::string& name) {
  RB_RETURN_IF_ERROR(RemoveFileDurably(FileOf(name, ".release")));
  return RemoveFileDurably(FileOf(name, ".manifest"));
}

absl::Status ReleaseFiles::RemoveManifestsOfNone() {
  const std::string folder = absl::StrCat(folder_, "/releases");
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> manifests, NamesIn(folder, ".manifest"));
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder, ".release"));
  const std::set<std::string> releases(names.begin(), names.end());
  for (const std::string& name : manifests) {
    if (releases.count(name) != 0) continue;
    RB_RETURN_IF_ERROR(RemoveFileDurably(absl::StrCat(folder, "/", name, ".manifest")));
  }
  return absl::OkStatus();
}

absl::StatusOr<Manifest> ReleaseFiles::LoadManifest(const Release& release) const {
  RB_ASSIGN_OR_RETURN(const std::string encoded, LoadEncodedManifest(FileOf(release.name, ".manifest")));
  if (Sha256Of(encoded).ToHex() != release.manifest_digest) {
    return absl::DataLossError(absl::StrCat("the manifest of ", release.name, " is not the one it was made with"));
  }
  return DecodeManifest(encoded);
}

std::string ReleaseFiles::NewName(const std::string& service, absl::Time now, const std::string& version,
                                  const std::string& commit) const {
  std::string base = absl::FormatTime("%Y-%m-%dT%H-%M-%SZ", now, absl::UTCTimeZone());
  std::string safe_version;
  for (const char c : version.substr(0, 60)) safe_version.push_back(c == '/' || c < 0x21 || c > 0x7e ? '_' : c);
  if (!safe_version.empty()) absl::StrAppend(&base, "-", safe_version);
  if (!commit.empty()) absl::StrAppend(&base, "-", commit.substr(0, 7));
  std::string name = absl::StrCat(service, "/", base);
  for (int number = 2; access(FileOf(name, ".release").c_str(), F_OK) == 0; ++number) {
    name = absl::StrCat(service, "/", base, "-", number);
  }
  return name;
}

absl::Status ReleaseFiles::SaveTarget(const std::string& name, const std::string& encoded_manifest) {
  return SaveSealed(absl::StrCat(folder_, "/targets/", name, ".manifest"), kManifestMagic, Compress(encoded_manifest));
}

absl::StatusOr<Manifest> ReleaseFiles::LoadTarget(const std::string& name) const {
  RB_ASSIGN_OR_RETURN(const std::string encoded,
                      LoadEncodedManifest(absl::StrCat(folder_, "/targets/", name, ".manifest")));
  return DecodeManifest(encoded);
}

absl::Status ReleaseFiles::RemoveTargets() {
  const std::string folder = absl::StrCat(folder_, "/targets");
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder, ".manifest"));
  for (const std::string& name : names) {
    RB_RETURN_IF_ERROR(RemoveFileDurably(absl::StrCat(folder, "/", name, ".manifest")));
  }
  return absl::OkStatus();
}

absl::Status ReleaseFiles::ForEachManifest(absl::FunctionRef<void(const Manifest&)> visit) const {
  for (const absl::string_view sub : {"releases", "targets"}) {
    const std::string folder = absl::StrCat(folder_, "/", sub);
    RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, NamesIn(folder, ".manifest"));
    for (const std::string& name : names) {
      RB_ASSIGN_OR_RETURN(const std::string encoded, LoadEncodedManifest(absl::StrCat(folder, "/", name, ".manifest")));
      RB_ASSIGN_OR_RETURN(const Manifest manifest, DecodeManifest(encoded));
      visit(manifest);
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Current> ReleaseFiles::LoadCurrent() const {
  absl::StatusOr<std::string> body = LoadSealed(absl::StrCat(folder_, "/current"), kCurrentMagic);
  if (absl::IsNotFound(body.status())) return Current();
  RB_RETURN_IF_ERROR(body.status());
  Decoder in(*body);
  Current current;
  current.release_name = in.Text();
  current.commit = in.Text();
  current.version = in.Text();
  current.drifted = in.Number() != 0;
  if (!in.ok()) return absl::DataLossError("the record of what is current is damaged");
  return current;
}

absl::Status ReleaseFiles::SaveCurrent(const Current& current) {
  Encoder out;
  out.Text(current.release_name);
  out.Text(current.commit);
  out.Text(current.version);
  out.Number(current.drifted ? 1 : 0);
  return SaveSealed(absl::StrCat(folder_, "/current"), kCurrentMagic, out.bytes());
}

StatCacheReader::StatCacheReader(UniqueFd file) : file_(std::move(file)), in_(block_) {
  char magic[kCacheMagic.size()];
  if (!file_.valid() || !ReadExactly(file_.get(), magic, sizeof(magic)) ||
      absl::string_view(magic, sizeof(magic)) != kCacheMagic) {
    file_.Reset();
  }
}

bool StatCacheReader::ReadBlock() {
  static constexpr size_t kMostBytes = 64 << 20;
  uint64_t size = 0;
  Digest digest;
  if (!file_.valid() || !ReadExactly(file_.get(), &size, sizeof(size)) || size > kMostBytes ||
      !ReadExactly(file_.get(), digest.bytes.data(), digest.bytes.size())) {
    return false;
  }
  block_.resize(size);
  if (!ReadExactly(file_.get(), block_.data(), size) || Sha256Of(block_) != digest) return false;
  in_ = Decoder(block_);
  content_.path.clear();
  return true;
}

const CachedContent* StatCacheReader::Next() {
  if (in_.at_end() && !ReadBlock()) {
    file_.Reset();
    return nullptr;
  }
  const uint64_t shared = in_.Number();
  content_.path.resize(std::min<uint64_t>(shared, content_.path.size()));
  const absl::string_view rest = in_.View();
  content_.path.append(rest.data(), rest.size());
  content_.inode = in_.Number();
  content_.ctime_ns = in_.Signed();
  content_.mtime_ns = in_.Signed();
  content_.size = in_.Number();
  content_.content_size = in_.Number();
  content_.log_mtime_ns = in_.Signed();
  content_.log_size = in_.Number();
  content_.xattrs = TakeXattrs(&in_);
  TakeChunks(&in_, &content_.chunks);
  if (!in_.ok()) {
    file_.Reset();
    return nullptr;
  }
  ++count_;
  return &content_;
}

absl::Status StatCacheWriter::Add(const CachedContent& content) {
  static constexpr size_t kBlockBytes = 256 << 10;
  block_.Number(SharedPrefix(previous_path_, content.path));
  block_.Text(absl::string_view(content.path).substr(SharedPrefix(previous_path_, content.path)));
  previous_path_ = content.path;
  block_.Number(content.inode);
  block_.Signed(content.ctime_ns);
  block_.Signed(content.mtime_ns);
  block_.Number(content.size);
  block_.Number(content.content_size);
  block_.Signed(content.log_mtime_ns);
  block_.Number(content.log_size);
  PutXattrs(content.xattrs, &block_);
  PutChunks(content.chunks, &block_);
  return block_.bytes().size() < kBlockBytes ? absl::OkStatus() : WriteBlock();
}

absl::Status StatCacheWriter::WriteBlock() {
  const std::string temporary = path_ + ".tmp";
  if (!file_.valid()) {
    file_.Reset(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (!file_.valid()) return ErrnoStatus(errno, absl::StrCat("create ", temporary));
    RB_RETURN_IF_ERROR(WriteAll(file_.get(), kCacheMagic, temporary));
  }
  const std::string body = block_.Take();
  block_ = Encoder();
  previous_path_.clear();
  const uint64_t size = body.size();
  const Digest digest = Sha256Of(body);
  std::string head(reinterpret_cast<const char*>(&size), sizeof(size));
  head.append(reinterpret_cast<const char*>(digest.bytes.data()), digest.bytes.size());
  RB_RETURN_IF_ERROR(WriteAll(file_.get(), head, temporary));
  return WriteAll(file_.get(), body, temporary);
}

absl::Status StatCacheWriter::Finish() {
  RB_RETURN_IF_ERROR(WriteBlock());
  if (rename((path_ + ".tmp").c_str(), path_.c_str()) != 0) return ErrnoStatus(errno, absl::StrCat("rename ", path_));
  return absl::OkStatus();
}

StatCacheReader ReleaseFiles::ReadStatCache() const {
  const std::string path = absl::StrCat(folder_, "/stat-cache");
  return StatCacheReader(UniqueFd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW)));
}

StatCacheWriter ReleaseFiles::WriteStatCache() const { return StatCacheWriter(absl::StrCat(folder_, "/stat-cache")); }

ContentIds ReleaseFiles::LoadContentIds() const {
  ContentIds ids;
  const absl::StatusOr<std::string> body = LoadSealed(absl::StrCat(folder_, "/content-ids"), kIdsMagic);
  if (!body.ok()) return ids;
  Decoder in(*body);
  const uint64_t count = in.Count(2);
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    std::string id = in.Text();
    TakeChunks(&in, &ids[std::move(id)]);
  }
  if (!in.ok()) ids.clear();
  return ids;
}

absl::Status ReleaseFiles::SaveContentIds(const ContentIds& ids) {
  Encoder out;
  out.Number(ids.size());
  for (const auto& [id, chunks] : ids) {
    out.Text(id);
    PutChunks(chunks, &out);
  }
  return SaveSealed(absl::StrCat(folder_, "/content-ids"), kIdsMagic, out.bytes());
}

absl::Status ReleaseFiles::SaveKept(const std::string& operation_id, const std::string& release_name) {
  Encoder out;
  out.Text(operation_id);
  out.Text(release_name);
  return SaveSealed(absl::StrCat(folder_, "/kept"), kKeptMagic, out.bytes());
}

std::string ReleaseFiles::KeptRelease(const std::string& operation_id) const {
  const absl::StatusOr<std::string> body = LoadSealed(absl::StrCat(folder_, "/kept"), kKeptMagic);
  if (!body.ok()) return "";
  Decoder in(*body);
  const std::string operation = in.Text();
  std::string release = in.Text();
  return in.ok() && operation == operation_id ? release : "";
}

}  // namespace rb::agent

#include "agent/core/engine/object_store.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <map>
#include <memory>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "agent/core/engine/codec.h"
#include "agent/core/engine/tree_files.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status.h"

namespace rb::agent {
namespace {

constexpr size_t kBufferBytes = 1 << 20;
// Content is chunks (chunker.h) and whole small files; anything larger on disk is damage.
constexpr uint64_t kMostContentBytes = 64 << 20;
constexpr int kCompressionLevel = 1;
constexpr absl::string_view kIndexMagic = "rbindex1\n";

// What stands before an object in its pack.
std::string RecordHead(const Digest& digest, uint64_t stored_bytes, uint64_t content_bytes) {
  Encoder head;
  head.Number(stored_bytes);
  head.Number(content_bytes);
  head.Raw(digest);
  return head.Take();
}

// Made once for each thread: small objects take less time than making one.
ZSTD_CCtx* CompressionContext() {
  struct Free {
    void operator()(ZSTD_CCtx* context) const { ZSTD_freeCCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_CCtx, Free> context(ZSTD_createCCtx());
  return context.get();
}
ZSTD_DCtx* DecompressionContext() {
  struct Free {
    void operator()(ZSTD_DCtx* context) const { ZSTD_freeDCtx(context); }
  };
  thread_local const std::unique_ptr<ZSTD_DCtx, Free> context(ZSTD_createDCtx());
  return context.get();
}

}  // namespace

std::string EncodePackIndex(const std::vector<PackedObject>& objects) {
  Encoder index;
  index.Number(objects.size());
  for (const PackedObject& object : objects) {
    index.Raw(object.digest);
    index.Number(object.offset);
    index.Number(object.stored_bytes);
    index.Number(object.content_bytes);
  }
  std::string content = absl::StrCat(kIndexMagic, index.bytes());
  Encoder tail;
  tail.Raw(Sha256Of(content));
  content.append(tail.bytes());
  return content;
}

absl::StatusOr<std::vector<PackedObject>> DecodePackIndex(absl::string_view bytes) {
  if (bytes.size() < 32 + kIndexMagic.size() || bytes.substr(0, kIndexMagic.size()) != kIndexMagic) {
    return absl::DataLossError("is not an index");
  }
  const absl::string_view body = bytes.substr(0, bytes.size() - 32);
  Decoder tail(bytes.substr(bytes.size() - 32));
  if (tail.Raw() != Sha256Of(body)) return absl::DataLossError("is damaged");
  Decoder in(body.substr(kIndexMagic.size()));
  const uint64_t count = in.Count(35);
  std::vector<PackedObject> objects;
  objects.reserve(count);
  for (uint64_t i = 0; i < count && in.ok(); ++i) {
    PackedObject object;
    object.digest = in.Raw();
    object.offset = in.Number();
    object.stored_bytes = in.Number();
    object.content_bytes = in.Number();
    if (object.offset > INT64_MAX || object.stored_bytes > INT64_MAX - object.offset) {
      return absl::DataLossError("is damaged");
    }
    objects.push_back(object);
  }
  if (!in.ok() || !in.at_end()) return absl::DataLossError("is damaged");
  return objects;
}

absl::StatusOr<std::unique_ptr<ObjectStore>> ObjectStore::Open(const std::string& folder) {
  RB_RETURN_IF_ERROR(MakeFolders(absl::StrCat(folder, "/packs")));
  return std::unique_ptr<ObjectStore>(new ObjectStore(folder));
}

std::string ObjectStore::PackPath(uint32_t pack, absl::string_view suffix) const {
  return absl::StrFormat("%s/packs/%08d%s", folder_, pack, suffix);
}

absl::StatusOr<std::vector<uint32_t>> ObjectStore::ListPacks() const {
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(absl::StrCat(folder_, "/packs")));
  std::vector<uint32_t> packs;
  for (absl::string_view name : names) {
    uint32_t number = 0;
    if (absl::ConsumeSuffix(&name, ".index") && absl::SimpleAtoi(name, &number)) packs.push_back(number);
  }
  std::sort(packs.begin(), packs.end());
  return packs;
}

absl::Status ObjectStore::LoadIndex(uint32_t pack) {
  const std::string path = PackPath(pack, ".index");
  RB_ASSIGN_OR_RETURN(const std::string content, ReadFile(path, size_t{1} << 30));
  const absl::StatusOr<std::vector<PackedObject>> objects = DecodePackIndex(content);
  if (!objects.ok()) return absl::DataLossError(absl::StrCat(path, " ", objects.status().message()));
  places_.reserve(places_.size() + objects->size());
  for (const PackedObject& object : *objects) {
    const Place place{pack, object.offset, object.stored_bytes, object.content_bytes};
    const auto [known, is_new] = places_.try_emplace(object.digest, place);
    if (!is_new) older_[object.digest].push_back(std::exchange(known->second, place));
  }
  loaded_.insert(pack);
  return absl::OkStatus();
}

absl::Status ObjectStore::RefreshLocked() {
  RB_ASSIGN_OR_RETURN(const std::vector<uint32_t> packs, ListPacks());
  const absl::flat_hash_set<uint32_t> present(packs.begin(), packs.end());
  const bool something_went =
      std::any_of(loaded_.begin(), loaded_.end(), [&](uint32_t pack) { return !present.contains(pack); });
  if (something_went) {
    places_.clear();
    older_.clear();
    loaded_.clear();
  }
  for (const uint32_t pack : packs) {
    if (loaded_.contains(pack)) continue;
    const absl::Status loaded = LoadIndex(pack);
    // A damaged index hides its pack's objects: they are then missing, and whoever needs one is told so by name. The
    // rest of the store stays of use.
    if (!loaded.ok() && !absl::IsDataLoss(loaded)) return loaded;
  }
  has_read_index_ = true;
  return absl::OkStatus();
}

absl::Status ObjectStore::Refresh() {
  MutexLock lock(mutex_);
  return RefreshLocked();
}

absl::StatusOr<ObjectStore::Session> ObjectStore::StartSession(Knows knows) {
  const std::string path = absl::StrCat(folder_, "/lock");
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  // Waits for a garbage collection to end; those are short.
  while (flock(fd.get(), LOCK_SH) != 0) {
    if (errno != EINTR) return ErrnoStatus(errno, absl::StrCat("lock ", path));
  }
  if (knows == Knows::kNow) RB_RETURN_IF_ERROR(Refresh());
  return Session(std::move(fd));
}

std::unique_ptr<ObjectStore::Writer> ObjectStore::NewWriter() { return std::unique_ptr<Writer>(new Writer(this)); }

bool ObjectStore::Contains(const Digest& digest) {
  MutexLock lock(mutex_);
  // What cannot be read is not there: it is then stored once more.
  if (!has_read_index_ && !RefreshLocked().ok()) return false;
  return places_.contains(digest);
}

absl::StatusOr<std::string> ObjectStore::Get(const Digest& digest, absl::Status* damage) {
  std::vector<Place> places;  // newest last
  {
    MutexLock lock(mutex_);
    if (!has_read_index_) RB_RETURN_IF_ERROR(RefreshLocked());
    const auto found = places_.find(digest);
    if (found == places_.end()) {
      return absl::NotFoundError(absl::StrCat("object ", digest.ToHex(), " is not in the store"));
    }
    if (const auto older = older_.find(digest); older != older_.end()) places = older->second;
    places.push_back(found->second);
  }
  absl::Status newest;
  for (auto place = places.rbegin(); place != places.rend(); ++place) {
    absl::StatusOr<std::string> content = ReadAt(digest, *place);
    if (content.ok()) {
      if (damage != nullptr) *damage = newest;
      return content;
    }
    if (newest.ok()) newest = content.status();
  }
  return newest;
}

absl::StatusOr<std::string> ObjectStore::ReadAt(const Digest& digest, const Place& place) const {
  const std::string path = PackPath(place.pack, ".pack");
  const auto damaged = [&](absl::string_view how) {
    return absl::DataLossError(
        absl::StrCat("object ", digest.ToHex(), " in ", path, " at byte ", place.offset, " is damaged: ", how));
  };
  UniqueFd fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid() && errno == ENOENT) return damaged("the pack is gone");
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", path));
  const std::string head = RecordHead(digest, place.stored_bytes, place.content_bytes);
  if (place.content_bytes > kMostContentBytes || place.stored_bytes > ZSTD_compressBound(kMostContentBytes) ||
      place.offset < head.size()) {
    return damaged("its size makes no sense");
  }
  std::string record(head.size() + place.stored_bytes, '\0');
  const uint64_t begin = place.offset - head.size();
  size_t filled = 0;
  while (filled < record.size()) {
    const ssize_t got =
        pread(fd.get(), record.data() + filled, record.size() - filled, static_cast<off_t>(begin + filled));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, absl::StrCat("read ", path));
    if (got == 0) return damaged("the pack ends before it");
    filled += static_cast<size_t>(got);
  }
  if (!absl::StartsWith(record, head)) return damaged("its head differs from the index");
  std::string content(place.content_bytes, '\0');
  ZSTD_DCtx* const context = DecompressionContext();
  if (context == nullptr) return absl::ResourceExhaustedError(absl::StrCat("no memory to decompress from ", path));
  const size_t size =
      ZSTD_decompressDCtx(context, content.data(), content.size(), record.data() + head.size(), place.stored_bytes);
  if (ZSTD_isError(size) != 0 || size != content.size()) return damaged("it does not decompress");
  if (Sha256Of(content) != digest && !RB_PLANTED_BUG("digest-not-checked")) return damaged("its digest differs");
  return content;
}

absl::StatusOr<uint64_t> ObjectStore::CollectGarbage(
    const std::function<absl::StatusOr<absl::flat_hash_set<Digest>>()>& live) {
  const std::string lock_path = absl::StrCat(folder_, "/lock");
  UniqueFd lock_fd(open(lock_path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!lock_fd.valid()) return ErrnoStatus(errno, absl::StrCat("open ", lock_path));
  if (flock(lock_fd.get(), LOCK_EX | LOCK_NB) != 0 && !RB_PLANTED_BUG("collection-beside-captures")) {
    return absl::UnavailableError("captures or restores are running; garbage is collected another time");
  }
  RB_ASSIGN_OR_RETURN(const absl::flat_hash_set<Digest> wanted, live());
  RB_RETURN_IF_ERROR(Refresh());

  struct Use {
    uint64_t live_bytes = 0;
    uint64_t all_bytes = 0;
    std::vector<Digest> live;
  };
  std::map<uint32_t, Use> uses;
  absl::flat_hash_map<Digest, std::vector<Place>> older;
  {
    MutexLock lock(mutex_);
    for (const uint32_t pack : loaded_) uses[pack];
    for (const auto& [digest, place] : places_) {
      Use& use = uses[place.pack];
      use.all_bytes += place.stored_bytes;
      if (!wanted.contains(digest)) continue;
      use.live_bytes += place.stored_bytes;
      use.live.push_back(digest);
    }
    older = older_;
  }
  for (const auto& [digest, places] : older) {
    // An older copy is needed only while the newest is damaged.
    absl::Status damage;
    const bool needed = wanted.contains(digest) && (!Get(digest, &damage).ok() || !damage.ok());
    for (const Place& place : places) {
      Use& use = uses[place.pack];
      use.all_bytes += place.stored_bytes;
      if (!needed) continue;
      use.live_bytes += place.stored_bytes;
      use.live.push_back(digest);
    }
  }
  // What is worth moving is written to a new, durable pack before anything is removed.
  std::vector<uint32_t> going;
  std::unique_ptr<Writer> writer = NewWriter();
  for (auto& [pack, use] : uses) {
    if (use.live_bytes * 2 > use.all_bytes && use.live_bytes > 0) continue;
    std::sort(use.live.begin(), use.live.end());
    bool readable = true;
    for (const Digest& digest : use.live) {
      absl::StatusOr<std::string> content = Get(digest);
      if (!content.ok()) {
        // Damaged: left where it is, so that whoever looks for it is told what is wrong with it.
        readable = false;
        break;
      }
      RB_RETURN_IF_ERROR(writer->Put(digest, *content));
    }
    if (readable) going.push_back(pack);
  }
  RB_RETURN_IF_ERROR(writer->Finish());
  uint64_t freed = 0;
  for (const uint32_t pack : going) {
    struct stat info {};
    if (stat(PackPath(pack, ".pack").c_str(), &info) == 0) freed += static_cast<uint64_t>(info.st_size);
    // The index first: a pack without one is nothing.
    RB_RETURN_IF_ERROR(RemoveFileDurably(PackPath(pack, ".index")));
    RB_RETURN_IF_ERROR(RemoveFileDurably(PackPath(pack, ".pack")));
  }
  // Packs that were never finished: no writer is at work now.
  RB_ASSIGN_OR_RETURN(const std::vector<std::string> names, ListFolder(absl::StrCat(folder_, "/packs")));
  std::vector<std::string> leftover;
  for (absl::string_view name : names) {
    uint32_t number = 0;
    if (!absl::ConsumeSuffix(&name, ".pack") || !absl::SimpleAtoi(name, &number)) continue;
    if (access(PackPath(number, ".index").c_str(), F_OK) != 0 && errno == ENOENT) {
      leftover.push_back(PackPath(number, ".pack"));
    }
  }
  for (const std::string& path : leftover) RB_RETURN_IF_ERROR(RemoveFileDurably(path));
  RB_RETURN_IF_ERROR(Refresh());
  return freed;
}

ObjectStore::Writer::~Writer() {
  MutexLock lock(mutex_);
  if (!path_.empty()) unlink(path_.c_str());
}

absl::Status ObjectStore::Writer::Begin() {
  if (fd_.valid()) return absl::OkStatus();
  RB_ASSIGN_OR_RETURN(const std::vector<uint32_t> packs, store_->ListPacks());
  // O_EXCL decides between several writers; each try takes the next number.
  for (uint32_t number = packs.empty() ? 1 : packs.back() + 1;; ++number) {
    path_ = store_->PackPath(number, ".pack");
    fd_.Reset(open(path_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600));
    if (fd_.valid()) return absl::OkStatus();
    const int error_number = errno;
    const std::string path = std::exchange(path_, "");
    if (error_number != EEXIST) return ErrnoStatus(error_number, absl::StrCat("create ", path));
  }
}

absl::Status ObjectStore::Writer::FlushBuffer() {
  RB_RETURN_IF_ERROR(WriteAll(fd_.get(), buffer_, path_));
  buffer_.clear();
  return absl::OkStatus();
}

absl::Status ObjectStore::Writer::Put(const Digest& digest, absl::string_view content) {
  {
    MutexLock lock(mutex_);
    if (!added_.insert(digest).second) return absl::OkStatus();
  }
  const absl::Duration begin = SystemClock().Monotonic();
  ZSTD_CCtx* const context = CompressionContext();
  if (context == nullptr) return absl::ResourceExhaustedError("no memory to compress");
  std::string stored(ZSTD_compressBound(content.size()), '\0');
  const size_t size =
      ZSTD_compressCCtx(context, stored.data(), stored.size(), content.data(), content.size(), kCompressionLevel);
  compress_ns_ += absl::ToInt64Nanoseconds(SystemClock().Monotonic() - begin);
  if (ZSTD_isError(size) != 0) return absl::InternalError(absl::StrCat("zstd: ", ZSTD_getErrorName(size)));
  const std::string head = RecordHead(digest, size, content.size());
  MutexLock lock(mutex_);
  RB_RETURN_IF_ERROR(Begin());
  buffer_.append(head);
  records_.push_back({digest, size_ + head.size(), size, content.size()});
  buffer_.append(stored.data(), size);
  size_ += head.size() + size;
  return buffer_.size() >= kBufferBytes ? FlushBuffer() : absl::OkStatus();
}

absl::Status ObjectStore::Writer::Finish() {
  MutexLock lock(mutex_);
  if (!fd_.valid()) return absl::OkStatus();
  RB_RETURN_IF_ERROR(FlushBuffer());
  if (!RB_PLANTED_BUG("no-fsync-of-packs") && fsync(fd_.get()) != 0) {
    return ErrnoStatus(errno, absl::StrCat("fsync ", path_));
  }
  RB_RETURN_IF_ERROR(SyncFolder(absl::StrCat(store_->folder_, "/packs")));
  const std::string pack_path = std::exchange(path_, "");
  fd_.Reset();
  RB_RETURN_IF_ERROR(
      WriteFileDurably(absl::StrCat(absl::StripSuffix(pack_path, ".pack"), ".index"), EncodePackIndex(records_)));
  records_.clear();
  added_.clear();
  return store_->Refresh();
}

}  // namespace rb::agent

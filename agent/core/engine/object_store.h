// The content of all releases: objects named by their SHA-256, compressed, in append-only packs.
//
//   packs/NUMBER.pack   records: length of the stored bytes, length of the content, digest, zstd frame
//   packs/NUMBER.index  for each record: digest, offset, lengths; SHA-256 of all that. Written after the pack is
//   durable:
//                       a pack without an index was never finished, and is removed by CollectGarbage.
//
// Writers hold the store's lock shared, CollectGarbage holds it alone: nothing that a running capture has written or
// relies on can be collected.
#ifndef RB_AGENT_CORE_ENGINE_OBJECT_STORE_H_
#define RB_AGENT_CORE_ENGINE_OBJECT_STORE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "common/digest.h"
#include "common/mutex.h"
#include "common/unique_fd.h"

namespace rb::agent {

// Where one object lies in a pack.
struct PackedObject {
  Digest digest;
  uint64_t offset = 0;
  uint64_t stored_bytes = 0;
  uint64_t content_bytes = 0;

  friend bool operator==(const PackedObject&, const PackedObject&) = default;
};
std::string EncodePackIndex(const std::vector<PackedObject>& objects);
// DATA_LOSS. Total.
absl::StatusOr<std::vector<PackedObject>> DecodePackIndex(absl::string_view bytes);

// Thread-safe.
class ObjectStore {
 public:
  // Keeps garbage collection away while it lives. Taken before looking an object up that is going to be relied on.
  class Session {
   public:
    Session(Session&&) = default;
    Session& operator=(Session&&) = default;

   private:
    friend class ObjectStore;
    explicit Session(UniqueFd lock) : lock_(std::move(lock)) {}
    UniqueFd lock_;
  };

  // Adds objects to one new pack. Nothing is seen by anyone before Finish has returned OK; destroyed before, it leaves
  // nothing behind.
  class Writer {
   public:
    ~Writer();
    Writer(const Writer&) = delete;
    Writer& operator=(const Writer&) = delete;
    // Writes an object once, however often it is put. The caller asks Contains first. Thread-safe: callers compress
    // side by side.
    absl::Status Put(const Digest& digest, absl::string_view content);
    // Makes all of it durable, then visible. After the last Put.
    absl::Status Finish();
    // How long Put has compressed, summed over threads.
    absl::Duration compress_time() const { return absl::Nanoseconds(compress_ns_.load()); }

   private:
    friend class ObjectStore;
    explicit Writer(ObjectStore* store) : store_(store) {}
    absl::Status Begin() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
    absl::Status FlushBuffer() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
    ObjectStore* const store_;
    std::atomic<int64_t> compress_ns_{0};
    Mutex mutex_;
    std::string path_ ABSL_GUARDED_BY(mutex_);
    UniqueFd fd_ ABSL_GUARDED_BY(mutex_);
    std::string buffer_ ABSL_GUARDED_BY(mutex_);
    uint64_t size_ ABSL_GUARDED_BY(mutex_) = 0;
    std::vector<PackedObject> records_ ABSL_GUARDED_BY(mutex_);
    absl::flat_hash_set<Digest> added_ ABSL_GUARDED_BY(mutex_);
  };

  // Reads nothing yet: the index is read when it is first needed.
  static absl::StatusOr<std::unique_ptr<ObjectStore>> Open(const std::string& folder);

  // What other processes have added or collected until then is known afterwards; with kLater only after the next
  // Refresh, which a caller may do beside other work.
  enum class Knows { kNow, kLater };
  absl::StatusOr<Session> StartSession(Knows knows = Knows::kNow);
  std::unique_ptr<Writer> NewWriter();
  bool Contains(const Digest& digest);
  // The content, its digest checked, from the newest copy that is whole. NOT_FOUND; DATA_LOSS when every copy is
  // damaged, naming the pack of the newest. `damage`, unless null, is set to what is wrong with a newer copy than that
  // which was given.
  absl::StatusOr<std::string> Get(const Digest& digest, absl::Status* damage = nullptr);
  // Reads what other processes have added or collected.
  absl::Status Refresh();

  // Removes objects that `live` does not name: `live` is asked for once the store is locked. UNAVAILABLE when captures
  // are running. Returns the bytes freed.
  absl::StatusOr<uint64_t> CollectGarbage(const std::function<absl::StatusOr<absl::flat_hash_set<Digest>>()>& live);

 private:
  struct Place {
    uint32_t pack = 0;
    uint64_t offset = 0;
    uint64_t stored_bytes = 0;
    uint64_t content_bytes = 0;
  };
  explicit ObjectStore(std::string folder) : folder_(std::move(folder)) {}
  absl::StatusOr<std::string> ReadAt(const Digest& digest, const Place& place) const;
  std::string PackPath(uint32_t pack, absl::string_view suffix) const;
  absl::StatusOr<std::vector<uint32_t>> ListPacks() const;
  absl::Status LoadIndex(uint32_t pack) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status RefreshLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::string folder_;
  Mutex mutex_;
  // The newest copy of each object, and the older ones of those few that have several, newest last: captures that ran
  // side by side wrote both, or the older one is damaged and was healed.
  absl::flat_hash_map<Digest, Place> places_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_map<Digest, std::vector<Place>> older_ ABSL_GUARDED_BY(mutex_);
  absl::flat_hash_set<uint32_t> loaded_ ABSL_GUARDED_BY(mutex_);
  bool has_read_index_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_OBJECT_STORE_H_

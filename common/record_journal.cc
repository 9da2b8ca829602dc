#include "common/record_journal.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/failpoint.h"
#include "common/status.h"

namespace rb {
namespace {

constexpr size_t kHeaderBytes = 8;

void PutFixed32(uint32_t value, std::string* out) {
  for (int shift = 0; shift < 32; shift += 8) out->push_back(static_cast<char>((value >> shift) & 0xFF));
}

uint32_t GetFixed32(absl::string_view data) {
  uint32_t value = 0;
  for (size_t i = 0; i < 4; ++i) value |= static_cast<uint32_t>(static_cast<uint8_t>(data[i])) << (8 * i);
  return value;
}

std::string Parent(const std::string& path) {
  const size_t slash = path.rfind('/');
  return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

}  // namespace

void AppendRecord(absl::string_view record, std::string* out) {
  std::string length;
  PutFixed32(static_cast<uint32_t>(record.size()), &length);
  const uint32_t crc = Crc32c(absl::StrCat(length, record));
  out->append(length);
  PutFixed32(crc, out);
  out->append(record.data(), record.size());
}

std::vector<std::string> ParseRecords(absl::string_view data, size_t* valid_bytes) {
  std::vector<std::string> records;
  size_t offset = 0;
  while (data.size() - offset >= kHeaderBytes) {
    const uint32_t length = GetFixed32(data.substr(offset));
    if (length > RecordJournal::kLargestRecordBytes || length > data.size() - offset - kHeaderBytes) break;
    const absl::string_view payload = data.substr(offset + kHeaderBytes, length);
    if (Crc32c(absl::StrCat(data.substr(offset, 4), payload)) != GetFixed32(data.substr(offset + 4))) break;
    records.emplace_back(payload);
    offset += kHeaderBytes + length;
  }
  *valid_bytes = offset;
  return records;
}

bool IsTornTail(absl::string_view data, size_t valid_bytes) {
  // A crash can only tear what was appended last. A whole record after the damage means that something else is wrong.
  for (size_t skip = valid_bytes + 1; skip + kHeaderBytes <= data.size() && skip < valid_bytes + (1 << 16); ++skip) {
    size_t further = 0;
    const std::vector<std::string> later = ParseRecords(data.substr(skip), &further);
    if (!later.empty() && !later[0].empty()) return false;
  }
  return true;
}

absl::StatusOr<std::unique_ptr<RecordJournal>> RecordJournal::Open(const std::string& path,
                                                                   std::vector<std::string>* records, Flush flush) {
  UniqueFd fd(open(path.c_str(), O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return ErrnoStatus(errno, absl::StrCat("open journal ", path));
  RB_ASSIGN_OR_RETURN(const std::string data, ReadFile(path, size_t{1} << 30));
  size_t valid_bytes = 0;
  *records = ParseRecords(data, &valid_bytes);
  if (valid_bytes < data.size()) {
    if (!IsTornTail(data, valid_bytes)) {
      return absl::DataLossError(absl::StrCat(path, " is damaged at byte ", valid_bytes,
                                              "; whole records follow, so this is not a torn write. It was left as "
                                              "it is."));
    }
    if (ftruncate(fd.get(), static_cast<off_t>(valid_bytes)) != 0) {
      return ErrnoStatus(errno, absl::StrCat("truncate journal ", path));
    }
  }
  // Where there is a record, the file's name was flushed before the first of them was written.
  if (flush == Flush::kNow || records->empty() || valid_bytes < data.size()) {
    if (fsync(fd.get()) != 0) return ErrnoStatus(errno, absl::StrCat("fsync journal ", path));
    RB_RETURN_IF_ERROR(SyncFolder(Parent(path)));
  }
  return std::unique_ptr<RecordJournal>(new RecordJournal(path, std::move(fd), valid_bytes));
}

absl::Status RecordJournal::Append(absl::string_view record) {
  if (!fd_.valid()) {
    return absl::FailedPreconditionError(absl::StrCat("journal ", path_, " was closed after an earlier error"));
  }
  if (record.size() > kLargestRecordBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a journal record of ", record.size(), " bytes is too large"));
  }
  std::string frame;
  AppendRecord(record, &frame);
  const ssize_t written = write(fd_.get(), frame.data(), frame.size());
  if (written != static_cast<ssize_t>(frame.size()) ||
      (!RB_PLANTED_BUG("no-fsync-of-journal") && fdatasync(fd_.get()) != 0)) {
    const int error_number = written < 0 || written == static_cast<ssize_t>(frame.size()) ? errno : ENOSPC;
    // What may have been half written is cut off, so that a later start reads a whole file.
    [[maybe_unused]] const int ignored = ftruncate(fd_.get(), static_cast<off_t>(size_bytes_));
    fd_.Reset();
    return ErrnoStatus(error_number, absl::StrCat("append to journal ", path_));
  }
  size_bytes_ += frame.size();
  return absl::OkStatus();
}

absl::Status RecordJournal::Rewrite(const std::vector<std::string>& records) {
  if (!fd_.valid()) {
    return absl::FailedPreconditionError(absl::StrCat("journal ", path_, " was closed after an earlier error"));
  }
  std::string content;
  for (const std::string& record : records) AppendRecord(record, &content);
  RB_RETURN_IF_ERROR(WriteFileDurably(path_, content));
  UniqueFd fd(open(path_.c_str(), O_RDWR | O_APPEND | O_CLOEXEC | O_NOFOLLOW));
  if (!fd.valid()) {
    const int error_number = errno;
    fd_.Reset();
    return ErrnoStatus(error_number, absl::StrCat("open journal ", path_));
  }
  fd_ = std::move(fd);
  size_bytes_ = content.size();
  return absl::OkStatus();
}

}  // namespace rb

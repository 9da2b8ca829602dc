#include "agent/adapters/probe/service_logs.h"

#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/time.h"
#include "agent/adapters/probe/probes.h"
#include "common/text.h"

namespace rb::agent {
namespace {

constexpr size_t kLongestLine = 200;
constexpr size_t kMostRead = 64 << 10;

void KeepLast(std::vector<std::string>* lines, size_t most) {
  if (lines->size() > most) lines->erase(lines->begin(), lines->end() - static_cast<ptrdiff_t>(most));
}

class JournalLog final : public ServiceLog {
 public:
  JournalLog(std::string unit, Clock& clock) : unit_(std::move(unit)), clock_(clock), since_(clock.Now()) {}

  void Mark() override { since_ = clock_.Now(); }

  std::vector<std::string> Last(size_t most) override {
    std::vector<std::string> lines;
    sd_journal* journal = nullptr;
    if (sd_journal_open(&journal, SD_JOURNAL_LOCAL_ONLY | SD_JOURNAL_SYSTEM) < 0) return lines;
    const auto match = [&](const std::string& field) { sd_journal_add_match(journal, field.data(), field.size()); };
    match(absl::StrCat("_SYSTEMD_UNIT=", unit_));
    sd_journal_add_disjunction(journal);
    match(absl::StrCat("UNIT=", unit_));
    match("_PID=1");
    sd_journal_set_data_threshold(journal, kLongestLine * 4);
    sd_journal_seek_tail(journal);
    while (lines.size() < most && sd_journal_previous(journal) > 0) {
      uint64_t at = 0;
      const void* data = nullptr;
      size_t size = 0;
      if (sd_journal_get_realtime_usec(journal, &at) < 0) break;
      if (absl::FromUnixMicros(static_cast<int64_t>(at)) < since_) break;
      if (sd_journal_get_data(journal, "MESSAGE", &data, &size) < 0) continue;
      const absl::string_view field(static_cast<const char*>(data), size);
      lines.push_back(absl::StrCat(
          absl::FormatTime("%H:%M:%E3S ", absl::FromUnixMicros(static_cast<int64_t>(at)), absl::UTCTimeZone()),
          OneLine(field.substr(std::min<size_t>(size, strlen("MESSAGE="))), kLongestLine)));
    }
    sd_journal_close(journal);
    std::reverse(lines.begin(), lines.end());
    return lines;
  }

 private:
  const std::string unit_;
  Clock& clock_;
  absl::Time since_;
};

class FileLog final : public ServiceLog {
 public:
  FileLog(std::string file, std::string tree) : file_(std::move(file)), tree_(std::move(tree)) { Mark(); }

  void Mark() override {
    inode_ = 0;
    offset_ = 0;
    const UniqueFd fd = OpenBeneath(tree_, file_);
    struct stat info;
    if (!fd.valid() || fstat(fd.get(), &info) != 0) return;
    inode_ = info.st_ino;
    offset_ = info.st_size;
  }

  std::vector<std::string> Last(size_t most) override {
    std::vector<std::string> lines;
    const UniqueFd fd = OpenBeneath(tree_, file_);
    struct stat info;
    if (!fd.valid() || fstat(fd.get(), &info) != 0) return lines;
    const off_t marked = info.st_ino == inode_ && info.st_size >= offset_ ? offset_ : 0;
    const off_t from = std::max(marked, info.st_size - static_cast<off_t>(kMostRead));
    std::string text(static_cast<size_t>(info.st_size - from), '\0');
    const ssize_t got = pread(fd.get(), text.data(), text.size(), from);
    text.resize(static_cast<size_t>(std::max<ssize_t>(got, 0)));
    std::vector<absl::string_view> all = absl::StrSplit(text, '\n', absl::SkipWhitespace());
    // The first may be the end of a line only.
    if (from > marked && !all.empty()) all.erase(all.begin());
    for (const absl::string_view line : all) lines.push_back(OneLine(line, kLongestLine));
    KeepLast(&lines, most);
    return lines;
  }

 private:
  const std::string file_;
  const std::string tree_;
  ino_t inode_ = 0;
  off_t offset_ = 0;
};

}  // namespace

std::unique_ptr<ServiceLog> MakeJournalLog(std::string unit, Clock& clock) {
  return std::make_unique<JournalLog>(std::move(unit), clock);
}
std::unique_ptr<ServiceLog> MakeFileLog(std::string file, std::string tree) {
  return std::make_unique<FileLog>(std::move(file), std::move(tree));
}

}  // namespace rb::agent

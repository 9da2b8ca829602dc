#include <fcntl.h>
#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <regex>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/probe/probes.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/text.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

// Read at one look; the next look goes on from there.
constexpr size_t kLookBytes = 1 << 20;
// Longer lines are matched in pieces of this length: std::regex takes stack by the character.
constexpr size_t kLineBytes = 2048;
// How far back `expect` is looked for when it is not known where this run's log begins.
constexpr uint64_t kLookBackBytes = 1 << 20;

constexpr char kBootIdPath[] = "/proc/sys/kernel/random/boot_id";

// What the lines of one run of the service have shown so far.
class LineJudge {
 public:
  static absl::StatusOr<LineJudge> Create(const std::string& expect, const std::string& forbid) {
    LineJudge judge;
    try {
      if (!expect.empty()) judge.expect_ = std::make_unique<std::regex>(expect, std::regex::ECMAScript);
      if (!forbid.empty()) judge.forbid_ = std::make_unique<std::regex>(forbid, std::regex::ECMAScript);
    } catch (const std::regex_error& e) {
      return absl::InvalidArgumentError(absl::StrCat("regular expression: ", e.what()));
    }
    judge.expect_text_ = expect;
    judge.forbid_text_ = forbid;
    return judge;
  }

  void Reset() {
    expected_line_.clear();
    forbidden_line_.clear();
    expect_seen_ = false;
    forbid_seen_ = false;
  }

  void Line(absl::string_view line, bool judge_forbidden) {
    for (size_t at = 0; at == 0 || at < line.size(); at += kLineBytes) {
      const absl::string_view piece = line.substr(at, kLineBytes);
      if (forbid_ != nullptr && judge_forbidden && !forbid_seen_ && Matches(piece, *forbid_)) {
        forbid_seen_ = true;
        forbidden_line_ = OneLine(piece, 200);
      }
      if (expect_ != nullptr && !expect_seen_ && Matches(piece, *expect_)) {
        expect_seen_ = true;
        expected_line_ = OneLine(piece, 200);
      }
    }
  }

  std::string Expected() const {
    std::string text;
    if (expect_ != nullptr) absl::StrAppend(&text, "a line with /", OneLine(expect_text_, 200), "/");
    if (forbid_ != nullptr) {
      absl::StrAppend(&text, text.empty() ? "" : ", ", "no line with /", OneLine(forbid_text_, 200), "/");
    }
    return text;
  }

  // `read_all`: nothing is left to be read now.
  void Judge(bool read_all, const ProbeContext& context, absl::Duration waited, absl::Duration within,
             ProbeResult* result) const {
    if (forbid_seen_) {
      result->passed = false;
      result->may_recover = false;
      result->observed = absl::StrCat("\"", forbidden_line_, "\"");
      return;
    }
    if (expect_ != nullptr && !expect_seen_) {
      result->passed = false;
      // What is still to be read may hold it.
      result->may_recover = !read_all || waited < within;
      result->is_waiting = waited < within;
      result->observed =
          absl::StrCat("no such line yet, ", FormatSeconds(waited),
                       context.started_at != absl::InfinitePast() ? " after the start" : " after the first look",
                       " (it has ", FormatSeconds(within), ")");
      return;
    }
    result->passed = read_all || context.quick;
    result->observed = expect_ != nullptr ? absl::StrCat("\"", expected_line_, "\"") : "no such line";
    if (!read_all) absl::StrAppend(&result->observed, " (the log has not been read to its end yet)");
  }

 private:
  static bool Matches(absl::string_view text, const std::regex& pattern) {
    try {
      return std::regex_search(text.begin(), text.end(), pattern);
    } catch (const std::regex_error&) {
      return false;  // too complex for this line
    }
  }

  std::unique_ptr<std::regex> expect_;
  std::unique_ptr<std::regex> forbid_;
  std::string expect_text_;
  std::string forbid_text_;
  std::string expected_line_;
  std::string forbidden_line_;
  bool expect_seen_ = false;
  bool forbid_seen_ = false;
};

// How long the service has had: since its start, or since the first look when nobody knows when that was.
class Patience {
 public:
  explicit Patience(Clock& clock) : clock_(clock) {}
  void Reset() { first_look_.reset(); }
  absl::Duration Waited(const ProbeContext& context) {
    const absl::Duration now = clock_.Monotonic();
    if (!first_look_.has_value()) first_look_ = now;
    return now - (context.started_at != absl::InfinitePast() ? context.started_at_monotonic : *first_look_);
  }

 private:
  Clock& clock_;
  std::optional<absl::Duration> first_look_;
};

class LogProbe final : public Probe {
 public:
  LogProbe(LogProbeOptions options, LineJudge judge, Clock& clock)
      : options_(std::move(options)), clock_(clock), judge_(std::move(judge)), patience_(clock) {}

  // Cheap: the service is down while this runs. The memory is for an agent that is killed and started again, not for
  // a power cut (which ends the service, too), so it is not flushed.
  void BeforeStart() override {
    judge_.Reset();
    patience_.Reset();
    rest_.clear();
    known_ = true;
    file_ = Open();
    offset_ = 0;
    judged_from_ = 0;
    struct stat status;
    if (file_.valid() && fstat(file_.get(), &status) == 0) {
      offset_ = static_cast<uint64_t>(status.st_size);
      judged_from_ = offset_;
      inode_ = status.st_ino;
    } else {
      inode_ = 0;
    }
    const std::string temporary = options_.memory_path + ".new";
    std::ofstream(temporary) << inode_ << " " << offset_ << " " << BootId() << "\n";
    rename(temporary.c_str(), options_.memory_path.c_str());
  }

  ProbeResult Run(const ProbeContext& context) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.kind = "log";
    result.name = absl::StrCat("log ", OneLine(options_.file, 200));
    result.expected = Truncate(judge_.Expected(), 1000);
    if (!known_) Remember();
    std::string problem;
    const bool read_all = Read(&problem);
    judge_.Judge(read_all, context, patience_.Waited(context), options_.within, &result);
    if (!problem.empty() && !result.passed && result.may_recover) result.observed = OneLine(problem);
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  static std::string BootId() {
    return std::string(absl::StripAsciiWhitespace(ReadFile(kBootIdPath, 128).value_or("unknown")));
  }
  UniqueFd Open() const { return OpenBeneath(options_.tree, options_.file); }

  // Where the log ended before the service was started, if an agent before us knew; otherwise only new lines count
  // against the service, and `expect` is looked for in the last part of the log.
  void Remember() {
    known_ = true;
    file_ = Open();
    struct stat status = {};
    if (file_.valid()) fstat(file_.get(), &status);
    inode_ = status.st_ino;
    const auto size = static_cast<uint64_t>(status.st_size);
    const std::string memory = ReadFile(options_.memory_path, 256).value_or("");
    const std::vector<std::string> parts = absl::StrSplit(memory, ' ');
    uint64_t inode = 0;
    uint64_t offset = 0;
    // Of this boot: after a power cut the service was started by somebody else.
    if (parts.size() == 3 && absl::SimpleAtoi(parts[0], &inode) && absl::SimpleAtoi(parts[1], &offset) &&
        absl::StripAsciiWhitespace(parts[2]) == BootId()) {
      // Rotated or cut since: what is left of it is all of this run.
      offset_ = inode == inode_ && offset <= size ? offset : 0;
      judged_from_ = offset_;
      return;
    }
    offset_ = size > kLookBackBytes ? size - kLookBackBytes : 0;
    judged_from_ = size;
  }

  // Reads on; true when all that is there has been read.
  bool Read(std::string* problem) {
    size_t budget = kLookBytes;
    for (int files = 0; files < 2; ++files) {
      if (!file_.valid()) {
        file_ = Open();
        if (!file_.valid()) {
          *problem = absl::StrCat("cannot read ", options_.file, ": ", strerror(errno));
          return true;
        }
        struct stat status = {};
        fstat(file_.get(), &status);
        if (status.st_ino != inode_) StartOfFile(status.st_ino);
      }
      if (!ReadFileOn(&budget)) return false;
      // Rotated? Then the old one has been read to its end, and the new one is all of this run.
      const UniqueFd now = Open();
      struct stat current;
      if (!now.valid() || fstat(now.get(), &current) != 0 || current.st_ino == inode_) return true;
      file_.Reset();
    }
    return true;
  }
  void StartOfFile(ino_t inode) {
    inode_ = inode;
    offset_ = 0;
    judged_from_ = 0;
    rest_.clear();
  }

  bool ReadFileOn(size_t* budget) {
    struct stat status;
    if (fstat(file_.get(), &status) != 0) return true;
    if (static_cast<uint64_t>(status.st_size) < offset_) StartOfFile(inode_);  // it was cut: copytruncate
    std::string buffer(65536, '\0');
    while (*budget > 0) {
      const ssize_t n =
          pread(file_.get(), buffer.data(), std::min(buffer.size(), *budget), static_cast<off_t>(offset_));
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) {
        // A last line without its end: it counts, and is looked at again when it is longer.
        if (!rest_.empty()) judge_.Line(rest_, offset_ > judged_from_);
        return true;
      }
      offset_ += static_cast<uint64_t>(n);
      *budget -= static_cast<size_t>(n);
      rest_.append(buffer, 0, static_cast<size_t>(n));
      size_t begin = 0;
      const uint64_t base = offset_ - rest_.size();
      for (size_t end = rest_.find('\n'); end != std::string::npos; end = rest_.find('\n', begin)) {
        judge_.Line(absl::string_view(rest_).substr(begin, end - begin), base + end >= judged_from_);
        begin = end + 1;
      }
      rest_.erase(0, begin);
      if (rest_.size() >= kLineBytes) {
        judge_.Line(rest_, offset_ > judged_from_);
        rest_.clear();
      }
    }
    return false;
  }

  const LogProbeOptions options_;
  Clock& clock_;
  LineJudge judge_;
  Patience patience_;
  bool known_ = false;
  UniqueFd file_;
  ino_t inode_ = 0;
  // Up to where it has been read, and from where on lines count against the service.
  uint64_t offset_ = 0;
  uint64_t judged_from_ = 0;
  // A line whose end has not been read.
  std::string rest_;
};

class JournalProbe final : public Probe {
 public:
  JournalProbe(JournalProbeOptions options, LineJudge judge, Clock& clock)
      : options_(std::move(options)), clock_(clock), judge_(std::move(judge)), patience_(clock) {}
  ~JournalProbe() override { Close(); }

  void BeforeStart() override {
    judge_.Reset();
    patience_.Reset();
    cursor_.clear();
    begun_ = false;
    if (!OpenJournal().empty()) return;
    // The last entry of anybody: what comes after it is what we want.
    sd_journal_flush_matches(journal_);
    char* cursor = nullptr;
    if (sd_journal_seek_tail(journal_) >= 0 && sd_journal_previous(journal_) > 0 &&
        sd_journal_get_cursor(journal_, &cursor) >= 0) {
      cursor_ = cursor;
      free(cursor);
    }
    Close();
  }

  ProbeResult Run(const ProbeContext& context) override {
    const absl::Duration begun = clock_.Monotonic();
    ProbeResult result;
    result.kind = "journal";
    result.name = absl::StrCat("journal ", options_.unit);
    result.expected = Truncate(judge_.Expected(), 1000);
    const std::string problem = OpenJournal();
    const bool read_all = problem.empty() ? Read(context) : true;
    judge_.Judge(read_all, context, patience_.Waited(context), options_.within, &result);
    if (!problem.empty()) {
      result.passed = false;
      if (result.may_recover || result.observed.empty()) result.observed = OneLine(problem);
    }
    result.took = clock_.Monotonic() - begun;
    return result;
  }

 private:
  void Close() {
    if (journal_ != nullptr) sd_journal_close(journal_);
    journal_ = nullptr;
  }
  // The unit's run of now, by the name that journald gives it; empty when there is none.
  std::string Invocation() const {
    std::string id(64, '\0');
    const ssize_t size = readlink(absl::StrCat("/run/systemd/units/invocation:", options_.unit).c_str(), id.data(), 64);
    id.resize(static_cast<size_t>(std::max<ssize_t>(size, 0)));
    return id;
  }
  // What went wrong, or "".
  std::string OpenJournal() {
    if (journal_ != nullptr) return "";
    int result = sd_journal_open(&journal_, SD_JOURNAL_LOCAL_ONLY | SD_JOURNAL_SYSTEM);
    if (result < 0) {
      journal_ = nullptr;
      return absl::StrCat("the journal cannot be read: ", strerror(-result));
    }
    const std::string match = absl::StrCat("_SYSTEMD_UNIT=", options_.unit);
    result = sd_journal_add_match(journal_, match.data(), match.size());
    if (result < 0) {
      Close();
      return absl::StrCat("the journal cannot be searched: ", strerror(-result));
    }
    // A message is cut to what one look may read.
    sd_journal_set_data_threshold(journal_, 64 << 10);
    return "";
  }

  // Reads on; true when all that is there has been read.
  bool Read(const ProbeContext& context) {
    // Takes note of files that were added or rotated.
    sd_journal_process(journal_);
    if (!begun_) {
      begun_ = true;
      if (!cursor_.empty()) {
        sd_journal_seek_cursor(journal_, cursor_.c_str());
      } else if (context.started_at != absl::InfinitePast()) {
        sd_journal_seek_realtime_usec(journal_, static_cast<uint64_t>(absl::ToUnixMicros(context.started_at)));
      } else if (const std::string run = Invocation(); !run.empty()) {
        const std::string match = absl::StrCat("_SYSTEMD_INVOCATION_ID=", run);
        sd_journal_add_match(journal_, match.data(), match.size());
        sd_journal_seek_head(journal_);
      } else {
        sd_journal_seek_tail(journal_);
      }
    }
    size_t budget = kLookBytes;
    for (;;) {
      if (budget == 0) return false;
      if (sd_journal_next(journal_) <= 0) return true;
      const void* data = nullptr;
      size_t size = 0;
      if (sd_journal_get_data(journal_, "MESSAGE", &data, &size) < 0) continue;
      const absl::string_view field(static_cast<const char*>(data), size);
      const absl::string_view message = field.substr(std::min<size_t>(size, strlen("MESSAGE=")));
      for (const absl::string_view line : absl::StrSplit(message, '\n')) judge_.Line(line, true);
      budget -= std::min(budget, size + 1);
    }
  }

  const JournalProbeOptions options_;
  Clock& clock_;
  LineJudge judge_;
  Patience patience_;
  sd_journal* journal_ = nullptr;
  std::string cursor_;
  bool begun_ = false;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Probe>> MakeLogProbe(LogProbeOptions options, Clock& clock) {
  RB_ASSIGN_OR_RETURN(LineJudge judge, LineJudge::Create(options.expect, options.forbid));
  return std::unique_ptr<Probe>(new LogProbe(std::move(options), std::move(judge), clock));
}

absl::StatusOr<std::unique_ptr<Probe>> MakeJournalProbe(JournalProbeOptions options, Clock& clock) {
  RB_ASSIGN_OR_RETURN(LineJudge judge, LineJudge::Create(options.expect, options.forbid));
  return std::unique_ptr<Probe>(new JournalProbe(std::move(options), std::move(judge), clock));
}

}  // namespace rb::agent

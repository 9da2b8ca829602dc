// What common/durable_file.h and common/record_journal.h promise, held against every state that a power cut can leave.
// Also shows that the rig finds what it is there to find.
#include <fcntl.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "common/durable_file.h"
#include "common/record_journal.h"
#include "common/status.h"
#include "common/test_util.h"
#include "tests/crash/crash_rig.h"

namespace rb::crash {
namespace {

constexpr int kVersions = 12;

std::string ContentOf(int version) {
  return absl::StrCat(version, " ", std::string(9000, static_cast<char>('a' + version % 26)));
}

// As WriteFileDurably, without the one thing that makes it durable.
absl::Status WriteWithoutSync(const std::string& path, const std::string& content) {
  const std::string temporary = path + ".tmp";
  UniqueFd fd(open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600));
  if (write(fd.get(), content.data(), content.size()) != static_cast<ssize_t>(content.size())) {
    return ErrnoStatus(errno, "write");
  }
  // Other people's flushes come and go; the rename may reach the disk with them.
  if (rename(temporary.c_str(), path.c_str()) != 0) return ErrnoStatus(errno, "rename");
  return SyncFolder(path.substr(0, path.rfind('/')));
}

Workload FileWorkload(const std::function<absl::Status(const std::string&, const std::string&)>& write_file) {
  Workload workload;
  workload.prepare = [](const std::string& root) { return WriteFileDurably(root + "/file", ContentOf(0)); };
  workload.run = [write_file](const std::string& root, const auto& acknowledge) -> absl::Status {
    for (int version = 1; version <= kVersions; ++version) {
      RB_RETURN_IF_ERROR(write_file(root + "/file", ContentOf(version)));
      acknowledge(absl::StrCat(version));
    }
    return absl::OkStatus();
  };
  workload.check = [](const std::string& root, const std::vector<std::string>& acknowledged) -> std::string {
    const absl::StatusOr<std::string> content = ReadFile(root + "/file");
    if (!content.ok()) return content.status().ToString();
    int version = -1;
    if (!absl::SimpleAtoi(content->substr(0, content->find(' ')), &version) || *content != ContentOf(version)) {
      return absl::StrCat("torn: ", content->size(), " bytes");
    }
    int newest = 0;
    if (!acknowledged.empty() && !absl::SimpleAtoi(acknowledged.back(), &newest)) return "a mark that is no number";
    if (version < newest) return absl::StrCat("version ", newest, " was acknowledged, ", version, " is there");
    return "";
  };
  return workload;
}

class CrashStates : public ::testing::TestWithParam<const char*> {
 protected:
  // Fails the test, or skips it where the machine cannot do it.
  RigReport Visit(const Workload& workload, size_t states) {
    RigOptions options;
    options.filesystem = GetParam();
    options.states = states;
    absl::StatusOr<RigReport> report = VisitCrashStates(workload, options);
    if (report.ok()) {
      std::printf("%s: %zu operations, %zu states (%zu reordered), %zu bad\n", GetParam(), report->operations,
                  report->states, report->reordered_states, report->bad_states);
      for (const std::string& finding : report->findings) std::printf("  %s\n", finding.c_str());
      return *report;
    }
    if (absl::IsUnavailable(report.status())) {
      skipped_ = true;
      std::printf("not run: %s\n", report.status().ToString().c_str());
    } else {
      ADD_FAILURE() << report.status();
    }
    return {};
  }
  bool skipped_ = false;
};

TEST_P(CrashStates, AFileIsReplacedWhollyOrNotAtAll) {
  const RigReport report = Visit(
      FileWorkload([](const std::string& path, const std::string& content) { return WriteFileDurably(path, content); }),
      150);
  if (skipped_) GTEST_SKIP();
  EXPECT_TRUE(report.states == 150u || report.exhausted) << report.states;
  EXPECT_EQ(report.bad_states, 0u);
}

TEST_P(CrashStates, TheRigCatchesAMissingSync) {
  const RigReport report = Visit(FileWorkload(WriteWithoutSync), 150);
  if (skipped_) GTEST_SKIP();
  EXPECT_GT(report.bad_states, 0u);
}

TEST_P(CrashStates, AJournalKeepsWhatItAcknowledged) {
  Workload workload;
  workload.prepare = [](const std::string&) { return absl::OkStatus(); };
  workload.run = [](const std::string& root, const auto& acknowledge) -> absl::Status {
    std::vector<std::string> records;
    RB_ASSIGN_OR_RETURN(auto journal, RecordJournal::Open(root + "/journal", &records));
    for (int i = 0; i < 2 * kVersions; ++i) {
      // As whoever opens it for one record alone; the first time there is none in it yet.
      if (i % 2 == 0) {
        RB_ASSIGN_OR_RETURN(journal,
                            RecordJournal::Open(root + "/journal", &records, RecordJournal::Flush::kWithNextAppend));
      }
      RB_RETURN_IF_ERROR(journal->Append(ContentOf(i)));
      acknowledge(absl::StrCat(i));
    }
    return absl::OkStatus();
  };
  workload.check = [](const std::string& root, const std::vector<std::string>& acknowledged) -> std::string {
    std::vector<std::string> records;
    const auto journal = RecordJournal::Open(root + "/journal", &records);
    if (!journal.ok()) return journal.status().ToString();
    if (records.size() < acknowledged.size()) {
      return absl::StrCat(acknowledged.size(), " records were acknowledged, ", records.size(), " are there");
    }
    for (size_t i = 0; i < records.size(); ++i) {
      if (records[i] != ContentOf(static_cast<int>(i))) return absl::StrCat("record ", i, " is damaged");
    }
    return "";
  };
  const RigReport report = Visit(workload, 150);
  if (skipped_) GTEST_SKIP();
  EXPECT_EQ(report.bad_states, 0u);
}

INSTANTIATE_TEST_SUITE_P(Filesystems, CrashStates, ::testing::Values("ext4", "xfs", "btrfs"),
                         [](const auto& parameter) { return std::string(parameter.param); });

}  // namespace
}  // namespace rb::crash

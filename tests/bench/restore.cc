// How long the release store and the tree transaction take on a tree of about 40,000 files and 600 MB, against what
// people use for the same job. Both sides in one run, on one filesystem, under a warm cache; medians.
//
//   rb_bench_restore [-o json] [--folder DIR] [--rounds N] [--files N] [--memory] [--fast]
//
// The tree is made from /usr/share and /usr/lib below DIR (default: a new folder in /tmp), which is removed afterwards.
// --fast leaves the slow comparisons out (restic, copying by hand). --memory also measures peak memory on 200,000 files
// with one file of 4 GiB. Ends with 0 when every goal is met.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "agent/core/engine/engine.h"
#include "common/clock.h"

namespace rb::agent {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMeanFileBytes = 15'000;
constexpr int kByHandRounds = 3;
constexpr int kAddedFiles = 50;
// The first argument of the processes that do one job.
constexpr char kJob[] = "--job";
constexpr double kMemoryGoalMib = 150;

[[noreturn]] void Fail(const std::string& what) {
  std::cerr << "rb_bench_restore: " << what << "\n";
  std::exit(2);
}

void Check(const absl::Status& status, const char* what) {
  if (!status.ok()) Fail(absl::StrCat(what, ": ", status.ToString()));
}

void Say(const std::string& text) { std::cerr << text << std::endl; }

// ---- running both sides

double ProcessorSeconds(const rusage& usage) {
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Seconds that a command takes, and in `processor` what it took of the processors; its standard output goes to
// `output_path`.
double RunCommand(const std::vector<std::string>& command, const std::string& output_path = "/dev/null",
                  double* processor = nullptr) {
  const absl::Duration begin = SystemClock().Monotonic();
  const pid_t pid = fork();
  if (pid < 0) Fail("fork");
  if (pid == 0) {
    const int out = open(output_path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (out < 0 || dup2(out, STDOUT_FILENO) < 0) _exit(126);
    std::vector<char*> arguments;
    for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    execvp(arguments[0], arguments.data());
    _exit(127);
  }
  int status = 0;
  rusage usage{};
  if (wait4(pid, &status, 0, &usage) != pid || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    Fail(absl::StrCat("failed: ", absl::StrJoin(command, " ")));
  }
  if (processor != nullptr) *processor = ProcessorSeconds(usage);
  return absl::ToDoubleSeconds(SystemClock().Monotonic() - begin);
}

bool IsInstalled(const std::string& program) {
  return std::system(absl::StrCat("command -v ", program, " >/dev/null 2>&1").c_str()) == 0;  // NOLINT
}

// Plain numbers, so that they fit through a pipe as they are.
struct JobResult {
  double seconds = 0;
  double commit = 0;
  double keep = 0;
  double walk = 0;
  double hash = 0;
  double compress = 0;
  double write = 0;
  double sync = 0;
  double peak_mib = 0;
  double processor = 0;  // seconds, all threads
};

struct Folders {
  std::string base;
  std::string tree() const { return base + "/live"; }
  std::string reference() const { return base + "/reference"; }
  std::string state() const { return base + "/state"; }
};

void TakeTimes(const EngineTimes& times, JobResult* result) {
  result->walk = absl::ToDoubleSeconds(times.walk);
  result->hash = absl::ToDoubleSeconds(times.hash);
  result->compress = absl::ToDoubleSeconds(times.compress);
  result->write = absl::ToDoubleSeconds(times.write);
  result->sync = absl::ToDoubleSeconds(times.sync);
}

void Backup(Engine* engine) { Check(engine->Capture(CaptureRequest()).status(), "capture"); }

void Restore(Engine* engine, const std::string& operation, JobResult* result) {
  const auto releases = engine->Releases();
  Check(releases.status(), "releases");
  EngineTarget target;
  target.release_name = releases->back().name;
  const auto prepared = engine->Prepare(operation, target, Components(), "benchmark");
  Check(prepared.status(), "prepare");
  TakeTimes(prepared->times, result);
  const absl::Duration commit_begin = SystemClock().Monotonic();
  Check(engine->Commit(operation).status(), "commit");
  const absl::Duration keep_begin = SystemClock().Monotonic();
  result->commit = absl::ToDoubleSeconds(keep_begin - commit_begin);
  // After the swap: housekeeping that nobody waits for.
  Check(engine->Keep(operation, Cause::kDeploy, true, false, "").status(), "keep");
  result->keep = absl::ToDoubleSeconds(SystemClock().Monotonic() - keep_begin);
}

// One job, in the process that RunJob starts: a backup, or a restore when `operation` is not empty. Opening the engine
// is part of the time: an agent that was just started is not faster. As an agent it has another thread, which makes
// some of the kernel's work for it slower.
int DoJob(const Folders& folders, const std::string& operation) {
  JobResult result;
  const absl::Duration begin = SystemClock().Monotonic();
  Engine::PrepareProcess();
  std::thread([] { pause(); }).detach();
  {
    ServiceTree tree;
    tree.service = "bench";
    tree.tree = folders.tree();
    tree.config_globs = {"config/**", ".env"};
    tree.ignore_globs = {"logs/**", "*.pid"};
    Engine::Options options;
    options.state_folder = folders.state();
    options.clock = &SystemClock();
    const auto engine = Engine::Open(std::move(options), std::move(tree));
    Check(engine.status(), "open the engine");
    if (operation.empty()) {
      Backup(engine->get());
    } else {
      Restore(engine->get(), operation, &result);
    }
  }
  result.seconds = absl::ToDoubleSeconds(SystemClock().Monotonic() - begin) - result.keep;
  return write(STDOUT_FILENO, &result, sizeof(result)) == sizeof(result) ? 0 : 2;
}

// Runs a job in a program of its own, as an agent is one, and measures its peak memory. A fork of this one would pay
// for parting with its memory.
JobResult RunJob(const Folders& folders, const std::string& operation = "") {
  int ends[2];
  if (pipe(ends) != 0) Fail("pipe");
  const pid_t pid = fork();
  if (pid < 0) Fail("fork");
  if (pid == 0) {
    close(ends[0]);
    if (dup2(ends[1], STDOUT_FILENO) < 0) _exit(126);
    close(ends[1]);
    execl("/proc/self/exe", operation.empty() ? "rb_bench_backup" : "rb_bench_restore", kJob, folders.base.c_str(),
          operation.c_str(), nullptr);
    _exit(127);
  }
  close(ends[1]);
  JobResult result;
  const bool whole = read(ends[0], &result, sizeof(result)) == sizeof(result);
  close(ends[0]);
  int status = 0;
  rusage usage{};
  if (wait4(pid, &status, 0, &usage) != pid || !whole || status != 0) Fail("a job of the engine failed");
  result.peak_mib = static_cast<double>(usage.ru_maxrss) / 1024;
  result.processor = ProcessorSeconds(usage);
  return result;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

template <typename Field>
double MedianOf(const std::vector<JobResult>& results, Field field) {
  std::vector<double> values;
  for (const JobResult& result : results) values.push_back(result.*field);
  return Median(values);
}

// ---- the tree and what happens to it

struct TreeSize {
  uint64_t files = 0;
  uint64_t bytes = 0;
};

// Copies files in path order; a large one is taken only while the mean stays near kMeanFileBytes.
TreeSize MakeTree(const std::string& tree, uint64_t most_files) {
  TreeSize size;
  for (const std::string source : {"/usr/share", "/usr/lib"}) {
    std::vector<std::string> paths;
    std::error_code error;
    for (fs::recursive_directory_iterator it(source, fs::directory_options::skip_permission_denied, error), end;
         !error && it != end; it.increment(error)) {
      const std::string path = it->path().string();
      if (!it->is_symlink(error) && it->is_regular_file(error)) paths.push_back(path);
    }
    std::sort(paths.begin(), paths.end());
    const uint64_t share = source == "/usr/share" ? most_files * 6 / 10 : most_files;
    for (const std::string& path : paths) {
      if (size.files >= share) break;
      const uint64_t bytes = fs::file_size(path, error);
      if (error || size.bytes + bytes > (size.files + 1) * kMeanFileBytes + (8 << 20)) continue;
      const std::string to = absl::StrCat(tree, "/app", path.substr(4));
      fs::create_directories(fs::path(to).parent_path());
      if (!fs::copy_file(path, to, error) || error) continue;
      ++size.files;
      size.bytes += bytes;
    }
  }
  return size;
}

std::vector<std::string> FilesOf(const std::string& tree) {
  std::vector<std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(tree)) {
    if (entry.is_regular_file() && !entry.is_symlink()) files.push_back(entry.path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

// Changes 4 and removes 1 of each 500 files, and adds 50. The same for each round but for which files.
void Damage(const std::string& tree, int round) {
  const std::vector<std::string> files = FilesOf(tree);
  const auto step = static_cast<size_t>(100);
  size_t n = 0;
  for (size_t i = static_cast<size_t>(round * 17) % step; i < files.size(); i += step, ++n) {
    if (n % 5 == 4) {
      if (!fs::remove(files[i])) Fail("remove");
    } else {
      std::ofstream(files[i], std::ios::app) << "changed in round " << round << "\n";
    }
  }
  for (int i = 0; i < kAddedFiles; ++i) {
    std::ofstream(fs::path(files[static_cast<size_t>(i) * 37 % files.size()]).parent_path() /
                  absl::StrCat("added-", round, "-", i))
        << std::string(5000, 'a');
  }
}

// Ends the benchmark unless the tree equals the reference in content and every attribute.
void CheckEqual(const Folders& folders) {
  const std::string out = folders.base + "/differences";
  RunCommand({"rsync", "-aHAXnc", "--delete", "--itemize-changes", folders.reference() + "/", folders.tree() + "/"},
             out);
  std::ifstream in(out);
  std::string line;
  if (std::getline(in, line)) Fail(absl::StrCat("the restored tree differs from the reference: ", line));
}

// What was done to the tree is on the disk, as it is on a host after half a minute: neither side pays for the other.
void Settle(const Folders& folders) {
  const int fd = open(folders.base.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0 || syncfs(fd) != 0) Fail("flush the disk");
  close(fd);
}

double StatWalk(const Folders& folders) {
  return RunCommand({"find", folders.tree(), "-printf", "%p %y %s %m %U %G %T@ %C@ %i %n\n"});
}

uint64_t BytesBelow(const std::string& folder) {
  uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_regular_file()) bytes += entry.file_size();
  }
  return bytes;
}

// ---- figures

struct Figure {
  std::string name;
  double value = 0;
  double against = 0;
  double goal = 0;  // of the ratio
  double ratio() const { return against > 0 ? value / against : 0; }
  bool ok() const { return ratio() <= goal; }
};

struct Document {
  std::vector<Figure> figures;
  std::vector<std::pair<std::string, double>> times;  // where they go, seconds
  std::vector<std::string> bounds;                    // measured in this run: what no restore can be faster than
  TreeSize size;
};

void Print(const Document& document, bool json) {
  if (json) {
    std::vector<std::string> figures;
    for (const Figure& figure : document.figures) {
      figures.push_back(absl::StrFormat(
          R"(    {"name": "%s", "value": %.4f, "against": %.4f, "ratio": %.3f, "goal": %.3f, "ok": %s})", figure.name,
          figure.value, figure.against, figure.ratio(), figure.goal, figure.ok() ? "true" : "false"));
    }
    std::vector<std::string> times;
    for (const auto& [name, seconds] : document.times) {
      times.push_back(absl::StrFormat(R"(    {"name": "%s", "seconds": %.4f})", name, seconds));
    }
    std::cout << absl::StrFormat(
        "{\n  \"name\": \"restore\",\n  \"files\": %d,\n  \"bytes\": %d,\n  \"figures\": [\n%s\n  ],\n"
        "  \"times\": [\n%s\n  ],\n  \"bounds\": [%s]\n}\n",
        document.size.files, document.size.bytes, absl::StrJoin(figures, ",\n"), absl::StrJoin(times, ",\n"),
        document.bounds.empty() ? "" : absl::StrCat("\"", absl::StrJoin(document.bounds, "\", \""), "\""));
    return;
  }
  std::cout << document.size.files << " files, " << document.size.bytes / 1'000'000 << " MB\n";
  std::cout << absl::StrFormat("%-54s %10s %10s %8s %8s\n", "", "value", "against", "ratio", "goal");
  for (const Figure& figure : document.figures) {
    std::cout << absl::StrFormat("%-54s %10.4f %10.4f %8.3f %8.3f %s\n", figure.name, figure.value, figure.against,
                                 figure.ratio(), figure.goal, figure.ok() ? "ok" : "MISSED");
  }
  for (const std::string& bound : document.bounds) std::cout << bound << "\n";
  std::cout << "where the time goes, seconds (median)\n";
  for (const auto& [name, seconds] : document.times) std::cout << absl::StrFormat("  %-52s %10.4f\n", name, seconds);
}

void MeasureRestore(const Folders& folders, int rounds, bool only_ours, Document* document) {
  std::vector<JobResult> ours;
  std::vector<double> rsync;
  std::vector<double> rsync_processor;
  std::vector<double> walk;
  for (int round = 0; round < rounds; ++round) {
    // What the round before has left is known, as it is on a host by its next regular backup.
    RunJob(folders);
    Damage(folders.tree(), round);
    Settle(folders);
    walk.push_back(StatWalk(folders));
    ours.push_back(RunJob(folders, absl::StrCat("round-", round)));
    CheckEqual(folders);
    Damage(folders.tree(), round);
    Settle(folders);
    StatWalk(folders);
    rsync_processor.push_back(0);
    rsync.push_back(RunCommand({"rsync", "-a", "--delete", folders.reference() + "/", folders.tree() + "/"},
                               "/dev/null", &rsync_processor.back()));
    Say(absl::StrFormat("round %d: restore %.3f s (commit %.4f), rsync %.3f, find %.3f", round + 1, ours.back().seconds,
                        ours.back().commit, rsync.back(), walk.back()));
  }
  const double restore = MedianOf(ours, &JobResult::seconds);
  const double commit = MedianOf(ours, &JobResult::commit);
  document->figures.push_back({"restore against rsync -a --delete, s", restore, Median(rsync), 0.4});
  document->figures.push_back({"restore against one find -printf, s", restore, Median(walk), 1.5});
  document->figures.push_back({"of it with the service stopped, s", commit, 0.020, 1});
  document->times.emplace_back("restore: walk", MedianOf(ours, &JobResult::walk));
  document->times.emplace_back("restore: read, hash and compress what is replaced", MedianOf(ours, &JobResult::hash));
  document->times.emplace_back("  of it compressing, both threads summed", MedianOf(ours, &JobResult::compress));
  document->times.emplace_back("restore: write what is staged", MedianOf(ours, &JobResult::write));
  document->times.emplace_back("restore: sync", MedianOf(ours, &JobResult::sync));
  document->times.emplace_back("restore: swap", commit);
  document->times.emplace_back("restore: rest (opening, cache, comparing, records)",
                               restore - commit - MedianOf(ours, &JobResult::walk) - MedianOf(ours, &JobResult::hash) -
                                   MedianOf(ours, &JobResult::write) - MedianOf(ours, &JobResult::sync));
  document->times.emplace_back("processor time of a restore and keep, all threads",
                               MedianOf(ours, &JobResult::processor));
  document->times.emplace_back("processor time of rsync, its parent alone", Median(rsync_processor));
  document->times.emplace_back("after the swap: keep", MedianOf(ours, &JobResult::keep));
  document->figures.push_back(
      {"peak memory of a restore, MiB", MedianOf(ours, &JobResult::peak_mib), kMemoryGoalMib, 1});

  if (only_ours) return;
  // By hand: in the end, since no file is the same file after it.
  std::vector<double> by_hands;
  std::vector<double> flushes;
  for (int round = 0; round < kByHandRounds; ++round) {
    Damage(folders.tree(), rounds + round);
    Settle(folders);
    by_hands.push_back(RunCommand(
        {"sh", "-c", "mv \"$1\" \"$1.aside\" && cp -r \"$2\" \"$1\" && chown -R \"$(stat -c %u:%g \"$2\")\" \"$1\"",
         "sh", folders.tree(), folders.reference()}));
    const absl::Duration flush_begin = SystemClock().Monotonic();
    Settle(folders);
    flushes.push_back(absl::ToDoubleSeconds(SystemClock().Monotonic() - flush_begin));
    Say(absl::StrFormat("by hand, round %d: %.3f s, and %.3f s until it is on the disk", round + 1, by_hands.back(),
                        flushes.back()));
    fs::remove_all(folders.tree() + ".aside");
  }
  const double by_hand = Median(by_hands);
  const double flushed = by_hand + Median(flushes);
  const Figure figure{"restore against mv, cp -r, chown -R, s", restore, by_hand, 0.05};
  document->figures.push_back(figure);
  document->bounds.push_back(absl::StrFormat("by hand until it is on the disk, as ours is: %.3f s; ours is %.3f of it",
                                             flushed, restore / flushed));
  // Whoever restores has to look at every file once.
  const double walked = Median(walk);
  const double fastest = MedianOf(ours, &JobResult::walk);
  document->bounds.push_back(absl::StrFormat(
      "bound: by hand %.3f s, of which the goal is %.3f s; one find -printf alone is %.3f s = %.3f of it, our own walk "
      "on two threads %.3f s = %.3f%s",
      by_hand, figure.goal * by_hand, walked, walked / by_hand, fastest, fastest / by_hand,
      walked > figure.goal * by_hand ? ": looking at each file once takes longer than the goal" : ""));
}

void MeasureBackup(const Folders& folders, int rounds, bool only_ours, Document* document) {
  StatWalk(folders);
  const JobResult first = RunJob(folders);
  const uint64_t our_bytes = BytesBelow(folders.state());
  Say(absl::StrFormat("first backup %.2f s, %d bytes", first.seconds, our_bytes));
  if (only_ours) {
    Say("not compared with restic, as asked");
  } else if (IsInstalled("restic")) {
    const std::string repository = folders.base + "/restic";
    setenv("RESTIC_PASSWORD", "benchmark", 1);
    RunCommand({"restic", "init", "-q", "--no-cache", "-r", repository});
    const double restic = RunCommand({"restic", "backup", "-q", "--no-cache", "-r", repository, folders.tree()});
    const uint64_t restic_bytes = BytesBelow(repository);
    document->figures.push_back({"first backup against restic, s", first.seconds, restic, 0.6});
    document->figures.push_back({"its size against restic's, MB", static_cast<double>(our_bytes) / 1e6,
                                 static_cast<double>(restic_bytes) / 1e6, 1.1});
    fs::remove_all(repository);
  } else {
    Say("restic is not installed: the first backup is not compared");
  }
  document->figures.push_back({"peak memory of the first backup, MiB", first.peak_mib, kMemoryGoalMib, 1});
  std::vector<double> ours;
  std::vector<double> walk;
  for (int round = 0; round < rounds; ++round) {
    walk.push_back(StatWalk(folders));
    ours.push_back(RunJob(folders).seconds);
  }
  document->figures.push_back({"second backup against one find -printf, s", Median(ours), Median(walk), 1.5});
}

void MeasureMemory(const std::string& base, Document* document) {
  const Folders folders{base + "/memory"};
  fs::create_directories(folders.tree());
  for (int i = 0; i < 200'000; ++i) {
    if (i % 200 == 0) fs::create_directories(absl::StrCat(folders.tree(), "/folder-with-a-name-", i / 200));
    std::ofstream(absl::StrCat(folders.tree(), "/folder-with-a-name-", i / 200, "/some-source-file-", i, ".py")) << i;
  }
  {
    std::ofstream large(folders.tree() + "/large.bin", std::ios::binary);
    std::vector<uint64_t> block(1 << 17);  // 1 MiB
    uint64_t state = 88172645463325252U;
    for (int i = 0; i < 4096; ++i) {
      for (uint64_t& word : block) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word = state;
      }
      large.write(reinterpret_cast<const char*>(block.data()), static_cast<std::streamsize>(block.size() * 8));
    }
  }
  const JobResult backup = RunJob(folders);
  document->figures.push_back(
      {"peak memory, 200,000 files and 4 GiB: backup, MiB", backup.peak_mib, kMemoryGoalMib, 1});
  Damage(folders.tree(), 0);
  const JobResult restore = RunJob(folders, "memory");
  document->figures.push_back(
      {"peak memory, 200,000 files and 4 GiB: restore, MiB", restore.peak_mib, kMemoryGoalMib, 1});
  fs::remove_all(folders.base);
}

int Main(int argc, char** argv) {
  bool json = false;
  bool memory = false;
  bool fast = false;
  int rounds = 5;
  int files = 40'000;
  std::string base;
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() == 3 && words[0] == kJob) return DoJob({words[1]}, words[2]);
  for (size_t i = 0; i < words.size(); ++i) {
    const bool has_value = i + 1 < words.size();
    if ((words[i] == "-o" || words[i] == "--output") && has_value) {
      json = words[++i] == "json";
    } else if (words[i] == "--folder" && has_value) {
      base = words[++i];
    } else if (has_value && ((words[i] == "--rounds" && absl::SimpleAtoi(words[i + 1], &rounds) && rounds > 0) ||
                             (words[i] == "--files" && absl::SimpleAtoi(words[i + 1], &files) && files >= 1000))) {
      ++i;
    } else if (words[i] == "--fast") {
      fast = true;
    } else if (words[i] == "--memory") {
      memory = true;
    } else {
      Fail("usage: rb_bench_restore [-o json] [--folder DIR] [--rounds N] [--files N] [--memory] [--fast]");
    }
  }
  if (!IsInstalled("rsync")) Fail("rsync is not installed");
  std::string pattern = (base.empty() ? std::string("/tmp") : base) + "/rb-bench-XXXXXX";
  if (mkdtemp(pattern.data()) == nullptr) Fail(absl::StrCat("make a folder ", pattern, ": ", strerror(errno)));
  const Folders folders{pattern};
  Document document;
  Say("making the tree");
  fs::create_directories(folders.tree());
  document.size = MakeTree(folders.tree(), static_cast<uint64_t>(files));
  RunCommand({"cp", "-a", folders.tree(), folders.reference()});
  sync();  // So that nobody waits for writing what was made before.
  MeasureBackup(folders, rounds, fast, &document);
  MeasureRestore(folders, rounds, fast, &document);
  if (memory) MeasureMemory(folders.base, &document);
  Print(document, json);
  fs::remove_all(folders.base);
  return std::all_of(document.figures.begin(), document.figures.end(), [](const Figure& f) { return f.ok(); }) ? 0 : 1;
}

}  // namespace
}  // namespace rb::agent

int main(int argc, char** argv) { return rb::agent::Main(argc, argv); }

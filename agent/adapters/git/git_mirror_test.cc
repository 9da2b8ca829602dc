#include "agent/adapters/git/git_mirror.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "agent/adapters/git/clone.h"
#include "common/clock.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Entry = SnapshotSource::Entry;

class GitMirrorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    setenv("GIT_CONFIG_GLOBAL", "/dev/null", 1);
    setenv("GIT_CONFIG_NOSYSTEM", "1", 1);
    for (const char* who : {"AUTHOR", "COMMITTER"}) {
      setenv(absl::StrCat("GIT_", who, "_NAME").c_str(), "Tester", 1);
      setenv(absl::StrCat("GIT_", who, "_EMAIL").c_str(), "tester@example.org", 1);
    }
    Git("init -q -b main");
  }

  // Runs git in the upstream repository and gives what it says.
  std::string Git(const std::string& arguments) {
    std::filesystem::create_directories(upstream_);
    const std::string command = absl::StrCat("cd ", upstream_, " && git ", arguments, " 2>&1");
    std::FILE* pipe = popen(command.c_str(), "r");
    std::string output;
    std::array<char, 4096> buffer;
    while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe)) output.append(buffer.data(), n);
    EXPECT_EQ(pclose(pipe), 0) << command << ": " << output;
    return std::string(absl::StripAsciiWhitespace(output));
  }
  // Commits everything at this second; gives the id.
  std::string CommitAll(const std::string& message, int second) {
    const std::string date = absl::StrCat("@", 1795400000 + second, " +0000");
    setenv("GIT_AUTHOR_DATE", date.c_str(), 1);
    setenv("GIT_COMMITTER_DATE", date.c_str(), 1);
    Git("add -A -f");
    Git(absl::StrCat("commit -q --allow-empty -m '", message, "'"));
    return Git("rev-parse HEAD");
  }
  void Write(const std::string& path, const std::string& content) {
    std::filesystem::create_directories(std::filesystem::path(upstream_ + "/" + path).parent_path());
    std::ofstream(upstream_ + "/" + path) << content;
  }
  std::unique_ptr<GitMirror> Mirror() {
    GitMirror::Options options;
    options.service = "bot";
    options.remote = "file://" + upstream_;
    options.state_folder = folder_ / "state";
    absl::StatusOr<std::unique_ptr<GitMirror>> mirror = GitMirror::Create(options, SystemClock());
    EXPECT_THAT(mirror, rb::testing::IsOk());
    return *std::move(mirror);
  }
  static std::vector<Entry> EntriesOf(SnapshotSource& source) {
    std::vector<Entry> entries;
    RB_EXPECT_OK(source.ForEach([&](const Entry& entry) {
      entries.push_back(entry);
      return absl::OkStatus();
    }));
    return entries;
  }

  TemporaryFolder folder_;
  const std::string upstream_ = folder_ / "upstream";
};

TEST_F(GitMirrorTest, ResolvesIdsPrefixesTagsAndTheBranch) {
  Write("a", "1");
  const std::string first = CommitAll("first one\n\nwith a body", 1);
  Git("tag v1");
  Write("a", "2");
  const std::string second = CommitAll("second", 2);
  Git("tag -a -m x v2");
  const auto mirror = Mirror();
  EXPECT_THAT(mirror->Resolve("main"), FailsWith(absl::StatusCode::kNotFound, "no commit, tag or branch \"main\""));
  RB_ASSERT_OK(mirror->Fetch());
  for (const std::string& name : {first, first.substr(0, 7), first.substr(0, 4), std::string("v1")}) {
    RB_ASSERT_OK_AND_ASSIGN(const Commit commit, mirror->Resolve(name));
    EXPECT_EQ(commit.id, first);
    EXPECT_EQ(commit.version, "v1");
    EXPECT_EQ(commit.subject, "first one");
    EXPECT_EQ(commit.committed_at, absl::FromUnixSeconds(1795400001));
  }
  for (const char* name : {"v2", "main"}) {
    RB_ASSERT_OK_AND_ASSIGN(const Commit commit, mirror->Resolve(name));
    EXPECT_EQ(commit.id, second);
    EXPECT_EQ(commit.version, "v2");
  }
  for (const std::string& name :
       {std::string(40, 'a'), std::string("abc"), first.substr(0, 3), std::string("HEAD~1"), std::string("../x"),
        std::string("-v"), std::string("v1^{tree}"), std::string(), std::string("v1\n"), std::string(5000, 'f')}) {
    EXPECT_THAT(mirror->Resolve(name), FailsWith(absl::StatusCode::kNotFound, "")) << name;
  }
}

TEST_F(GitMirrorTest, NamesTheCommitsOfAnAmbiguousPrefix) {
  // Enough commits that two share their first four digits.
  std::string stream;
  for (int i = 0; i < 1500; ++i) {
    absl::StrAppend(&stream, "commit refs/heads/main\ncommitter T <t@example.org> ", 1795400000 + i, " +0000\ndata 1\n",
                    "x\n");
  }
  std::ofstream(folder_ / "stream") << stream;
  Git("fast-import --quiet < " + (folder_ / "stream"));
  std::map<std::string, std::set<std::string>> by_prefix;
  for (const std::string& id : std::vector<std::string>(absl::StrSplit(Git("rev-list main"), '\n'))) {
    by_prefix[id.substr(0, 4)].insert(id);
  }
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  int ambiguous = 0;
  for (const auto& [prefix, ids] : by_prefix) {
    if (ids.size() < 2) continue;
    ++ambiguous;
    const absl::Status status = mirror->Resolve(prefix).status();
    EXPECT_THAT(status, FailsWith(absl::StatusCode::kInvalidArgument, absl::StrCat(ids.size(), " commits")));
    for (const std::string& id : ids) EXPECT_THAT(std::string(status.message()), HasSubstr(id));
    if (ambiguous == 5) break;
  }
  EXPECT_GT(ambiguous, 0);
}

TEST_F(GitMirrorTest, TheNewestTagOfACommitIsItsVersion) {
  Write("a", "1");
  const std::string id = CommitAll("first", 1);
  Git("tag v1.9");
  Git("tag v1.10");
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  EXPECT_EQ(mirror->Resolve(id)->version, "v1.10");
  setenv("GIT_COMMITTER_DATE", "@1795400100 +0000", 1);
  Git("tag -a -m later a-later");
  setenv("GIT_COMMITTER_DATE", "@1795400050 +0000", 1);
  Git("tag -a -m earlier z-earlier");
  RB_ASSERT_OK(mirror->Fetch());
  EXPECT_EQ(mirror->Resolve(id)->version, "a-later");
}

TEST_F(GitMirrorTest, RecentGivesTheBranchNewestFirst) {
  std::vector<std::string> ids;
  for (int i = 0; i < 4; ++i) ids.push_back(CommitAll(absl::StrCat("commit ", i), i));
  Git("checkout -q -b other");
  CommitAll("elsewhere", 10);
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Commit> commits, mirror->Recent(3));
  ASSERT_EQ(commits.size(), 3u);
  EXPECT_EQ(commits[0].id, ids[3]);
  EXPECT_EQ(commits[1].id, ids[2]);
  EXPECT_EQ(commits[2].id, ids[1]);
  RB_ASSERT_OK_AND_ASSIGN(const std::vector<Commit> all, mirror->Recent(100));
  EXPECT_EQ(all.size(), 4u);
}

TEST_F(GitMirrorTest, FollowsForcedPushesAndMovedTagsAndKeepsOldCommits) {
  Write("a", "1");
  const std::string first = CommitAll("first", 1);
  Git("tag moving");
  Git("tag gone");
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  Git("checkout -q --orphan fresh");
  Write("a", "2");
  const std::string second = CommitAll("rewritten", 2);
  Git("branch -f main fresh");
  Git("tag -f moving");
  Git("tag -d gone");
  RB_ASSERT_OK(mirror->Fetch());
  EXPECT_EQ(mirror->Resolve("main")->id, second);
  EXPECT_EQ(mirror->Resolve("moving")->id, second);
  EXPECT_THAT(mirror->Resolve("gone"), FailsWith(absl::StatusCode::kNotFound, "gone"));
  EXPECT_EQ(mirror->Resolve(first)->id, first);
  RB_EXPECT_OK(mirror->Open(first));
}

TEST_F(GitMirrorTest, NeedsNoUpstreamForWhatItHas) {
  Write("a", "1");
  const std::string first = CommitAll("first", 1);
  RB_ASSERT_OK(Mirror()->Fetch());
  std::filesystem::remove_all(upstream_);
  const auto mirror = Mirror();
  EXPECT_THAT(mirror->Fetch(), FailsWith(absl::StatusCode::kUnavailable, "fetching file://"));
  EXPECT_EQ(mirror->Resolve("main")->id, first);
  RB_ASSERT_OK_AND_ASSIGN(const auto source, mirror->Open(first));
  EXPECT_EQ(EntriesOf(*source).size(), 1u);
}

TEST_F(GitMirrorTest, OpensACommitAsItsBlobs) {
  Write("b/c.txt", "one");
  Write("b.txt", "one");
  Write("run.sh", "#!/bin/sh\n");
  ASSERT_EQ(chmod((upstream_ + "/run.sh").c_str(), 0755), 0);
  ASSERT_EQ(symlink("b/c.txt", (upstream_ + "/link").c_str()), 0);
  // Neither line endings nor filters are applied.
  Write(".gitattributes", "*.txt text eol=crlf filter=evil\n");
  Git("config filter.evil.clean cat");
  Git(absl::StrCat("config filter.evil.smudge 'touch ", folder_ / "smudged", "'"));
  const std::string id = CommitAll("first", 7);
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  RB_ASSERT_OK_AND_ASSIGN(const auto source, mirror->Open(id));
  const std::vector<Entry> entries = EntriesOf(*source);
  std::vector<std::string> paths;
  for (const Entry& entry : entries) paths.push_back(entry.path);
  ASSERT_THAT(paths, ElementsAre(".gitattributes", "b.txt", "b/c.txt", "link", "run.sh"));
  EXPECT_EQ(entries[1].content_id, entries[2].content_id);
  EXPECT_EQ(entries[1].size, 3u);
  EXPECT_EQ(entries[1].type, Entry::Type::kFile);
  EXPECT_EQ(entries[3].type, Entry::Type::kSymlink);
  EXPECT_EQ(entries[4].type, Entry::Type::kExecutable);
  std::string content;
  RB_ASSERT_OK(source->Read(entries[2].content_id, &content));
  EXPECT_EQ(content, "one");
  RB_ASSERT_OK(source->Read(entries[3].content_id, &content));
  EXPECT_EQ(content, "b/c.txt");
  EXPECT_EQ(source->ModificationTime(), absl::FromUnixSeconds(1795400007));
  EXPECT_NE(access((folder_ / "smudged").c_str(), F_OK), 0);
  EXPECT_THAT(source->Read(std::string(40, '1'), &content), FailsWith(absl::StatusCode::kNotFound, "blob"));
  EXPECT_THAT(source->Read("x", &content), FailsWith(absl::StatusCode::kInvalidArgument, "not an object id"));
  const absl::Status stopped = source->ForEach([](const Entry&) { return absl::CancelledError("enough"); });
  EXPECT_THAT(stopped, FailsWith(absl::StatusCode::kCancelled, "enough"));
  EXPECT_THAT(mirror->Open(id.substr(0, 10)), FailsWith(absl::StatusCode::kInvalidArgument, "not a commit's id"));
}

// Trees that git itself would not make, but that a repository can hold.
TEST_F(GitMirrorTest, RefusesNamesThatMustNotBeWrittenAndSubmodules) {
  Write("a", "1");
  CommitAll("first", 1);
  const std::string blob = Git("rev-parse HEAD:a");
  // git checks what it writes into trees; the object is put together by hand.
  const auto tree_with = [&](const std::string& mode, const std::string& name, const std::string& id) {
    std::string raw = mode + " " + name + '\0';
    for (size_t i = 0; i < id.size(); i += 2) raw += static_cast<char>(std::stoi(id.substr(i, 2), nullptr, 16));
    std::ofstream(folder_ / "raw", std::ios::binary) << raw;
    return Git("hash-object -t tree --literally -w " + (folder_ / "raw"));
  };
  const std::string inner = tree_with("100644", "config", blob);
  struct Case {
    std::string tree;
    std::string text;
  };
  const std::vector<Case> cases = {{tree_with("100644", "..", blob), ".. is not a name"},
                                   {tree_with("40000", "..", inner), ".. is not a name"},
                                   {tree_with("40000", ".git", inner), ".git would become a git folder"},
                                   {tree_with("40000", ".GiT", inner), ".GiT would become a git folder"},
                                   {tree_with("100644", "a/../../b", blob), "is not a name"},
                                   {tree_with("160000", "vendor", std::string(40, '1')), "vendor is a submodule"}};
  const auto mirror = Mirror();
  for (const Case& each : cases) {
    SCOPED_TRACE(each.text);
    const std::string commit = Git("commit-tree -m x " + each.tree);
    Git("update-ref refs/heads/evil " + commit);
    RB_ASSERT_OK(mirror->Fetch());
    RB_ASSERT_OK_AND_ASSIGN(const auto source, mirror->Open(commit));
    int visited = 0;
    EXPECT_THAT(source->ForEach([&](const Entry&) {
      ++visited;
      return absl::OkStatus();
    }),
                FailsWith(absl::StatusCode::kFailedPrecondition, each.text));
    EXPECT_EQ(visited, 0);
  }
}

TEST_F(GitMirrorTest, FetchesFromARepositoryOfAnotherUser) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root";
  Write("a", "1");
  const std::string id = CommitAll("first", 1);
  for (const auto& entry : std::filesystem::recursive_directory_iterator(upstream_)) {
    ASSERT_EQ(lchown(entry.path().c_str(), 54321, 54321), 0);
  }
  ASSERT_EQ(chown(upstream_.c_str(), 54321, 54321), 0);
  const auto mirror = Mirror();
  RB_ASSERT_OK(mirror->Fetch());
  EXPECT_EQ(mirror->Resolve("main")->id, id);
}

TEST_F(GitMirrorTest, ABadRemoteIsSaid) {
  GitMirror::Options options;
  options.service = "bot";
  options.remote = "https://127.0.0.1:1/none.git";
  options.state_folder = folder_ / "state";
  RB_ASSERT_OK_AND_ASSIGN(const auto mirror, GitMirror::Create(options, SystemClock()));
  EXPECT_THAT(mirror->Fetch(), FailsWith(absl::StatusCode::kUnavailable, "fetching https://127.0.0.1:1/none.git"));
  EXPECT_THAT(mirror->Recent(5), FailsWith(absl::StatusCode::kNotFound, "refs/heads/main"));
}

TEST_F(GitMirrorTest, AClonesHeadAndIndexFollow) {
  Write("a", "1");
  const std::string first = CommitAll("first", 1);
  const std::string clone = folder_ / "clone";
  Git("clone -q . " + clone);
  Write("a", "2");
  Write("sub/b", "2");
  const std::string second = CommitAll("second", 2);
  const auto in_clone = [&](const std::string& command) { return Git("-C " + clone + " " + command); };
  std::ofstream(clone + "/mine") << "untracked";
  GitMirror::Options options;
  options.service = "bot";
  options.remote = "file://" + upstream_;
  options.state_folder = folder_ / "state";
  options.tree = clone;
  RB_ASSERT_OK_AND_ASSIGN(const auto mirror, GitMirror::Create(options, SystemClock()));
  RB_ASSERT_OK(mirror->Fetch());
  // As the engine would: what differs is written; nothing is removed that is not named.
  const auto bring = [&](const std::string& to, const std::string& from) {
    RB_ASSERT_OK_AND_ASSIGN(const auto source, mirror->OpenForTree(to, from));
    for (const Entry& entry : EntriesOf(*source)) {
      std::string content;
      RB_ASSERT_OK(source->Read(entry.content_id, &content));
      EXPECT_EQ(content.size(), entry.size) << entry.path;
      const std::string path = clone + "/" + entry.path;
      std::filesystem::create_directories(std::filesystem::path(path).parent_path());
      std::filesystem::remove(path);
      std::ofstream(path) << content;
    }
  };
  bring(second, first);
  EXPECT_EQ(in_clone("rev-parse HEAD"), second);
  EXPECT_EQ(in_clone("symbolic-ref HEAD"), "refs/heads/main") << "as reset --hard, it stays on its branch";
  EXPECT_EQ(in_clone("status --porcelain"), "?? mine");
  EXPECT_EQ(in_clone("fsck --connectivity-only"), "");
  EXPECT_EQ(in_clone("log --format=%s"), "second\nfirst");

  in_clone("checkout -q --detach");
  std::filesystem::remove_all(clone + "/sub");
  bring(first, second);
  EXPECT_EQ(in_clone("rev-parse HEAD"), first);
  EXPECT_EQ(in_clone("rev-parse main"), second) << "it was on no branch";
  EXPECT_EQ(in_clone("status --porcelain"), "?? mine");
  EXPECT_FALSE(std::filesystem::exists(options.state_folder + "/mirrors/bot.for-clone"));
}

TEST_F(GitMirrorTest, WhatAnEnemyPutsInPlaceOfAGitFolderIsNotFollowed) {
  const std::string tree = folder_ / "tree";
  std::filesystem::create_directories(tree);
  EXPECT_EQ(*CheckedOutFile(tree), "");
  std::filesystem::create_directory_symlink(upstream_ + "/.git", tree + "/.git");
  EXPECT_EQ(*CheckedOutFile(tree), "") << "a link";
  std::filesystem::remove(tree + "/.git");
  std::ofstream(tree + "/.git") << "gitdir: /srv/other";
  EXPECT_EQ(*CheckedOutFile(tree), "") << "a worktree's file";
  std::filesystem::remove(tree + "/.git");
  std::filesystem::create_directory(tree + "/.git");
  ASSERT_EQ(mkfifo((tree + "/.git/HEAD").c_str(), 0600), 0);
  EXPECT_EQ(*CheckedOutFile(tree), "") << "and it does not hang";
  std::filesystem::remove(tree + "/.git/HEAD");
  std::filesystem::create_symlink("/etc/passwd", tree + "/.git/HEAD");
  EXPECT_EQ(*CheckedOutFile(tree), "");
  for (const char* head :
       {"ref: refs/heads/../../../x", "ref: refs/heads//x", "ref: refs/heads/a/.b", "ref: refs/tags/v1",
        "ref: refs/heads/", "ref: refs/heads/x.lock", "ref: refs/heads/a b", "", "0123"}) {
    EXPECT_EQ(CheckedOutFileFrom(head), "HEAD") << head;
  }
  EXPECT_EQ(CheckedOutFileFrom("ref: refs/heads/feature/x-1.2\n"), "refs/heads/feature/x-1.2");
}

}  // namespace
}  // namespace rb::agent

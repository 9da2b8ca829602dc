// What a small change in a large file costs the store. Takes seconds, and much longer under a sanitizer.
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <string>

#include "agent/core/engine/engine.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "common/test_util.h"
#include "common/unique_fd.h"

namespace rb::agent {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// Noise, which does not compress: what is added to the store is then what is new to it.
void WriteNoise(int fd, size_t mib, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string block(kMiB, '\0');
  for (size_t i = 0; i < mib; ++i) {
    for (size_t at = 0; at < block.size(); at += 8) {
      const uint64_t value = random();
      std::memcpy(block.data() + at, &value, 8);
    }
    RB_ASSERT_OK(WriteAll(fd, block, "the large file"));
  }
}

uint64_t StoredBytes(const std::string& packs) {
  uint64_t bytes = 0;
  for (const auto& entry : std::filesystem::directory_iterator(packs)) bytes += entry.file_size();
  return bytes;
}

TEST(LargeFile, OneMegabyteChangedInOneGigabyteAddsAboutOne) {
  const testing::TemporaryFolder folder;
  ServiceTree tree;
  tree.service = "bot";
  tree.tree = folder / "tree";
  std::filesystem::create_directory(tree.tree);
  const UniqueFd fd(open((folder / "tree/large").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600));
  ASSERT_NO_FATAL_FAILURE(WriteNoise(fd.get(), 1024, 1));
  Engine::Options options;
  options.state_folder = folder / "state";
  options.clock = &SystemClock();
  RB_ASSERT_OK_AND_ASSIGN(const std::unique_ptr<Engine> engine, Engine::Open(options, tree));
  RB_ASSERT_OK(engine->Capture({}));
  const uint64_t first = StoredBytes(folder / "state/store/packs");
  EXPECT_GE(first, 1024 * kMiB);
  ASSERT_EQ(lseek(fd.get(), 500 * kMiB + 12345, SEEK_SET), static_cast<off_t>(500 * kMiB + 12345));
  ASSERT_NO_FATAL_FAILURE(WriteNoise(fd.get(), 1, 2));
  RB_ASSERT_OK(engine->Capture({}));
  const uint64_t added = StoredBytes(folder / "state/store/packs") - first;
  std::printf("1 MiB changed in 1 GiB: %.2f MiB added\n", static_cast<double>(added) / kMiB);
  // The megabyte, and what is left of the chunks that it begins and ends in.
  EXPECT_LT(added, 2 * kMiB);
}

}  // namespace
}  // namespace rb::agent

// Trees with everything that a release has to keep, made and damaged at random, and described down to each attribute
// without any of the engine's code. Needs root.
#ifndef RB_TESTS_FIDELITY_RANDOM_TREE_H_
#define RB_TESTS_FIDELITY_RANDOM_TREE_H_

#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "common/unique_fd.h"

namespace rb::testing {

// Throws std::system_error on a failed system call: a test that could not do what it meant to do shows nothing.
class RandomTree {
 public:
  explicit RandomTree(uint64_t seed) : random_(seed) {}
  // Fills an empty folder, and gives it attributes of its own.
  void Fill(const std::string& folder);
  // Changes, removes, adds and replaces about a third of what is there.
  void Damage(const std::string& folder);

 private:
  size_t Below(size_t limit) { return std::uniform_int_distribution<size_t>(0, limit - 1)(random_); }
  bool OneIn(size_t n) { return Below(n) == 0; }
  std::string Name();
  std::string Bytes(size_t size);
  std::string Acl();
  // All of these act on `name` in the open folder `parent`.
  void FillFolder(int folder, size_t depth);
  void AddEntry(int parent, const std::string& name, size_t depth);
  void AddFile(int parent, const std::string& name);
  void AddDeepPath(int parent);
  void Decorate(int parent, const std::string& name);
  void DamageFolder(int folder, size_t depth);
  void DamageEntry(int parent, const std::string& name, size_t depth);

  std::mt19937_64 random_;
  uint64_t names_ = 0;
  std::vector<UniqueFd> linkable_;  // O_PATH: files, links and fifos that may get further names
};

// An ACL as the kernel takes it, which gives `user` the right to read.
std::string AclFor(uint32_t user);

struct DescribedEntry {
  // Every attribute, for people; equal when nothing differs.
  std::string text;
  uint32_t mode = 0;
  uint64_t size = 0;
  uint64_t allocated_bytes = 0;
};
// By path; "" is the folder itself.
std::map<std::string, DescribedEntry> DescribeTree(const std::string& folder);

}  // namespace rb::testing

#endif  // RB_TESTS_FIDELITY_RANDOM_TREE_H_

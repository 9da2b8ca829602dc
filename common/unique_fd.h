#ifndef RB_COMMON_UNIQUE_FD_H_
#define RB_COMMON_UNIQUE_FD_H_

#include <utility>

namespace rb {

// Owns a file descriptor; closes it. -1 is "none". Errors of close are lost: fsync first where they matter.
class UniqueFd {
 public:
  UniqueFd() = default;
  explicit UniqueFd(int fd) : fd_(fd) {}
  UniqueFd(UniqueFd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  UniqueFd& operator=(UniqueFd&& other) noexcept {
    if (this != &other) Reset(std::exchange(other.fd_, -1));
    return *this;
  }
  ~UniqueFd() { Reset(); }

  int get() const { return fd_; }
  bool valid() const { return fd_ >= 0; }
  // The caller closes it.
  int Release() { return std::exchange(fd_, -1); }
  void Reset(int fd = -1);

 private:
  int fd_ = -1;
};

}  // namespace rb

#endif  // RB_COMMON_UNIQUE_FD_H_

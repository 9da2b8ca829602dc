// For tests only.
#ifndef RB_COMMON_TEST_UTIL_H_
#define RB_COMMON_TEST_UTIL_H_

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace rb::testing {

inline absl::Status ToStatus(const absl::Status& status) { return status; }
template <typename T>
absl::Status ToStatus(const absl::StatusOr<T>& status_or) {
  return status_or.status();
}

MATCHER(IsOk, negation ? "is not OK" : "is OK") {
  const absl::Status status = ToStatus(arg);
  *result_listener << status.ToString();
  return status.ok();
}
// The status has this code and its message contains the text.
MATCHER_P2(FailsWith, code, text, "") {
  const absl::Status status = ToStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code && status.ToString().find(text) != std::string::npos;
}

#define RB_ASSERT_OK(expression) ASSERT_THAT((expression), ::rb::testing::IsOk())
#define RB_EXPECT_OK(expression) EXPECT_THAT((expression), ::rb::testing::IsOk())
#define RB_ASSERT_OK_AND_ASSIGN(declaration, expression) \
  RB_ASSERT_OK_AND_ASSIGN_IMPL(RB_TEST_CONCAT(rb_test_value_, __LINE__), declaration, expression)
#define RB_TEST_CONCAT(a, b) RB_TEST_CONCAT_INNER(a, b)
#define RB_TEST_CONCAT_INNER(a, b) a##b
#define RB_ASSERT_OK_AND_ASSIGN_IMPL(temporary, declaration, expression) \
  auto temporary = (expression);                                         \
  ASSERT_THAT(temporary, ::rb::testing::IsOk());                         \
  declaration = *std::move(temporary)

// A fresh folder under $TMPDIR (or /var/tmp, which is a real filesystem on most machines), removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    const char* base = std::getenv("TMPDIR");
    std::string pattern = std::string(base != nullptr ? base : "/var/tmp") + "/rb-test-XXXXXX";
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace rb::testing

#endif  // RB_COMMON_TEST_UTIL_H_

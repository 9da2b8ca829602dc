# The headers that most files include and that take longest to read. Used by the presets that build with clang.
add_compile_options(-pthread)  # one set of options for all that share them
file(WRITE ${PROJECT_BINARY_DIR}/precompiled.cc "")
add_library(rb_precompiled STATIC ${PROJECT_BINARY_DIR}/precompiled.cc)
target_link_libraries(rb_precompiled PRIVATE rb_warnings absl::strings absl::statusor absl::time)
set(headers
  <algorithm> <filesystem> <fstream> <functional> <map> <memory> <optional> <set> <string> <utility> <vector>
  <absl/status/statusor.h> <absl/strings/match.h> <absl/strings/str_cat.h> <absl/strings/str_join.h>
  <absl/strings/str_split.h> <absl/time/time.h>)
if(RB_BUILD_TESTS)
  list(APPEND headers <gmock/gmock.h> <gtest/gtest.h>)
  target_link_libraries(rb_precompiled PRIVATE GTest::gmock GTest::gtest)
endif()
if(NOT RB_CORE_ONLY)
  list(APPEND headers <grpcpp/grpcpp.h> <nlohmann/json.hpp>)
  target_link_libraries(rb_precompiled PRIVATE gRPC::grpc++ nlohmann_json::nlohmann_json)
endif()
target_precompile_headers(rb_precompiled PRIVATE ${headers})

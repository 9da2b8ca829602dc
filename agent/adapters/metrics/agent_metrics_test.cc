#include "agent/adapters/metrics/agent_metrics.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <regex>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "common/durable_file.h"
#include "common/test_util.h"

namespace rb::agent {
namespace {

using ::rb::testing::FailsWith;
using ::rb::testing::TemporaryFolder;
using ::testing::HasSubstr;

std::string Scrape(const std::string& address) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  int port = 0;
  EXPECT_TRUE(absl::SimpleAtoi(address.substr(address.rfind(':') + 1), &port));
  to.sin_port = htons(static_cast<uint16_t>(port));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
  const std::string request = "GET /metrics HTTP/1.0\r\n\r\n";
  EXPECT_EQ(write(fd, request.data(), request.size()), static_cast<ssize_t>(request.size()));
  std::string text;
  char buffer[4096];
  for (ssize_t n = 0; (n = read(fd, buffer, sizeof buffer)) > 0;) text.append(buffer, static_cast<size_t>(n));
  close(fd);
  return text;
}

TEST(AgentMetrics, ServesWhatItWasToldOnTheAddressThatItWrote) {
  TemporaryFolder folder;
  RB_ASSERT_OK_AND_ASSIGN(const auto metrics, AgentMetrics::Create({"127.0.0.1:0", "", "", ""}, folder.path()));
  EXPECT_EQ(ReadFile(folder / "metrics.address").value_or(""), metrics->address() + "\n");
  EXPECT_NE(metrics->address(), "127.0.0.1:0");
  metrics->OnRecovery("bot", "backup", "kept", absl::Milliseconds(400));
  metrics->OnRecovery("bot", "reason: a secret", "kept", absl::Seconds(-1));
  metrics->OnReleaseProved("bot", absl::FromUnixSeconds(1795403647));
  metrics->OnBackup("bot", absl::FromUnixSeconds(1795403648));
  metrics->SetReleases("bot", Standing::kGood, 3);
  metrics->SetProbe("bot", "http", true);
  metrics->SetProbe("bot", "sqlite", false);
  metrics->SetLinkConnected(true, absl::FromUnixSeconds(1795403649));
  metrics->SetStore(500, 2000);
  metrics->SetDrifted("bot", false);
  metrics->SetQueueDepth([] { return size_t{7}; });
  metrics->OnStep("commit", true);
  metrics->OnStep("commit", true);
  metrics->OnStep("verify", false);
  const std::string text = Scrape(metrics->address());
  EXPECT_THAT(
      text, HasSubstr("rb_downtime_seconds_bucket{method=\"backup\",outcome=\"kept\",service=\"bot\",le=\"0.5\"} 1\n"));
  EXPECT_THAT(
      text,
      HasSubstr("rb_downtime_seconds_bucket{method=\"backup\",outcome=\"kept\",service=\"bot\",le=\"0.25\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("rb_downtime_seconds_count{method=\"other\",outcome=\"kept\",service=\"bot\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_release_last_proved_timestamp_seconds{service=\"bot\"} 1795403647"));
  EXPECT_THAT(text, HasSubstr("rb_backup_last_success_timestamp_seconds{service=\"bot\"} 1795403648"));
  EXPECT_THAT(text, HasSubstr("rb_releases{service=\"bot\",standing=\"good\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("rb_probe_passed{probe=\"http\",service=\"bot\"} 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_probe_passed{probe=\"sqlite\",service=\"bot\"} 0\n"));
  EXPECT_THAT(text, HasSubstr("rb_agent_link_connected 1\n"));
  EXPECT_THAT(text, HasSubstr("rb_store_dedup_ratio 4\n"));
  EXPECT_THAT(text, HasSubstr("rb_agent_queue_depth{queue=\"loop\"} 7\n"));
  EXPECT_THAT(text, HasSubstr("rb_steps_total{kind=\"commit\",result=\"ok\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("rb_steps_total{kind=\"verify\",result=\"error\"} 1\n"));
}

TEST(AgentMetrics, IsServedOnLoopbackOnly) {
  TemporaryFolder folder;
  for (const char* address : {"0.0.0.0:0", "8080", ":8080", "10.0.0.1:9", "127.evil.example:9", "[::]:0",
                              "+127.0.0.1:0", "127.0.0.1,0.0.0.0:0", ""}) {
    EXPECT_THAT(AgentMetrics::Create({address, "", "", ""}, folder.path()),
                FailsWith(absl::StatusCode::kInvalidArgument, "address"))
        << address;
  }
}

TEST(AgentMetrics, SaysWhenThePortIsTaken) {
  TemporaryFolder folder;
  RB_ASSERT_OK_AND_ASSIGN(const auto metrics, AgentMetrics::Create({"127.0.0.1:0", "", "", ""}, folder.path()));
  EXPECT_THAT(AgentMetrics::Create({metrics->address(), "", "", ""}, folder.path()),
              FailsWith(absl::StatusCode::kUnavailable, "cannot be served"));
}

}  // namespace
}  // namespace rb::agent

// Streams that break at any moment while the agent sends on them, again and again. What goes wrong there is memory that
// is used after its end: the sanitizers' run is the one that sees it for certain.
#include "agent/adapters/link/agent_link.h"

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/adapters/identity.h"
#include "common/clock.h"
#include "common/durable_file.h"
#include "common/event_loop.h"
#include "common/mutex.h"
#include "common/test_util.h"
#include "controller/adapters/certificates.h"
#include "rb/v1/agent_link.grpc.pb.h"

namespace rb {
namespace {

constexpr int kLinks = 16;
constexpr int kStreams = 400;
constexpr absl::Duration kPatience = absl::Seconds(60);

// Greets, takes a few messages, and hangs up.
class Fickle final : public v1::AgentLink::CallbackService {
 public:
  grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse>* Connect(grpc::CallbackServerContext*) override {
    return new Session(streams_++ % 4);
  }
  int streams() const { return streams_; }

 private:
  class Session final : public grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
   public:
    explicit Session(int messages) : left_(messages) {
      welcome_.mutable_welcome()->set_protocol_version(1);
      StartWrite(&welcome_);
      StartRead(&incoming_);
    }
    void OnReadDone(bool ok) override {
      if (!ok || left_-- == 0) {
        Finish(grpc::Status(grpc::StatusCode::UNAVAILABLE, "enough"));
        return;
      }
      StartRead(&incoming_);
    }
    void OnDone() override { delete this; }

   private:
    int left_;
    v1::ConnectRequest incoming_;
    v1::ConnectResponse welcome_;
  };
  std::atomic<int> streams_{0};
};

TEST(AgentLink, StreamsBreakWhileItSends) {
  testing::TemporaryFolder folder;
  RB_ASSERT_OK_AND_ASSIGN(const controller::KeyAndCertificate authority,
                          controller::MakeAuthority(SystemClock().Now()));
  RB_ASSERT_OK_AND_ASSIGN(const controller::KeyAndCertificate server_key,
                          controller::MakeServerCertificate(authority, {"127.0.0.1"}, SystemClock().Now()));
  RB_ASSERT_OK_AND_ASSIGN(const std::string key, NewPrivateKeyPem());
  RB_ASSERT_OK_AND_ASSIGN(const std::string request, NewCertificateRequestPem(key, "h1"));
  RB_ASSERT_OK_AND_ASSIGN(const std::string certificate,
                          controller::SignClientRequest(authority, request, "rb://agent/h1", SystemClock().Now()));
  grpc::SslServerCredentialsOptions tls(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  tls.pem_root_certs = authority.certificate_pem;
  tls.pem_key_cert_pairs.push_back({server_key.key_pem, server_key.certificate_pem});
  Fickle service;
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(tls), &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  ASSERT_NE(server, nullptr);
  for (const auto& [name, content] :
       {std::make_pair("ca.crt", authority.certificate_pem), std::make_pair("agent.key", key),
        std::make_pair("agent.crt", certificate), std::make_pair("controller", absl::StrCat("127.0.0.1:", port))}) {
    RB_ASSERT_OK(WriteFileDurably(folder / name, content));
  }

  EventLoop loop(SystemClock(), 100'000);
  std::vector<std::unique_ptr<agent::AgentLinkClient>> links;
  std::vector<int> closed(kLinks, 0);
  for (int i = 0; i < kLinks; ++i) {
    agent::AgentLinkClient::Handlers handlers;
    handlers.on_open = [](const v1::Welcome&) {};
    handlers.on_close = [&closed, i] { ++closed[static_cast<size_t>(i)]; };
    handlers.on_message = [](const v1::ConnectResponse&) {};
    RB_ASSERT_OK_AND_ASSIGN(auto link, agent::AgentLinkClient::Create(folder.path(), loop, SystemClock(), v1::Hello(),
                                                                      std::move(handlers)));
    links.push_back(std::move(link));
  }
  // All the time, whatever state the streams are in.
  uint64_t sent = 0;
  const std::function<void()> send = [&] {
    v1::ConnectRequest message;
    message.mutable_task_progress()->set_step_id("s");
    for (const auto& link : links) sent += link->Send(message) ? 1 : 0;
    loop.PostAt(SystemClock().Monotonic() + absl::Microseconds(50), send);
  };
  ASSERT_TRUE(loop.Post([&] {
    for (const auto& link : links) link->Start();
    send();
  }));
  loop.Start();
  const absl::Duration until = SystemClock().Monotonic() + kPatience;
  while (service.streams() < kStreams && SystemClock().Monotonic() < until) absl::SleepFor(absl::Milliseconds(5));
  loop.Stop();
  for (const auto& link : links) link->Stop();
  server->Shutdown(absl::ToChronoTime(SystemClock().Now()));
  EXPECT_GE(service.streams(), kStreams);
  EXPECT_GT(sent, 0u);
  // None is left behind: each dials again when its stream has ended.
  for (const int times : closed) EXPECT_GE(times, kStreams / kLinks / 4);
}

}  // namespace
}  // namespace rb

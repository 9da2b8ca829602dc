// The parts of tests/bench/fleet that have to be many and quick: identities for thousands of agents, those agents in
// one process (the real link, a fake tree), and a bare gRPC fan-out of the same size to compare with.
#include <grpcpp/grpcpp.h>
#include <sys/resource.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "agent/adapters/link/agent_link.h"
#include "agent/adapters/link/wire.h"
#include "agent/core/task/task.h"
#include "common/adapters/identity.h"
#include "common/adapters/link_transport.h"
#include "common/adapters/proto_time.h"
#include "common/clock.h"
#include "common/event_loop.h"
#include "common/mutex.h"
#include "common/status.h"
#include "controller/adapters/certificates.h"
#include "controller/adapters/store.h"
#include "google/protobuf/arena.h"
#include "rb/v1/agent_link.grpc.pb.h"
#include "rb/v1/fleet_service.pb.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/client/identity.h"

namespace rb::bench {
namespace {

constexpr char kService[] = "bench";
constexpr absl::Duration kReportInterval = absl::Seconds(30);
// A service that has just been started is asked: no verdict comes among the answers to the commits.
constexpr absl::Duration kVerificationTakes = absl::Milliseconds(300);

struct Options {
  std::string controller;  // its --dir
  std::string identities;
  std::string operator_identity;
  std::string address;
  std::string operation;
  int agents = 2000;
  int rounds = 5;
  bool tuned = false;
};

std::string NameOf(int number) { return absl::StrCat("host-", number); }

std::string Read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream content;
  content << file.rdbuf();
  return content.str();
}

void Write(const std::string& path, const std::string& content) { std::ofstream(path, std::ios::binary) << content; }

// As `rb-controller token` and `rb-agent join` leave them, without a flush to the disk for each. One key for all.
absl::Status MakeIdentities(const Options& options) {
  controller::KeyAndCertificate authority;
  authority.key_pem = Read(options.controller + "/pki/ca.key");
  authority.certificate_pem = Read(options.controller + "/pki/ca.crt");
  RB_ASSIGN_OR_RETURN(const std::string key, NewPrivateKeyPem());
  RB_ASSIGN_OR_RETURN(const std::string request, NewCertificateRequestPem(key, "bench"));
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<controller::Store> store,
                      controller::Store::Open(options.controller + "/controller.db"));
  for (int i = 0; i < options.agents; ++i) {
    const std::string folder = absl::StrCat(options.identities, "/", i);
    std::filesystem::create_directories(folder);
    RB_ASSIGN_OR_RETURN(
        const std::string certificate,
        controller::SignClientRequest(authority, request, absl::StrCat("rb://agent/", NameOf(i)), SystemClock().Now()));
    Write(folder + "/agent.key", key);
    Write(folder + "/agent.crt", certificate);
    Write(folder + "/ca.crt", authority.certificate_pem);
    Write(folder + "/controller", options.address);
    RB_RETURN_IF_ERROR(store->PutPrincipal({NameOf(i), controller::Role::kAgent}));
  }
  return absl::OkStatus();
}

// ---- agents

agent::Release FakeRelease(const std::string& version) {
  agent::Release release;
  release.name = absl::StrCat(kService, "/2026-11-23T03-14-07Z-", version, "-abc123f");
  release.manifest_digest = std::string(64, version.back());
  release.commit = std::string(40, version.back());
  release.version = version;
  release.durability = agent::Durability::kProved;
  release.standing = agent::Standing::kGood;
  release.captured_at = absl::FromUnixSeconds(1'800'000'000);
  release.last_proved_at = absl::FromUnixSeconds(1'800'000'100);
  return release;
}

std::vector<agent::ProbeResult> FakeProbes() {
  std::vector<agent::ProbeResult> probes;
  for (const char* kind : {"unit", "http", "log", "version", "sqlite"}) {
    agent::ProbeResult probe;
    probe.name = probe.kind = kind;
    probe.passed = true;
    probe.observed = "as expected";
    probe.took = absl::Milliseconds(3);
    probes.push_back(std::move(probe));
  }
  return probes;
}

// Does at once what a tree would take its time for; only the verification is not answered at once.
agent::TaskResult RunFake(const agent::Task& task) {
  agent::TaskResult result;
  result.operation_id = task.operation_id;
  result.step_id = task.step_id;
  result.service = task.service;
  result.from_commit = std::string(40, '2');
  result.from_version = "v2";
  if (std::holds_alternative<agent::InspectStep>(task.step)) {
    const std::string& target = std::get<agent::InspectStep>(task.step).target.name;
    agent::Candidate candidate;
    candidate.release = FakeRelease(target == "v2" ? "v2" : "v1");
    candidate.already_there = target == "v2";
    candidate.commit = candidate.release.commit;
    candidate.version = candidate.release.version;
    candidate.delta.files_changed = 12;
    result.candidates.push_back(std::move(candidate));
    result.verdict = agent::Verdict::kHealthy;
    result.probes = FakeProbes();
  } else if (std::holds_alternative<agent::PrepareStep>(task.step)) {
    result.state = agent::HostState::kPrepared;
    result.release = FakeRelease("v2");
    result.times.prepare = absl::Milliseconds(120);
  } else if (std::holds_alternative<agent::CommitStep>(task.step)) {
    result.state = agent::HostState::kCommitted;
    result.times.stop = result.times.swap = result.times.start = absl::Milliseconds(10);
  } else if (std::holds_alternative<agent::VerifyStep>(task.step)) {
    result.state = agent::HostState::kCommitted;
    result.verdict = agent::Verdict::kHealthy;
    result.probes = FakeProbes();
    result.times.downtime = absl::Milliseconds(60);
  } else if (std::holds_alternative<agent::RevertStep>(task.step)) {
    result.state = agent::HostState::kReverted;
    result.verdict = agent::Verdict::kHealthy;
  } else if (std::holds_alternative<agent::KeepStep>(task.step)) {
    result.state = agent::HostState::kKept;
    result.release = FakeRelease("v1");
  }
  return result;
}

class Agents {
 public:
  explicit Agents(const Options& options) : options_(options), loop_(SystemClock(), 100'000) {}

  absl::Status Run() {
    for (int i = 0; i < options_.agents; ++i) {
      v1::Hello hello;
      hello.set_program_version("bench");
      hello.set_protocol_version(1);
      hello.add_services(kService);
      hello.set_process_id(absl::StrCat(i));
      agent::AgentLinkClient::Handlers handlers;
      handlers.on_open = [this, i](const v1::Welcome&) {
        if (!open_[i]) std::printf("open %d\n", ++opened_);
        std::fflush(stdout);
        open_[i] = true;
        Report(i);
      };
      handlers.on_close = [this] { ++closed_; };
      handlers.on_message = [this, i](const v1::ConnectResponse& message) { Take(i, message); };
      RB_ASSIGN_OR_RETURN(
          auto link, agent::AgentLinkClient::Create(absl::StrCat(options_.identities, "/", i), loop_, SystemClock(),
                                                    std::move(hello), std::move(handlers)));
      links_.push_back(std::move(link));
    }
    for (size_t i = 0; i < links_.size(); ++i) {
      // Not all within the same millisecond: that would be another benchmark.
      loop_.PostAt(SystemClock().Monotonic() + absl::Milliseconds(2) * i, [this, i] { links_[i]->Start(); });
    }
    loop_.Start();
    // Until whoever started it closes the pipe.
    char byte = 0;
    while (read(STDIN_FILENO, &byte, 1) > 0) {
    }
    loop_.Stop();
    std::printf("closed %d\n", closed_);
    for (auto& link : links_) link->Stop();
    return absl::OkStatus();
  }

 private:
  void Take(int number, const v1::ConnectResponse& message) {
    if (!message.has_task()) return;
    const absl::StatusOr<agent::Task> task = agent::FromWire(message.task());
    if (!task.ok()) return;
    v1::ConnectRequest answer;
    *answer.mutable_task_result() = Answer(*task);
    const auto* commit = std::get_if<agent::CommitStep>(&task->step);
    if (commit != nullptr) answer.mutable_task_result()->set_began_step_id(commit->next_step_id);
    links_[static_cast<size_t>(number)]->Send(std::move(answer));
    if (commit == nullptr) return;
    // As agent/core/task/agent_state.cc does it.
    agent::Task verification = *task;
    verification.step_id = commit->next_step_id;
    verification.step = agent::VerifyStep();
    loop_.PostAt(SystemClock().Monotonic() + kVerificationTakes, [this, number, verification] {
      v1::ConnectRequest verdict;
      *verdict.mutable_task_result() = Answer(verification);
      links_[static_cast<size_t>(number)]->Send(std::move(verdict));
    });
  }

  // Made once for each kind of step: on real hosts this is not work of one machine.
  v1::TaskResult Answer(const agent::Task& task) {
    const auto* inspection = std::get_if<agent::InspectStep>(&task.step);
    const auto [made, is_new] =
        answers_.try_emplace({task.step.index(), inspection == nullptr ? "" : inspection->target.name});
    if (is_new) made->second = agent::ToWire(RunFake(task));
    v1::TaskResult answer = made->second;
    answer.set_operation_id(task.operation_id);
    answer.set_step_id(task.step_id);
    return answer;
  }

  // As often, and about as long, as a real one's.
  void Report(int number) {
    v1::ConnectRequest message;
    v1::ServiceReport* report = message.mutable_service_report();
    report->set_service(kService);
    for (const char* version : {"v2", "v1", "v0"}) *report->add_releases() = agent::ToWire(FakeRelease(version));
    report->set_current_release(report->releases(0).name());
    report->set_current_commit(report->releases(0).commit());
    report->set_current_version("v2");
    report->set_verdict(v1::VERDICT_HEALTHY);
    for (const agent::ProbeResult& probe : FakeProbes()) *report->add_probes() = agent::ToWire(probe);
    *report->mutable_reported_at() = ToProto(SystemClock().Now());
    report->set_tree("/opt/bench");
    links_[static_cast<size_t>(number)]->Send(std::move(message));
    if (!reports_[number]) {
      reports_[number] = true;
      loop_.PostAt(SystemClock().Monotonic() + kReportInterval, [this, number] {
        reports_[number] = false;
        Report(number);
      });
    }
  }

  const Options& options_;
  EventLoop loop_;
  std::vector<std::unique_ptr<agent::AgentLinkClient>> links_;
  std::map<std::pair<size_t, std::string>, v1::TaskResult> answers_;
  std::map<int, bool> open_;
  std::map<int, bool> reports_;
  int opened_ = 0;
  int closed_ = 0;
};

// ---- bare: one server, N channels, a command of 200 bytes to all, an answer from each; with what gRPC does by itself,
// or with the transport of our link (--tuned)

class BareServer final : public v1::AgentLink::CallbackService {
 public:
  explicit BareServer(int agents) : agents_(agents) {}

  class Session final : public grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
   public:
    explicit Session(BareServer* server) : server_(server) { StartRead(&incoming_); }
    void Command(const std::string& text) {
      command_.mutable_cancel_task()->set_step_id(text);
      StartWrite(&command_);
    }
    void OnReadDone(bool ok) override {
      if (!ok) {
        Finish(grpc::Status::OK);
        return;
      }
      server_->Answered(incoming_.has_hello() ? this : nullptr);
      StartRead(&incoming_);
    }
    void OnDone() override { delete this; }

   private:
    BareServer* const server_;
    v1::ConnectRequest incoming_;
    v1::ConnectResponse command_;
  };

  grpc::ServerBidiReactor<v1::ConnectRequest, v1::ConnectResponse>* Connect(grpc::CallbackServerContext*) override {
    return new Session(this);
  }

  void Answered(Session* is_new) {
    MutexLock lock(mutex_);
    if (is_new != nullptr) sessions_.push_back(is_new);
    answers_.push_back(SystemClock().Monotonic() - began_);
    if (static_cast<int>(answers_.size()) >= agents_) changed_.NotifyAll();
  }

  void WaitForAll() {
    MutexLock lock(mutex_);
    while (static_cast<int>(answers_.size()) < agents_) changed_.Wait(mutex_);
  }

  // Seconds, sorted.
  std::vector<double> Round() {
    const std::string text(190, 'x');
    std::vector<Session*> sessions;
    {
      MutexLock lock(mutex_);
      answers_.clear();
      sessions = sessions_;
      began_ = SystemClock().Monotonic();
    }
    for (Session* session : sessions) session->Command(text);
    WaitForAll();
    MutexLock lock(mutex_);
    std::vector<double> seconds;
    for (const absl::Duration answer : answers_) seconds.push_back(absl::ToDoubleSeconds(answer));
    std::sort(seconds.begin(), seconds.end());
    return seconds;
  }

 private:
  const int agents_;
  Mutex mutex_;
  CondVar changed_;
  absl::Duration began_ ABSL_GUARDED_BY(mutex_);
  std::vector<absl::Duration> answers_ ABSL_GUARDED_BY(mutex_);
  std::vector<Session*> sessions_ ABSL_GUARDED_BY(mutex_);
};

absl::Status RunBareServer(const Options& options) {
  BareServer service(options.agents);
  grpc::SslServerCredentialsOptions tls(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  tls.pem_root_certs = Read(options.controller + "/pki/ca.crt");
  tls.pem_key_cert_pairs.push_back(
      {Read(options.controller + "/pki/server.key"), Read(options.controller + "/pki/server.crt")});
  grpc::ServerBuilder builder;
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::SslServerCredentials(tls), &port);
  builder.RegisterService(&service);
  if (options.tuned) SetLinkTransport(&builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return absl::UnavailableError("the bare server cannot listen");
  std::printf("port %d\n", port);
  std::fflush(stdout);
  service.WaitForAll();
  std::printf("connected\n");
  std::fflush(stdout);
  // One round each time that a line comes.
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
    const std::vector<double> seconds = service.Round();
    std::printf("round p50 %.6f p99 %.6f\n", seconds[seconds.size() / 2], seconds[seconds.size() * 99 / 100]);
    std::fflush(stdout);
  }
  _exit(0);
}

class BareAgent final : public grpc::ClientBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
 public:
  explicit BareAgent(std::shared_ptr<grpc::Channel> channel)
      : channel_(std::move(channel)), stub_(v1::AgentLink::NewStub(channel_)) {
    stub_->async()->Connect(&context_, this);
    answer_.mutable_hello()->set_protocol_version(1);
    StartWrite(&answer_);
    StartRead(&incoming_);
    StartCall();
  }
  void OnReadDone(bool ok) override {
    if (!ok) return;
    answer_.mutable_task_progress()->set_step_id(incoming_.cancel_task().step_id());
    StartWrite(&answer_);
    StartRead(&incoming_);
  }
  void OnDone(const grpc::Status&) override {}

 private:
  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::AgentLink::Stub> stub_;
  grpc::ClientContext context_;
  v1::ConnectResponse incoming_;
  v1::ConnectRequest answer_;
};

absl::Status RunBareAgents(const Options& options) {
  std::vector<std::unique_ptr<BareAgent>> agents;
  for (int i = 0; i < options.agents; ++i) {
    const std::string folder = absl::StrCat(options.identities, "/", i);
    grpc::SslCredentialsOptions tls;
    tls.pem_root_certs = Read(folder + "/ca.crt");
    tls.pem_private_key = Read(folder + "/agent.key");
    tls.pem_cert_chain = Read(folder + "/agent.crt");
    grpc::ChannelArguments arguments;
    if (options.tuned) SetLinkTransport(&arguments);
    agents.push_back(
        std::make_unique<BareAgent>(grpc::CreateCustomChannel(options.address, grpc::SslCredentials(tls), arguments)));
    absl::SleepFor(absl::Milliseconds(2));
  }
  char byte = 0;
  while (read(STDIN_FILENO, &byte, 1) > 0) {
  }
  _exit(0);
}

// ---- an operator who asks for the history, with rbctl's client

absl::Status List(const Options& options) {
  RB_ASSIGN_OR_RETURN(const cli::Identity identity, cli::LoadIdentity(options.operator_identity, options.address));
  cli::FleetClient client(identity, {});
  for (const uint32_t size : {50u, 10'000u}) {
    for (int round = 0; round < options.rounds; ++round) {
      google::protobuf::Arena arena;
      const absl::Duration began = SystemClock().Monotonic();
      RB_ASSIGN_OR_RETURN(const v1::ListOperationsResponse* listed, client.List("", "", size, &arena));
      std::printf("list %d %.6f\n", listed->operations_size(),
                  absl::ToDoubleSeconds(SystemClock().Monotonic() - began));
    }
  }
  return absl::OkStatus();
}

// An operation's history, with its times as they were taken.
absl::Status Timeline(const Options& options) {
  RB_ASSIGN_OR_RETURN(const cli::Identity identity, cli::LoadIdentity(options.operator_identity, options.address));
  cli::FleetClient client(identity, {});
  RB_ASSIGN_OR_RETURN(const v1::GetOperationResponse response, client.Get(options.operation));
  for (const v1::OperationEvent& event : response.events()) {
    std::printf("%lld.%09d\t%s\t%s\n", static_cast<long long>(event.at().seconds()), event.at().nanos(),
                event.host().c_str(), event.text().c_str());
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  rlimit files{};
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  Options options;
  CLI::App app("Parts of tests/bench/run fleet");
  app.require_subcommand(1);
  app.add_option("--dir", options.controller);
  app.add_option("--identities", options.identities);
  app.add_option("--operator", options.operator_identity);
  app.add_option("--address", options.address);
  app.add_option("--operation", options.operation);
  app.add_option("--agents", options.agents);
  app.add_option("--rounds", options.rounds);
  app.add_flag("--tuned", options.tuned);
  absl::Status status;
  const auto add = [&](const char* name, absl::Status (*run)(const Options&)) {
    app.add_subcommand(name, "")->fallthrough()->final_callback([&status, &options, run] { status = run(options); });
  };
  add("identities", MakeIdentities);
  add("agents", [](const Options& all) { return Agents(all).Run(); });
  add("bare-server", RunBareServer);
  add("bare-agents", RunBareAgents);
  add("list", List);
  add("timeline", Timeline);
  CLI11_PARSE(app, argc, argv);
  if (!status.ok()) std::fprintf(stderr, "rb_bench_fleet: %s\n", std::string(status.message()).c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace rb::bench

int main(int argc, char** argv) {
  // As rb-controller does: both sides of the comparison are without it.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return rb::bench::Main(argc, argv);
}

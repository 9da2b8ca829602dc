// rb-controller: knows what and when. Keeps the fleet file, the operations and their history; agents dial in.
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/clock.h"
#include "common/adapters/identity.h"
#include "common/adapters/link_transport.h"
#include "common/clock.h"
#include "common/digest.h"
#include "common/durable_file.h"
#include "common/ids.h"
#include "common/log.h"
#include "common/status.h"
#include "controller/adapters/agent_link.h"
#include "controller/adapters/api_gate.h"
#include "controller/adapters/audit_log.h"
#include "controller/adapters/certificates.h"
#include "controller/adapters/ci/make_ci.h"
#include "controller/adapters/doctor_api.h"
#include "controller/adapters/drill_api.h"
#include "controller/adapters/drill_store.h"
#include "controller/adapters/drills.h"
#include "controller/adapters/driver.h"
#include "controller/adapters/enrollment.h"
#include "controller/adapters/fleet_api.h"
#include "controller/adapters/fleet_config.h"
#include "controller/adapters/folder_owner.h"
#include "controller/adapters/metrics.h"
#include "controller/adapters/notify/notifier.h"
#include "controller/adapters/notify/sender.h"
#include "controller/adapters/peer.h"
#include "controller/adapters/quarantine_api.h"
#include "controller/adapters/schedules.h"
#include "controller/adapters/store.h"

namespace rb::controller {
namespace {

constexpr size_t kLoopCapacity = 20000;

struct Options {
  std::string folder = "/var/lib/rb-controller";
  std::string fleet = "/etc/rb/fleet.yaml";
  std::string listen = "0.0.0.0:7443";
  std::string join_listen = "0.0.0.0:7444";
  std::string metrics = "127.0.0.1:9464";
  std::vector<std::string> advertise;
  std::string name;  // of an operator or agent
  std::string role = "operator";
  std::string out;
  std::string ttl = "1h";
  std::string join_address;
  std::string link_address;
  std::string expected_hash;
};

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "rb-controller: %s\n", std::string(status.message()).c_str());
  return 1;
}

absl::StatusOr<KeyAndCertificate> LoadAuthority(const std::string& folder) {
  KeyAndCertificate authority;
  absl::StatusOr<std::string> key = ReadFile(folder + "/pki/ca.key");
  absl::StatusOr<std::string> certificate = ReadFile(folder + "/pki/ca.crt");
  if (!key.ok() || !certificate.ok()) {
    return absl::NotFoundError(absl::StrCat(folder, " holds no controller. Make one: rb-controller init --dir ", folder,
                                            " --advertise HOST --admin NAME --out FOLDER"));
  }
  authority.key_pem = *std::move(key);
  authority.certificate_pem = *std::move(certificate);
  return authority;
}

// The address that clients use: what was advertised, with the port that is really served.
std::string AddressFor(const std::string& folder, const std::string& file) {
  const absl::StatusOr<std::string> address = ReadFile(absl::StrCat(folder, "/", file));
  return address.ok() ? std::string(absl::StripAsciiWhitespace(*address)) : "";
}

// What is typed here is on record as well; first, so that nothing is done that is not.
absl::Status RecordLocal(Store& store, const std::string& request, const std::string& subject) {
  return AuditLog(store, SystemClock()).RecordLocal(request, subject);
}

absl::Status WriteOperator(const Options& options, const KeyAndCertificate& authority, const std::string& name,
                           Role role) {
  if (!IsValidName(name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", name,
                                                   "' is not a name: 1 to 63 of a-z, 0-9, '-', '_' and '.'. "
                                                   "Nothing was changed"));
  }
  if (ActAsCaller caller; ReadFile(options.out + "/operator.key").ok()) {
    return absl::AlreadyExistsError(absl::StrCat(options.out, " holds an identity already. Nothing was changed"));
  }
  RB_ASSIGN_OR_RETURN(const std::string key, NewPrivateKeyPem());
  RB_ASSIGN_OR_RETURN(const std::string request, NewCertificateRequestPem(key, name));
  RB_ASSIGN_OR_RETURN(const std::string certificate,
                      SignClientRequest(authority, request, absl::StrCat("rb://operator/", name), absl::Now()));
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(options.folder + "/controller.db"));
  const std::string address = AddressFor(options.folder, "link.address");
  {
    ActAsCaller caller;
    RB_RETURN_IF_ERROR(MakeFolders(options.out, 0700));
    RB_RETURN_IF_ERROR(WriteFileDurably(options.out + "/operator.key", key, 0600));
    RB_RETURN_IF_ERROR(WriteFileDurably(options.out + "/operator.crt", certificate, 0644));
    RB_RETURN_IF_ERROR(WriteFileDurably(options.out + "/ca.crt", authority.certificate_pem, 0644));
    RB_RETURN_IF_ERROR(WriteFileDurably(options.out + "/controller", address + "\n", 0644));
  }
  RB_RETURN_IF_ERROR(RecordLocal(*store, "operator add", absl::StrCat(name, " as ", std::string(NameOf(role)))));
  return store->PutPrincipal({name, role});
}

absl::Status Init(const Options& options) {
  if (LoadAuthority(options.folder).ok()) {
    return absl::AlreadyExistsError(absl::StrCat(options.folder, " holds a controller already. Nothing was changed"));
  }
  if (!IsValidName(options.name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", options.name, "' is not a name"));
  }
  RB_RETURN_IF_ERROR(MakeFolders(options.folder + "/pki", 0700));
  RB_ASSIGN_OR_RETURN(const KeyAndCertificate authority, MakeAuthority(absl::Now()));
  std::vector<std::string> names = options.advertise;
  for (const char* always : {"localhost", "127.0.0.1"}) {
    if (std::find(names.begin(), names.end(), always) == names.end()) names.emplace_back(always);
  }
  RB_ASSIGN_OR_RETURN(const KeyAndCertificate server, MakeServerCertificate(authority, names, absl::Now()));
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/pki/server.key", server.key_pem, 0600));
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/pki/server.crt", server.certificate_pem, 0644));
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/pki/ca.key", authority.key_pem, 0600));
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/advertise", names[0] + "\n", 0644));
  // What clients dial until `serve` has said on which port it really listens.
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/link.address", names[0] + ":7443\n", 0644));
  // The identity folder is brought up to date by the first `serve`.
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/pki/ca.crt", authority.certificate_pem, 0644));
  if (!options.out.empty()) {
    RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/first-identity", options.out + "\n", 0600));
    RB_RETURN_IF_ERROR(WriteOperator(options, authority, options.name, Role::kAdmin));
  }
  std::printf("made a controller in %s%s%s\n", options.folder.c_str(),
              options.out.empty() ? "" : "; the admin's identity is in ", options.out.c_str());
  return absl::OkStatus();
}

absl::Status MakeToken(const Options& options) {
  absl::Duration ttl;
  if (!absl::ParseDuration(options.ttl, &ttl) || ttl <= absl::ZeroDuration() || ttl > absl::Hours(24 * 7)) {
    return absl::InvalidArgumentError(absl::StrCat("--ttl '", options.ttl,
                                                   "' is not a duration of up to a week, like "
                                                   "1h or 30m. Nothing was changed"));
  }
  if (!IsValidName(options.name)) {
    return absl::InvalidArgumentError(absl::StrCat("'", options.name, "' is not a name. Nothing was changed"));
  }
  RB_ASSIGN_OR_RETURN(const KeyAndCertificate authority, LoadAuthority(options.folder));
  JoinToken token;
  token.agent_name = options.name;
  token.secret = RandomHex(32);
  token.ca_pem = authority.certificate_pem;
  token.join_address =
      options.join_address.empty() ? AddressFor(options.folder, "join-link.address") : options.join_address;
  token.link_address = options.link_address.empty() ? AddressFor(options.folder, "link.address") : options.link_address;
  if (token.join_address.empty()) {
    return absl::FailedPreconditionError(
        "where agents join is not known yet: start `rb-controller serve` first, or give "
        "--address HOST:PORT and --link-address HOST:PORT. Nothing was changed");
  }
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(options.folder + "/controller.db"));
  RB_RETURN_IF_ERROR(RecordLocal(*store, "token", options.name));
  RB_RETURN_IF_ERROR(store->AddToken(options.name, Sha256Of(token.secret).ToHex(), absl::Now() + ttl));
  std::printf("%s\n", FormatJoinToken(token).c_str());
  return absl::OkStatus();
}

absl::Status AddOperator(const Options& options) {
  Role role = Role::kNone;
  if (!ParseRole(options.role, &role)) {
    return absl::InvalidArgumentError(absl::StrCat("'", options.role,
                                                   "' is not one of: viewer, operator, admin. Nothing "
                                                   "was changed"));
  }
  RB_ASSIGN_OR_RETURN(const KeyAndCertificate authority, LoadAuthority(options.folder));
  if (options.out.empty()) {
    // A role alone: the person has a certificate already.
    RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(options.folder + "/controller.db"));
    RB_RETURN_IF_ERROR(RecordLocal(*store, "operator add", absl::StrCat(options.name, " as ", options.role)));
    return store->PutPrincipal({options.name, role});
  }
  RB_RETURN_IF_ERROR(WriteOperator(options, authority, options.name, role));
  std::printf("%s is a %s; the identity is in %s\n", options.name.c_str(), options.role.c_str(), options.out.c_str());
  return absl::OkStatus();
}

absl::Status Serve(const Options& options) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  const UniqueFd signal_fd(signalfd(-1, &signals, SFD_CLOEXEC));
  if (!signal_fd.valid()) return ErrnoStatus(errno, "signalfd");

  RB_ASSIGN_OR_RETURN(const KeyAndCertificate authority, LoadAuthority(options.folder));
  v1::FleetConfig fleet_file;
  RB_ASSIGN_OR_RETURN(Fleet fleet, LoadFleet(options.fleet, &fleet_file));
  absl::StatusOr<FileLock> only_one = FileLock::TryAcquire(options.folder + "/lock");
  if (!only_one.ok()) {
    return absl::UnavailableError(
        absl::StrCat("another rb-controller serves ", options.folder, ". Nothing was changed"));
  }
  RB_RETURN_IF_ERROR(RemoveFileDurably(options.folder + "/ready"));
  RB_ASSIGN_OR_RETURN(const std::string server_key, ReadFile(options.folder + "/pki/server.key"));
  RB_ASSIGN_OR_RETURN(const std::string server_certificate, ReadFile(options.folder + "/pki/server.crt"));
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store, Store::Open(options.folder + "/controller.db"));
  ControllerMetrics::Options serving;
  serving.server = {options.metrics, fleet.metrics.certificate, fleet.metrics.key, fleet.metrics.password_file};
  serving.folder = options.folder;
  serving.targets_file =
      fleet.metrics.targets_file.empty() ? options.folder + "/prometheus-agents.json" : fleet.metrics.targets_file;
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<ControllerMetrics> metrics, ControllerMetrics::Create(serving, fleet));
  for (const auto& [name, pem] :
       {std::pair<const char*, const std::string&>{"ca", authority.certificate_pem}, {"server", server_certificate}}) {
    if (const absl::StatusOr<absl::Time> end = CertificateExpiry(pem); end.ok()) {
      metrics->SetCertificateExpiry(name, *end);
    }
  }

  EventLoop loop(SystemClock(), kLoopCapacity);
  Authorizer authorizer(*store);
  AuditLog audit(*store, SystemClock());
  ApiGate gate(authorizer, loop, audit);
  AgentLinkService link(authorizer, loop, audit);
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<DrillStore> drill_store,
                      DrillStore::Open(options.folder + "/controller.db"));
  Driver driver(fleet, *store, link, loop, SystemClock(), *metrics);
  CiRunner ci(loop, SystemClock(), MakeCiServices(fleet_file, options.folder), CiRunner::Patience());
  driver.SetCi(&ci);
  std::unique_ptr<Notifier> notifier;
  if (fleet_file.has_notifications()) {
    Notifier::Options notify;
    notify.path = options.folder + "/notifications";
    notify.rules = RulesOf(fleet_file.notifications());
    notify.silences = fleet_file.notifications().has_alertmanager();
    RB_ASSIGN_OR_RETURN(notifier, Notifier::Open(std::move(notify), SystemClock(), [&](const Notification& one) {
                          return Send(fleet_file.notifications(), one, SystemClock().Now());
                        }));
    driver.AddObserver(notifier.get());
  }
  link.SetDriver(&driver);
  Drills drills(fleet, *drill_store, driver, link, loop, SystemClock());
  Schedules schedules(std::move(fleet), *drill_store, driver, drills, loop, SystemClock());
  const std::unique_ptr<grpc::Service> drill_api = MakeDrillApi(gate, drills, schedules);
  const std::unique_ptr<FleetApi> api = FleetApi::Create(gate, loop, driver, *store);
  const std::unique_ptr<grpc::Service> quarantine_api = MakeQuarantineApi(gate, driver.quarantine());
  const std::unique_ptr<grpc::Service> doctor = MakeDoctorApi(gate, driver);
  const std::unique_ptr<grpc::Service> enrollment = MakeEnrollment(*store, authority, SystemClock(), audit);

  const auto build = [&](const std::string& address, grpc_ssl_client_certificate_request_type clients,
                         const std::vector<grpc::Service*>& services, int* port) {
    grpc::SslServerCredentialsOptions tls(clients);
    tls.pem_root_certs = authority.certificate_pem;
    tls.pem_key_cert_pairs.push_back({server_key, server_certificate});
    grpc::ServerBuilder builder;
    builder.AddListeningPort(address, grpc::SslServerCredentials(tls), port);
    for (grpc::Service* service : services) builder.RegisterService(service);
    SetLinkTransport(&builder);
    builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 5000);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    return builder.BuildAndStart();
  };
  RB_RETURN_IF_ERROR(driver.Resume());
  if (notifier != nullptr) drills.OnChange([&](const Drill& drill) { notifier->OnDrill(drill); });
  RB_RETURN_IF_ERROR(drills.Resume());
  if (notifier != nullptr) {
    // A controller that was killed right after a drill has ended has not asked to lift its silence.
    for (const std::string& id : notifier->Silenced()) {
      if (!absl::StartsWith(id, "drill-")) continue;
      if (const absl::Status told = drills.TellAgain(id); !told.ok()) LogWarning("notify", id, ": ", told.message());
    }
  }
  RB_RETURN_IF_ERROR(schedules.Resume());
  int port = 0;
  int join_port = 0;
  const std::unique_ptr<grpc::Server> server =
      build(options.listen, GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY,
            {api->service(), doctor.get(), drill_api.get(), quarantine_api.get(), &link}, &port);
  const std::unique_ptr<grpc::Server> join_server =
      build(options.join_listen, GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE, {enrollment.get()}, &join_port);
  if (server == nullptr || port == 0 || join_server == nullptr || join_port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", options.listen, " and ", options.join_listen, "; is something else there?"));
  }
  const auto real = [](const std::string& address, int real_port) {
    return absl::StrCat(address.substr(0, address.rfind(':')), ":", real_port);
  };
  const std::string advertised = AddressFor(options.folder, "advertise");
  const std::string link_address = absl::StrCat(advertised, ":", port);
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/listen.address", real(options.listen, port) + "\n", 0644));
  RB_RETURN_IF_ERROR(
      WriteFileDurably(options.folder + "/join.address", real(options.join_listen, join_port) + "\n", 0644));
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/link.address", link_address + "\n", 0644));
  RB_RETURN_IF_ERROR(
      WriteFileDurably(options.folder + "/join-link.address", absl::StrCat(advertised, ":", join_port, "\n"), 0644));
  // The admin's identity was made before the port was known.
  if (const std::string first = AddressFor(options.folder, "first-identity");
      !first.empty() && ReadFile(first + "/operator.crt").ok()) {
    RB_RETURN_IF_ERROR(WriteFileDurably(first + "/controller", link_address + "\n", 0644));
  }
  metrics->AskOn(loop, SystemClock(), [&](MetricSamples* samples) {
    driver.Measure(samples);
    drills.Measure(samples);
    schedules.Measure(samples);
    if (notifier != nullptr) notifier->Measure(samples);
  });
  loop.Start();
  RB_RETURN_IF_ERROR(WriteFileDurably(options.folder + "/ready", absl::StrCat(getpid(), "\n"), 0644));
  LogInfo("controller", "serving on ", real(options.listen, port), ", joining on ",
          real(options.join_listen, join_port));

  signalfd_siginfo info{};
  while (read(signal_fd.get(), &info, sizeof(info)) < 0 && errno == EINTR) {
  }
  LogInfo("controller", "stopping; what is under way goes on when it is back");
  link.EndAll();
  api->EndWatches();
  const auto deadline = std::chrono::system_clock::now() + std::chrono::seconds(2);
  join_server->Shutdown(deadline);
  server->Shutdown(deadline);
  server->Wait();
  join_server->Wait();
  metrics->StopAsking();
  loop.Stop();
  return absl::OkStatus();
}

int Check(const Options& options) {
  const absl::StatusOr<std::string> yaml = ReadFile(options.fleet, kLargestYamlBytes);
  if (!yaml.ok()) return Fail(yaml.status());
  Fleet fleet;
  const std::vector<YamlProblem> problems = ParseFleet(*yaml, &fleet);
  if (problems.empty()) {
    std::printf("%s is fine\n", options.fleet.c_str());
    return 0;
  }
  std::fprintf(stderr, "%s", FormatProblems(options.fleet, problems).c_str());
  return 2;
}

absl::Status ListOperators(const Options& options) {
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                      Store::Open(options.folder + "/controller.db", Store::Mode::kExisting));
  RB_ASSIGN_OR_RETURN(const std::vector<Principal> principals, store->Principals());
  for (const Principal& principal : principals) {
    std::printf("%-10s %s\n", std::string(NameOf(principal.role)).c_str(), principal.name.c_str());
  }
  return absl::OkStatus();
}

absl::Status RemoveOperator(const Options& options, bool is_agent) {
  RB_ASSIGN_OR_RETURN(const std::unique_ptr<Store> store,
                      Store::Open(options.folder + "/controller.db", Store::Mode::kExisting));
  RB_RETURN_IF_ERROR(RecordLocal(*store, is_agent ? "forget" : "operator remove", options.name));
  RB_RETURN_IF_ERROR(store->RemovePrincipal(options.name, is_agent));
  std::printf("%s is no longer known; a certificate of that name is refused from now on\n", options.name.c_str());
  return absl::OkStatus();
}

// For when the controller is down; else rbctl audit verify says the same.
int VerifyAudit(const Options& options) {
  std::optional<Digest> expected;
  if (!options.expected_hash.empty() && !Digest::FromHex(options.expected_hash, &expected.emplace())) {
    std::fprintf(stderr, "rb-controller: --expect takes 64 hexadecimal digits\n");
    return 2;
  }
  const absl::StatusOr<std::unique_ptr<Store>> store =
      Store::Open(options.folder + "/controller.db", Store::Mode::kReadOnly);
  if (!store.ok()) return Fail(store.status());
  AuditCheck check(expected);
  constexpr size_t kSlice = 1000;
  for (bool more = true; more;) {
    const absl::StatusOr<std::vector<AuditRecord>> records = (*store)->AuditAfter(check.count(), kSlice);
    if (!records.ok()) return Fail(records.status());
    more = records->size() == kSlice;
    for (const AuditRecord& record : *records) more = check.Take(record) && more;
  }
  if (!check.Finish()) return Fail(absl::DataLossError(absl::StrCat("the audit log is NOT intact: ", check.problem())));
  std::printf("%llu records, intact; head %s\n", static_cast<unsigned long long>(check.count()),
              check.head().ToHex().c_str());
  return 0;
}

int Main(int argc, char** argv) {
  Options options;
  CLI::App app("Rolls a fleet of servers back, fast and without doubt. Agents and rbctl talk to it.");
  app.require_subcommand(1);
  app.set_version_flag("--version", RB_VERSION);
  const auto with_folder = [&](CLI::App* command) {
    command->add_option("--dir", options.folder, "Keys, certificates and store")->capture_default_str();
    return command;
  };
  CLI::App* init =
      with_folder(app.add_subcommand("init", "Make a CA, a server certificate, a store and the first admin"));
  init->add_option("--advertise", options.advertise, "Host name or address under which it is reached")->required();
  init->add_option("--admin", options.name, "Name of the first admin")->required();
  init->add_option("--out", options.out, "Where the admin's identity goes")->required();
  CLI::App* serve = with_folder(app.add_subcommand("serve", "Serve until stopped"));
  serve->add_option("--fleet", options.fleet, "The fleet file")->capture_default_str();
  serve->add_option("--listen", options.listen, "Agents and rbctl, mutual TLS; port 0: any")->capture_default_str();
  serve->add_option("--join-listen", options.join_listen, "Joining hosts, TLS; port 0: any")->capture_default_str();
  serve->add_option("--metrics", options.metrics, "Prometheus; other than loopback takes `metrics` in the fleet file")
      ->capture_default_str();
  CLI::App* token = with_folder(app.add_subcommand("token", "Print a one-time token with which one agent can join"));
  token->add_option("name", options.name, "Name of the agent")->required();
  token->add_option("--ttl", options.ttl, "How long it is good")->capture_default_str();
  token->add_option("--address", options.join_address, "HOST:PORT of the join listener, when not as served");
  token->add_option("--link-address", options.link_address, "HOST:PORT of the listener, when not as served");
  CLI::App* people = app.add_subcommand("operator", "Who may do what");
  people->require_subcommand(1);
  CLI::App* add = with_folder(people->add_subcommand("add", "Add an operator, or change a role"));
  add->add_option("name", options.name)->required();
  add->add_option("--role", options.role, "viewer, operator or admin")->capture_default_str();
  add->add_option("--out", options.out, "Where the identity goes; left out: only the role is set");
  CLI::App* remove = with_folder(people->add_subcommand("remove", "Take an operator's rights away, at once"));
  remove->add_option("name", options.name)->required();
  CLI::App* list = with_folder(people->add_subcommand("list", "Operators and agents"));
  CLI::App* forget = with_folder(app.add_subcommand("forget", "Take an agent's rights away, at once"));
  forget->add_option("name", options.name)->required();
  CLI::App* audit = app.add_subcommand("audit", "Who asked for what");
  audit->require_subcommand(1);
  CLI::App* audit_verify = with_folder(audit->add_subcommand("verify", "Whether the log is what was written"));
  audit_verify->add_option("--expect", options.expected_hash, "A hash that has to be in it");
  CLI::App* check = app.add_subcommand("check", "Say everything that is wrong with the fleet file; change nothing");
  check->add_option("--fleet", options.fleet, "The fleet file")->capture_default_str();
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;
  }
  if (check->parsed()) return Check(options);
  if (serve->parsed()) {
    const absl::Status served = Serve(options);
    return served.ok() ? 0 : Fail(served);
  }
  const ActAsOwner owner(options.folder);
  if (!owner.status().ok()) return Fail(owner.status());
  if (audit_verify->parsed()) return VerifyAudit(options);
  absl::Status status;
  if (init->parsed()) status = Init(options);
  if (token->parsed()) status = MakeToken(options);
  if (add->parsed()) status = AddOperator(options);
  if (remove->parsed()) status = RemoveOperator(options, false);
  if (forget->parsed()) status = RemoveOperator(options, true);
  if (list->parsed()) status = ListOperators(options);
  return status.ok() ? 0 : Fail(status);
}

}  // namespace
}  // namespace rb::controller

int main(int argc, char** argv) {
  // Distributions build Abseil with its debug checks: each lock that gRPC takes would go through one graph of all
  // locks.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
  return rb::controller::Main(argc, argv);
}

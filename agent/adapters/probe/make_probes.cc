#include "agent/adapters/probe/make_probes.h"

#include <unistd.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "agent/adapters/config/agent_config.h"
#include "agent/adapters/probe/probes.h"
#include "agent/adapters/supervisor/make_supervisor.h"
#include "agent/adapters/supervisor/spawn.h"
#include "common/durable_file.h"
#include "common/status.h"
#include "rb/v1/agent_config.pb.h"

namespace rb::agent {
namespace {

absl::Duration ToDuration(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}
template <typename Message>
absl::Duration TimeoutOf(const Message& probe, absl::Duration otherwise) {
  return probe.has_timeout() ? ToDuration(probe.timeout()) : otherwise;
}

std::string InTree(const ServiceTree& tree, const std::string& path) {
  return path[0] == '/' ? path : absl::StrCat(tree.tree, "/", path);
}

std::unique_ptr<Probe> UnitProbeFor(UnitProbeOptions options, Supervisor& supervisor, Clock& clock) {
  return MakeUnitProbe(
      options, supervisor, clock, [](int64_t pid) { return ProcessAge(static_cast<pid_t>(pid)); },
      [](int64_t pid) { return ProcessMemoryBytes(static_cast<pid_t>(pid)); });
}

// The user is looked up at each run: a tree may be missing, or have changed hands, when the agent starts.
class CommandProbeAsUser final : public Probe {
 public:
  CommandProbeAsUser(const v1::AgentServiceConfig& config, ServiceTree tree, CommandProbeOptions options, Clock& clock)
      : config_(config), tree_(std::move(tree)), options_(std::move(options)), clock_(clock) {}
  ProbeResult Run(const ProbeContext& context) override {
    absl::StatusOr<UserAndGroup> user = UserOfCommands(config_, tree_);
    if (!user.ok()) {
      ProbeResult result;
      result.kind = "command";
      result.name = OneLine(absl::StrCat("command ", options_.argv[0]));
      result.expected = "exit status 0";
      result.observed = OneLine(user.status().message());
      return result;
    }
    CommandProbeOptions options = options_;
    options.switch_user = user->uid != geteuid() || user->gid != getegid();
    options.user = *std::move(user);
    return MakeCommandProbe(std::move(options), clock_)->Run(context);
  }

 private:
  const v1::AgentServiceConfig config_;
  const ServiceTree tree_;
  const CommandProbeOptions options_;
  Clock& clock_;
};

}  // namespace

absl::StatusOr<std::vector<std::unique_ptr<Probe>>> MakeProbes(const v1::AgentServiceConfig& config,
                                                               Supervisor& supervisor, const ServiceTree& tree,
                                                               const std::string& state_folder, Clock& clock) {
  std::vector<std::unique_ptr<Probe>> probes;
  const std::string memory_folder = absl::StrCat(state_folder, "/probes");
  RB_RETURN_IF_ERROR(MakeFolders(memory_folder));
  for (int i = 0; i < config.probes_size(); ++i) {
    const v1::ProbeConfig& probe = config.probes(i);
    switch (probe.probe_case()) {
      case v1::ProbeConfig::kUnit:
        probes.push_back(UnitProbeFor(
            {ToDuration(probe.unit().stable_for()), ParseByteCount(probe.unit().memory_below()).value_or(0)},
            supervisor, clock));
        break;
      case v1::ProbeConfig::kHttp: {
        HttpProbeOptions options;
        options.url = probe.http().url();
        if (probe.http().status() != 0) options.status = static_cast<int>(probe.http().status());
        options.json.insert(probe.http().json().begin(), probe.http().json().end());
        options.contains = probe.http().contains();
        options.timeout = TimeoutOf(probe.http(), options.timeout);
        probes.push_back(MakeHttpProbe(std::move(options), clock));
        break;
      }
      case v1::ProbeConfig::kVersion: {
        VersionProbeOptions options;
        options.url = probe.version().url();
        options.file = probe.version().file();
        options.tree = tree.tree;
        options.json = probe.version().json();
        options.timeout = TimeoutOf(probe.version(), options.timeout);
        probes.push_back(MakeVersionProbe(std::move(options), clock));
        break;
      }
      case v1::ProbeConfig::kLog: {
        LogProbeOptions options;
        options.file = probe.log().file().empty() ? ProcessLogPath(tree.service, config, state_folder)
                                                  : InTree(tree, probe.log().file());
        options.tree = tree.tree;
        options.expect = probe.log().expect();
        options.forbid = probe.log().forbid();
        if (probe.log().has_within()) options.within = ToDuration(probe.log().within());
        options.memory_path = absl::StrCat(memory_folder, "/", tree.service, "-", i, ".offset");
        RB_ASSIGN_OR_RETURN(std::unique_ptr<Probe> made, MakeLogProbe(std::move(options), clock));
        probes.push_back(std::move(made));
        break;
      }
      case v1::ProbeConfig::kJournal: {
        JournalProbeOptions options;
        options.unit = config.unit();
        options.expect = probe.journal().expect();
        options.forbid = probe.journal().forbid();
        if (probe.journal().has_within()) options.within = ToDuration(probe.journal().within());
        RB_ASSIGN_OR_RETURN(std::unique_ptr<Probe> made, MakeJournalProbe(std::move(options), clock));
        probes.push_back(std::move(made));
        break;
      }
      case v1::ProbeConfig::kSqlite:
        probes.push_back(MakeSqliteProbe(InTree(tree, probe.sqlite().path()), probe.sqlite().path(), clock));
        break;
      case v1::ProbeConfig::kTcp:
        probes.push_back(MakeTcpProbe(probe.tcp().address(), TimeoutOf(probe.tcp(), absl::Seconds(2)), clock));
        break;
      case v1::ProbeConfig::kCommand: {
        CommandProbeOptions options;
        options.argv.assign(probe.command().argv().begin(), probe.command().argv().end());
        options.folder = tree.tree;
        options.timeout = TimeoutOf(probe.command(), options.timeout);
        options.expect = probe.command().expect();
        probes.push_back(std::make_unique<CommandProbeAsUser>(config, tree, std::move(options), clock));
        break;
      }
      case v1::ProbeConfig::kMetrics: {
        MetricsProbeOptions options;
        options.url = probe.metrics().url();
        options.require.assign(probe.metrics().require().begin(), probe.metrics().require().end());
        options.timeout = TimeoutOf(probe.metrics(), options.timeout);
        probes.push_back(MakeMetricsProbe(std::move(options), clock));
        break;
      }
      case v1::ProbeConfig::kDisk:
        probes.push_back(MakeExternalProbe(
            MakeDiskProbe({{tree.tree, state_folder}, ParseByteCount(probe.disk().free()).value_or(0)}, clock)));
        break;
      case v1::ProbeConfig::PROBE_NOT_SET:
        return absl::InvalidArgumentError(absl::StrCat("probe ", i, " of ", tree.service, " names no probe"));
    }
    if (probe.external()) probes.back() = MakeExternalProbe(std::move(probes.back()));
  }
  if (probes.empty()) probes.push_back(UnitProbeFor({}, supervisor, clock));
  return probes;
}

}  // namespace rb::agent

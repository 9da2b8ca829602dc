// What was typed, as a request. Pure: no terminal, no network.
#ifndef RB_RBCTL_COMMANDS_COMMAND_H_
#define RB_RBCTL_COMMANDS_COMMAND_H_

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "rb/v1/fleet_service.pb.h"

namespace CLI {
class App;
}

namespace rb::cli {

class FleetClient;
struct Command;
struct Terminal;

// The promise of rbctl's exit status; see docs/rbctl.md.
enum ExitCode {
  kDone = 0,
  kFailedNothingChanged = 1,
  kUsage = 2,
  kNeedsAttention = 3,
  kNotReached = 4,
  kRefused = 5,
  kReverted = 6,
  // Ctrl-C: we stopped watching; the operation goes on.
  kInterrupted = 130,
};

enum class Verb {
  kStart,  // rollback, deploy, undo, repair, backup create, verify
  kPlan,
  kStatus,
  kHistory,
  kShow,
  kWatch,
  kAbort,
  kPause,
  kResume,
  kApprove,
  kBackupList,
  kAgents,
  kAuditList,
  kAuditVerify,
  kArea,   // `run` carries it out
  kPrint,  // `text` and nothing else: version, completion
};

struct Command {
  Verb verb = Verb::kPrint;
  // kStart and kPlan.
  v1::OperationSpec spec;
  // kStatus, kHistory, kBackupList. Empty: all.
  std::string environment;
  std::string service;
  // kShow, kWatch, kAbort, kPause, kResume, kApprove.
  std::string operation_id;
  // kAbort, kPause, kApprove.
  std::string reason;
  // kHistory, kAuditList.
  uint32_t limit = 20;
  // kAuditVerify. Empty: none.
  std::string expected_hash;
  bool wait = true;
  // Do not ask before --force or data.
  bool yes = false;
  bool json = false;
  // Also with -o json: events on stderr.
  bool progress = false;
  // Empty: the default folder, or the address in it.
  std::string identity;
  std::string controller;
  std::string text;
  // kArea. Gives the exit status.
  std::function<int(const Command&, FleetClient&, const Terminal&)> run;
};

// A group of commands with a file of its own, see rbctl/areas/areas.h: adds its subcommands to the program. The
// callback of each (CLI::App::callback) sets `verb` and `run` of the command; what is wrong beyond what CLI11 sees it
// says by throwing CLI::ValidationError.
using AddArea = void (*)(CLI::App& app, Command& command);

struct ParseResult {
  // Absent when there is nothing to run: help was asked for, or the arguments are wrong.
  std::optional<Command> command;
  int exit_code = kDone;
  std::string out;
  std::string err;
};

// `args` without the program's name. `now` gives "--to-before 30m" its meaning. Reads the environment variables
// RBCTL_IDENTITY and RBCTL_CONTROLLER.
ParseResult ParseCommandLine(const std::vector<std::string>& args, absl::Time now,
                             const std::vector<AddArea>& areas = {});

}  // namespace rb::cli

#endif  // RB_RBCTL_COMMANDS_COMMAND_H_

#include "rbctl/commands/command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <memory>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "common/edit_distance.h"
#include "common/text.h"

namespace rb::cli {
namespace {

constexpr char kMainFooter[] = R"(Examples:
  rbctl status
  rbctl plan prod --to v1.4.2
  rbctl rollback prod --to abc123f --reason "v1.4.3 does not start"
  rbctl rollback prod                    # to the last good release
  rbctl undo op-20261123T031407Z-4f2a9c --reason "it was not that"

Exit status: 0 done, or already there and healthy · 1 failed, nothing changed · 2 usage · 3 needs attention ·
4 controller not reached · 5 refused · 6 reverted to where it was)";

constexpr char kRollbackFooter[] = R"(Examples:
  rbctl rollback prod --reason "errors since noon"             # to the last good release
  rbctl rollback prod --to abc123f --reason "..."              # a commit, a tag or a release name
  rbctl rollback prod --to-before 2026-11-23T03:00:00Z --reason "..."
  rbctl rollback prod --to v1.4.2 --host prod-1 --plan         # only say what would happen
  rbctl rollback prod --only config --to previous --reason "..."
  rbctl rollback prod --with-data --to v1.4.2 --reason "..."   # the data of that release too
  rbctl rollback prod --through test,prod --to v1.4.2 --reason "..."   # test first, in one operation
  rbctl rollback prod --emergency --reason "..."               # no gates, no soak; verified afterwards)";

constexpr char kDeployFooter[] = R"(Examples:
  rbctl deploy test --to v1.5.0
  rbctl deploy prod --to v1.5.0 --reason "release 1.5"
  rbctl deploy prod --to v1.5.0 --plan)";

constexpr char kBashCompletion[] = R"(_rbctl() {
  local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]} word command= words=
  for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
    case $word in @COMMANDS_BAR@) command=$word; break ;; esac
  done
  case $previous in
@VALUES@    -o) words="text json" ;;
    --identity) COMPREPLY=($(compgen -d -- "$current")); return ;;
    *) case $command in
@CASES@        *) words="@COMMANDS@ --help --version --identity --controller --output" ;;
      esac ;;
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -F _rbctl rbctl
)";

// What may follow an option.
constexpr std::pair<const char*, const char*> kValues[] = {{"method", "auto backup git redeploy"},
                                                           {"only", "code config data"},
                                                           {"override-gate", "passed_in window approval"},
                                                           {"output", "text json"},
                                                           {"to", "last-good previous"}};

// zsh runs the bash function through its own emulation: one list to keep right.
constexpr char kZshHead[] = "#compdef rbctl\nautoload -U +X bashcompinit && bashcompinit\n";

std::vector<std::string> OptionNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) {
      names.push_back("--" + name);
    }
  }
  return names;
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    names.push_back(sub->get_name());
  }
  return names;
}

std::string ReplaceAll(std::string text, const std::string& from, const std::string& to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
  return text;
}

// The words that may follow a command.
std::vector<std::string> WordsAfter(const CLI::App& root, const CLI::App& sub) {
  std::vector<std::string> words = CommandNames(sub);
  for (const CLI::App* inner : sub.get_subcommands([](const CLI::App*) { return true; })) {
    for (const std::string& name : OptionNames(*inner)) {
      words.push_back(name);
    }
  }
  if (sub.get_name() == "completion") {
    words = {"bash", "zsh", "fish"};
  }
  for (const std::string& name : OptionNames(sub)) {
    words.push_back(name);
  }
  for (const std::string& name : OptionNames(root)) {
    if (name != "--version") {
      words.push_back(name);
    }
  }
  std::sort(words.begin(), words.end());
  words.erase(std::unique(words.begin(), words.end()), words.end());
  return words;
}

std::string Completion(const CLI::App& root, const std::string& shell) {
  std::string cases;
  std::string fish = "complete -c rbctl -f\n";
  std::string values;
  for (const auto& [option, words] : kValues) {
    absl::StrAppend(&values, "    --", option, ") words=\"", words, "\" ;;\n");
    absl::StrAppend(&fish, "complete -c rbctl -l ", option, " -x -a '", words, "'\n");
  }
  const std::vector<std::string> commands = CommandNames(root);
  for (const CLI::App* sub : root.get_subcommands([](const CLI::App*) { return true; })) {
    absl::StrAppend(&cases, "        ", sub->get_name(), ") words=\"", absl::StrJoin(WordsAfter(root, *sub), " "),
                    "\" ;;\n");
    absl::StrAppend(&fish, "complete -c rbctl -n __fish_use_subcommand -a ", sub->get_name(), " -d '",
                    ReplaceAll(sub->get_description(), "'", "\\'"), "'\n");
    for (const std::string& word : WordsAfter(root, *sub)) {
      absl::StrAppend(&fish, "complete -c rbctl -n '__fish_seen_subcommand_from ", sub->get_name(), "' ",
                      absl::StartsWith(word, "--") ? absl::StrCat("-l ", word.substr(2)) : absl::StrCat("-a ", word),
                      "\n");
    }
  }
  if (shell == "fish") {
    return fish;
  }
  std::string bash = ReplaceAll(kBashCompletion, "@CASES@", cases);
  bash = ReplaceAll(bash, "@VALUES@", values);
  bash = ReplaceAll(bash, "@COMMANDS_BAR@", absl::StrJoin(commands, "|"));
  bash = ReplaceAll(bash, "@COMMANDS@", absl::StrJoin(commands, " "));
  return shell == "zsh" ? kZshHead + bash : bash;
}

// RFC 3339, "2026-11-23 03:00" (UTC), or how long ago: "30m".
bool ParseMoment(const std::string& text, absl::Time now, absl::Time* moment) {
  std::string ignored;
  absl::Duration ago;
  if (absl::ParseDuration(text, &ago)) {
    *moment = now - ago;
    return ago > absl::ZeroDuration();
  }
  for (const char* format : {"%Y-%m-%dT%H:%M:%E*S%Ez", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d %H:%M", "%Y-%m-%d"}) {
    if (absl::ParseTime(format, text, moment, &ignored)) {
      return true;
    }
  }
  return false;
}

// What the flags of rollback, deploy, undo, plan and backup are read into.
struct Flags {
  std::string environment, positional_service, service, to, to_before, method = "auto", only, reason, operation;
  std::string through, wait_for_lock, announce;
  std::vector<std::string> hosts, override_gates;
  bool with_data = false, plan = false, emergency = false, force = false, no_revert = false, no_wait = false,
       even = false, pin = false, deploy = false, skip_offline = false;
};

void AddScope(CLI::App* sub, Flags* flags) {
  sub->add_option("ENV", flags->environment, "Environment, for example prod")->required();
  sub->add_option("SERVICE", flags->positional_service, "Service; not needed when the environment has only one");
  sub->add_option("--service", flags->service, "The same as SERVICE");
  sub->add_option("--host", flags->hosts, "Only this host; may be repeated")
      ->type_name("HOST")
      ->allow_extra_args(false);
}

void AddChange(CLI::App* sub, Flags* flags, Command* command) {
  sub->add_option("--reason", flags->reason, "Why, in your words; kept in the history");
  sub->add_flag("--emergency", flags->emergency,
                "Skip the gates, the soak and the probes that need time; all probes follow afterwards");
  sub->add_option("--override-gate", flags->override_gates,
                  "Go past this gate: passed_in, window or approval; may be repeated; needs a reason")
      ->type_name("GATE")
      ->allow_extra_args(false);
  sub->add_flag("--skip-offline", flags->skip_offline,
                "Go on without hosts that are offline; they are listed until rbctl repair");
  sub->add_option("--wait", flags->wait_for_lock, "While another operation is at work: stand in line for so long")
      ->type_name("DURATION");
  sub->add_option("--announce", flags->announce, "Tell the receivers of announcements this, before and after");
  sub->add_flag("--force", flags->force, "Use a bad, unproved or refused target; needs a reason");
  sub->add_flag("--no-revert", flags->no_revert, "When a host is unhealthy afterwards, leave it as it is");
  sub->add_flag("--no-wait", flags->no_wait, "Return as soon as the operation is accepted");
  sub->add_flag("--yes,-y", command->yes, "Do not ask before --force or data (asked on a terminal only)");
}

void AddTarget(CLI::App* sub, Flags* flags, bool deploy) {
  CLI::Option* to = sub->add_option(
      "--to", flags->to,
      deploy ? "Commit, tag or release name" : "Commit, tag or release name, last-good (the default) or previous");
  to->type_name("REF");
  if (!deploy) {
    sub->add_option("--to-before", flags->to_before, "The newest good release from before a time; UTC, or 30m for ago")
        ->type_name("TIME")
        ->excludes(to);
  }
  sub->add_option("--method", flags->method, "Where the target comes from: auto, backup, git or redeploy")
      ->check(CLI::IsMember({"auto", "backup", "git", "redeploy"}));
  sub->add_option("--only", flags->only, "Components, with commas: code,config,data; the default is code,config")
      ->type_name("LIST");
  sub->add_option("--through", flags->through, "Environments to change one after the other, with commas: test,prod")
      ->type_name("LIST");
  sub->add_flag("--with-data", flags->with_data, "The data too; what is lost is in the plan");
  sub->add_flag("--even-if-there", flags->even, "Do it though every host is already there");
}

// Empty, or what is wrong.
std::string FillSpec(const Flags& flags, v1::OperationKind kind, absl::Time now, v1::OperationSpec* spec) {
  spec->set_kind(kind);
  spec->set_environment(flags.environment);
  if (!flags.positional_service.empty() && !flags.service.empty() && flags.positional_service != flags.service) {
    return absl::StrCat("two services: ", flags.positional_service, " and ", flags.service);
  }
  spec->set_service(flags.service.empty() ? flags.positional_service : flags.service);
  for (const std::string& host : flags.hosts) {
    spec->add_hosts(host);
  }
  spec->set_reason(flags.reason);
  spec->set_emergency(flags.emergency);
  spec->set_force(flags.force);
  spec->set_hold_on_failure(flags.no_revert);
  spec->set_even_if_already_there(flags.even);
  spec->set_pin(flags.pin);
  spec->set_skip_offline(flags.skip_offline);
  spec->set_announcement(flags.announce);
  spec->set_undo_operation_id(flags.operation);
  for (const std::string& gate : flags.override_gates) spec->add_override_gates(gate);
  if (!flags.through.empty()) {
    for (const std::string& environment : std::vector<std::string>(absl::StrSplit(flags.through, ','))) {
      spec->add_through(environment);
    }
  }
  if (!flags.wait_for_lock.empty()) {
    absl::Duration wait;
    if (!absl::ParseDuration(flags.wait_for_lock, &wait) || wait <= absl::ZeroDuration() || wait > absl::Hours(24)) {
      return absl::StrCat("--wait ", Printable(flags.wait_for_lock), ": write 90s, 10m or 2h; at most 24h");
    }
    spec->mutable_wait_for_lock()->set_seconds(absl::ToInt64Seconds(absl::Ceil(wait, absl::Seconds(1))));
  }
  if (kind != v1::OPERATION_KIND_ROLLBACK && kind != v1::OPERATION_KIND_DEPLOY) {
    return "";
  }
  if (kind == v1::OPERATION_KIND_DEPLOY && flags.to.empty()) {
    return "a deploy needs --to REF";
  }
  v1::TargetReference* target = spec->mutable_target();
  target->set_force(flags.force);
  if (!flags.to_before.empty()) {
    absl::Time before;
    if (!ParseMoment(flags.to_before, now, &before)) {
      return absl::StrCat("--to-before ", Printable(flags.to_before),
                          ": not a time; write 2026-11-23T03:00:00Z, \"2026-11-23 03:00\" (UTC) or 30m");
    }
    target->set_kind(v1::TargetReference::KIND_BEFORE);
    target->mutable_before()->set_seconds(absl::ToUnixSeconds(before));
    target->mutable_before()->set_nanos(
        static_cast<int32_t>(absl::ToInt64Nanoseconds(before - absl::FromUnixSeconds(absl::ToUnixSeconds(before)))));
  } else if (flags.to.empty() || flags.to == "last-good") {
    target->set_kind(v1::TargetReference::KIND_LAST_GOOD);
  } else if (flags.to == "previous") {
    target->set_kind(v1::TargetReference::KIND_PREVIOUS);
  } else {
    target->set_kind(v1::TargetReference::KIND_NAMED);
    target->set_name(flags.to);
  }
  spec->set_method(flags.method == "git"        ? v1::METHOD_GIT
                   : flags.method == "redeploy" ? v1::METHOD_REDEPLOY
                   : flags.method == "backup"   ? v1::METHOD_BACKUP
                                                : v1::METHOD_AUTO);
  static constexpr v1::Component kAll[] = {v1::COMPONENT_CODE, v1::COMPONENT_CONFIG, v1::COMPONENT_DATA};
  static const std::vector<std::string> kNames = {"code", "config", "data"};
  bool chosen[] = {false, false, false};
  if (flags.only.empty()) {
    chosen[0] = chosen[1] = flags.with_data;
  } else {
    for (const std::string& name : std::vector<std::string>(absl::StrSplit(flags.only, ','))) {
      const auto found = std::find(kNames.begin(), kNames.end(), name);
      if (found == kNames.end()) {
        const std::string nearest = NearestSpelling(name, kNames);
        return absl::StrCat("--only ", Printable(name), ": a component is code, config or data",
                            nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"));
      }
      chosen[found - kNames.begin()] = true;
    }
  }
  chosen[2] = chosen[2] || flags.with_data;
  for (size_t i = 0; i < 3; ++i) {
    if (chosen[i]) {
      spec->add_components(kAll[i]);
    }
  }
  return "";
}

ParseResult UsageError(const std::string& what, const CLI::App& app, const std::string& path) {
  ParseResult result;
  result.exit_code = kUsage;
  result.err = absl::StrCat("rbctl: ", what, "\nNothing was done.\nNext: ", path, " --help\n");
  static_cast<void>(app);
  return result;
}

// The first word that is neither an option nor the value of a global one.
std::string FirstWord(const std::vector<std::string>& args) {
  for (size_t i = 0; i < args.size(); ++i) {
    if (args[i] == "-o" || args[i] == "--output" || args[i] == "--identity" || args[i] == "--controller") {
      ++i;
    } else if (!absl::StartsWith(args[i], "-")) {
      return args[i];
    }
  }
  return "";
}

}  // namespace

ParseResult ParseCommandLine(const std::vector<std::string>& args, absl::Time now, const std::vector<AddArea>& areas) {
  Command command;
  Flags flags;
  std::string output = "text";
  std::string shell;
  CLI::App app("Roll a fleet back, in seconds, and know that it worked.", "rbctl");
  app.footer(kMainFooter);
  app.require_subcommand(1);
  app.option_defaults()->always_capture_default(false);
  app.set_version_flag("--version", std::string("rbctl ") + RBCTL_VERSION);
  app.add_option("--identity", command.identity, "Folder with operator.key, operator.crt, ca.crt and controller")
      ->envname("RBCTL_IDENTITY")
      ->type_name("DIR");
  app.add_option("--controller", command.controller, "The controller's address, instead of the identity's")
      ->envname("RBCTL_CONTROLLER")
      ->type_name("HOST:PORT");
  app.add_option("-o,--output", output, "text or json")->check(CLI::IsMember({"text", "json"}));
  app.add_flag("--progress", command.progress, "With -o json: the events on stderr");

  CLI::App* rollback = app.add_subcommand("rollback", "Go back to a release that worked");
  AddScope(rollback, &flags);
  AddTarget(rollback, &flags, false);
  AddChange(rollback, &flags, &command);
  rollback->add_flag("--plan", flags.plan, "Only say what would happen");
  rollback->footer(kRollbackFooter);

  CLI::App* deploy = app.add_subcommand("deploy", "Go to a commit, tag or release");
  AddScope(deploy, &flags);
  AddTarget(deploy, &flags, true);
  AddChange(deploy, &flags, &command);
  deploy->add_flag("--plan", flags.plan, "Only say what would happen");
  deploy->footer(kDeployFooter);

  CLI::App* undo = app.add_subcommand("undo", "Go back to what an operation replaced");
  undo->add_option("OP", flags.operation, "Operation, or the beginning of its id")->required();
  AddChange(undo, &flags, &command);
  undo->footer("Example:\n  rbctl undo op-20261123T031407Z-4f2a9c --reason \"it was not that\"");

  CLI::App* repair = app.add_subcommand("repair", "Bring a host that missed an operation to where the others are");
  repair
      ->add_option_function<std::string>(
          "HOST", [&flags](const std::string& host) { flags.hosts = {host}; }, "Host; rbctl status names them")
      ->required();
  repair->add_option("SERVICE", flags.positional_service, "Service; not needed when it missed only one");
  AddChange(repair, &flags, &command);
  repair->footer("Example:\n  rbctl repair prod-2 --reason \"back from its disk's replacement\"");

  CLI::App* plan = app.add_subcommand("plan", "Say what a rollback would do; changes nothing");
  AddScope(plan, &flags);
  AddTarget(plan, &flags, false);
  AddChange(plan, &flags, &command);
  plan->add_flag("--deploy", flags.deploy, "What a deploy would do");
  plan->footer("Examples:\n  rbctl plan prod --to v1.4.2\n  rbctl plan --deploy prod --to v1.5.0");

  CLI::App* status = app.add_subcommand("status", "What runs on each host, and is it healthy");
  CLI::App* history = app.add_subcommand("history", "Operations, newest first");
  for (CLI::App* sub : {status, history}) {
    sub->add_option("ENV", command.environment, "Environment; all of them when left out");
    sub->add_option("--service", command.service, "Only this service");
  }
  status->footer("Example:\n  rbctl status prod");
  history->add_option("--limit", command.limit, "How many at most; 20 when left out")->check(CLI::Range(1, 10000));
  history->footer("Example:\n  rbctl history prod --limit 5");

  CLI::App* show = app.add_subcommand("show", "One operation with its history");
  CLI::App* watch = app.add_subcommand("watch", "Follow an operation to its end");
  CLI::App* abort = app.add_subcommand("abort", "End an operation; hosts that were changed go back");
  CLI::App* pause = app.add_subcommand("pause", "Let no further wave begin; what is under way ends");
  CLI::App* resume = app.add_subcommand("resume", "Go on with an operation that is paused");
  CLI::App* approve = app.add_subcommand("approve", "Let an operation of another operator go on");
  for (CLI::App* sub : {show, watch, abort, pause, resume, approve}) {
    sub->add_option("OP", command.operation_id, "Operation, or the beginning of its id")->required();
    sub->footer(absl::StrCat("Example:\n  rbctl ", sub->get_name(), " op-20261123T031407Z-4f2a9c"));
  }
  for (CLI::App* sub : {abort, pause, approve}) sub->add_option("--reason", command.reason, "Why, in your words");

  CLI::App* verify = app.add_subcommand("verify", "Run every probe on what runs now; changes nothing");
  AddScope(verify, &flags);
  verify->add_option("--reason", flags.reason, "Why, in your words; kept in the history");
  verify->add_flag("--no-wait", flags.no_wait, "Return as soon as the operation is accepted");
  verify->footer("Example:\n  rbctl verify prod");

  CLI::App* backup = app.add_subcommand("backup", "Releases in the hosts' backup stores");
  backup->require_subcommand(1);
  CLI::App* create = backup->add_subcommand("create", "Capture what runs now as a release, and prove it");
  AddScope(create, &flags);
  create->add_option("--reason", flags.reason, "Why, in your words; kept with the release");
  create->add_flag("--pin", flags.pin, "Keep it until it is unpinned");
  create->add_flag("--no-wait", flags.no_wait, "Return as soon as the operation is accepted");
  create->footer("Example:\n  rbctl backup create prod --reason \"before the migration\"");
  CLI::App* list = backup->add_subcommand("list", "What there is to go back to, with its standing");
  list->add_option("ENV", command.environment, "Environment")->required();
  list->add_option("--service", command.service, "Only this service");
  list->footer("Example:\n  rbctl backup list prod");

  CLI::App* prune = backup->add_subcommand("prune", "Remove the releases that the fleet file's retain does not keep");
  AddScope(prune, &flags);
  prune->add_option("--reason", flags.reason, "Why, in your words; kept in the history");
  prune->add_flag("--no-wait", flags.no_wait, "Return as soon as the operation is accepted");
  prune->footer("Example:\n  rbctl backup prune prod --reason \"the disk is filling up\"");

  CLI::App* audit = app.add_subcommand("audit", "Who asked for what, from where, and was it allowed");
  audit->require_subcommand(1);
  CLI::App* audit_list = audit->add_subcommand("list", "The last requests, newest first");
  audit_list->add_option("--last", command.limit, "How many at most; 20 when left out")->check(CLI::Range(1, 1000));
  audit_list->footer("Example:\n  rbctl audit list --last 50");
  CLI::App* audit_verify = audit->add_subcommand("verify", "Whether the log is what was written");
  audit_verify
      ->add_option("--expect", command.expected_hash, "A hash that you noted and that has to be in it, 64 digits")
      ->type_name("HASH");
  audit_verify->footer("Example:\n  rbctl audit verify");

  for (const AddArea add : areas) add(app, command);

  CLI::App* agents = app.add_subcommand("agents", "The agents that the controller knows");
  CLI::App* completion = app.add_subcommand("completion", "Print a completion script");
  completion->add_option("SHELL", shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->footer("Example:\n  rbctl completion bash > /etc/bash_completion.d/rbctl");
  CLI::App* version = app.add_subcommand("version", "Print the version");

  for (CLI::App* sub : app.get_subcommands([](const CLI::App*) { return true; })) {
    sub->fallthrough();
    for (CLI::App* inner : sub->get_subcommands([](const CLI::App*) { return true; })) {
      inner->fallthrough();
    }
  }

  const auto path = [&app] {
    std::string text = "rbctl";
    for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
      at = at->get_subcommands().front();
      absl::StrAppend(&text, " ", at->get_name());
    }
    return text;
  };
  try {
    app.parse(std::vector<std::string>(args.rbegin(), args.rend()));
  } catch (const CLI::Success& success) {
    ParseResult result;
    std::ostringstream out;
    std::ostringstream err;
    app.exit(success, out, err);
    result.out = out.str() + err.str();
    return result;
  } catch (const CLI::ParseError& error) {
    const std::string word = FirstWord(args);
    const std::vector<std::string> names = CommandNames(app);
    if (!word.empty() && std::find(names.begin(), names.end(), word) == names.end()) {
      const std::string nearest = NearestSpelling(word, names);
      return UsageError(absl::StrCat("unknown command ", Printable(word),
                                     nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?")),
                        app, "rbctl");
    }
    if (word.empty() && app.get_subcommands().empty()) {
      return UsageError("a command is missing: one of " + absl::StrJoin(names, ", "), app, "rbctl");
    }
    std::string what = error.what();
    std::vector<std::string> known = OptionNames(app);
    for (const CLI::App* at = &app; !at->get_subcommands().empty();) {
      at = at->get_subcommands().front();
      for (const std::string& name : OptionNames(*at)) {
        known.push_back(name);
      }
    }
    for (const std::string& arg : args) {
      const std::string name = arg.substr(0, arg.find('='));
      if (absl::StartsWith(name, "--") && std::find(known.begin(), known.end(), name) == known.end()) {
        const std::string nearest = NearestSpelling(name, known);
        what =
            absl::StrCat("unknown option ", name, nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"));
        break;
      }
    }
    return UsageError(Printable(what), app, path());
  }

  command.json = output == "json";
  command.wait = !flags.no_wait;
  std::string problem;
  if (rollback->parsed() || deploy->parsed() || plan->parsed()) {
    const bool is_deploy = deploy->parsed() || flags.deploy;
    command.verb = plan->parsed() || flags.plan ? Verb::kPlan : Verb::kStart;
    if (is_deploy && !flags.to_before.empty()) {
      problem = "a deploy goes to a commit, tag or release: --to-before is for rollbacks";
    } else {
      problem =
          FillSpec(flags, is_deploy ? v1::OPERATION_KIND_DEPLOY : v1::OPERATION_KIND_ROLLBACK, now, &command.spec);
    }
  } else if (undo->parsed()) {
    command.verb = Verb::kStart;
    problem = FillSpec(flags, v1::OPERATION_KIND_UNDO, now, &command.spec);
  } else if (repair->parsed()) {
    command.verb = Verb::kStart;
    problem = FillSpec(flags, v1::OPERATION_KIND_REPAIR, now, &command.spec);
  } else if (create->parsed()) {
    command.verb = Verb::kStart;
    problem = FillSpec(flags, v1::OPERATION_KIND_BACKUP, now, &command.spec);
  } else if (status->parsed()) {
    command.verb = Verb::kStatus;
  } else if (history->parsed()) {
    command.verb = Verb::kHistory;
  } else if (show->parsed()) {
    command.verb = Verb::kShow;
  } else if (watch->parsed()) {
    command.verb = Verb::kWatch;
  } else if (abort->parsed()) {
    command.verb = Verb::kAbort;
  } else if (pause->parsed()) {
    command.verb = Verb::kPause;
  } else if (resume->parsed()) {
    command.verb = Verb::kResume;
  } else if (approve->parsed()) {
    command.verb = Verb::kApprove;
  } else if (verify->parsed()) {
    command.verb = Verb::kStart;
    problem = FillSpec(flags, v1::OPERATION_KIND_VERIFICATION, now, &command.spec);
  } else if (prune->parsed()) {
    command.verb = Verb::kStart;
    problem = FillSpec(flags, v1::OPERATION_KIND_PRUNE, now, &command.spec);
  } else if (list->parsed()) {
    command.verb = Verb::kBackupList;
  } else if (audit_list->parsed()) {
    command.verb = Verb::kAuditList;
  } else if (audit_verify->parsed()) {
    command.verb = Verb::kAuditVerify;
  } else if (agents->parsed()) {
    command.verb = Verb::kAgents;
  } else if (completion->parsed()) {
    command.text = Completion(app, shell);
  } else if (version->parsed()) {
    command.text = command.json ? absl::StrCat("{\"version\": \"", RBCTL_VERSION, "\"}\n")
                                : absl::StrCat("rbctl ", RBCTL_VERSION, "\n");
  }
  if (!problem.empty()) {
    return UsageError(problem, app, path());
  }
  ParseResult result;
  result.command = std::move(command);
  return result;
}

}  // namespace rb::cli

// rbctl: the workstation client. See docs/rbctl.md.
#include <pthread.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/mutex.h"
#include "rbctl/areas/areas.h"
#include "rbctl/client/fleet_client.h"
#include "rbctl/client/identity.h"
#include "rbctl/client/run.h"
#include "rbctl/commands/command.h"
#include "rbctl/render/json.h"

namespace rb::cli {
namespace {

void Write(std::FILE* file, const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), file);
  std::fflush(file);
}

// Ctrl-C: while an operation is watched, only the watching ends; before that, the program. Never destroyed.
class Interrupts {
 public:
  // Before any other thread is made: they inherit the mask.
  Interrupts() {
    sigemptyset(&signals_);
    sigaddset(&signals_, SIGINT);
    sigaddset(&signals_, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &signals_, nullptr);
  }
  void Serve(FleetClient* client) {
    std::thread([this, client] {
      for (int caught = 0; sigwait(&signals_, &caught) == 0;) {
        MutexLock lock(mutex_);
        if (gone_) {
          return;
        }
        if (watching_) {
          client->Detach();
          continue;
        }
        Write(stderr, is_asking_ ? "\nrbctl: interrupted. It is unknown whether the operation was accepted.\n"
                                   "Next: rbctl history\n"
                                 : "\nrbctl: interrupted. Nothing was changed by this command.\n");
        std::_Exit(kInterrupted);
      }
    }).detach();
  }
  void Asking(bool is_under_way) {
    MutexLock lock(mutex_);
    is_asking_ = is_under_way;
  }
  void Watching() {
    MutexLock lock(mutex_);
    watching_ = true;
  }
  // The client is about to be destroyed.
  void End() {
    MutexLock lock(mutex_);
    gone_ = true;
  }

 private:
  sigset_t signals_;
  Mutex mutex_;
  bool is_asking_ ABSL_GUARDED_BY(mutex_) = false;
  bool watching_ ABSL_GUARDED_BY(mutex_) = false;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
};

int Main(int argc, char** argv) {
  const ParseResult parsed =
      ParseCommandLine(std::vector<std::string>(argv + 1, argv + argc), SystemClock().Now(), AllAreas());
  Write(stdout, parsed.out);
  Write(stderr, parsed.err);
  if (!parsed.command) {
    return parsed.exit_code;
  }
  const Command& command = *parsed.command;
  if (command.verb == Verb::kPrint) {
    Write(stdout, command.text);
    return kDone;
  }
  // The library's own log is not for whoever types a command.
  setenv("GRPC_VERBOSITY", "NONE", 0);
  static auto* const interrupts = new Interrupts;
  const absl::StatusOr<Identity> identity = LoadIdentity(command.identity, command.controller);
  if (!identity.ok()) {
    if (command.json) {
      Write(stdout,
            JsonError("failed", kUsage, std::string(identity.status().message()), "Nothing was done.", "rbctl --help"));
    } else {
      Write(stderr, absl::StrCat("rbctl: nothing was done: ", std::string(identity.status().message()), "\n"));
    }
    return kUsage;
  }
  Terminal terminal;
  terminal.out = [](const std::string& text) { Write(stdout, text); };
  terminal.err = [](const std::string& text) { Write(stderr, text); };
  const char* no_colour = std::getenv("NO_COLOR");
  const char* term = std::getenv("TERM");
  const bool capable = isatty(STDOUT_FILENO) == 1 && term != nullptr && std::string(term) != "dumb";
  terminal.style.colour = capable && (no_colour == nullptr || *no_colour == '\0');
  if (capable) {
    terminal.size = [] {
      TerminalSize size;
      winsize window = {};
      if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0 && window.ws_row > 0) {
        size = {window.ws_col, window.ws_row};
      }
      return size;
    };
  }
  if (isatty(STDIN_FILENO) == 1 && isatty(STDERR_FILENO) == 1) {
    terminal.ask = [](const std::string& question) {
      Write(stderr, question);
      std::string line;
      std::getline(std::cin, line);
      return line;
    };
  }
  terminal.on_asking = [](bool is_under_way) { interrupts->Asking(is_under_way); };
  terminal.on_watching = [](const std::string&) { interrupts->Watching(); };
  FleetClient client(*identity, ClientLimits());
  interrupts->Serve(&client);
  const int code = Run(command, client, terminal);
  interrupts->End();
  return code;
}

}  // namespace
}  // namespace rb::cli

int main(int argc, char** argv) { return rb::cli::Main(argc, argv); }

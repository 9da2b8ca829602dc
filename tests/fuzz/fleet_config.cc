// fleet.yaml: any text gives a list of problems that is safe to print, or a fleet that plans can be made for.
#include "controller/adapters/fleet_config.h"

#include "common/text.h"
#include "tests/fuzz/check.h"

int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  rb::controller::Fleet fleet;
  const std::vector<rb::YamlProblem> problems = rb::controller::ParseFleet(rb::fuzz::AsText(data, size), &fleet);
  for (const rb::YamlProblem& problem : problems) {
    RB_FUZZ_CHECK(!problem.text.empty() && problem.line >= 0);
    RB_FUZZ_CHECK(rb::Printable(problem.path) == problem.path);
    RB_FUZZ_CHECK(rb::Printable(problem.text) == problem.text);
  }
  if (!problems.empty()) return 0;
  RB_FUZZ_CHECK(!fleet.environments.empty() && !fleet.services.empty());
  for (const auto& [name, service] : fleet.services) {
    RB_FUZZ_CHECK(name == service.name && !service.hosts.empty());
    for (const auto& [environment, hosts] : service.hosts) RB_FUZZ_CHECK(!hosts.empty());
  }
  return 0;
}

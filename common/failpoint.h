// What tests may switch on by name in the environment: places where the process is killed, as a crash would, and bugs
// that a test has to find (tests/crash/planted_bugs.py holds them all). Not compiled into releases.
#ifndef RB_COMMON_FAILPOINT_H_
#define RB_COMMON_FAILPOINT_H_

#ifdef RB_ENABLE_FAILPOINTS

namespace rb {
// Kills this process with SIGKILL when the environment variable RB_FAILPOINT names this place.
void PassFailpoint(const char* name);
// Whether RB_PLANTED_BUG names this bug.
bool IsPlanted(const char* bug);
}  // namespace rb
#define RB_FAILPOINT(name) ::rb::PassFailpoint(name)
#define RB_PLANTED_BUG(name) ::rb::IsPlanted(name)

#else

#define RB_FAILPOINT(name) static_cast<void>(0)
#define RB_PLANTED_BUG(name) false

#endif

#endif  // RB_COMMON_FAILPOINT_H_

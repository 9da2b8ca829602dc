// Named places where a test can kill the process, as a crash would. Not compiled into releases.
#ifndef RB_COMMON_FAILPOINT_H_
#define RB_COMMON_FAILPOINT_H_

#ifdef RB_ENABLE_FAILPOINTS

namespace rb {
// Kills this process with SIGKILL when the environment variable RB_FAILPOINT names this place.
void PassFailpoint(const char* name);
}  // namespace rb
#define RB_FAILPOINT(name) ::rb::PassFailpoint(name)

#else

#define RB_FAILPOINT(name) static_cast<void>(0)

#endif

#endif  // RB_COMMON_FAILPOINT_H_

// A stack of its own for code that blocks, so that a simulated host can be stopped in the middle of a step.
#ifndef RB_TESTS_SIM_FIBER_H_
#define RB_TESTS_SIM_FIBER_H_

#include <ucontext.h>

#include <cstddef>
#include <functional>
#include <memory>

namespace rb::sim {

// Thrown inside a fiber that is killed; whoever catches it in between throws it on.
struct Killed {};

// Stays on the thread that made it. One body at a time; the stack is used again for the next.
class Fiber {
 public:
  Fiber();
  // Not while a body is running: Kill comes first.
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Runs `body` until it waits or ends.
  void Start(std::function<void()> body);
  // Goes on where the body waits.
  void Resume() { SwitchIn(); }
  // Unwinds the body from where it waits. Nothing if none is running.
  void Kill();
  bool running() const { return running_; }

  // From inside a body: back to whoever started or resumed it.
  void Wait();

 private:
  static void Entry(unsigned int low, unsigned int high);
  void Loop();
  void SwitchIn();
  void SwitchOut();

  void* stack_;
  ucontext_t own_;
  ucontext_t caller_;
  std::function<void()> body_;
  bool running_ = false;
  bool killed_ = false;
  // For AddressSanitizer, which has to know which stack is in use.
  [[maybe_unused]] void* own_fake_stack_ = nullptr;
  [[maybe_unused]] void* caller_fake_stack_ = nullptr;
  [[maybe_unused]] const void* caller_stack_ = nullptr;
  [[maybe_unused]] size_t caller_stack_bytes_ = 0;
};

}  // namespace rb::sim

#endif  // RB_TESTS_SIM_FIBER_H_

#include "tests/sim/fiber.h"

#include <sys/mman.h>

#include <bit>
#include <cstdint>
#include <cstdlib>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define RB_SIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define RB_SIM_ASAN 1
#endif
#endif
#ifdef RB_SIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace rb::sim {
namespace {

// Touched pages alone cost memory; sanitizers want deep stacks.
constexpr size_t kStackBytes = 512 << 10;

}  // namespace

Fiber::Fiber() : stack_(mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)) {
  if (stack_ == MAP_FAILED) std::abort();
  getcontext(&own_);
  own_.uc_stack.ss_sp = stack_;
  own_.uc_stack.ss_size = kStackBytes;
  own_.uc_link = nullptr;
  const auto self = reinterpret_cast<uintptr_t>(this);
  // makecontext passes ints alone.
  makecontext(&own_, reinterpret_cast<void (*)()>(&Fiber::Entry), 2, static_cast<unsigned int>(self),
              static_cast<unsigned int>(self >> 32));
}

Fiber::~Fiber() {
  Kill();
  munmap(stack_, kStackBytes);
}

void Fiber::Start(std::function<void()> body) {
  if (running_) std::abort();
  body_ = std::move(body);
  running_ = true;
  SwitchIn();
}

void Fiber::Kill() {
  if (!running_) return;
  killed_ = true;
  SwitchIn();
  killed_ = false;
  if (running_) std::abort();
}

void Fiber::Wait() {
  SwitchOut();
  if (killed_) throw Killed{};
}

void Fiber::Entry(unsigned int low, unsigned int high) {
  const uintptr_t self = (static_cast<uintptr_t>(high) << 32) | low;
  std::bit_cast<Fiber*>(self)->Loop();
}

void Fiber::Loop() {
#ifdef RB_SIM_ASAN
  __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_stack_bytes_);
#endif
  while (true) {
    try {
      body_();
    } catch (const Killed&) {
    }
    body_ = nullptr;
    running_ = false;
    SwitchOut();
  }
}

void Fiber::SwitchIn() {
#ifdef RB_SIM_ASAN
  __sanitizer_start_switch_fiber(&caller_fake_stack_, stack_, kStackBytes);
#endif
  swapcontext(&caller_, &own_);
#ifdef RB_SIM_ASAN
  __sanitizer_finish_switch_fiber(caller_fake_stack_, nullptr, nullptr);
#endif
}

void Fiber::SwitchOut() {
#ifdef RB_SIM_ASAN
  __sanitizer_start_switch_fiber(&own_fake_stack_, caller_stack_, caller_stack_bytes_);
#endif
  swapcontext(&own_, &caller_);
#ifdef RB_SIM_ASAN
  __sanitizer_finish_switch_fiber(own_fake_stack_, &caller_stack_, &caller_stack_bytes_);
#endif
}

}  // namespace rb::sim

#ifndef RB_AGENT_CORE_ENGINE_RARE_H_
#define RB_AGENT_CORE_ENGINE_RARE_H_

#include <memory>
#include <utility>

namespace rb::agent {

// A value that nearly always equals T(), and takes the room of a pointer then: there are hundreds of thousands of
// these.
template <typename T>
class Rare {
 public:
  Rare() = default;
  Rare(T value) { *this = std::move(value); }  // NOLINT(google-explicit-constructor): it stands for a T
  Rare(const Rare& other) : value_(other.value_ == nullptr ? nullptr : std::make_unique<T>(*other.value_)) {}
  Rare(Rare&&) noexcept = default;
  Rare& operator=(const Rare& other) {
    if (this != &other) *this = Rare(other);
    return *this;
  }
  Rare& operator=(Rare&&) noexcept = default;
  Rare& operator=(T value) {
    value_ = value == T() ? nullptr : std::make_unique<T>(std::move(value));
    return *this;
  }
  const T& operator*() const {
    static const T* const empty = new T();
    return value_ == nullptr ? *empty : *value_;
  }
  const T* operator->() const { return &**this; }
  friend bool operator==(const Rare& a, const Rare& b) { return *a == *b; }

 private:
  std::unique_ptr<T> value_;  // null: T()
};

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_RARE_H_

#include "agent/core/task/external.h"

namespace rb::agent {

ExternalWatch::What ExternalWatch::Take(const Seen& seen, absl::Duration now) {
  if (seen.live_digest.empty() || seen.is_busy) {
    digest_.clear();
    return What::kNothing;
  }
  if (seen.live_digest != digest_) {
    digest_ = seen.live_digest;
    since_ = now;
    return settle_ > absl::ZeroDuration() ? What::kLookAgain : What::kCapture;
  }
  if (now - since_ < settle_) return What::kLookAgain;
  if (not_before_.has_value() && now < *not_before_) return What::kNothing;
  return What::kCapture;
}

void ExternalWatch::Captured(bool has_new_commit, absl::Duration now) {
  digest_.clear();
  not_before_.reset();
  if (!has_new_commit) not_before_ = now + kLeastBetween;
}

}  // namespace rb::agent

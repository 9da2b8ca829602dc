#include "controller/core/audit.h"

#include "absl/strings/str_cat.h"

namespace rb::controller {
namespace {

void AppendNumber(uint64_t number, std::string* out) {
  for (int shift = 56; shift >= 0; shift -= 8) out->push_back(static_cast<char>(number >> shift));
}

void AppendText(const std::string& text, std::string* out) {
  AppendNumber(text.size(), out);
  out->append(text);
}

}  // namespace

Digest AuditHash(const Digest& before, const AuditRecord& record) {
  std::string input(reinterpret_cast<const char*>(before.bytes.data()), before.bytes.size());
  AppendNumber(record.number, &input);
  AppendNumber(static_cast<uint64_t>(absl::ToUnixMicros(record.at)), &input);
  for (const std::string* text :
       {&record.who, &record.role, &record.from, &record.request, &record.subject, &record.reason, &record.refusal}) {
    AppendText(*text, &input);
  }
  input.push_back(record.allowed ? 1 : 0);
  return Sha256Of(input);
}

bool AuditThrottle::Take(What what, const std::string& who, const std::string& request, absl::Time now,
                         uint64_t* left_out) {
  constexpr size_t kMostKept = 10000;
  *left_out = 0;
  if (what == What::kChange) return true;
  const uint32_t most = what == What::kRead ? 1 : kRefusalsInWindow;
  const std::string key = absl::StrCat(what == What::kRead ? "read " : "refusal ", request, " ", who);
  if (seen_.size() >= kMostKept && !seen_.contains(key)) {
    std::erase_if(seen_, [now](const auto& one) { return now - one.second.since >= kReadWindow; });
    if (seen_.size() >= kMostKept) return true;
  }
  Seen& seen = seen_[key];
  // A clock that was set back begins a new window, too.
  if (seen.recorded == 0 || now - seen.since >= kReadWindow || now < seen.since) {
    *left_out = seen.left_out;
    seen = Seen{now, 1, 0};
    return true;
  }
  if (seen.recorded >= most) {
    ++seen.left_out;
    return false;
  }
  ++seen.recorded;
  return true;
}

bool AuditCheck::Take(const AuditRecord& record) {
  if (!problem_.empty()) return false;
  if (record.number == 0 || record.number > static_cast<uint64_t>(INT64_MAX)) {
    bad_number_ = count_ + 1;
    problem_ = absl::StrCat("before record ", count_ + 1, " stands one with the number ",
                            static_cast<int64_t>(record.number), ", which was never given: it was put in");
    return false;
  }
  if (record.number != count_ + 1) {
    bad_number_ = count_ + 1;
    problem_ = absl::StrCat("record ", count_ + 1, " is missing: removed, or given another number");
    return false;
  }
  if (AuditHash(head_, record) != record.hash) {
    bad_number_ = record.number;
    problem_ = absl::StrCat("record ", record.number,
                            " is not what was written: it was edited, or it, or the one before it, stood elsewhere");
    return false;
  }
  ++count_;
  head_ = record.hash;
  seen_ = seen_ || (expected_.has_value() && *expected_ == head_);
  return true;
}

bool AuditCheck::Finish() {
  if (!problem_.empty()) return false;
  if (!expected_.has_value() || seen_) return true;
  problem_ = absl::StrCat("the chain holds together, but no record has the hash ", expected_->ToHex(),
                          ": its end was cut off, or all of it was written anew");
  return false;
}

}  // namespace rb::controller

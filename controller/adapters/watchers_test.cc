#include "controller/adapters/watchers.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/clock.h"
#include "common/event_loop.h"

namespace rb::controller {
namespace {

// What one of them has seen, put together as a client does.
struct Viewer {
  std::vector<uint64_t> sequences;
  std::map<std::string, std::string> errors;  // of the hosts
  size_t messages = 0;
  bool last = false;
  bool busy = false;
  bool gone = false;

  Watchers::Taken Take(const v1::WatchOperationResponse& update, bool is_last) {
    if (gone) return Watchers::Taken::kGone;
    if (busy) return Watchers::Taken::kBusy;
    EXPECT_FALSE(last) << "nothing comes after the last one";
    ++messages;
    if (update.has_event()) sequences.push_back(update.event().sequence());
    for (const v1::OperationEvent& event : update.events()) sequences.push_back(event.sequence());
    if (update.is_whole()) errors.clear();
    for (const v1::HostProgress& host : update.operation().hosts()) errors[host.host()] = host.error();
    last = is_last;
    return Watchers::Taken::kYes;
  }
};

class WatchersTest : public ::testing::Test {
 protected:
  absl::StatusOr<uint64_t> Add(Viewer* viewer, uint64_t after = 0) {
    return watchers_.Add("op", after, [viewer](const v1::WatchOperationResponse& update, bool is_last) {
      return viewer->Take(update, is_last);
    });
  }
  // Something happens to a host.
  void Happen(const std::string& host) {
    v1::OperationEvent event;
    event.set_sequence(history_.size() + 1);
    history_.push_back(event);
    hosts_[host] = absl::StrCat("error ", history_.size());
    watchers_.Touch("op", host);
  }
  void Pass() {
    clock_.Advance(Watchers::kTick);
    loop_.RunReady();
  }
  void ExpectSeenAll(const Viewer& viewer, uint64_t after = 0) {
    ASSERT_EQ(viewer.sequences.size(), history_.size() - after);
    for (size_t i = 0; i < viewer.sequences.size(); ++i) EXPECT_EQ(viewer.sequences[i], after + i + 1);
    EXPECT_EQ(viewer.errors, hosts_);
  }

  FakeClock clock_;
  EventLoop loop_{clock_, 1000};
  std::vector<v1::OperationEvent> history_;
  std::map<std::string, std::string> hosts_;
  bool ended_ = false;
  Watchers watchers_{loop_, clock_, [this](const std::string&) -> absl::StatusOr<Watchers::View> {
                       Watchers::View view;
                       view.history = &history_;
                       view.ended = ended_;
                       view.show = [this](const std::set<std::string>* wanted) {
                         v1::Operation operation;
                         for (const auto& [name, error] : hosts_) {
                           if (wanted != nullptr && wanted->count(name) == 0) continue;
                           operation.add_hosts()->set_host(name);
                           operation.mutable_hosts(operation.hosts_size() - 1)->set_error(error);
                         }
                         return operation;
                       };
                       return view;
                     }};
};

TEST_F(WatchersTest, WhoComesLateSeesAll) {
  for (int i = 0; i < 2500; ++i) Happen(absl::StrCat("h", i % 2000));
  Viewer late;
  ASSERT_TRUE(Add(&late).ok());
  ExpectSeenAll(late);
  EXPECT_EQ(late.messages, 3u);
  Happen("h1");
  Pass();
  ExpectSeenAll(late);
  Viewer after;
  ASSERT_TRUE(Add(&after, 2400).ok());
  ExpectSeenAll(after, 2400);
}

TEST_F(WatchersTest, TheyComeAndGoAndNobodyMissesAnything) {
  Happen("h0");
  std::vector<Viewer> viewers(100);
  std::vector<uint64_t> numbers;
  for (size_t i = 0; i < viewers.size(); ++i) {
    const auto number = Add(&viewers[i]);
    ASSERT_TRUE(number.ok());
    numbers.push_back(*number);
    Happen(absl::StrCat("h", i % 7));
    if (i % 3 == 0) Pass();
    if (i % 5 == 4) {
      watchers_.Remove(numbers[i - 2]);
      viewers[i - 3].gone = true;
    }
  }
  ended_ = true;
  Happen("h0");
  watchers_.End("op");
  for (size_t i = 0; i < viewers.size(); ++i) {
    if (i % 5 == 2 || i % 5 == 1) continue;
    ExpectSeenAll(viewers[i]);
    EXPECT_TRUE(viewers[i].last);
  }
  Viewer later;
  EXPECT_EQ(*Add(&later), 0u);
  ExpectSeenAll(later);
  EXPECT_TRUE(later.last);
}

TEST_F(WatchersTest, WhatHappensToASlowOneIsToldInOne) {
  Happen("h0");
  Viewer slow;
  ASSERT_TRUE(Add(&slow).ok());
  slow.busy = true;
  for (int i = 0; i < 100; ++i) {
    Happen(absl::StrCat("h", i));
    Pass();
  }
  ended_ = true;
  Happen("h0");
  watchers_.End("op");
  EXPECT_EQ(slow.messages, 1u);
  slow.busy = false;
  Pass();
  ExpectSeenAll(slow);
  EXPECT_EQ(slow.messages, 2u);
  EXPECT_TRUE(slow.last);
}

TEST_F(WatchersTest, ThereIsABound) {
  std::vector<Viewer> viewers(Watchers::kMostWatchers + 1);
  for (size_t i = 0; i < Watchers::kMostWatchers; ++i) ASSERT_TRUE(Add(&viewers[i]).ok());
  EXPECT_FALSE(Add(&viewers.back()).ok());
}

}  // namespace
}  // namespace rb::controller

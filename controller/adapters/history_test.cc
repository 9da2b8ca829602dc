#include "controller/adapters/history.h"

#include <string>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace rb::controller {
namespace {

v1::Operation Ended(const std::string& id) {
  v1::Operation operation;
  operation.set_id(id);
  operation.mutable_spec()->set_environment("prod");
  operation.mutable_accepted_at()->set_seconds(1'800'000'000);
  operation.mutable_accepted_at()->set_nanos(999'999'999);
  operation.set_summary(std::string(300, 's'));
  for (const char* host : {"a", "b"}) operation.add_hosts()->set_host(host);
  operation.set_target_met(true);
  return operation;
}

v1::ListOperationsResponse Read(ListWriter writer, const std::string& next) {
  v1::ListOperationsResponse response;
  EXPECT_TRUE(response.ParseFromString(std::move(writer).Take(next)));
  return response;
}

TEST(ListWriter, WritesWhatTheMessagesWouldBe) {
  v1::Operation of_an_earlier_version = Ended("op-3");
  of_an_earlier_version.mutable_plan()->add_notes("long");
  v1::ListOperationsResponse expected;
  *expected.add_operations() = Brief(Ended("op-1"));
  *expected.add_operations() = Brief(Ended("op-2"));
  *expected.add_operations() = Brief(of_an_earlier_version);
  expected.set_next_page_token("op-3");
  ListWriter writer;
  writer.Add(Brief(Ended("op-1")));
  EXPECT_TRUE(writer.AddStored(Brief(Ended("op-2")).SerializeAsString()));
  EXPECT_TRUE(writer.AddStored(of_an_earlier_version.SerializeAsString()));
  const v1::ListOperationsResponse got = Read(std::move(writer), "op-3");
  EXPECT_EQ(got.DebugString(), expected.DebugString());
  EXPECT_FALSE(got.operations(2).has_plan());
  EXPECT_EQ(Read(ListWriter(), "").operations_size(), 0);
}

TEST(ListWriter, WhatIsDamagedIsNotAdded) {
  const std::string whole = Brief(Ended("op-1")).SerializeAsString();
  ListWriter writer;
  for (const size_t length : {whole.size() - 1, whole.size() / 2, size_t{1}}) {
    EXPECT_FALSE(writer.AddStored(whole.substr(0, length))) << length;
  }
  std::string other = whole;
  other[0] = '\x0f';
  EXPECT_FALSE(writer.AddStored(other)) << "there is no such wire type";
  EXPECT_FALSE(writer.AddStored("\x0a\xff\xff\xff\xff\x0f")) << "longer than there is";
  EXPECT_TRUE(writer.AddStored(whole));
  EXPECT_EQ(Read(std::move(writer), "").operations_size(), 1);
}

}  // namespace
}  // namespace rb::controller

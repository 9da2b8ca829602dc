// How the agents' streams use HTTP/2 and TCP, the same at both ends. A stream carries few and small messages, and there
// are thousands of them, so what gRPC does by itself to fill a fast line is turned off: it costs more than the
// messages.
//
// Measured with 2,000 agents, gRPC 1.51 (tests/bench/run fleet): without the bandwidth probe, a ping for nearly each
// message that comes after a pause, a rollback takes about half of the processor that it took with it.
#ifndef RB_COMMON_ADAPTERS_LINK_TRANSPORT_H_
#define RB_COMMON_ADAPTERS_LINK_TRANSPORT_H_

#include <grpcpp/grpcpp.h>

#include <utility>

namespace rb {

// The largest message that either end takes.
inline constexpr int kMostLinkMessageBytes = 8 << 20;

inline constexpr std::pair<const char*, int> kLinkTransport[] = {
    // A peer that is gone is noticed within 15 s, whether or not something is being said.
    {GRPC_ARG_KEEPALIVE_TIME_MS, 10'000},
    {GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 5'000},
    {GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1},
    {GRPC_ARG_HTTP2_BDP_PROBE, 0},
    {GRPC_ARG_ENABLE_CHANNELZ, 0},
    // A stream that breaks is dialled again by the link itself, and nothing is compressed.
    {GRPC_ARG_ENABLE_RETRIES, 0},
    {GRPC_ARG_ENABLE_PER_MESSAGE_COMPRESSION, 0},
    {GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0},
    // The first read of a connection; gRPC takes larger ones where larger messages come.
    {GRPC_ARG_TCP_READ_CHUNK_SIZE, 2'048},
};

inline void SetLinkTransport(grpc::ChannelArguments* channel) {
  for (const auto& [name, value] : kLinkTransport) channel->SetInt(name, value);
  channel->SetMaxReceiveMessageSize(kMostLinkMessageBytes);
}

inline void SetLinkTransport(grpc::ServerBuilder* server) {
  for (const auto& [name, value] : kLinkTransport) server->AddChannelArgument(name, value);
  server->SetMaxReceiveMessageSize(kMostLinkMessageBytes);
}

}  // namespace rb

#endif  // RB_COMMON_ADAPTERS_LINK_TRANSPORT_H_

#include "agent/adapters/link/agent_link.h"

#include <grpcpp/grpcpp.h>

#include <algorithm>
#include <deque>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "common/adapters/link_transport.h"
#include "common/durable_file.h"
#include "common/log.h"
#include "common/mutex.h"
#include "common/status.h"
#include "rb/v1/agent_link.grpc.pb.h"

namespace rb::agent {
namespace {

constexpr size_t kMostQueued = 1000;
constexpr absl::Duration kFirstWait = absl::Milliseconds(100);
constexpr absl::Duration kLongestWait = absl::Seconds(5);

// One stream. Lives until gRPC calls OnDone; the owner holds it by a shared pointer until then.
class Stream final : public grpc::ClientBidiReactor<v1::ConnectRequest, v1::ConnectResponse> {
 public:
  struct Events {
    std::function<void(v1::ConnectResponse)> on_message;
    std::function<void(grpc::Status)> on_done;
  };
  Stream(v1::AgentLink::Stub* stub, Events events) : events_(std::move(events)) {
    stub->async()->Connect(&context_, this);
    // Send starts writes from outside of gRPC's callbacks: without a hold, a stream that fails at that moment is taken
    // down under it.
    AddHold();
    StartRead(&incoming_);
    StartCall();
  }

  bool Send(v1::ConnectRequest message) {
    MutexLock lock(mutex_);
    if (ended_ || queue_.size() >= kMostQueued) return false;
    queue_.push_back(std::move(message));
    if (queue_.size() == 1) StartWrite(&queue_.front());
    return true;
  }
  void Cancel() { context_.TryCancel(); }

  void OnReadDone(bool ok) override {
    if (!ok) {
      {
        MutexLock lock(mutex_);
        ended_ = true;
      }
      // The one failed read that every stream ends with: no write begins any more.
      RemoveHold();
      return;
    }
    events_.on_message(std::move(incoming_));
    incoming_ = v1::ConnectResponse();
    StartRead(&incoming_);
  }
  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    queue_.pop_front();
    if (!ok) {
      ended_ = true;
      return;
    }
    if (!queue_.empty()) StartWrite(&queue_.front());
  }
  void OnDone(const grpc::Status& status) override { events_.on_done(status); }

 private:
  const Events events_;
  grpc::ClientContext context_;
  v1::ConnectResponse incoming_;
  Mutex mutex_;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  // The front is being written: gRPC reads it until OnWriteDone.
  std::deque<v1::ConnectRequest> queue_ ABSL_GUARDED_BY(mutex_);
};

class AgentLinkClientImpl final : public AgentLinkClient {
 public:
  AgentLinkClientImpl(std::shared_ptr<grpc::Channel> channel, std::string address, EventLoop& loop, Clock& clock,
                      v1::Hello hello, Handlers handlers)
      : channel_(std::move(channel)),
        stub_(v1::AgentLink::NewStub(channel_)),
        address_(std::move(address)),
        loop_(loop),
        clock_(clock),
        hello_(std::move(hello)),
        handlers_(std::move(handlers)) {}

  ~AgentLinkClientImpl() override { Stop(); }

  void Start() override { Dial(); }

  void Stop() override {
    std::shared_ptr<Stream> stream;
    {
      MutexLock lock(mutex_);
      stopping_ = true;
      stream = stream_;
    }
    if (stream != nullptr) stream->Cancel();
    MutexLock lock(mutex_);
    while (live_streams_ > 0) changed_.Wait(mutex_);
  }

  bool Send(v1::ConnectRequest message) override {
    std::shared_ptr<Stream> stream;
    {
      MutexLock lock(mutex_);
      stream = stream_;
    }
    return open_ && stream != nullptr && stream->Send(std::move(message));
  }

 private:
  void Dial() {
    MutexLock lock(mutex_);
    if (stopping_ || stream_ != nullptr) return;
    ++live_streams_;
    const uint64_t number = ++number_;
    Stream::Events events;
    events.on_message = [this, number](v1::ConnectResponse message) {
      // A controller that sends faster than we read is held back by dropping the stream: all is repeated after it.
      if (!loop_.Post([this, number, message = std::move(message)] { Take(number, message); })) CancelCurrent();
    };
    events.on_done = [this, number](const grpc::Status& status) {
      const std::string why = absl::StrCat(status.error_message());
      // Under the lock, so that the next dial finds no stream, and Stop returns after the post.
      MutexLock done_lock(mutex_);
      if (number == number_) doomed_ = std::exchange(stream_, nullptr);
      loop_.PostResult([this, number, why] { Ended(number, why); });
      --live_streams_;
      changed_.NotifyAll();
    };
    stream_ = std::make_shared<Stream>(stub_.get(), std::move(events));
    v1::ConnectRequest first;
    *first.mutable_hello() = hello_;
    stream_->Send(std::move(first));
  }

  void CancelCurrent() {
    std::shared_ptr<Stream> stream;
    {
      MutexLock lock(mutex_);
      stream = stream_;
    }
    if (stream != nullptr) stream->Cancel();
  }

  void Take(uint64_t number, const v1::ConnectResponse& message) {
    {
      MutexLock lock(mutex_);
      if (number != number_) return;
    }
    if (message.has_welcome()) {
      open_ = true;
      wait_ = kFirstWait;
      LogInfo("agent", "connected to the controller at ", address_);
      handlers_.on_open(message.welcome());
      return;
    }
    if (open_) handlers_.on_message(message);
  }

  void Ended(uint64_t number, const std::string& why) {
    {
      MutexLock lock(mutex_);
      if (number != number_ || stopping_) return;
      doomed_.reset();
    }
    if (why != last_failure_ || open_) LogWarning("agent", "no link to the controller at ", address_, ": ", why);
    last_failure_ = why;
    if (open_) {
      open_ = false;
      handlers_.on_close();
    }
    std::uniform_real_distribution<double> jitter(0.5, 1.0);
    const absl::Duration wait = wait_ * jitter(random_);
    wait_ = std::min(wait_ * 2, kLongestWait);
    loop_.PostAt(clock_.Monotonic() + wait, [this] { Dial(); });
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::unique_ptr<v1::AgentLink::Stub> stub_;
  const std::string address_;
  EventLoop& loop_;
  Clock& clock_;
  const v1::Hello hello_;
  const Handlers handlers_;
  // On the loop only.
  bool open_ = false;
  absl::Duration wait_ = kFirstWait;
  std::string last_failure_;
  std::minstd_rand random_{std::random_device{}()};

  Mutex mutex_;
  CondVar changed_;
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t number_ ABSL_GUARDED_BY(mutex_) = 0;
  int live_streams_ ABSL_GUARDED_BY(mutex_) = 0;
  std::shared_ptr<Stream> stream_ ABSL_GUARDED_BY(mutex_);
  // A stream that has ended is let go on the loop, not inside its own callback.
  std::shared_ptr<Stream> doomed_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

absl::StatusOr<std::unique_ptr<AgentLinkClient>> AgentLinkClient::Create(const std::string& identity_folder,
                                                                         EventLoop& loop, Clock& clock, v1::Hello hello,
                                                                         Handlers handlers) {
  grpc::SslCredentialsOptions options;
  std::string address;
  for (const auto& [name, value] :
       {std::make_pair("/ca.crt", &options.pem_root_certs), std::make_pair("/agent.key", &options.pem_private_key),
        std::make_pair("/agent.crt", &options.pem_cert_chain), std::make_pair("/controller", &address)}) {
    absl::StatusOr<std::string> content = ReadFile(identity_folder + name, 1 << 20);
    if (absl::IsNotFound(content.status())) {
      return absl::FailedPreconditionError(absl::StrCat(
          "this host has not joined a controller (", identity_folder, name,
          " is missing). On the controller: rb-controller token NAME; here: rb-agent join --token-file FILE"));
    }
    RB_RETURN_IF_ERROR(content.status());
    *value = *std::move(content);
  }
  address = std::string(absl::StripAsciiWhitespace(address));
  grpc::ChannelArguments arguments;
  SetLinkTransport(&arguments);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // The wait between dials is ours.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
  // This one is how long a dial may take, its handshakes included: a far or busy controller needs more than a moment.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 10000);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 1000);
  std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(address, grpc::SslCredentials(options), arguments);
  return std::unique_ptr<AgentLinkClient>(
      new AgentLinkClientImpl(std::move(channel), address, loop, clock, std::move(hello), std::move(handlers)));
}

}  // namespace rb::agent

#include "controller/adapters/drill_api.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "controller/adapters/drill_wire.h"
#include "rb/v1/drill_service.grpc.pb.h"

namespace rb::controller {
namespace {

constexpr char kStart[] = "/rb.v1.DrillService/StartDrill";

AuditSubject SubjectOf(const v1::DrillSpec& spec) {
  std::string fault = "unknown";
  if (const absl::StatusOr<DrillSpec> known = FromWire(spec); known.ok()) fault = std::string(NameOf(known->fault));
  AuditSubject about;
  about.subject = absl::StrCat("drill ", fault, " ", spec.environment(),
                               spec.then().empty() ? "" : absl::StrCat(",", absl::StrJoin(spec.then(), ",")),
                               spec.service().empty() ? "" : absl::StrCat(" service ", spec.service()),
                               spec.hosts().empty() ? "" : absl::StrCat(" host ", absl::StrJoin(spec.hosts(), ",")),
                               spec.by_hand() ? " by hand" : "");
  about.reason = spec.reason();
  return about;
}

class DrillApi final : public v1::DrillService::CallbackService {
 public:
  DrillApi(ApiGate& gate, Drills& drills, Schedules& schedules) : gate_(gate), drills_(drills), schedules_(schedules) {}

  grpc::ServerUnaryReactor* StartDrill(grpc::CallbackServerContext* context, const v1::StartDrillRequest* request,
                                       v1::StartDrillResponse* response) override {
    return gate_.OnLoop(context, kStart, SubjectOf(request->spec()),
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                          absl::StatusOr<DrillSpec> spec = FromWire(request->spec());
                          if (!spec.ok()) return reactor->Finish(ToGrpc(spec.status()));
                          // Not for callers to say.
                          spec->schedule.clear();
                          Drills::Started started = drills_.Start(*spec, peer.name, request->idempotency_key());
                          if (!started.status.ok() || started.refusal.refused()) {
                            const grpc::Status refused =
                                started.status.ok() ? ToGrpc(started.refusal) : ToGrpc(started.status);
                            gate_.RecordRefusal(peer, kStart, SubjectOf(request->spec()), refused);
                            return reactor->Finish(refused);
                          }
                          *response->mutable_drill() = std::move(started.drill);
                          reactor->Finish(grpc::Status::OK);
                        });
  }

  grpc::ServerUnaryReactor* GetDrill(grpc::CallbackServerContext* context, const v1::GetDrillRequest* request,
                                     v1::GetDrillResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DrillService/GetDrill", {request->drill_id(), ""},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                          Answer(drills_.Get(request->drill_id(), request->after_sequence()), response, reactor);
                        });
  }

  grpc::ServerUnaryReactor* ListDrills(grpc::CallbackServerContext* context, const v1::ListDrillsRequest* request,
                                       v1::ListDrillsResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DrillService/ListDrills", {request->environment(), ""},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                          Answer(drills_.List(*request), response, reactor);
                        });
  }

  grpc::ServerUnaryReactor* StopDrill(grpc::CallbackServerContext* context, const v1::StopDrillRequest* request,
                                      v1::StopDrillResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DrillService/StopDrill", {request->drill_id(), request->reason()},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                          Answer(drills_.Stop(request->drill_id(), peer.name, request->reason()),
                                 response->mutable_drill(), reactor);
                        });
  }

  grpc::ServerUnaryReactor* ApproveDrill(grpc::CallbackServerContext* context, const v1::ApproveDrillRequest* request,
                                         v1::ApproveDrillResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DrillService/ApproveDrill", {request->drill_id(), request->reason()},
                        [this, request, response](grpc::ServerUnaryReactor* reactor, const Peer& peer) {
                          Answer(drills_.Approve(request->drill_id(), peer.name, request->reason()),
                                 response->mutable_drill(), reactor);
                        });
  }

  grpc::ServerUnaryReactor* ListSchedules(grpc::CallbackServerContext* context,
                                          const v1::ListSchedulesRequest* /*request*/,
                                          v1::ListSchedulesResponse* response) override {
    return gate_.OnLoop(context, "/rb.v1.DrillService/ListSchedules", {},
                        [this, response](grpc::ServerUnaryReactor* reactor, const Peer&) {
                          *response = schedules_.List();
                          reactor->Finish(grpc::Status::OK);
                        });
  }

 private:
  template <typename Message>
  static void Answer(absl::StatusOr<Message> result, Message* response, grpc::ServerUnaryReactor* reactor) {
    const grpc::Status status = ToGrpc(result.status());
    if (result.ok()) *response = *std::move(result);
    reactor->Finish(status);
  }

  ApiGate& gate_;
  Drills& drills_;
  Schedules& schedules_;
};

}  // namespace

std::unique_ptr<grpc::Service> MakeDrillApi(ApiGate& gate, Drills& drills, Schedules& schedules) {
  return std::make_unique<DrillApi>(gate, drills, schedules);
}

}  // namespace rb::controller

// CI that is asked over HTTP, with JSON (WebhookCiConfig in proto/rb/v1/fleet_config.proto).
#ifndef RB_CONTROLLER_ADAPTERS_CI_WEBHOOK_CI_H_
#define RB_CONTROLLER_ADAPTERS_CI_WEBHOOK_CI_H_

#include <memory>

#include "controller/core/ports/ci.h"
#include "rb/v1/fleet_config.pb.h"

namespace rb::controller {

std::unique_ptr<CiProvider> MakeWebhookCi(const v1::WebhookCiConfig& config);

}  // namespace rb::controller

#endif  // RB_CONTROLLER_ADAPTERS_CI_WEBHOOK_CI_H_

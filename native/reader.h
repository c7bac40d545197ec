// Files into memory, on threads of their own: the event loop goes on.

#pragma once

#include <node_api.h>

namespace llama4 {

napi_value start_reading(napi_env env, napi_callback_info info);
napi_value cancel_reading(napi_env env, napi_callback_info info);

}  // namespace llama4

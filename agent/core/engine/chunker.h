#ifndef RB_AGENT_CORE_ENGINE_CHUNKER_H_
#define RB_AGENT_CORE_ENGINE_CHUNKER_H_

#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace rb::agent {

// Content-defined chunks: where a file is cut depends on the bytes around the cut alone, so that bytes put in or taken
// out change one or two chunks. A gear rolling hash, cutting in [kLeast, kMost] bytes, about 256 KiB on average: small
// enough that a small change adds little, and large enough that a large file is not many objects. (Xia et al.,
// "FastCDC", USENIX ATC 2016, section 3.2.)
inline constexpr size_t kLeastChunkBytes = 64 << 10;
inline constexpr size_t kMostChunkBytes = 1 << 20;

// Length of the first chunk of `data`. All of the file that is left, or at least kMostChunkBytes of it.
size_t FirstChunkLength(absl::string_view data);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_ENGINE_CHUNKER_H_

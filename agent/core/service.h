// What the engine has to know about one service on this server: the part of agent.yaml that decides about files.
#ifndef RB_AGENT_CORE_SERVICE_H_
#define RB_AGENT_CORE_SERVICE_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace rb::agent {

enum class Component { kCode, kConfig, kData };

// A set of components. Code and config by default: data rolls back only when asked.
struct Components {
  bool code = true;
  bool config = true;
  bool data = false;

  bool Contains(Component component) const {
    return component == Component::kCode ? code : component == Component::kConfig ? config : data;
  }
  friend bool operator==(const Components&, const Components&) = default;
};

struct ServiceTree {
  std::string service;
  // Absolute path of the folder the service lives in; no trailing slash.
  std::string tree;
  // Owner of files that come from git. -1: that of the tree's root.
  int owner_uid = -1;
  int owner_gid = -1;
  // Globs (common/text.h) relative to the tree.
  std::vector<std::string> config_globs;
  std::vector<std::string> data_globs;
  std::vector<std::string> ignore_globs;
  // Databases, relative to the tree: captured through SQLite's online backup; their -wal, -shm and -journal files
  // belong to them, are never captured as files, and are replaced together with them.
  std::vector<std::string> sqlite_paths;
};

// Which component a path (relative to the tree) belongs to: data wins over config, and what neither claims is code.
// Databases and their sidecars are data unless config claims them. A folder belongs where its own path matches; a
// folder that only leads to claimed paths is code.
Component ComponentOf(const ServiceTree& tree, absl::string_view path);
// Never captured, compared, changed or removed; nor is anything below it.
bool IsIgnored(const ServiceTree& tree, absl::string_view path);

}  // namespace rb::agent

#endif  // RB_AGENT_CORE_SERVICE_H_

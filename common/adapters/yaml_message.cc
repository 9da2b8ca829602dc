#include "common/adapters/yaml_message.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/descriptor.pb.h>
#include <google/protobuf/duration.pb.h>
#include <google/protobuf/message.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <set>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "common/edit_distance.h"
#include "common/text.h"

namespace rb {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMostProblems = 100;

struct Node {
  enum class Kind { kNull, kScalar, kList, kMap };
  Kind kind = Kind::kNull;
  int line = 0;
  int column = 0;
  std::string scalar;
  bool quoted = false;
  // Elements of a list; keys and values of a map, alternating.
  std::vector<std::unique_ptr<Node>> children;
};

// Ends parsing from inside a callback; never leaves this file.
class Stop : public std::exception {};

// Builds nodes with their places. yaml-cpp's own tree loses duplicate keys and resolves aliases silently.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::vector<YamlProblem>* problems) : problems_(problems) {}

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    Check(mark, "?", anchor);
    Add(mark, Node::Kind::kNull);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    Refuse(mark, "aliases (*name) are not allowed: write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    Check(mark, tag, anchor);
    Node* node = Add(mark, Node::Kind::kScalar);
    node->scalar = value;
    node->quoted = tag == "!";
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    Check(mark, tag, anchor);
    Enter(mark, Add(mark, Node::Kind::kList));
  }
  void OnSequenceEnd() override { open_.pop_back(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    Check(mark, tag, anchor);
    Enter(mark, Add(mark, Node::Kind::kMap));
  }
  void OnMapEnd() override { open_.pop_back(); }
  void OnAnchor(const YAML::Mark& mark, const std::string&) override {
    Refuse(mark, "anchors (&name) are not allowed: write the value out");
  }

  std::unique_ptr<Node> TakeRoot() { return std::move(root_); }

 private:
  void Refuse(const YAML::Mark& mark, const std::string& text) {
    problems_->push_back({mark.line + 1, mark.column + 1, "", text});
    throw Stop();
  }
  void Check(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) Refuse(mark, "anchors (&name) are not allowed: write the value out");
    if (!tag.empty() && tag != "?" && tag != "!") {
      Refuse(mark, absl::StrCat("tags (", Printable(Truncate(tag, 64)), ") are not allowed"));
    }
  }
  Node* Add(const YAML::Mark& mark, Node::Kind kind) {
    auto node = std::make_unique<Node>();
    node->kind = kind;
    node->line = mark.line + 1;
    node->column = mark.column + 1;
    Node* added = node.get();
    if (open_.empty()) {
      root_ = std::move(node);
    } else {
      open_.back()->children.push_back(std::move(node));
    }
    return added;
  }
  void Enter(const YAML::Mark& mark, Node* node) {
    open_.push_back(node);
    if (open_.size() > static_cast<size_t>(kDeepestYaml)) {
      Refuse(mark, absl::StrCat("more than ", kDeepestYaml, " levels of nesting"));
    }
  }

  std::vector<YamlProblem>* problems_;
  std::unique_ptr<Node> root_;
  std::vector<Node*> open_;
};

const char* KindName(const Node& node) {
  switch (node.kind) {
    case Node::Kind::kNull:
      return "nothing";
    case Node::Kind::kScalar:
      return "a single value";
    case Node::Kind::kList:
      return "a list";
    case Node::Kind::kMap:
      return "a mapping";
  }
  return "";
}

std::string Quote(absl::string_view text) { return absl::StrCat("\"", Printable(Truncate(text, 80)), "\""); }

bool IsList(const Descriptor* type) {
  return type->field_count() == 1 && type->field(0)->is_repeated() && !type->field(0)->is_map() &&
         type->field(0)->name() == "values";
}
bool IsDuration(const Descriptor* type) { return type->full_name() == "google.protobuf.Duration"; }

class Filler {
 public:
  Filler(std::vector<YamlProblem>* problems, YamlLines* lines) : problems_(problems), lines_(lines) {}

  void Fill(const Node& node, const std::string& path, Message* message) {
    const Descriptor* type = message->GetDescriptor();
    if (IsDuration(type)) return FillDuration(node, path, message);
    if (IsList(type)) return FillField(node, path, type->field(0), message);
    if (node.kind == Node::Kind::kNull) return;
    if (node.kind != Node::Kind::kMap) {
      return Add(node, path, absl::StrCat("wants keys and values (", Keys(type), "), found ", KindName(node)));
    }
    std::map<const google::protobuf::OneofDescriptor*, std::string> chosen;
    ForEachKey(node, path, [&](const Node& key, const Node& value) {
      const FieldDescriptor* field = type->FindFieldByName(key.scalar);
      if (field == nullptr) {
        std::vector<std::string> known;
        for (int i = 0; i < type->field_count(); ++i) known.push_back(type->field(i)->name());
        const std::string nearest = NearestSpelling(key.scalar, known);
        return Add(key, path,
                   absl::StrCat("unknown key ", Quote(key.scalar), "; ",
                                nearest.empty() ? "" : absl::StrCat("did you mean ", Quote(nearest), "? "),
                                "keys here: ", Keys(type)));
      }
      if (const auto* oneof = field->containing_oneof(); oneof != nullptr) {
        auto [it, first] = chosen.emplace(oneof, field->name());
        if (!first) {
          return Add(key, path,
                     absl::StrCat(Quote(it->second), " and ", Quote(field->name()),
                                  " exclude each other: give only one here (a list takes each as an item of its own)"));
        }
      }
      const std::string child = path.empty() ? field->name() : absl::StrCat(path, ".", field->name());
      Note(child, key);
      FillField(value, child, field, message);
    });
  }

 private:
  void Add(const Node& node, const std::string& path, std::string text) {
    if (problems_->size() < kMostProblems) problems_->push_back({node.line, node.column, path, std::move(text)});
  }
  void Note(const std::string& path, const Node& node) {
    if (lines_ != nullptr) lines_->emplace(path, node.line);
  }
  static std::string Keys(const Descriptor* type) {
    std::vector<std::string> names;
    for (int i = 0; i < type->field_count(); ++i) names.push_back(type->field(i)->name());
    return absl::StrJoin(names, ", ");
  }

  template <typename Visit>
  void ForEachKey(const Node& map, const std::string& path, Visit visit) {
    std::map<std::string, int> seen;
    for (size_t i = 0; i + 1 < map.children.size(); i += 2) {
      const Node& key = *map.children[i];
      if (key.kind != Node::Kind::kScalar || key.scalar.empty()) {
        Add(key, path, absl::StrCat("a key is a single word, found ", key.scalar.empty() ? "nothing" : KindName(key)));
        continue;
      }
      if (!IsText(key, path)) continue;
      auto [it, first] = seen.emplace(key.scalar, key.line);
      if (!first) {
        Add(key, path, absl::StrCat("duplicate key ", Quote(key.scalar), ", first on line ", it->second));
        continue;
      }
      visit(key, *map.children[i + 1]);
    }
  }

  void FillField(const Node& node, const std::string& path, const FieldDescriptor* field, Message* message) {
    const Reflection* reflection = message->GetReflection();
    if (field->is_map()) {
      if (node.kind == Node::Kind::kNull) return;
      if (node.kind != Node::Kind::kMap) {
        return Add(node, path, absl::StrCat("wants a mapping of names to values, found ", KindName(node)));
      }
      const Descriptor* entry_type = field->message_type();
      if (entry_type->map_key()->type() != FieldDescriptor::TYPE_STRING) {
        return Add(node, path, "this reader knows only maps with text keys");
      }
      ForEachKey(node, path, [&](const Node& key, const Node& value) {
        Message* entry = reflection->AddMessage(message, field);
        entry->GetReflection()->SetString(entry, entry_type->map_key(), key.scalar);
        const std::string child = absl::StrCat(path, ".", Printable(key.scalar));
        Note(child, key);
        FillOne(value, child, entry_type->map_value(), entry, /*add=*/false);
      });
      return;
    }
    if (field->is_repeated()) {
      if (node.kind == Node::Kind::kNull) return;
      if (node.kind != Node::Kind::kList) {
        return Add(node, path, absl::StrCat("wants a list, found ", KindName(node)));
      }
      for (size_t i = 0; i < node.children.size(); ++i) {
        const std::string child = absl::StrCat(path, "[", i, "]");
        Note(child, *node.children[i]);
        FillOne(*node.children[i], child, field, message, /*add=*/true);
      }
      return;
    }
    FillOne(node, path, field, message, /*add=*/false);
  }

  // One value: sets the field, or adds to it.
  void FillOne(const Node& node, const std::string& path, const FieldDescriptor* field, Message* message, bool add) {
    const Reflection* reflection = message->GetReflection();
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      return Fill(node, path,
                  add ? reflection->AddMessage(message, field) : reflection->MutableMessage(message, field));
    }
    const bool is_text = field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
    // In a map<string, string> an unquoted null is a value like any other ({error: null}).
    const bool null_text = is_text && node.kind == Node::Kind::kNull && message->GetDescriptor()->options().map_entry();
    if (node.kind != Node::Kind::kScalar && !null_text) {
      return Add(node, path, absl::StrCat("wants ", TypeName(field), ", found ", KindName(node)));
    }
    const std::string text = null_text ? "null" : node.scalar;
    if (!IsText(node, path)) return;
    const auto wrong = [&] { Add(node, path, absl::StrCat("wants ", TypeName(field), ", found ", Quote(text))); };
    if (!is_text && node.quoted && field->cpp_type() != FieldDescriptor::CPPTYPE_ENUM) {
      return Add(node, path, absl::StrCat("wants ", TypeName(field), " without quotes, found text ", Quote(text)));
    }
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        add ? reflection->AddString(message, field, text) : reflection->SetString(message, field, text);
        return;
      case FieldDescriptor::CPPTYPE_BOOL:
        if (text != "true" && text != "false") return wrong();
        add ? reflection->AddBool(message, field, text == "true") : reflection->SetBool(message, field, text == "true");
        return;
      case FieldDescriptor::CPPTYPE_INT32: {
        int32_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        add ? reflection->AddInt32(message, field, value) : reflection->SetInt32(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_UINT32: {
        uint32_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        add ? reflection->AddUInt32(message, field, value) : reflection->SetUInt32(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_INT64: {
        int64_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        add ? reflection->AddInt64(message, field, value) : reflection->SetInt64(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_UINT64: {
        uint64_t value = 0;
        if (!absl::SimpleAtoi(text, &value)) return wrong();
        add ? reflection->AddUInt64(message, field, value) : reflection->SetUInt64(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_DOUBLE: {
        double value = 0;
        if (!absl::SimpleAtod(text, &value) || !std::isfinite(value)) return wrong();
        add ? reflection->AddDouble(message, field, value) : reflection->SetDouble(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_FLOAT: {
        float value = 0;
        if (!absl::SimpleAtof(text, &value) || !std::isfinite(value)) return wrong();
        add ? reflection->AddFloat(message, field, value) : reflection->SetFloat(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_ENUM: {
        const auto* value = field->enum_type()->FindValueByName(text);
        if (value == nullptr) return wrong();
        add ? reflection->AddEnum(message, field, value) : reflection->SetEnum(message, field, value);
        return;
      }
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return;
    }
  }

  void FillDuration(const Node& node, const std::string& path, Message* message) {
    if (node.kind != Node::Kind::kScalar) {
      return Add(node, path, absl::StrCat("wants a duration such as 90s, 3m or 1h30m, found ", KindName(node)));
    }
    absl::Duration value;
    if (!absl::ParseDuration(node.scalar, &value)) {
      double number = 0;
      const bool bare = absl::SimpleAtod(node.scalar, &number);
      return Add(node, path,
                 absl::StrCat("wants a duration such as 90s, 3m or 1h30m, found ", Quote(node.scalar),
                              bare ? " (the unit is missing)" : ""));
    }
    if (value < absl::ZeroDuration() || value > absl::Hours(366 * 24)) {
      return Add(node, path, absl::StrCat("a duration is between 0s and 8784h (366 days), found ", Quote(node.scalar)));
    }
    const int64_t seconds = absl::IDivDuration(value, absl::Seconds(1), &value);
    const auto nanos = static_cast<int32_t>(absl::ToInt64Nanoseconds(value));
    const Descriptor* type = message->GetDescriptor();
    message->GetReflection()->SetInt64(message, type->FindFieldByName("seconds"), seconds);
    message->GetReflection()->SetInt32(message, type->FindFieldByName("nanos"), nanos);
  }

  bool IsText(const Node& node, const std::string& path) {
    for (const char c : node.scalar) {
      const auto byte = static_cast<unsigned char>(c);
      if ((byte < 0x20 && c != '\n' && c != '\t') || byte == 0x7f) {
        Add(node, path, absl::StrCat("control characters are not allowed: ", Quote(node.scalar)));
        return false;
      }
    }
    return true;
  }

  static std::string TypeName(const FieldDescriptor* field) {
    switch (field->cpp_type()) {
      case FieldDescriptor::CPPTYPE_STRING:
        return "text";
      case FieldDescriptor::CPPTYPE_BOOL:
        return "true or false";
      case FieldDescriptor::CPPTYPE_INT32:
      case FieldDescriptor::CPPTYPE_INT64:
        return "a whole number";
      case FieldDescriptor::CPPTYPE_UINT32:
      case FieldDescriptor::CPPTYPE_UINT64:
        return "a whole number, not negative";
      case FieldDescriptor::CPPTYPE_DOUBLE:
      case FieldDescriptor::CPPTYPE_FLOAT:
        return "a number";
      case FieldDescriptor::CPPTYPE_ENUM: {
        std::vector<std::string> names;
        for (int i = 0; i < field->enum_type()->value_count(); ++i) {
          names.push_back(field->enum_type()->value(i)->name());
        }
        return absl::StrCat("one of ", absl::StrJoin(names, ", "));
      }
      case FieldDescriptor::CPPTYPE_MESSAGE:
        return "a mapping";
    }
    return "";
  }

  std::vector<YamlProblem>* problems_;
  YamlLines* lines_;
};

// Where the first byte lies that is not part of valid UTF-8 text, or npos.
size_t FirstInvalidByte(absl::string_view text) {
  size_t i = 0;
  while (i < text.size()) {
    const auto lead = static_cast<unsigned char>(text[i]);
    size_t length = 0;
    uint32_t point = 0;
    if (lead == 0) return i;
    if (lead < 0x80) {
      ++i;
      continue;
    }
    if (lead >= 0xc2 && lead < 0xe0) {
      length = 2;
      point = lead & 0x1fu;
    } else if (lead >= 0xe0 && lead < 0xf0) {
      length = 3;
      point = lead & 0x0fu;
    } else if (lead >= 0xf0 && lead < 0xf5) {
      length = 4;
      point = lead & 0x07u;
    } else {
      return i;
    }
    if (text.size() - i < length) return i;
    for (size_t k = 1; k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      if ((next & 0xc0u) != 0x80u) return i;
      point = (point << 6) | (next & 0x3fu);
    }
    const bool too_long = (length == 3 && point < 0x800) || (length == 4 && point < 0x10000);
    if (too_long || (point >= 0xd800 && point < 0xe000) || point > 0x10ffff) return i;
    i += length;
  }
  return absl::string_view::npos;
}

std::unique_ptr<Node> Parse(absl::string_view yaml, std::vector<YamlProblem>* problems) {
  TreeBuilder builder(problems);
  try {
    std::istringstream stream{std::string(yaml)};
    YAML::Parser parser(stream);
    if (!parser.HandleNextDocument(builder)) return std::make_unique<Node>();
    std::unique_ptr<Node> root = builder.TakeRoot();
    std::vector<YamlProblem> ignored;
    TreeBuilder second(&ignored);
    if (parser.HandleNextDocument(second)) {
      const std::unique_ptr<Node> other = second.TakeRoot();
      problems->push_back({other == nullptr ? 0 : other->line, other == nullptr ? 0 : other->column, "",
                           "a second document begins here: the file holds only one"});
    }
    return root == nullptr ? std::make_unique<Node>() : std::move(root);
  } catch (const Stop&) {
    if (problems->empty()) problems->push_back({0, 0, "", "a second document is not allowed"});
  } catch (const YAML::Exception& e) {
    problems->push_back({e.mark.is_null() ? 0 : e.mark.line + 1, e.mark.is_null() ? 0 : e.mark.column + 1, "",
                         absl::StrCat("not YAML: ", Printable(Truncate(e.msg, 200)))});
  } catch (const std::exception& e) {
    problems->push_back({0, 0, "", absl::StrCat("not YAML: ", Printable(Truncate(e.what(), 200)))});
  }
  return nullptr;
}

}  // namespace

std::vector<YamlProblem> ReadYamlMessage(absl::string_view yaml, Message* message, YamlLines* lines) {
  message->Clear();
  if (lines != nullptr) lines->clear();
  std::vector<YamlProblem> problems;
  if (yaml.size() > kLargestYamlBytes) {
    problems.push_back({0, 0, "",
                        absl::StrCat("the file has ", FormatBytes(yaml.size()), "; at most ",
                                     FormatBytes(kLargestYamlBytes), " are read")});
    return problems;
  }
  if (const size_t at = FirstInvalidByte(yaml); at != absl::string_view::npos) {
    const absl::string_view before = yaml.substr(0, at);
    const size_t line_start = before.rfind('\n') == absl::string_view::npos ? 0 : before.rfind('\n') + 1;
    problems.push_back({static_cast<int>(std::count(before.begin(), before.end(), '\n')) + 1,
                        static_cast<int>(at - line_start) + 1, "", "a byte that is not UTF-8 text"});
    return problems;
  }
  const std::unique_ptr<Node> root = Parse(yaml, &problems);
  if (root == nullptr) return problems;
  Filler(&problems, lines).Fill(*root, "", message);
  std::stable_sort(problems.begin(), problems.end(),
                   [](const YamlProblem& a, const YamlProblem& b) { return a.line < b.line; });
  return problems;
}

int LineOf(const YamlLines& lines, absl::string_view path) {
  while (!path.empty()) {
    const auto it = lines.find(std::string(path));
    if (it != lines.end()) return it->second;
    const size_t cut = path.find_last_of(".[");
    path = cut == absl::string_view::npos ? absl::string_view() : path.substr(0, cut);
  }
  return 0;
}

std::string FormatProblems(absl::string_view file, const std::vector<YamlProblem>& problems) {
  std::string out;
  for (const YamlProblem& problem : problems) {
    absl::StrAppend(&out, file);
    if (problem.line > 0) absl::StrAppend(&out, ":", problem.line);
    absl::StrAppend(&out, ": ");
    if (!problem.path.empty()) absl::StrAppend(&out, problem.path, ": ");
    absl::StrAppend(&out, problem.text, "\n");
  }
  return out;
}

}  // namespace rb

#include "rbctl/areas/areas.h"

#include "rbctl/areas/why.h"

namespace rb::cli {

std::vector<AddArea> AllAreas() { return {AddWhy, AddDocuments}; }

}  // namespace rb::cli

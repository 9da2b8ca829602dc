#include "rbctl/areas/areas.h"

#include "rbctl/areas/drill.h"
#include "rbctl/areas/quarantine.h"
#include "rbctl/areas/why.h"

namespace rb::cli {

std::vector<AddArea> AllAreas() { return {AddQuarantine, AddDrills, AddWhy, AddDocuments}; }

}  // namespace rb::cli

// nanobind itself, compiled into the module, so that its sources need not be named by absolute paths when building.
#include <nb_combined.cpp>

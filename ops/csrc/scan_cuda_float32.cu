#include "scan_launch.cuh"

namespace gspn {
GSPN_DEFINE_LAUNCHES(float)
}

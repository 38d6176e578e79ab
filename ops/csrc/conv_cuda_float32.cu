#include "conv_launch.cuh"

namespace gspn {
namespace conv {
GSPN_DEFINE_CONV_LAUNCHES(float)
}  // namespace conv
}  // namespace gspn

#include "conv_launch.cuh"

namespace gspn {
namespace conv {
GSPN_DEFINE_CONV_LAUNCHES(bfloat16)
}  // namespace conv
}  // namespace gspn

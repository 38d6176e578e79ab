"""`python -m ops`: which backends are built, for which architectures, with which compiler, against which torch."""

import ctypes
import sys

import torch

from ops.build import read_record
from ops.library import BACKENDS, LIBRARY


def main() -> int:
    """Print the report; exit status 1 when nothing is built."""
    print(f"torch      {torch.__version__} (CUDA {torch.version.cuda or 'none'})")
    built = read_record(LIBRARY.parent / "build.json")  # written last: an interrupted build leaves none
    if not BACKENDS or not built:
        print("scan       not built, or from older sources: run `make build`")
        return 1
    instruction_set = ctypes.CDLL(str(LIBRARY)).gspn_cpu_instruction_set
    instruction_set.restype = ctypes.c_char_p
    print(f"scan       {LIBRARY}")
    print(f"built      against torch {built['torch']} (loads in torch 2.10 and later), by {built['cxx']}")
    if "seconds" in built:
        print(f"           the last build took {built['seconds']:.0f} s, for what had changed")
    print(
        f"cpu        yes, {instruction_set().decode()} on this processor, {torch.get_num_threads()} threads"
    )
    if "cuda" in BACKENDS:
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        print(f"cuda       yes, for {built['architectures']}, by nvcc {built['nvcc']}")
        print(f"devices    {', '.join(devices) or 'no GPU visible'}")
    else:
        print("cuda       no: no CUDA compiler was found; `make build CUDA=1` installs one and builds")
    return 0


if __name__ == "__main__":
    sys.exit(main())

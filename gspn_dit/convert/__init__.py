"""Published DiT and SiT weights as a release: what sample.py, eval_fid.py and train.init_from take.

    python -m gspn_dit.convert SOURCE FOLDER

The network is the same function, in float32 to within rounding; see `layouts`, `stream` and `release`.
"""

from gspn_dit.convert.release import convert

__all__ = ["convert"]

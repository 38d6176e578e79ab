"""What encoding states beside its latents: the error of float16, time in words."""

import numpy as np
import pytest
import torch

from gspn_dit.latents.encoding import float16_error, in_time


def test_error_of_float16():
    moments = torch.zeros(1, 2, 2, 1, 1, 2)
    moments[:, :, 0] = 1 + 2.0**-11 - 2.0**-20  # just below half a unit in the last place
    moments[:, 0, 1, 0, 0, 0] = 2 * (2 + 2.0**-10 - 2.0**-19)
    error = float16_error(moments, scale=0.5)
    rounding = 2.0**-11 - 2.0**-20
    deviation = np.sqrt((3 + np.exp(2 * (2 + 2.0**-10 - 2.0**-19))) / 4)
    assert error["mean_max"] == pytest.approx(rounding / 2, rel=1e-5)
    assert error["mean_rms"] == pytest.approx(rounding / 2, rel=1e-5)
    assert error["deviation_max"] == pytest.approx(np.expm1(2.0**-10 - 2.0**-19), rel=1e-2)
    assert error["share_of_posterior"] == pytest.approx(rounding / deviation, rel=1e-5)


def test_time_in_words():
    assert [in_time(seconds) for seconds in (9.6, 720, 12_000)] == ["10 s", "12 min", "3 h 20 min"]

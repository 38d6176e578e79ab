"""The generated task: what a layout is, that nothing but the curve tells the label, and that pictures are as drawn."""

import dataclasses

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from experiments import curves_task
from experiments.curves_plan import STUDIES
from experiments.curves_task import Task, cached_layouts, draw_layout, draw_layouts, draw_pictures

TASK = STUDIES["cpu"].grids[0].task
SMALL = Task(size=16, lengths=(8, 12), distractors=2, turn=0.3, layouts=12, held_out=6)


@pytest.fixture(scope="module")
def layouts():
    return draw_layouts(TASK, curves_task.TRAINING, 1200)


def neighbours(picture, row, column):
    near = [(row + r, column + c) for r, c in ((0, 1), (0, -1), (1, 0), (-1, 0))]
    return [(r, c) for r, c in near if min(r, c) >= 0 and max(r, c) < len(picture) and picture[r, c]]


def follow(picture, start):
    """The pixels connected to `start`, by steps along rows and columns."""
    seen, waiting = {start}, [start]
    while waiting:
        found = [near for near in neighbours(picture, *waiting.pop()) if near not in seen]
        seen.update(found)
        waiting += found
    return seen


def test_curves_are_lines_a_pixel_apart_and_the_marks_their_ends(layouts):
    for picture, marks, length in zip(layouts.curves[:200], layouts.marks, layouts.lengths, strict=False):
        mark, same, other = map(tuple, marks.tolist())
        mine, theirs = follow(picture, mark), follow(picture, other)
        assert same in mine and not mine & theirs
        assert {picture[pixel] for pixel in mine} == {1} and {picture[pixel] for pixel in theirs} == {2}
        assert len(mine) == len(theirs) == length
        for pixel in (mark, same, other):
            assert len(neighbours(picture, *pixel)) == 1
        for row, column in np.argwhere(picture).tolist():
            beside = neighbours(picture, row, column)
            assert 1 <= len(beside) <= 2
            # A corner is the only place where pixels of a curve meet diagonally.
            square = picture[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2]
            of_beside = sum(len(neighbours(picture, *pixel)) - 1 for pixel in beside)
            assert (square > 0).sum() <= 1 + len(beside) + of_beside


def test_lengths_are_uniform_and_corners_counted(layouts):
    low, high = TASK.lengths
    counts = np.bincount(layouts.lengths, minlength=high + 1)[low:]
    assert counts.sum() == len(layouts) and counts.min() > 0.4 * counts.mean()
    assert curves_task.corners([(0, 0), (0, 1), (1, 1), (2, 1), (2, 2)]) == 2
    assert curves_task.corners([(0, 0), (0, 1), (0, 2)]) == 0


def setting_out(picture, end):
    """The step from an end of a curve to the pixel beside it."""
    (beside,) = neighbours(picture, *end)
    return np.subtract(beside, end)


def test_the_end_of_the_other_curve_mirrors_that_of_the_marks_own(layouts):
    for picture, marks in zip(layouts.curves[:200], layouts.marks.astype(int), strict=False):
        mark, same, other = marks
        step = setting_out(picture, mark)
        mirror = np.where(step != 0, 1, -1)
        assert not np.array_equal(same, other)
        assert np.array_equal((same - mark) * mirror, other - mark)
        assert np.array_equal(setting_out(picture, same) * mirror, setting_out(picture, other))


def statistics(layouts, partner):
    """What a network could read off the marks without following a curve; a row for each layout."""
    first, second = (layouts.marks[:, k].astype(int) for k in (0, partner))
    columns = [np.linalg.norm(first - second, axis=1), layouts.lengths, (layouts.curves > 0).sum((1, 2))]
    apart = np.sort(abs(first - second), axis=1)
    for ends, others in ((first, second), (second, first)):
        steps = np.array([setting_out(p, end) for p, end in zip(layouts.curves, ends, strict=True)])
        columns += [(steps * (others - ends)).sum(1), abs(steps[:, ::-1] * (others - ends)).sum(1)]
    borders = [np.minimum(ends, TASK.size - 1 - ends).min(1) for ends in (first, second)]
    columns += [*apart.T, columns[0] / layouts.lengths, borders[0] + borders[1], abs(borders[0] - borders[1])]
    for reach in (1, 2, 4):
        padded = np.pad(layouts.curves > 0, ((0, 0), (reach, reach), (reach, reach)))
        counts = [
            np.array(
                [
                    p[r : r + 2 * reach + 1, c : c + 2 * reach + 1].sum()
                    for p, (r, c) in zip(padded, ends, strict=True)
                ]
            )
            for ends in (first, second)
        ]
        columns += [counts[0] + counts[1], abs(counts[0] - counts[1])]
    return np.stack(columns, axis=1).astype(float)


@pytest.mark.parametrize(
    "judge", [LogisticRegression(max_iter=1000), HistGradientBoostingClassifier(max_iter=40)]
)
def test_neither_distance_nor_counts_tell_the_label(layouts, judge):
    features = StandardScaler().fit_transform(
        np.concatenate([statistics(layouts, 1), statistics(layouts, 2)])
    )
    labels = np.repeat([1, 0], len(layouts))
    fitted = np.tile(np.arange(len(layouts)) < 800, 2)
    judge.fit(features[fitted], labels[fitted])
    assert (
        judge.score(features[~fitted], labels[~fitted]) < 0.56
    )  # chance: 0.5 with a standard error of 0.018


def test_a_layout_depends_on_its_number_alone():
    picture, marks, length, corners = draw_layout(TASK, curves_task.HELD_OUT, 7)
    layouts = draw_layouts(TASK, curves_task.HELD_OUT, 9)
    assert np.array_equal(layouts.curves[7], picture) and layouts.marks[7].tolist() == [*map(list, marks)]
    assert (layouts.lengths[7], layouts.turns[7]) == (length, corners)
    assert not np.array_equal(picture, draw_layout(TASK, curves_task.TRAINING, 7)[0])


def test_curves_too_short_for_a_fair_question_are_refused():
    with pytest.raises(ValueError, match=r"^found no two curves of 4 pixels in Task\(size=16"):
        draw_layouts(dataclasses.replace(SMALL, lengths=(4, 4)), curves_task.TRAINING, 1)


def test_layouts_are_cached_whole_and_by_what_they_are(tmp_path, monkeypatch):
    first = cached_layouts(SMALL, tmp_path)
    assert [len(part) for part in first] == [12, 6]
    (path,) = tmp_path.iterdir()
    monkeypatch.setattr(curves_task, "draw_layouts", lambda *_: pytest.fail("drawn again"))
    again = cached_layouts(SMALL, tmp_path)
    assert [part.hash for part in again] == [part.hash for part in first]
    assert again[0].hash != again[1].hash
    monkeypatch.undo()
    cached_layouts(dataclasses.replace(SMALL, turn=0.5), tmp_path)
    assert len(list(tmp_path.iterdir())) == 2 and path.exists()


def test_pictures_show_the_marks_of_their_label_under_every_symmetry():
    layouts = draw_layouts(SMALL, curves_task.TRAINING, 8)
    chosen = np.arange(8)
    for label in (0, 1):
        plain, counts = draw_pictures(layouts, chosen, np.full(8, label))
        assert plain.shape == (8, 2, 16, 16) and plain.dtype == np.float32 and set(np.unique(plain)) == {0, 1}
        for picture, marks in zip(plain, layouts.marks.tolist(), strict=True):
            shown = {tuple(place) for place in np.argwhere(picture[1]).tolist()}
            assert shown == {tuple(marks[0]), tuple(marks[1 if label else 2])}
            assert (picture[0][picture[1] > 0] == 1).all()
        for picture, marked, curves in zip(plain, counts, layouts.curves, strict=True):
            assert np.array_equal(marked == curves_task.NO_CURVE, picture[0] == 0)
            for number in (1, 2, 3):
                marks = picture[1][curves == number].sum()
                assert (marked[curves == number] == marks).all() and (marks == 0 or number < 3)
        first = np.zeros(8, dtype=int)
        turned, of_turned = draw_pictures(layouts, first, np.full(8, label), np.arange(8))
        assert len({picture.tobytes() for picture in turned}) == 8
        square = {np.rot90(side, k).tobytes() for side in (plain[0, 1], plain[0, 1].T) for k in range(4)}
        assert {picture[1].tobytes() for picture in turned} == square
        for picture, marked in zip(turned, of_turned, strict=True):
            assert np.array_equal(marked >= 0, picture[0] > 0)
            assert set(marked[picture[1] > 0]) == ({2} if label else {1})

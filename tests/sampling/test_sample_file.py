"""Sample files: ADM's format, shards, and going on after a kill."""

import json
import shutil
import tracemalloc
from types import SimpleNamespace

import numpy as np
import pytest

from gspn_dit.errors import UserError
from gspn_dit.files import replacing
from gspn_dit.sampling.sample_file import SHARD, SampleFile, read_settings, write_samples

SETTINGS = {"checkpoint": "abc", "steps": 4, "cfg_interval": (0.1, 0.9), "path": "runs/a"}


def image(number: int) -> np.ndarray:
    return np.full((2, 3, 3), number % 251, dtype=np.uint8)


def batches(numbers, size=50):
    for start in range(0, len(numbers), size):
        part = numbers[start : start + size]
        yield np.stack([image(n) for n in part]), np.array([n % 7 for n in part])


def fill(file, processes=1, size=50):
    for process in range(processes):
        shards = file.missing(process, processes)
        file.write(shards, batches([n for shard in shards for n in file.numbers(shard)], size))


def check_whole(path, count):
    with np.load(path, allow_pickle=False) as arrays:
        assert sorted(arrays.files) == ["arr_0", "labels"]
        assert arrays["arr_0"].dtype == np.uint8 and arrays["arr_0"].shape == (count, 2, 3, 3)
        assert np.array_equal(arrays["arr_0"][:, 0, 0, 0], np.arange(count) % 251)
        assert np.array_equal(arrays["labels"], np.arange(count) % 7)


@pytest.mark.parametrize(("processes", "size"), [(1, 50), (2, 1), (3, 300)])
def test_any_number_of_processes_and_batch_size_writes_the_same_file(processes, size, tmp_path):
    file = SampleFile(tmp_path / "s.npz", 5 * SHARD + 3, SETTINGS)
    file.open()
    fill(file, processes, size)
    file.merge()
    check_whole(file.path, 5 * SHARD + 3)
    assert file.complete and not file.parts.exists()
    assert read_settings(file.path) == json.loads(json.dumps(SETTINGS))


def test_an_interrupted_file_goes_on_where_it_stopped(tmp_path):
    file = SampleFile(tmp_path / "s.npz", 3 * SHARD, SETTINGS)
    file.open()

    def killed(numbers):
        for number, batch in enumerate(batches(numbers)):
            if number == 4:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        file.write(file.missing(), killed(list(range(3 * SHARD))))
    again = SampleFile(tmp_path / "s.npz", 3 * SHARD, SETTINGS | {"path": "moved/a"})
    again.check()
    assert again.missing() == [1, 2]
    assert not file.path.exists()
    fill(again)
    again.merge()
    check_whole(again.path, 3 * SHARD)


def test_settings_are_written_by_the_first_process_alone(tmp_path):
    file = SampleFile(tmp_path / "s.npz", 3, SETTINGS)
    file.open()
    written = file.parts / "settings.json"
    before = written.stat()
    SampleFile(tmp_path / "s.npz", 3, SETTINGS | {"path": "moved/a"}).open()
    assert written.stat().st_ino == before.st_ino
    written.write_text('{"steps"')
    file.open()
    assert json.loads(written.read_text())["steps"] == 4


def test_temporary_names_of_machines_with_the_same_process_number_differ(tmp_path):
    with replacing(tmp_path / "a") as file, replacing(tmp_path / "a") as other:
        file.write(b"first")
        other.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first"  # the last to be renamed
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_file_of_other_settings_is_not_continued(tmp_path):
    file = SampleFile(tmp_path / "s.npz", 3, SETTINGS)
    file.open()
    other = SampleFile(tmp_path / "s.npz", 3, SETTINGS | {"steps": 5})
    with pytest.raises(UserError, match="begun with steps 4, now 5"):
        other.check()
    fill(file)
    file.merge()
    with pytest.raises(UserError, match="begun with steps 4, now 5"):
        other.check()
    file.path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="has no settings beside it"):
        file.check()


def test_a_file_that_does_not_fit_is_refused(tmp_path, monkeypatch):
    """It is needed twice until the shards are joined; those that are there take no more."""
    file = SampleFile(tmp_path / "new" / "s.npz", 2 * SHARD, SETTINGS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3 * SHARD * 10**9))
    with pytest.raises(
        UserError, match=r"no room for .*s.npz: 256.00 GB, 512.00 GB until .* \(384.00 GB free"
    ):
        file.room(10**9)
    assert list(tmp_path.iterdir()) == []
    file.open()
    file.write([0], batches(list(range(SHARD))))
    assert "384.00 GB until" in file.room(10**9)


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """The join holds a shard, not the file: 20 shards of 1.5 MiB within 6 MiB."""
    count, shape = 20 * SHARD, (64, 64, 3)
    file = SampleFile(tmp_path / "s.npz", count, SETTINGS)
    file.open()
    blank = np.zeros((SHARD, *shape), dtype=np.uint8)
    tracemalloc.start()
    file.write(file.missing(), ((blank, np.zeros(SHARD)) for _ in range(20)))
    file.merge()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert file.path.stat().st_size > 20 * blank.nbytes
    assert peak < 4 * blank.nbytes


def test_samples_in_memory_are_written_in_the_same_format(tmp_path):
    images, labels = next(batches(range(5)))
    write_samples(tmp_path / "new" / "s.npz", images, labels, SETTINGS)
    check_whole(tmp_path / "new" / "s.npz", 5)

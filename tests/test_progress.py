"""The progress bar where no terminal shows it."""

from gspn_dit.processes import progress_bar


def test_a_log_gets_few_lines(capsys):
    with progress_bar(total=100_000) as bar:
        for _ in range(100_000):
            bar.update()
    drawn = capsys.readouterr().err.split("\r")
    assert 2 <= len(drawn) <= 4
    assert "100000/100000" in drawn[-1]

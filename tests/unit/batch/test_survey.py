import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.batch.rows import batch_row, write_rows

from chorus_cluster.batch.errors import InputUnusable
from chorus_cluster.batch.survey import check_unchanged, open_input, survey_input


def test_counts_rows_and_finds_repeats_beyond_the_first_use(tmp_path: Path) -> None:
    rows = [batch_row("a"), b"", batch_row("b"), b"{broken", batch_row("a"), b"  \r", batch_row("a"), batch_row("c")]
    survey = survey_input(write_rows(tmp_path / "IN.jsonl", rows))
    assert (survey.num_lines, survey.num_rows) == (8, 6)
    assert [number for number in range(9) if number in survey.repeats] == [5, 7]


def test_the_fingerprint_follows_the_content_alone(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "IN.jsonl", [batch_row("a"), batch_row("b")])
    first = survey_input(path)
    os.utime(path, (1, 1))
    assert survey_input(path).fingerprint == first.fingerprint
    path.write_bytes(path.read_bytes() + b"\n")
    assert survey_input(path).fingerprint != first.fingerprint


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    survey = survey_input(write_rows(tmp_path / "IN.jsonl", []))
    assert (survey.num_lines, survey.num_rows, len(survey.repeats)) == (0, 0, 0)


@given(ids=st.lists(st.sampled_from("abcdefgh"), max_size=30))
def test_equal_hashes_alone_do_not_make_a_repeat(ids: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("survey") / "IN.jsonl"
    path.write_bytes(b"".join(b'{"custom_id": "%b"}\n' % name.encode() for name in ids))
    survey = survey_input(path)
    expected = [number for number, name in enumerate(ids, 1) if name in ids[: number - 1]]
    assert [number for number in range(len(ids) + 1) if number in survey.repeats] == expected


def test_a_missing_input_and_a_pipe_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputUnusable, match="No such file"):
        survey_input(tmp_path / "none.jsonl")
    with pytest.raises(InputUnusable, match="Is a directory"):
        survey_input(tmp_path)
    with pytest.raises(InputUnusable, match="not a regular file"):
        survey_input(Path(os.devnull))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputUnusable, match="not a regular file"):
        survey_input(tmp_path / "pipe")


def test_a_change_during_the_job_is_noticed(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "IN.jsonl", [batch_row("a")])
    survey = survey_input(path)
    with open_input(path) as file:
        check_unchanged(survey, file, path)
        with path.open("ab") as writer:
            writer.write(b"x")
        with pytest.raises(InputUnusable, match="changed while it was read"):
            check_unchanged(survey, file, path)

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.paper.cell import ALL_EXHIBITS, SCALES
from results.paper.index import INDEX_FILE, Entry, Index, StudyEntry, read_index, write_index
from results.records.schema import RecordError

ENTRY = Entry("table1", "llama2-3b", "on", "tpi", ("model=llama2-3b",), "tpi-0123456789abcdef")
# Names have no NUL in them (`Fields.take_str`), and a file of JSON no half of a surrogate pair.
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)


@given(
    scale=st.sampled_from(SCALES),
    entries=st.lists(
        st.builds(
            Entry,
            exhibit=st.sampled_from(ALL_EXHIBITS),
            row=TEXT,
            column=TEXT,
            system=TEXT,
            overrides=st.lists(st.text(max_size=20)).map(tuple),
            run_id=st.sampled_from(["", ENTRY.run_id]),
            refusal=st.text(max_size=20),
            failure=st.text(max_size=20),
            source=st.text(max_size=20),
        ),
        max_size=5,
    ),
)
def test_what_is_written_is_read_back(tmp_path_factory, scale, entries):
    folder = tmp_path_factory.mktemp("index")
    write_index(folder, Index(scale, tuple(entries)))
    assert read_index(folder) == Index(scale, tuple(entries))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 0}, "not an index of version 1"),
        ({"scale": "huge"}, "scale must be smoke | small | full"),
        ({"entries": [{"exhibit": "table9"}]}, "exhibit must be"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tmp_path, change, words):
    write_index(tmp_path, Index("small", (ENTRY,)))
    path = tmp_path / INDEX_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RecordError, match="index .*" + words.replace("|", r"\|")) as raised:
        read_index(tmp_path)
    assert str(path) in str(raised.value)


def test_studies_and_sources_are_read_back(tmp_path):
    studies = (StudyEntry("allreduce", "figure3", "no Docker"),)
    index = Index("small", (ENTRY,), studies, {"tpi": "0123456789ab"})
    write_index(tmp_path, index)
    assert read_index(tmp_path) == index


def test_an_older_file_is_read(tmp_path):
    write_index(tmp_path, Index("small", (ENTRY,)))
    path = tmp_path / INDEX_FILE
    raw = json.loads(path.read_text())
    del raw["studies"], raw["sources"], raw["entries"][0]["failure"], raw["entries"][0]["source"]
    path.write_text(json.dumps(raw))
    assert read_index(tmp_path) == Index("small", (ENTRY,))


@pytest.mark.parametrize(
    ("overrides", "is_simulated"),
    [
        (("testbed=sim",), True),
        (("testbed=klonet", "testbed.backend=sim"), True),
        (("testbed=sim", "testbed.backend=docker"), False),
        (("testbed=docker", "model=sim"), False),
    ],
)
def test_the_overrides_say_what_is_simulated(overrides, is_simulated):
    assert Entry("table1", "a", "on", "tpi", overrides).is_simulated is is_simulated


@pytest.mark.parametrize(
    "run_id", ["../x", "..", "a/b", "tpi-1", "tpi", "a\0b-0123456789abcdef", "run.json"]
)
def test_a_run_id_stays_in_its_folder(tmp_path, run_id):
    write_index(tmp_path, Index("small", (Entry("table1", "a", "b", "tpi", (), run_id),)))
    with pytest.raises(RecordError, match="run_id"):
        read_index(tmp_path)


def test_nested_beyond_reason_is_refused(tmp_path):
    (tmp_path / INDEX_FILE).write_text("[" * 200_000)
    with pytest.raises(RecordError, match="index"):
        read_index(tmp_path)


def test_half_written_and_missing_are_refused(tmp_path):
    with pytest.raises(RecordError, match=r"nothing was run at this scale yet: make paper"):
        read_index(tmp_path)
    with pytest.raises(RecordError, match="yet: make paper SCALE=small"):
        read_index(tmp_path / "small")
    (tmp_path / INDEX_FILE).write_text('{"schema_version": 1, "sca')
    with pytest.raises(RecordError, match="index"):
        read_index(tmp_path)

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from results.cells import EXHIBITS, SCALES
from results.index import INDEX_FILE, Entry, Index, read_index, write_index
from results.schema import RecordError

ENTRY = Entry("table1", "llama2-3b", "on", "tpi", ("model=llama2-3b",), "tpi-0123456789abcdef")
# Names have no NUL in them (`Fields.take_str`).
TEXT = st.text(st.characters(exclude_characters="\0"), min_size=1, max_size=20)


@given(
    scale=st.sampled_from(SCALES),
    entries=st.lists(
        st.builds(
            Entry,
            exhibit=st.sampled_from(EXHIBITS),
            row=TEXT,
            column=TEXT,
            system=TEXT,
            overrides=st.lists(st.text(max_size=20)).map(tuple),
            run_id=st.sampled_from(["", ENTRY.run_id]),
            refusal=st.text(max_size=20),
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


@pytest.mark.parametrize("run_id", ["../x", "..", "a/b"])
def test_a_run_id_stays_in_its_folder(tmp_path, run_id):
    write_index(tmp_path, Index("small", (Entry("table1", "a", "b", "tpi", (), run_id),)))
    with pytest.raises(RecordError, match="run_id"):
        read_index(tmp_path)


def test_half_written_and_missing_are_refused(tmp_path):
    with pytest.raises(RecordError, match="index"):
        read_index(tmp_path)
    (tmp_path / INDEX_FILE).write_text('{"schema_version": 1, "sca')
    with pytest.raises(RecordError, match="index"):
        read_index(tmp_path)

from harness.run.scratch import scratch_folder


def test_it_is_gone_with_all_that_is_in_it(tmp_path):
    with scratch_folder(tmp_path / "new") as folder:
        (folder / "device-0").mkdir()
        (folder / "device-0" / "offload.dat").write_bytes(b"x" * 100)
        assert folder.parent == tmp_path / "new"
    assert list((tmp_path / "new").iterdir()) == []


def test_what_a_killed_run_left_goes_and_what_is_in_use_stays(tmp_path):
    left = tmp_path / ".run-left"
    left.mkdir()
    (left / "offload.dat").write_bytes(b"x")
    (tmp_path / "tiny-s0").mkdir()
    with scratch_folder(tmp_path) as one:
        assert not left.exists()
        with scratch_folder(tmp_path) as two:
            assert one.exists()
            assert one != two
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-s0"]
